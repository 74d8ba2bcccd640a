-- API keys. The database never sees a key, only its hash; and the hash lies where no user can read it.

create table public.api_keys (
  id uuid primary key default gen_random_uuid(),
  account_id uuid not null default auth.uid() references public.accounts (id) on delete cascade,
  name text not null,
  key_prefix text not null,
  key_hash text,
  permissions text[] not null default '{read}',
  expires_at timestamptz,
  last_used_at timestamptz,
  is_active boolean not null default true,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  constraint api_keys_name_length check (btrim(name) <> '' and char_length(name) <= 100),
  constraint api_keys_prefix_is_8_characters check (key_prefix ~ '^\S{8}$'),
  -- A trigger takes the hash out of the row; should it ever be missing, nothing is stored.
  constraint api_keys_hash_is_not_here check (key_hash is null),
  constraint api_keys_permissions_known check (
    permissions <@ array['read', 'write', 'execute', 'admin'] and cardinality(permissions) > 0
  ),
  constraint api_keys_expires_after_creation check (expires_at > created_at)
);

create index api_keys_account_id_idx on public.api_keys (account_id);
create index api_keys_expires_at_idx on public.api_keys (expires_at) where is_active;

alter table public.api_keys enable row level security;

comment on table public.api_keys is
  'API keys of customers: the 8-character prefix to recognise one by; the hash is in private.api_key_hashes.';
comment on column public.api_keys.key_prefix is 'The first 8 characters of the key.';
comment on column public.api_keys.key_hash is
  'Write-only: the SHA-256 of the key as 64 hexadecimal digits, given when the key is created and moved away by a trigger. Always null when read.';
comment on column public.api_keys.permissions is
  'What the key may do. Users may grant all but admin, if the plan has api_access.';
comment on column public.api_keys.expires_at is 'Null = never.';
comment on column public.api_keys.is_active is 'False once revoked; a user cannot undo that.';

create table private.api_key_hashes (
  -- Deferred: the trigger stores the hash a moment before the key's own row exists.
  api_key_id uuid primary key
    references public.api_keys (id) on delete cascade deferrable initially deferred,
  key_hash text not null,
  constraint api_key_hashes_key_hash_key unique (key_hash),
  constraint api_key_hashes_key_hash_is_sha256 check (key_hash ~ '^[0-9a-f]{64}$')
);

alter table private.api_key_hashes enable row level security;

comment on table private.api_key_hashes is 'The SHA-256 hashes of API keys, kept apart so that no user can read one.';
