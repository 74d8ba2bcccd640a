-- A removed customer's subdomain is free again, after a while: links, cookies and invitations that are
-- still about would lead to somebody else's instance. How long that is, private.retention says. The
-- record has no foreign key: it outlives the account.

create table private.released_subdomains (
  subdomain text primary key,
  account_id uuid not null,
  released_at timestamptz not null default now()
);

alter table private.released_subdomains enable row level security;

comment on table private.released_subdomains is
  'Subdomains that an instance gave up, by its removal or a new name: until they are free again only the same account''s instances get them. To free one at once, delete its row.';
comment on column private.released_subdomains.account_id is 'Whose it was last; the account may be gone.';

insert into private.retention (table_name, keep_days) values ('released_subdomains', 90);

comment on column private.retention.keep_days is
  'Days after they were written; for backups and API keys, days after their expires_at; of stripe_customers only those without an account; of released_subdomains how long they are kept for who had them.';

insert into private.released_subdomains (subdomain, account_id, released_at)
select subdomain, account_id, coalesce(deprovisioned_at, updated_at)
  from public.instances
 where status = 'deprovisioned';

-- Of the instances that are there; before, also of those that were.
alter table public.instances
  -- squawk-ignore ban-drop-constraint
  drop constraint instances_subdomain_key;
-- migrate: allow create-index: some thousand rows at most, and one for each customer
create unique index instances_subdomain_key on public.instances (subdomain)
  where status <> 'deprovisioned';

comment on column public.instances.app_name is
  'The Dokku app or Helm release. Never another instance''s, also after a removal: its volumes may still be there.';
comment on column public.instances.subdomain is
  'Of one instance at a time, and see private.released_subdomains.';
