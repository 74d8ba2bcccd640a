-- Accounts whose owners asked to be forgotten, and how far that has come.

create table private.erasures (
  account_id uuid primary key,
  requested_at timestamptz not null default now(),
  volumes_deleted_at timestamptz,
  erased_at timestamptz
);

create index erasures_pending_idx on private.erasures (account_id) where erased_at is null;

alter table private.erasures enable row level security;

comment on table private.erasures is
  'The accounts that erase_account() was called for. Without a foreign key: it outlives the account.';
comment on column private.erasures.volumes_deleted_at is
  'When the instance-provisioner found no volume of the account any more; counts for the instances that were deprovisioned before.';
comment on column private.erasures.erased_at is 'When the last row was deleted; null until then.';
