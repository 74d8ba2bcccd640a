-- The deployments of the customers. The row is the desired state, which the instance-provisioner makes
-- true. What an instance keeps secret is in a table of its own: users read every column of instances.
-- Limits, sizes and one day's counts stay far below 2^31.
-- squawk-ignore-file prefer-bigint-over-int

create table public.instances (
  id uuid primary key default gen_random_uuid(),
  account_id uuid not null references public.accounts (id) on delete cascade,
  subscription_id uuid not null,
  runtime text not null default 'kubernetes',
  app_name text not null,
  app_config jsonb not null default '{}',
  subdomain text not null,
  status text not null default 'provisioning',
  frontend_url text,
  api_url text,
  matrix_url text,
  config jsonb not null default '{}',
  cpu_limit numeric(5, 2) not null,
  memory_limit_mb integer not null,
  storage_limit_gb integer not null,
  health_status text not null default 'unknown',
  health_details jsonb not null default '{}',
  last_health_check timestamptz,
  error_message text,
  cpu_used numeric(7, 3) not null default 0,
  memory_used_mb integer not null default 0,
  storage_used_gb numeric(12, 3) not null default 0,
  last_active_at timestamptz,
  provisioned_at timestamptz,
  started_at timestamptz,
  stopped_at timestamptz,
  deprovisioned_at timestamptz,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  -- What the composite foreign keys of other tables refer to.
  constraint instances_id_account_id_key unique (id, account_id),
  -- No cascade: a subscription with a history of instances is not deleted by mistake.
  constraint instances_subscription_fkey foreign key (subscription_id, account_id)
    references public.subscriptions (id, account_id),
  constraint instances_app_name_key unique (app_name),
  -- A Helm release name; Dokku's rule for app names is wider.
  constraint instances_app_name_valid check (app_name ~ '^[a-z]([-a-z0-9]{0,51}[a-z0-9])?$'),
  constraint instances_subdomain_key unique (subdomain),
  constraint instances_subdomain_is_dns_label check (
    subdomain ~ '^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$'
  ),
  constraint instances_runtime_known check (runtime in ('dokku', 'kubernetes')),
  constraint instances_status_known check (
    status in (
      'provisioning', 'running', 'stopped', 'failed', 'maintenance', 'deprovisioning', 'deprovisioned'
    )
  ),
  constraint instances_health_status_known check (
    health_status in ('unknown', 'healthy', 'degraded', 'critical')
  ),
  constraint instances_resources_positive check (
    cpu_limit > 0 and memory_limit_mb > 0 and storage_limit_gb > 0
  ),
  constraint instances_usage_not_negative check (
    cpu_used >= 0 and memory_used_mb >= 0 and storage_used_gb >= 0
  )
)
-- Health and activity are written often and are in no index: room on the page keeps them HOT.
with (fillfactor = 80);

create index instances_account_id_idx on public.instances (account_id);
create index instances_subscription_id_account_id_idx on public.instances (subscription_id, account_id);

alter table public.instances enable row level security;

comment on table public.instances is
  'One isolated deployment for a customer: the state that the instance-provisioner makes true. Holds no secret.';
comment on column public.instances.app_name is 'The Dokku app or Helm release.';
comment on column public.instances.app_config is 'The Dokku app''s configuration or Helm values; readable by the customer, so never a secret.';
comment on column public.instances.config is
  'The customer''s own: agents, teams, tools, models, rooms. At most max_agents agents and 1 MiB.';
comment on column public.instances.status is
  'Changes only along private.instance_status_transitions.';
comment on column public.instances.cpu_limit is 'CPU cores. From the tier unless stated, as the other two limits; a change of tier sets all three again.';
comment on column public.instances.health_status is 'Kept by update_instance_health(), with the next two.';
comment on column public.instances.error_message is 'What failed last, in words for people.';
comment on column public.instances.cpu_used is 'CPU cores in use when the instance-provisioner measured last, as in the next two.';
comment on column public.instances.storage_used_gb is 'What calculate_storage_usage() adds up.';
comment on column public.instances.last_active_at is 'Last use by the customer, to a few minutes; health checks do not count.';
comment on column public.instances.provisioned_at is 'When it ran for the first time.';
comment on column public.instances.started_at is 'When it began to run last: for the first time, or after a stop.';
comment on column public.instances.stopped_at is 'When it was stopped last.';

create table private.instance_status_transitions (
  from_status text not null,
  to_status text not null,
  primary key (from_status, to_status)
);

alter table private.instance_status_transitions enable row level security;

comment on table private.instance_status_transitions is
  'The legal changes of instances.status, as data. deprovisioned is final; removal, once begun, only goes on.';

insert into private.instance_status_transitions (from_status, to_status)
values
  ('provisioning', 'running'),
  ('provisioning', 'stopped'),
  ('provisioning', 'failed'),
  ('provisioning', 'deprovisioning'),
  ('running', 'stopped'),
  ('running', 'failed'),
  ('running', 'maintenance'),
  ('running', 'deprovisioning'),
  ('stopped', 'running'),
  ('stopped', 'failed'),
  ('stopped', 'maintenance'),
  ('stopped', 'deprovisioning'),
  ('failed', 'provisioning'),
  ('failed', 'running'),
  ('failed', 'stopped'),
  ('failed', 'maintenance'),
  ('failed', 'deprovisioning'),
  ('maintenance', 'running'),
  ('maintenance', 'stopped'),
  ('maintenance', 'failed'),
  ('maintenance', 'deprovisioning'),
  ('deprovisioning', 'deprovisioned');

create table private.instance_secrets (
  instance_id uuid not null references public.instances (id) on delete cascade,
  name text not null,
  value text not null,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  primary key (instance_id, name),
  -- A key of a Kubernetes Secret; covers names of environment variables.
  constraint instance_secrets_name_valid check (name ~ '^[-._a-zA-Z0-9]{1,253}$')
);

alter table private.instance_secrets enable row level security;

comment on table private.instance_secrets is
  'Tokens and environment values of instances. Only the instance-provisioner reads and writes them.';
comment on column private.instance_secrets.name is 'The key in the instance''s Kubernetes Secret, or the environment variable.';
