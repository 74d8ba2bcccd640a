-- usage_metrics: read by their owner; counted by functions of the database only. Nothing here may run
-- once per message: see the migration that made the table.

create or replace function private.check_usage_day() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  today constant date := (now() at time zone 'utc')::date;
begin
  if new.usage_date > today then
    raise exception 'usage of % cannot be recorded on %', new.usage_date, today
      using errcode = 'check_violation',
            hint = 'Days are UTC days: (now() at time zone ''utc'')::date.';
  end if;
  return null;
end
$$;

comment on function private.check_usage_day() is
  'Refuses usage of a UTC day that has not begun.';

revoke all on function private.check_usage_day() from public, anon, authenticated, service_role;

-- AFTER INSERT: an upsert that finds its row and counts does not fire it.
create or replace trigger usage_metrics_check_day
  after insert or update of usage_date on public.usage_metrics
  for each row execute function private.check_usage_day();

revoke all on public.usage_metrics from public, anon, authenticated, service_role;
grant select on public.usage_metrics to authenticated;
grant select, insert, update, delete on public.usage_metrics to service_role;

drop policy if exists "users read their own usage" on public.usage_metrics;
create policy "users read their own usage" on public.usage_metrics
  for select to authenticated
  using (account_id = (select auth.uid()));

drop policy if exists "services read all usage" on public.usage_metrics;
create policy "services read all usage" on public.usage_metrics
  for select to platform_service
  using (true);

drop policy if exists "service_role has full access" on public.usage_metrics;
create policy "service_role has full access" on public.usage_metrics
  for all to service_role
  using (true)
  with check (true);
