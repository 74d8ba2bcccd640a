-- Usage: counted once per message, asked for by users and by billing.

-- The hottest call of the platform: docs/decisions/0005-track-usage.md says why it is shaped so. Once
-- the day has its row and the names are known, a message is one statement: it counts, and sees the
-- limit as it is now. Whatever is seldom has a function of its own below.
create or replace function public.track_usage(
  instance_id uuid,
  agent text default null,
  tool text default null,
  platform text default null,
  message_type text default 'sent'
) returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  within boolean;
  said boolean;
  usual boolean;
begin
  -- A name that is null, or not known yet, leaves the counts per name as they are.
  update public.usage_metrics as day
     set messages_sent = messages_sent + (message_type is not distinct from 'sent')::integer,
         messages_received = messages_received + (message_type is not distinct from 'received')::integer,
         agent_counts = jsonb_set_lax(
           agent_counts, array[agent], to_jsonb((agent_counts -> agent)::integer + 1), true, 'return_target'
         ),
         tool_counts = jsonb_set_lax(
           tool_counts, array[tool], to_jsonb((tool_counts -> tool)::integer + 1), true, 'return_target'
         )
   where instance_id = track_usage.instance_id
     and usage_date = (now() at time zone 'utc')::date
  returning (
              select max_messages_per_day = -1
                       or day.messages_sent::bigint + day.messages_received <= max_messages_per_day
                from public.subscriptions
               where account_id = day.account_id and in_force
            ),
            limit_exceeded,
            (message_type = 'sent' or message_type = 'received')
              and (agent_counts ? agent and tool_counts ? tool) is not false
              and (platform is null or platform = any (platforms_active))
              and activity_noted_until > now()
       into within, said, usual;

  if usual and (within or said and not within) then
    return within;
  end if;
  if not found then
    perform private.begin_usage_day(track_usage.instance_id);
    return public.track_usage(track_usage.instance_id, agent, tool, platform, message_type);
  end if;
  return private.settle_message(
    track_usage.instance_id, agent, tool, platform, message_type, within, said
  );
end
$$;

create or replace function private.begin_usage_day(instance_id uuid) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  customer uuid;
begin
  if instance_id is null then
    raise exception 'instance_id must not be null'
      using errcode = 'null_value_not_allowed', hint = 'Pass the id of an instance.';
  end if;
  select account_id into customer from public.instances where id = begin_usage_day.instance_id;
  if not found then
    raise exception 'no instance %', begin_usage_day.instance_id
      using errcode = 'no_data_found', hint = 'Pass the id of an instance.';
  end if;
  insert into public.usage_metrics (account_id, instance_id)
  values (customer, begin_usage_day.instance_id)
  on conflict do nothing;
end
$$;

-- The message has been counted, so its transaction holds the row of the day: nobody else is here for
-- this instance.
create or replace function private.settle_message(
  instance_id uuid, agent text, tool text, platform text, message_type text, within boolean, said boolean
) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  if message_type in ('sent', 'received') is not true then
    raise exception 'unknown message type %', quote_nullable(message_type)
      using errcode = 'invalid_parameter_value', hint = 'It is sent or received.';
  end if;
  if least(length(agent), length(tool), length(platform)) = 0
     or greatest(length(agent), length(tool), length(platform)) > 100 then
    raise exception 'a name of an agent, tool or platform is empty or longer than 100 characters'
      using errcode = 'invalid_parameter_value', hint = 'Pass null for a message that has none.';
  end if;

  -- The first message of a name on this day, as long as there is room.
  update public.usage_metrics
     set agent_counts = case
           when agent_counts ? agent is not false or pg_column_size(agent_counts) > 8000 then agent_counts
           else agent_counts || jsonb_build_object(agent, 1)
         end,
         tool_counts = case
           when tool_counts ? tool is not false or pg_column_size(tool_counts) > 8000 then tool_counts
           else tool_counts || jsonb_build_object(tool, 1)
         end,
         platforms_active = case
           when platform is null or platform = any (platforms_active) or pg_column_size(platforms_active) > 8000
             then platforms_active
           else platforms_active || platform
         end
   where instance_id = settle_message.instance_id
     and usage_date = (now() at time zone 'utc')::date
     and (
       (agent_counts ? agent and tool_counts ? tool) is false
       or not (platform is null or platform = any (platforms_active))
     );

  perform private.note_activity(settle_message.instance_id);
  if not within and not said then
    perform private.note_limit_exceeded(settle_message.instance_id);
  end if;
  return within;
