-- What is written is bounded by what reads it. Of the clients' languages the narrowest, Python, knows the
-- years 1 to 9999, and no infinity: one such value broke the reading of the whole table. The bounds keep
-- a day's distance, since a client reads in a time zone of its own. Rows that exist are checked by the
-- next file, while others read and write.

alter table public.accounts add constraint accounts_times_readable check (
  least(created_at, updated_at) >= '0001-01-02 00:00+00'
  and greatest(created_at, updated_at) <= '9999-12-31 00:00+00'
) not valid;

alter table public.subscriptions add constraint subscriptions_times_readable check (
  least(
    trial_started_at, trial_ends_at, current_period_start, current_period_end, cancelled_at, live_until,
    created_at, updated_at
  ) >= '0001-01-02 00:00+00'
  and greatest(
    trial_started_at, trial_ends_at, current_period_start, current_period_end, cancelled_at, live_until,
    created_at, updated_at
  ) <= '9999-12-31 00:00+00'
) not valid;

alter table public.instances add constraint instances_times_readable check (
  least(
    last_health_check, last_active_at, provisioned_at, started_at, stopped_at, deprovisioned_at,
    created_at, updated_at
  ) >= '0001-01-02 00:00+00'
  and greatest(
    last_health_check, last_active_at, provisioned_at, started_at, stopped_at, deprovisioned_at,
    created_at, updated_at
  ) <= '9999-12-31 00:00+00'
) not valid;

alter table public.audit_logs add constraint audit_logs_times_readable check (
  created_at between '0001-01-02 00:00+00' and '9999-12-31 00:00+00'
) not valid;

alter table public.support_tickets add constraint support_tickets_times_readable check (
  least(resolved_at, created_at, updated_at) >= '0001-01-02 00:00+00'
  and greatest(resolved_at, created_at, updated_at) <= '9999-12-31 00:00+00'
) not valid;

alter table public.instance_backups add constraint instance_backups_times_readable check (
  least(started_at, completed_at, expires_at, created_at, updated_at) >= '0001-01-02 00:00+00'
  and greatest(started_at, completed_at, expires_at, created_at, updated_at) <= '9999-12-31 00:00+00'
) not valid;

alter table public.api_keys add constraint api_keys_times_readable check (
  least(expires_at, last_used_at, created_at, updated_at) >= '0001-01-02 00:00+00'
  and greatest(expires_at, last_used_at, created_at, updated_at) <= '9999-12-31 00:00+00'
) not valid;

-- A flat list of known permissions, each at most once: as many elements as there are different ones.
alter table public.api_keys
  -- squawk-ignore ban-drop-constraint
  drop constraint api_keys_permissions_known,
  add constraint api_keys_permissions_known check (
    array_ndims(permissions) is not distinct from 1
    and cardinality(permissions)
        = coalesce('read' = any (permissions), false)::int
        + coalesce('write' = any (permissions), false)::int
        + coalesce('execute' = any (permissions), false)::int
        + coalesce('admin' = any (permissions), false)::int
  ) not valid;

comment on column public.api_keys.permissions is
  'What the key may do, each permission once. Users may grant all but admin, if the plan has api_access.';

-- The address that a request names first is the client's own statement.
alter table public.audit_logs
  add column forwarded_for text,
  add constraint audit_logs_forwarded_for_length check (char_length(forwarded_for) <= 500) not valid;

comment on column public.audit_logs.forwarded_for is
  'The x-forwarded-for of the request, cut to 500 characters, as it was stated: the client may have written its beginning, and each proxy appends whom it was called by. Only what your own proxies append is known.';
comment on column public.audit_logs.ip_address is
  'Where it came from, by a service that knows it. Null where nobody does, as for what the triggers write.';
comment on column public.audit_logs.user_agent is 'As the client stated it.';

comment on column public.accounts.email is
  'Follows the auth user''s email; unique whatever its case. Where another account had that email first, the user''s id at duplicate.invalid, until the user''s email changes.';
comment on column public.support_tickets.status is 'Users may set it to closed, and to nothing else.';
