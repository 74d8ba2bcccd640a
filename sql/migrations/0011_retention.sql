-- How long data is kept, as data: cleanup_expired_data() removes what is older.
-- squawk-ignore-file prefer-bigint-over-int

create table private.retention (
  table_name text primary key,
  keep_days integer not null,
  constraint retention_keep_days_not_negative check (keep_days >= 0)
);

alter table private.retention enable row level security;

comment on table private.retention is 'How long cleanup_expired_data() leaves rows alone.';
comment on column private.retention.keep_days is
  'Days after they were written; for backups and API keys, days after their expires_at.';

insert into private.retention (table_name, keep_days)
values
  ('audit_logs', 90),
  ('usage_metrics', 365),
  ('instance_backups', 0),
  ('api_keys', 0),
  -- Stripe can be asked to send an event again for 30 days.
  ('stripe_events', 90);