end
$$;

-- Whoever holds the row of the instance at this moment is not waited for: the next message notes it.
create or replace function private.note_activity(instance_id uuid) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  if exists (
    select from public.usage_metrics
     where instance_id = note_activity.instance_id
       and usage_date = (now() at time zone 'utc')::date
       and activity_noted_until > now()
  ) then
    return;
  end if;
  update public.instances
     set last_active_at = now()
   where id = (
     select id from public.instances where id = note_activity.instance_id for no key update skip locked
   );
  if found then
    update public.usage_metrics
       set activity_noted_until = now() + interval '5 minutes'
     where instance_id = note_activity.instance_id
       and usage_date = (now() at time zone 'utc')::date;
  end if;
end
$$;

create or replace function private.note_limit_exceeded(instance_id uuid) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  today constant date := (now() at time zone 'utc')::date;
  customer uuid;
  allowed integer;
begin
  update public.usage_metrics as day
     set limit_exceeded = true
    from public.subscriptions as plan
   where day.instance_id = note_limit_exceeded.instance_id
     and usage_date = today
     and plan.account_id = day.account_id
     and plan.in_force
  returning day.account_id, plan.max_messages_per_day into customer, allowed;

  -- A transaction that began before midnight may find the flag cleared already.
  if not exists (
    select from public.audit_logs
     where account_id = customer
       and created_at >= today::timestamp at time zone 'utc'
       and action = 'usage.limit_exceeded'
       and resource_id = note_limit_exceeded.instance_id
       and details ->> 'day' = today::text
  ) then
    perform private.log_audit(
      customer, 'usage.limit_exceeded', 'usage', 'instance', note_limit_exceeded.instance_id,
      jsonb_build_object('day', today, 'limit', allowed),
      success => false
    );
  end if;
end
$$;

-- A batch of messages, counted as track_usage counts one. Their ids are recorded in order, so that two
-- batches with the same events wait for one another, and never in a circle.
create or replace function public.record_usage(instance_id uuid, events jsonb)
returns table (
  counted integer,
  duplicates integer,
  within_limits boolean,
  messages_remaining integer,
  resets_at timestamptz
)
language plpgsql security definer rows 1 set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  today constant date := (now() at time zone 'utc')::date;
  of_day record;
  recorded integer := 0;
  said boolean;
begin
  perform private.check_usage_events(record_usage.events);
  perform private.begin_usage_day(record_usage.instance_id);

  for of_day in
    with given as materialized (  -- an id that is in the batch twice: the first
      select distinct on (id)
             id, type, agent, tool, platform,
             case when day between today - 2 and today then day else today end as day
        from rows from (
               jsonb_to_recordset(record_usage.events)
                 as (id text, type text, agent text, tool text, platform text, at timestamptz)
             ) with ordinality as event (id, type, agent, tool, platform, at, place)
       cross join lateral (select (at at time zone 'utc')::date as day) as on_day
       order by id, place
    ),
    new as (
      insert into private.usage_events (instance_id, event_id)
      select record_usage.instance_id, id from given order by id
      on conflict do nothing
      returning event_id
    )
    select day,
           count(*)::integer as events,
           (count(*) filter (where type = 'sent'))::integer as sent,
           (count(*) filter (where type = 'received'))::integer as received,
           array_agg(agent) filter (where type <> 'tool') as agents,
           array_agg(tool) as tools,
           array_agg(platform) as platforms
      from given
      join new on event_id = id
     group by day
     order by day
  loop
    recorded := recorded + of_day.events;
    if of_day.day < today then
      insert into public.usage_metrics (account_id, instance_id, usage_date)
      select account_id, id, of_day.day from public.instances where id = record_usage.instance_id
      on conflict do nothing;
    end if;
    update public.usage_metrics
       set messages_sent = messages_sent + of_day.sent,
           messages_received = messages_received + of_day.received,
           agent_counts = private.add_counts(agent_counts, of_day.agents),
           tool_counts = private.add_counts(tool_counts, of_day.tools),
           platforms_active = private.add_names(platforms_active, of_day.platforms)
     where instance_id = record_usage.instance_id and usage_date = of_day.day;
  end loop;

  counted := recorded;
  duplicates := jsonb_array_length(record_usage.events) - recorded;
  resets_at := (today + 1)::timestamp at time zone 'utc';
  select plan.max_messages_per_day = -1 or used <= plan.max_messages_per_day,
         case plan.max_messages_per_day
           when -1 then -1
           else greatest(plan.max_messages_per_day - used, 0)::integer
         end,
         day.limit_exceeded
    into within_limits, messages_remaining, said
    from public.usage_metrics as day
    join public.subscriptions as plan on plan.account_id = day.account_id and plan.in_force
   cross join lateral (select day.messages_sent::bigint + day.messages_received as used) as total
   where day.instance_id = record_usage.instance_id and day.usage_date = today;

  if recorded > 0 then
    perform private.note_activity(record_usage.instance_id);
    if not within_limits and not said then
      perform private.note_limit_exceeded(record_usage.instance_id);
    end if;
  end if;
  return next;
