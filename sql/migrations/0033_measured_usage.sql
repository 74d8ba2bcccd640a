-- What instances use, as the instance-provisioner measures it.

alter table private.provisioning add column volumes jsonb not null default '{}';

comment on column private.provisioning.volumes is
  'Claim -> bytes used when it was measured last: one that no pod mounts keeps its value.';

alter table public.instances
  add column measured_at timestamptz,
  -- squawk-ignore ban-drop-constraint
  drop constraint instances_times_readable,
  add constraint instances_times_readable check (
    least(
      last_health_check, last_active_at, provisioned_at, started_at, stopped_at, deprovisioned_at,
      remove_after, measured_at, created_at, updated_at
    ) >= '0001-01-02 00:00+00'
    and greatest(
      last_health_check, last_active_at, provisioned_at, started_at, stopped_at, deprovisioned_at,
      remove_after, measured_at, created_at, updated_at
    ) <= '9999-12-31 00:00+00'
  ) not valid;

comment on column public.instances.measured_at is
  'When what it uses was measured last; null = never, as where the stack measures nothing.';
comment on column public.instances.cpu_used is
  'CPU cores in use when it was measured last (measured_at), as in the next two.';
comment on column public.instances.memory_used_mb is 'Mebibytes, without what the kernel may take back.';
comment on column public.instances.storage_used_gb is
  'Gibibytes in its volumes. What calculate_storage_usage() adds up.';
