set local lock_timeout = '20ms';

alter table orders add column shipped_at timestamptz;
