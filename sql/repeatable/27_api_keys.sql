-- api_keys: created, renamed and revoked by their owner. The hash goes in, never out.

create or replace function private.store_api_key_hash() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
  -- No message names the value: it may be the key itself, sent by mistake.
  if new.key_hash is null or new.key_hash !~ '^[0-9a-f]{64}$' then
    raise exception 'an API key is stored by its SHA-256 hash'
      using errcode = 'check_violation',
            hint = 'Send key_hash as 64 lower-case hexadecimal digits, and never the key itself.';
  end if;

  insert into private.api_key_hashes (api_key_id, key_hash)
  values (new.id, new.key_hash)
  on conflict (key_hash) do nothing;
  if not found then
    raise exception 'this API key is already registered'
      using errcode = 'unique_violation',
            hint = 'Create a new key from at least 128 random bits.';
  end if;

  new.key_hash := null;
  return new;
end
$$;

create or replace function private.check_api_key_permissions() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
  perform private.refuse_erased(new.account_id);
  if private.acting_as_user() then
    if 'admin' = any (new.permissions) then
      raise exception 'users cannot grant the permission admin'
        using errcode = 'insufficient_privilege',
              hint = 'Choose from read, write and execute.';
    end if;
    if not public.check_user_permission(new.account_id, 'api_access') then
      raise exception 'API keys need a plan with API access'
        using errcode = 'insufficient_privilege',
              hint = 'Upgrade the plan (api_access in the subscription''s features).';
    end if;
  end if;
  return null;
end
$$;

create or replace function private.keep_api_key_revoked() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
  if private.acting_as_user() then
    raise exception 'API key % was revoked and stays revoked', old.id
      using errcode = 'insufficient_privilege',
            hint = 'Create a new key.';
  end if;
  return new;
end
$$;

comment on function private.store_api_key_hash() is
  'Moves the hash of a new key to private.api_key_hashes.';
comment on function private.check_api_key_permissions() is
  'Bounds what a user may grant: never admin, and nothing without api_access in the plan. Services and service_role may grant any known permission.';
comment on function private.keep_api_key_revoked() is
  'No user makes a revoked key valid again.';

revoke all on function
  private.store_api_key_hash(),
  private.check_api_key_permissions(),
  private.keep_api_key_revoked()
from public, anon, authenticated, service_role;

create or replace trigger api_keys_store_hash
  before insert on public.api_keys
  for each row execute function private.store_api_key_hash();

create or replace trigger api_keys_keep_revoked
  before update of is_active on public.api_keys
  for each row when (new.is_active and not old.is_active)
  execute function private.keep_api_key_revoked();

-- Being used is no change of the key.
create or replace trigger api_keys_set_updated_at
  before update on public.api_keys
  for each row when (old.last_used_at is not distinct from new.last_used_at)
  execute function private.set_updated_at();

create or replace trigger api_keys_set_updated_at_when_used
  before update on public.api_keys
  for each row when (old.last_used_at is distinct from new.last_used_at)
  execute function private.set_updated_at('last_used_at', 'updated_at');

create or replace trigger api_keys_check_permissions
  after insert or update of permissions on public.api_keys
  for each row execute function private.check_api_key_permissions();

create or replace trigger api_keys_audit
  after insert or update or delete on public.api_keys
  for each row execute function private.audit_change(
    'api_key', 'security', 'key_prefix permissions is_active expires_at', 'last_used_at'
  );

revoke all on public.api_keys from public, anon, authenticated, service_role;
grant
  select,
  insert (account_id, name, key_prefix, key_hash, permissions, expires_at),
  update (name, is_active)
on public.api_keys to authenticated;
grant select, insert, update, delete on public.api_keys to service_role;

drop policy if exists "users read their own keys" on public.api_keys;
create policy "users read their own keys" on public.api_keys
  for select to authenticated
  using (account_id = (select auth.uid()));

drop policy if exists "users create keys of their own" on public.api_keys;
create policy "users create keys of their own" on public.api_keys
  for insert to authenticated
  with check (account_id = (select auth.uid()));

drop policy if exists "users rename and revoke their own keys" on public.api_keys;
create policy "users rename and revoke their own keys" on public.api_keys
  for update to authenticated
  using (account_id = (select auth.uid()))
  with check (account_id = (select auth.uid()));

drop policy if exists "services read every key" on public.api_keys;
create policy "services read every key" on public.api_keys
  for select to platform_service
  using (true);

drop policy if exists "service_role has full access" on public.api_keys;
create policy "service_role has full access" on public.api_keys
  for all to service_role
  using (true)
  with check (true);
