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
  -- Here, because a check constraint would be parsed again for each message.
  if new.usage_date < '0001-01-01'
     or new.activity_noted_until not between '0001-01-02 00:00+00' and '9999-12-31 00:00+00' then
    raise exception 'no client can read the day % or the time %', new.usage_date, new.activity_noted_until
      using errcode = 'check_violation',
            hint = 'Both lie in the years 1 to 9999; infinity does not.';
  end if;
  return null;
end
$$;

comment on function private.check_usage_day() is
  'Refuses usage of a UTC day that has not begun, and what no client can read.';

revoke all on function private.check_usage_day() from public, anon, authenticated, service_role;

-- AFTER INSERT: an upsert that finds its row and counts does not fire it.
create or replace trigger usage_metrics_check_day
  after insert or update of usage_date on public.usage_metrics
  for each row execute function private.check_usage_day();

create or replace trigger usage_metrics_check_activity
  after update of activity_noted_until on public.usage_metrics
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
