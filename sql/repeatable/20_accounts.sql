-- accounts: created with the auth user, updated by their owner in two columns, by stripe-handler in
-- what Stripe knows.

-- Users without an email (anonymous, phone) get their account when they state one. Supabase lets a user
-- sign up through SSO with an email that another user has. That user's account keeps it, and no account
-- is taken for the other's: an email is what somebody states, and identifies nobody here.
create or replace function private.sync_account() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  profile constant jsonb := new.raw_user_meta_data;
  address text;
begin
  if new.email is null or btrim(new.email) = '' then
    return null;
  end if;
  foreach address in array array[btrim(new.email), new.id || '@duplicate.invalid'] loop
    begin
      -- The profile is what the user or an identity provider wrote: cut to fit, never a reason to
      -- refuse a sign-up.
      insert into public.accounts as account (id, email, full_name, company_name)
      values (
        new.id,
        address,
        nullif(left(btrim(coalesce(profile ->> 'full_name', profile ->> 'name')), 200), ''),
        nullif(left(btrim(profile ->> 'company_name'), 200), '')
      )
      on conflict (id) do update
        set email = excluded.email
        where account.email <> excluded.email;
      exit;
    exception
      when unique_violation then
        continue;
    end;
  end loop;
  return null;
end
$$;

comment on function private.sync_account() is
  'A new user gets an account, whose email follows the user''s; while another account has that email, it is the user''s id at duplicate.invalid, which no mail reaches.';

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

-- Of an earlier release: no service may insert.
drop policy if exists "services create accounts" on public.accounts;

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
