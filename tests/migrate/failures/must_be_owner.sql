set local role pg_monitor;
alter table orders add column shipped_at timestamptz;
