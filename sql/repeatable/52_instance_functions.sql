-- The life of an instance. The row is the desired state: these functions write it, a notification wakes
-- the instance-provisioner, and that makes it true.

-- Every insert and relevant update enqueues work, whoever wrote it; not provisioning -> running, which
-- the provisioner writes itself. A status without an action (failed, maintenance) cancels pending work.
create or replace function private.notify_instance() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  due timestamptz;
begin
  if new.runtime = 'kubernetes'
     and new.status in ('provisioning', 'running', 'stopped', 'deprovisioning') then
    due := now();
  end if;
  if tg_op = 'INSERT' or (old.status, new.status) <> ('provisioning', 'running') then
    insert into private.provisioning as work (instance_id, due_at)
    values (new.id, due)
    on conflict (instance_id) do update
      set revision = work.revision + 1, attempts = 0, due_at = excluded.due_at;
  end if;
  perform pg_notify('instances', new.id::text);
  return null;
end
$$;

comment on function private.notify_instance() is
  'Asks the instance-provisioner for work, and wakes it on commit: the channel is instances, the payload the id.';

revoke all on function private.notify_instance() from public, anon, authenticated, service_role;

create or replace trigger instances_notify_insert
  after insert on public.instances
  for each row execute function private.notify_instance();

create or replace trigger instances_notify_update
  after update on public.instances
  for each row when (
    old.status is distinct from new.status
    or old.runtime is distinct from new.runtime
    or old.subdomain is distinct from new.subdomain
    or old.cpu_limit is distinct from new.cpu_limit
    or old.memory_limit_mb is distinct from new.memory_limit_mb
    or old.storage_limit_gb is distinct from new.storage_limit_gb
    or old.config is distinct from new.config
    or old.app_config is distinct from new.app_config
  )
  execute function private.notify_instance();

-- Without stop_reason there would be two, and a call could mean either.
-- squawk-ignore ban-drop-function
drop function if exists private.set_instance_status(uuid, text, text);
create or replace function private.set_instance_status(
  instance_id uuid, status text, reason text, stop_reason text default null
) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  changed boolean;
begin
  perform set_config('mindroom.audit_reason', coalesce(reason, ''), true);
  update public.instances as instance
     set status = set_instance_status.status,
         stop_reason = coalesce(set_instance_status.stop_reason, instance.stop_reason)
   where instance.id = set_instance_status.instance_id
     and instance.status <> set_instance_status.status;
  changed := found;
  perform set_config('mindroom.audit_reason', '', true);
  return changed;
end
$$;

create or replace function public.provision_instance(subscription_id uuid, config jsonb default '{}')
returns uuid
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  plan public.subscriptions;
  name text;
  new_id uuid;
begin
  if subscription_id is null or config is null then
    raise exception 'subscription_id and config must not be null'
      using errcode = 'null_value_not_allowed', hint = 'Leave config out, or send {}.';
  end if;
  -- The account first, as in private.adopt_plan(): what is read then is still so when it is inserted.
  perform
    from public.accounts
   where id = (select account_id from public.subscriptions where id = provision_instance.subscription_id)
     for no key update;
  select * into plan
    from public.subscriptions as subscription
   where subscription.id = provision_instance.subscription_id
     for key share;
  if not found then
    raise exception 'no subscription %', provision_instance.subscription_id
      using errcode = 'no_data_found', hint = 'Pass the id of a subscription.';
  end if;
  perform private.refuse_erased(plan.account_id);
  if plan.live_until > now() is not true then
    raise exception 'subscription % (%) is not live', plan.id, plan.status
      using errcode = 'object_not_in_prerequisite_state',
            hint = 'It must be active or trialing, and not past its period or trial.';
  end if;
  perform private.check_instance_number(
    plan.account_id, array['provisioning', 'running', 'stopped', 'failed', 'maintenance']
  );

  loop
    -- A letter first, as a Helm release wants it; 48 random bits.
    name := 'i' || left(replace(gen_random_uuid()::text, '-', ''), 12);
    insert into public.instances (account_id, subscription_id, app_name, subdomain, config)
    values (plan.account_id, plan.id, name, name, provision_instance.config)
    on conflict do nothing
    returning id into new_id;
    exit when found;
  end loop;
  return new_id;