end
$$;

create or replace function private.check_usage_events(events jsonb) returns void
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
declare
  bad record;
begin
  if events is null then
    raise exception 'events must not be null'
      using errcode = 'null_value_not_allowed', hint = 'Pass an array of events.';
  end if;
  if jsonb_typeof(events) <> 'array' then
    raise exception 'events is no array but a %', jsonb_typeof(events)
      using errcode = 'invalid_parameter_value', hint = 'Pass an array of events.';
  end if;
  if jsonb_array_length(events) > 1000 then
    raise exception 'a batch of % events', jsonb_array_length(events)
      using errcode = 'invalid_parameter_value', hint = 'Pass at most 1,000 at a time.';
  end if;

  select place - 1 as index, problem into bad
    from jsonb_array_elements(events) with ordinality as given (event, place)
   cross join lateral (
     select case
       when jsonb_typeof(event) <> 'object' then 'is no object'
       when jsonb_typeof(event -> 'id') is distinct from 'string' or length(event ->> 'id') not between 1 and 255
         then 'has no id of 1 to 255 characters'
       when jsonb_typeof(event -> 'type') is distinct from 'string'
         or event ->> 'type' not in ('sent', 'received', 'tool')
         then 'has no type that is sent, received or tool'
       when jsonb_typeof(event -> 'agent') not in ('null', 'string') or length(event ->> 'agent') not between 1 and 100
         or jsonb_typeof(event -> 'tool') not in ('null', 'string') or length(event ->> 'tool') not between 1 and 100
         or jsonb_typeof(event -> 'platform') not in ('null', 'string') or length(event ->> 'platform') not between 1 and 100
         then 'names an agent, tool or platform that is no text of 1 to 100 characters'
       when event ->> 'type' = 'tool' and event ->> 'tool' is null then 'is of a tool that it does not name'
       when jsonb_typeof(event -> 'at') <> 'null' and case
         when jsonb_typeof(event -> 'at') <> 'string' or length(event ->> 'at') > 40
           or event ->> 'at' !~ '^[1-9]\d{3}-(0[1-9]|1[0-2])-\d\d[Tt ]([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d+)?([Zz]|[+-](0\d|1[0-5]):[0-5]\d)$'
           then true
         else substr(event ->> 'at', 9, 2)::integer not between 1 and extract(
           day from make_date(left(event ->> 'at', 4)::integer, substr(event ->> 'at', 6, 2)::integer, 1)
                    + interval '1 month' - interval '1 day'
         )
       end then 'has a time at that is none like 2026-12-31T23:59:59Z'
     end as problem
   ) as checked
   where problem is not null
   order by place
   limit 1;
  if found then
    raise exception 'event % of the batch %', bad.index, bad.problem
      using errcode = 'invalid_parameter_value',
            hint = 'Nothing of the batch was counted: send it without this event, whose number is counted from 0.';
  end if;
end
$$;

-- As track_usage counts names: further ones as long as there is room.
create or replace function private.add_counts(counts jsonb, names text[]) returns jsonb
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
declare
  named record;
