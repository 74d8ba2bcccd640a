-- accounts: created with the auth user, updated by their owner in two columns, by stripe-handler in
-- what Stripe knows.

-- Users without an email (anonymous, phone) get their account when they state one.
create or replace function private.sync_account() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  profile constant jsonb := new.raw_user_meta_data;
begin
  if btrim(new.email) <> '' then
    -- The profile is what the user or an identity provider wrote: cut to fit, never a reason to
    -- refuse a sign-up.
    insert into public.accounts as account (id, email, full_name, company_name)
    values (
      new.id,
      btrim(new.email),
      nullif(left(btrim(coalesce(profile ->> 'full_name', profile ->> 'name')), 200), ''),
      nullif(left(btrim(profile ->> 'company_name'), 200), '')
    )
    on conflict (id) do update
      set email = excluded.email
      where account.email <> excluded.email;
  end if;
  return null;
end
$$;

comment on function private.sync_account() is
  'A new user gets an account, whose email follows the user''s.';

revoke all on function private.sync_account() from public, anon, authenticated, service_role;

-- On Supabase we may put triggers on auth.users, but not own or drop them: rename this one never.
create or replace trigger mindroom_sync_account
  after insert or update of email on auth.users
  for each row execute function private.sync_account();

create or replace trigger accounts_set_updated_at
  before update on public.accounts
  for each row execute function private.set_updated_at();

create or replace trigger accounts_audit
  after insert or update or delete on public.accounts
  for each row execute function private.audit_change('account', 'account', '', '');

revoke all on public.accounts from public, anon, authenticated, service_role;
grant select, update (full_name, company_name) on public.accounts to authenticated;
grant select, insert, update, delete on public.accounts to service_role;

drop policy if exists "users read their own account" on public.accounts;
create policy "users read their own account" on public.accounts
  for select to authenticated
  using (id = (select auth.uid()));

drop policy if exists "users update their own account" on public.accounts;
create policy "users update their own account" on public.accounts
  for update to authenticated
  using (id = (select auth.uid()))
  with check (id = (select auth.uid()));

drop policy if exists "services read every account" on public.accounts;
create policy "services read every account" on public.accounts
  for select to platform_service
  using (true);

drop policy if exists "services create accounts" on public.accounts;
create policy "services create accounts" on public.accounts
  for insert to platform_service
  with check (true);

drop policy if exists "services update every account" on public.accounts;
create policy "services update every account" on public.accounts
  for update to platform_service
  using (true)
  with check (true);

drop policy if exists "service_role has full access" on public.accounts;
create policy "service_role has full access" on public.accounts
  for all to service_role
  using (true)
  with check (true);
