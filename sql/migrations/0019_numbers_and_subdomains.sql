-- No NaN where a number is added up or read by a client: one of them makes every sum NaN, and no JSON
-- has it. (An infinity does not fit into numeric(p, s).) Rows that exist are checked by the next file,
-- while others read and write.

alter table private.tiers add constraint tiers_numbers_finite check (cpu_limit <> 'NaN') not valid;

alter table public.subscriptions add constraint subscriptions_numbers_finite check (
  storage_used_gb <> 'NaN'
) not valid;

alter table public.instances add constraint instances_numbers_finite check (
  cpu_limit <> 'NaN' and cpu_used <> 'NaN' and storage_used_gb <> 'NaN'
) not valid;

-- squawk-ignore ban-alter-domain-with-add-constraint
alter domain private.gigabytes add constraint gigabytes_finite check (value <> 'NaN') not valid;

-- Names that customers would take for the platform's own.
create table private.reserved_subdomains (
  subdomain text primary key
);

alter table private.reserved_subdomains enable row level security;

comment on table private.reserved_subdomains is
  'Subdomains that no instance gets. Instances that had one before it was reserved keep it.';

insert into private.reserved_subdomains (subdomain)
values
  ('account'), ('accounts'), ('admin'), ('administrator'), ('api'), ('app'), ('assets'), ('auth'),
  ('autoconfig'), ('autodiscover'), ('billing'), ('blog'), ('cdn'), ('console'), ('dashboard'), ('db'),
  ('docs'), ('ftp'), ('grafana'), ('help'), ('id'), ('imap'), ('internal'), ('localhost'), ('login'),
  ('mail'), ('matrix'), ('mta-sts'), ('ns1'), ('ns2'), ('pop'), ('portal'), ('postmaster'), ('root'),
  ('security'), ('smtp'), ('sso'), ('static'), ('status'), ('support'), ('webhook'), ('webhooks'),
  ('webmaster'), ('well-known'), ('wpad'), ('www');
