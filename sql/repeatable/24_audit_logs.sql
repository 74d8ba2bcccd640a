-- audit_logs: read by those whom they concern, appended by services and by triggers of the other
-- tables, changed by nobody but service_role, for erasure requests.

-- What a trigger writes is made of columns that are bounded themselves.
create or replace trigger audit_logs_bound_json
  before insert or update of details on public.audit_logs
  for each row when (pg_trigger_depth() = 0)
  execute function private.bound_json('262144', 'details');

revoke all on public.audit_logs from public, anon, authenticated, service_role;
grant select on public.audit_logs to authenticated;
grant select, insert, update, delete on public.audit_logs to service_role;

drop policy if exists "users read their own audit log" on public.audit_logs;
create policy "users read their own audit log" on public.audit_logs
  for select to authenticated
  using (account_id = (select auth.uid()));

drop policy if exists "services read the whole audit log" on public.audit_logs;
create policy "services read the whole audit log" on public.audit_logs
  for select to platform_service
  using (true);

-- The same as the default of actor_role: a service cannot speak for another one.
drop policy if exists "services append in their own name" on public.audit_logs;
create policy "services append in their own name" on public.audit_logs
  for insert to platform_service
  with check (
    actor_role = coalesce(nullif((select current_setting('role', true)), 'none'), session_user)
  );

drop policy if exists "service_role has full access" on public.audit_logs;
create policy "service_role has full access" on public.audit_logs
  for all to service_role
  using (true)
  with check (true);
