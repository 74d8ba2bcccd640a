-- Who did what. Rows are plain facts without foreign keys: they outlive the account, the instance and
-- the user that they speak of. Erasing a person's traces here is a deliberate act of service_role.

create table public.audit_logs (
  id uuid primary key default gen_random_uuid(),
  account_id uuid,
  -- The role that was set, else the one that logged in: current_user would name the owner of the
  -- trigger function.
  actor_role text not null default coalesce(nullif(current_setting('role', true), 'none'), session_user),
  actor_user_id uuid,
  action text not null,
  category text not null,
  resource_type text,
  resource_id uuid,
  details jsonb not null default '{}',
  ip_address inet,
  user_agent text,
  success boolean not null default true,
  created_at timestamptz not null default now(),
  constraint audit_logs_action_not_empty check (action <> ''),
  constraint audit_logs_category_not_empty check (category <> ''),
  constraint audit_logs_details_is_object check (jsonb_typeof(details) = 'object')
);

create index audit_logs_account_id_created_at_idx on public.audit_logs (account_id, created_at);
create index audit_logs_created_at_idx on public.audit_logs (created_at);

alter table public.audit_logs enable row level security;

comment on table public.audit_logs is
  'Who did what to which resource. Users read their own, services append, service_role erases.';
comment on column public.audit_logs.account_id is
  'The customer concerned, null for the platform''s own doings. No foreign key: survives the account.';
comment on column public.audit_logs.actor_role is 'The database role that acted.';
comment on column public.audit_logs.actor_user_id is 'The auth user on whose behalf it acted, if any.';
comment on column public.audit_logs.action is 'subject.verb, for example subscription.updated.';
comment on column public.audit_logs.category is 'What the database itself writes is of account, billing, instance, security or usage.';
comment on column public.audit_logs.resource_id is 'Of what was acted on. No foreign key: survives it.';
comment on column public.audit_logs.details is
  'For a change: changed (column names), old and new (values of the columns that hold nothing personal or secret).';
comment on column public.audit_logs.ip_address is 'As the API gateway''s headers state it.';