begin
  for named in
    select name, count(*)::integer as times from unnest(names) as name where name is not null group by name order by name
  loop
    if counts ? named.name or pg_column_size(counts) <= 8000 then
      counts := counts
        || jsonb_build_object(named.name, coalesce((counts ->> named.name)::integer, 0) + named.times);
    end if;
  end loop;
  return counts;
end
$$;

create or replace function private.add_names(names text[], more text[]) returns text[]
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
declare
  another text;
begin
  for another in select distinct name from unnest(more) as name where name is not null and name <> all (names) order by name loop
    exit when pg_column_size(names) > 8000;
    names := names || another;
  end loop;
  return names;
end
$$;

-- The type of messages_used was another one.
-- squawk-ignore ban-drop-function
drop function if exists public.check_usage_limits(uuid);
create function public.check_usage_limits(instance_id uuid)
returns table (
  within_limits boolean,
  messages_used bigint,
  messages_remaining integer,
  messages_limit integer,
  storage_used_gb numeric,
  storage_limit_gb integer,
  agents_used integer,
  agents_limit integer
)
language plpgsql stable rows 1 set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  return query
  select (plan.max_messages_per_day = -1 or used.messages < plan.max_messages_per_day)
           and (plan.max_storage_gb = -1 or plan.storage_used_gb <= plan.max_storage_gb)
           and (plan.max_agents = -1 or used.agents <= plan.max_agents),
         used.messages,
         case plan.max_messages_per_day
           when -1 then -1
           else greatest(plan.max_messages_per_day - used.messages, 0)::integer
         end,
         plan.max_messages_per_day,
         plan.storage_used_gb,
         plan.max_storage_gb,
         used.agents,
         plan.max_agents
    from public.instances as instance
    join public.subscriptions as plan on plan.account_id = instance.account_id and plan.in_force
    left join public.usage_metrics as day
      on day.instance_id = instance.id and day.usage_date = (now() at time zone 'utc')::date
   cross join lateral (
     select coalesce(day.messages_sent::bigint + day.messages_received, 0) as messages,
            -- private.count_agents, which users cannot call
            case jsonb_typeof(instance.config -> 'agents')
              when 'object' then jsonb_array_length(
                jsonb_path_query_array(instance.config, '$.agents.keyvalue()')
              )
              when 'array' then jsonb_array_length(instance.config -> 'agents')
              else 0
            end as agents
   ) as used
   where instance.id = check_usage_limits.instance_id;

  if not found then
    if instance_id is null then
      raise exception 'instance_id must not be null'
        using errcode = 'null_value_not_allowed', hint = 'Pass the id of an instance.';
    end if;
    -- To a user another customer's instance and none at all are alike.
    if current_user <> 'authenticated' then
      raise exception 'no instance %', instance_id
        using errcode = 'no_data_found', hint = 'Pass the id of an instance.';
    end if;
  end if;
end
$$;

create or replace function public.get_billing_metrics(account_id uuid, start_date date, end_date date)
returns table (
  total_messages bigint,
  messages_sent bigint,
  messages_received bigint,
  peak_storage_gb numeric,
  distinct_agents integer,
  distinct_tools integer,
  active_days integer,
  average_messages_per_active_day numeric
)
language plpgsql stable rows 1 set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  if account_id is null or start_date is null or end_date is null then
    raise exception 'account_id, start_date and end_date must not be null'
      using errcode = 'null_value_not_allowed', hint = 'Both dates are UTC days and inclusive.';
  end if;
  if start_date > end_date then
    raise exception 'the range of dates ends on % before it begins on %', end_date, start_date
      using errcode = 'invalid_parameter_value', hint = 'Both dates are UTC days and inclusive.';
  end if;
  if not exists (select from public.accounts where id = get_billing_metrics.account_id) then
    -- To a user another customer's account and none at all are alike.
    if current_user <> 'authenticated' then
      raise exception 'no account %', get_billing_metrics.account_id
        using errcode = 'no_data_found', hint = 'Pass the id of an account.';
    end if;
    return;
  end if;

  return query
  with usage as (
    select *
      from public.usage_metrics as day
     where day.account_id = get_billing_metrics.account_id
       and day.usage_date between start_date and end_date
  ),
  days as (  -- over all instances
    select sum(usage.messages_sent) as sent,
           sum(usage.messages_received) as received,
           sum(usage.storage_used_gb) as storage_gb
      from usage
     group by usage.usage_date
  )
  select coalesce(sum(sent + received), 0)::bigint,
         coalesce(sum(sent), 0)::bigint,
         coalesce(sum(received), 0)::bigint,
         coalesce(max(storage_gb), 0),
         (select count(distinct name)::integer from usage cross join jsonb_object_keys(agent_counts) as name),
         (select count(distinct name)::integer from usage cross join jsonb_object_keys(tool_counts) as name),
         count(*) filter (where sent + received > 0)::integer,
         coalesce(round(avg(sent + received) filter (where sent + received > 0), 2), 0)
    from days;
