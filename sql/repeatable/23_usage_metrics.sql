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

create or replace function private.check_usage_counts() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  counts jsonb;
begin
  foreach counts in array array[new.agent_counts, new.tool_counts] loop
    if jsonb_typeof(counts) <> 'object' or (select count(*) from jsonb_object_keys(counts)) > 10000 or exists (
      select
        from jsonb_each(counts) as counted (name, times)
       where length(name) not between 1 and 100
          or case
               when jsonb_typeof(times) <> 'number' then true
               else times::numeric not between 0 and 2000000000 or times::numeric <> trunc(times::numeric)
             end
    ) then
      raise exception 'counts of usage_metrics are no object of whole numbers by name'
        using errcode = 'check_violation',
              hint = 'Write {"name": 1}: at most 10,000 names of 1 to 100 characters, each from 0 to 2,000,000,000.';
    end if;
  end loop;
  if array_ndims(new.platforms_active) > 1 or array_position(new.platforms_active, null) is not null then
    raise exception 'platforms_active of usage_metrics is no list of names'
      using errcode = 'check_violation', hint = 'Write {matrix,telegram}.';
  end if;
  return null;
end
$$;

comment on function private.check_usage_counts() is
  'Refuses counts that the next message could not count up, or nobody read.';
comment on function private.check_usage_day() is
  'Refuses usage of a UTC day that has not begun, and what no client can read.';

revoke all on function private.check_usage_counts(), private.check_usage_day() from public, anon, authenticated, service_role;

-- AFTER INSERT: an upsert that finds its row and counts does not fire it.
create or replace trigger usage_metrics_check_day
  after insert or update of usage_date on public.usage_metrics
  for each row execute function private.check_usage_day();

create or replace trigger usage_metrics_check_activity
  after update of activity_noted_until on public.usage_metrics
  for each row execute function private.check_usage_day();

create or replace trigger usage_metrics_check_counts
  after insert on public.usage_metrics
  for each row execute function private.check_usage_counts();

revoke all on public.usage_metrics from public, anon, authenticated, service_role;
grant select on public.usage_metrics to authenticated;
-- Counts by name are updated by functions alone: a trigger that looks at each update would cost every
-- message a tenth of its time.
grant
  select,
  insert,
  update (
    id, account_id, instance_id, usage_date, messages_sent, messages_received, error_count,
    response_count, response_time_ms, storage_used_gb, limit_exceeded, activity_noted_until
  ),
  delete
on public.usage_metrics to service_role;

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
