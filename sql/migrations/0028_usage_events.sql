-- Which events record_usage has counted, so that one that is sent again counts no more.

create table private.usage_events (
  instance_id uuid not null,
  event_id text not null,
  recorded_at timestamptz not null default now(),
  primary key (instance_id, event_id)
)
-- A night's retention is vacuumed before the next one, so that its room is used again.
with (autovacuum_vacuum_scale_factor = 0.01);

-- For retention. A btree would cost each event as much as the key does.
create index usage_events_recorded_at_idx on private.usage_events using brin (recorded_at)
  with (pages_per_range = 32, autosummarize = on);

alter table private.usage_events enable row level security;

comment on table private.usage_events is
  'Ids of the events that record_usage() has counted. Without a foreign key, which would cost each event as much as its row: what is left of a removed instance goes by retention.';

insert into private.retention (table_name, keep_days)
values ('usage_events', 3);
