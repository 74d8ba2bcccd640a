-- Backups of instances: a user may ask for one, the instance-provisioner makes it and says where it is.
-- Limits, sizes and one day's counts stay far below 2^31.
-- squawk-ignore-file prefer-bigint-over-int

create table public.instance_backups (
  id uuid primary key default gen_random_uuid(),
  account_id uuid not null default auth.uid(),
  instance_id uuid not null,
  backup_type text not null default 'manual',
  status text not null default 'pending',
  location text,
  size_bytes bigint,
  retention_days integer not null,
  started_at timestamptz,
  completed_at timestamptz,
  error_message text,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  -- Computed in UTC, because a day of the session's time zone may have 23 or 25 hours.
  expires_at timestamptz not null generated always as (
    (created_at at time zone 'utc' + make_interval(days => retention_days)) at time zone 'utc'
  ) stored,
  constraint instance_backups_instance_fkey foreign key (account_id, instance_id)
    references public.instances (account_id, id) on delete cascade,
  constraint instance_backups_type_known check (backup_type in ('automatic', 'manual', 'pre_upgrade')),
  constraint instance_backups_status_known check (
    status in ('pending', 'in_progress', 'completed', 'failed')
  ),
  constraint instance_backups_size_not_negative check (size_bytes >= 0),
  constraint instance_backups_retention_known check (retention_days between 1 and 36500)
);

create index instance_backups_account_id_instance_id_idx
  on public.instance_backups (account_id, instance_id);
create index instance_backups_expires_at_idx on public.instance_backups (expires_at);

alter table public.instance_backups enable row level security;

comment on table public.instance_backups is 'Backups of instances, automatic or asked for.';
comment on column public.instance_backups.backup_type is 'A user asks for manual ones only.';
comment on column public.instance_backups.location is 'Where the backup lies; set by the service.';
comment on column public.instance_backups.retention_days is 'From the tier''s backup_retention_days unless stated.';
comment on column public.instance_backups.expires_at is 'created_at plus retention_days; cannot be written.';
