-- Backups of this database that were restored elsewhere and found whole.

create table private.database_backups (
  location text primary key,
  taken_at timestamptz not null,
  proven_at timestamptz not null default now(),
  size_bytes bigint not null,
  row_counts jsonb not null,
  constraint database_backups_size_positive check (size_bytes > 0)
);

alter table private.database_backups enable row level security;

comment on table private.database_backups is
  'Backups of this database that ops/database_backup.py has restored into a throwaway server, verified and counted.';
comment on column private.database_backups.location is 'Where its files are kept.';
comment on column private.database_backups.taken_at is 'The moment that it is of.';
comment on column private.database_backups.row_counts is 'Table -> rows.';