end
$$;

-- Nothing is counted outside of a day's row, so the end of a day has only the flags to clear, of
-- however many days. A row that somebody holds is left for the next run.
create or replace function public.reset_daily_usage() returns integer
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  cleared integer;
begin
  with past as (
    select instance_id, usage_date
      from public.usage_metrics
     where limit_exceeded and usage_date < (now() at time zone 'utc')::date
       for no key update skip locked
  )
  update public.usage_metrics as day
     set limit_exceeded = false
    from past
   where day.instance_id = past.instance_id and day.usage_date = past.usage_date;
  get diagnostics cleared = row_count;
  return cleared;
end
$$;

comment on function public.track_usage(uuid, text, text, text, text) is
  'Counts one message of an instance today (UTC); true while within the daily limit.';
comment on function public.record_usage(uuid, jsonb) is
  'Counts a batch of events of an instance, each id once in three days: [{"id", "type": "sent", "received" or "tool", "agent", "tool", "platform", "at"}], all but id and type optional. Each counts on its own UTC day if that is at most two days back, else today. within_limits, messages_remaining (-1 = unlimited): of today, afterwards.';
comment on function public.check_usage_limits(uuid) is
  'What an instance used of its plan''s messages (today), storage and agents; -1 = unlimited. within_limits: one more message is allowed, and neither storage nor agents are over.';
comment on function public.get_billing_metrics(uuid, date, date) is
  'Usage of an account between two UTC days, both inclusive. Peak storage: of the day with the most, over all instances.';
comment on function public.reset_daily_usage() is
  'Closes past days: clears their limit flags; how many. Meant for 00:00 UTC, harmless at any time.';
comment on function private.begin_usage_day(uuid) is
  'Makes the row of the day for track_usage, or says what is wrong with the instance.';
comment on function private.settle_message(uuid, text, text, text, text, boolean, boolean) is
  'What a message that is not a usual one leaves to do for track_usage: checks, new names, activity, the limit.';
comment on function private.check_usage_events(jsonb) is
  'Refuses a batch for record_usage of which an event is malformed, and says which.';
comment on function private.add_counts(jsonb, text[]) is
  'Counts by name with further names counted, as long as there is room for new ones.';
comment on function private.add_names(text[], text[]) is
  'Names with further ones, as long as there is room.';
comment on function private.note_activity(uuid) is
  'Sets last_active_at of an instance every five minutes, unless somebody holds its row.';
comment on function private.note_limit_exceeded(uuid) is
  'Flags the day of an instance, and says so in the audit log once.';

revoke all on function
  public.track_usage(uuid, text, text, text, text),
  public.check_usage_limits(uuid),
  public.get_billing_metrics(uuid, date, date),
  public.reset_daily_usage(),
  private.begin_usage_day(uuid),
  public.record_usage(uuid, jsonb),
  private.settle_message(uuid, text, text, text, text, boolean, boolean),
  private.check_usage_events(jsonb),
  private.add_counts(jsonb, text[]),
  private.add_names(text[], text[]),
  private.note_activity(uuid),
  private.note_limit_exceeded(uuid)
from public, anon, authenticated, service_role;
grant execute on function
  public.check_usage_limits(uuid),
  public.get_billing_metrics(uuid, date, date)
to authenticated, service_role;
grant execute on function
  public.track_usage(uuid, text, text, text, text),
  public.record_usage(uuid, jsonb),
  public.reset_daily_usage()
to service_role;