end
$$;

create or replace function public.deprovision_instance(instance_id uuid, reason text default null)
returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  current_status text;
begin
  if instance_id is null then
    raise exception 'instance_id must not be null'
      using errcode = 'null_value_not_allowed', hint = 'Pass the id of an instance.';
  end if;
  select status into current_status
    from public.instances
   where id = deprovision_instance.instance_id
     for no key update;
  if not found then
    raise exception 'no instance %', deprovision_instance.instance_id
      using errcode = 'no_data_found', hint = 'Pass the id of an instance.';
  end if;
  if current_status in ('deprovisioning', 'deprovisioned') then
    return false;
  end if;
  return private.set_instance_status(deprovision_instance.instance_id, 'deprovisioning', reason);
end
$$;

-- Runs behind an update of the config that leaves it as it is: users may update their own, so the one
-- door asks row-level security, and needs no right of its own (decision 0019).
create or replace function private.start_instance() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  plan public.subscriptions;
begin
  perform from public.accounts where id = new.account_id for no key update;
  select * into plan from public.subscriptions where account_id = new.account_id and in_force;
  if plan.live_until > now() is not true then
    raise exception 'the subscription of instance % (%) is not live', new.id, plan.status
      using errcode = 'object_not_in_prerequisite_state',
            hint = 'It must be active or trialing, and not past its period or trial.';
  end if;
  perform private.check_instance_number(
    new.account_id, array['provisioning', 'running', 'maintenance']
  );
  update public.instances set status = 'running', remove_after = null where id = new.id;
  return null;
end
$$;

create or replace trigger instances_start
  after update of config on public.instances
  for each row when (
    new.status = 'stopped' and current_setting('mindroom.start_instance', true) = new.id::text
  )
  execute function private.start_instance();

create or replace function public.start_instance(instance_id uuid) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  current_status text;
begin
  if instance_id is null then
    raise exception 'instance_id must not be null'
      using errcode = 'null_value_not_allowed', hint = 'Pass the id of an instance.';
  end if;
  -- The account first, as in private.adopt_plan().
  perform
    from public.accounts
   where id = (select account_id from public.instances where id = start_instance.instance_id)
     for no key update;
  select status into current_status
    from public.instances
   where id = start_instance.instance_id
     for no key update;
  if not found then
    raise exception 'no instance %', start_instance.instance_id
      using errcode = 'no_data_found', hint = 'Pass the id of an instance of your own.';
  end if;
  if current_status in ('provisioning', 'running') then
    return false;
  end if;
  if current_status <> 'stopped' then
    raise exception 'instance % is %, not stopped', start_instance.instance_id, current_status
      using errcode = 'object_not_in_prerequisite_state',
            hint = 'Only a stopped instance can be started.';
  end if;
  perform set_config('mindroom.start_instance', start_instance.instance_id::text, true);
  update public.instances set config = config where id = start_instance.instance_id;
  perform set_config('mindroom.start_instance', '', true);
  return true;
end
$$;

-- Without error_message there would be two, and a call could mean either.
-- squawk-ignore ban-drop-function
drop function if exists public.update_instance_health(uuid, text, jsonb);
create or replace function public.update_instance_health(
  instance_id uuid, status text, details jsonb default '{}', error_message text default null
) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  before public.instances;
begin
  if status in ('unknown', 'healthy', 'degraded', 'critical') is not true then
    raise exception 'unknown health status %', quote_nullable(update_instance_health.status)
      using errcode = 'invalid_parameter_value', hint = 'It is unknown, healthy, degraded or critical.';
  end if;
  if instance_id is null or details is null then
    raise exception 'instance_id and details must not be null'
      using errcode = 'null_value_not_allowed', hint = 'Leave details out, or send {}.';
  end if;
  select * into before
    from public.instances
   where id = update_instance_health.instance_id
     for no key update;
  if not found then
    raise exception 'no instance %', update_instance_health.instance_id
      using errcode = 'no_data_found', hint = 'Pass the id of an instance.';
  end if;

  update public.instances
     set health_status = update_instance_health.status,
         health_details = details,
         error_message = coalesce(
           update_instance_health.error_message,
           case when update_instance_health.status <> 'healthy' then before.error_message end
         ),
         last_health_check = now()
   where id = before.id;

  if before.health_status <> update_instance_health.status
     and 'critical' in (before.health_status, update_instance_health.status) then
    perform private.log_audit(
      before.account_id, 'instance.health_changed', 'instance', 'instance', before.id,
      jsonb_build_object('old', before.health_status, 'new', update_instance_health.status),
      success => update_instance_health.status <> 'critical'
    );
  end if;
end
$$;

-- What the instance-provisioner measured last is in instances.storage_used_gb: it goes into the day's
-- row, whose peak is billed, and into the total of the subscription.
create or replace function public.calculate_storage_usage(instance_id uuid) returns numeric
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  measured public.instances;
begin
  if instance_id is null then
    raise exception 'instance_id must not be null'
      using errcode = 'null_value_not_allowed', hint = 'Pass the id of an instance.';
  end if;
  select * into measured from public.instances where id = calculate_storage_usage.instance_id;
  if not found then
    raise exception 'no instance %', calculate_storage_usage.instance_id
      using errcode = 'no_data_found', hint = 'Pass the id of an instance.';
  end if;

  -- Only a new peak takes the lock that track_usage wants, too.
  if not exists (
    select from public.usage_metrics as day
     where day.instance_id = measured.id
       and usage_date = (now() at time zone 'utc')::date
       and day.storage_used_gb >= measured.storage_used_gb
  ) then
    insert into public.usage_metrics as day (account_id, instance_id, storage_used_gb)
    values (measured.account_id, measured.id, measured.storage_used_gb)
    on conflict (usage_date, instance_id) do update
      set storage_used_gb = greatest(day.storage_used_gb, excluded.storage_used_gb);
  end if;

  -- Locked first, so that of two runs at once the second sums up what the first saw, or more.
  perform from public.subscriptions
    where account_id = measured.account_id and in_force for no key update;
  update public.subscriptions as plan
     set storage_used_gb = total.gb
    from (
      select coalesce(sum(instance.storage_used_gb), 0) as gb
        from public.instances as instance
       where instance.account_id = measured.account_id
         and instance.status <> 'deprovisioned'
    ) as total
   where plan.account_id = measured.account_id and plan.in_force and plan.storage_used_gb <> total.gb;
  return measured.storage_used_gb;
end
$$;

comment on function public.provision_instance(uuid, jsonb) is
  'A new instance in provisioning, with unique names and the tier''s resources; refused without a live subscription. Notifies the channel instances on commit.';
comment on function public.start_instance(uuid) is
  'Starts a stopped instance, if the account''s subscription is live and the plan allows one more that runs; true if this call started it, false if it was running.';
comment on function private.start_instance() is
  'Starts the instance that public.start_instance() asks for.';
comment on function public.deprovision_instance(uuid, text) is
  'Starts the removal of an instance; true if this call started it, false if it was under way.';
comment on function public.update_instance_health(uuid, text, jsonb, text) is
  'Records the health of an instance; audited when it becomes critical or ceases to be. An error_message stays until another one is given or the instance is healthy.';
comment on function public.calculate_storage_usage(uuid) is
  'GB now used by an instance. Updates the day''s peak, and the total of the account''s plan over all instances that are not deprovisioned.';
comment on function private.set_instance_status(uuid, text, text, text) is
  'Sets a status and tells the audit log why, and the user where the platform stops it; true if it was another one.';

revoke all on function
  private.set_instance_status(uuid, text, text, text),
  private.start_instance(),
  public.start_instance(uuid),
  public.provision_instance(uuid, jsonb),
  public.deprovision_instance(uuid, text),
  public.update_instance_health(uuid, text, jsonb, text),
  public.calculate_storage_usage(uuid)
from public, anon, authenticated, service_role;
grant execute on function public.start_instance(uuid) to authenticated, service_role;
grant execute on function
  public.provision_instance(uuid, jsonb),
  public.deprovision_instance(uuid, text),
  public.update_instance_health(uuid, text, jsonb, text),
  public.calculate_storage_usage(uuid)
to service_role;
