-- instances: read by their owner, who may change config and only it; all else is the
-- instance-provisioner's.

create or replace function private.count_agents(config jsonb) returns integer
language sql immutable set search_path = pg_catalog, pg_temp
as $$
  select case jsonb_typeof(config -> 'agents')
    when 'object' then (select count(*) from jsonb_object_keys(config -> 'agents'))
    when 'array' then jsonb_array_length(config -> 'agents')
    else 0
  end
$$;

create or replace function private.adopt_plan() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
  if tg_op = 'INSERT' then
    -- A change of the plan that is under way would not see this row: see put_subscription_in_force().
    perform from public.accounts where id = new.account_id for share;
  end if;
  -- What names another account's subscription is left for the foreign key to refuse.
  new.subscription_id := coalesce(
    (
      select plan.id
        from public.subscriptions as given
        join public.subscriptions as plan using (account_id)
       where given.id = new.subscription_id and given.account_id = new.account_id and plan.in_force
    ),
    new.subscription_id
  );
  return new;
end
$$;

create or replace function private.apply_tier_resources() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  catalogue private.tiers;
begin
  if tg_op = 'UPDATE' then
    new.cpu_limit := nullif(new.cpu_limit, old.cpu_limit);
    new.memory_limit_mb := nullif(new.memory_limit_mb, old.memory_limit_mb);
    new.storage_limit_gb := nullif(new.storage_limit_gb, old.storage_limit_gb);
  end if;

  select tiers.* into catalogue
    from public.subscriptions
    join private.tiers using (tier)
   where subscriptions.id = new.subscription_id;
  if not found then
    raise exception 'instance % needs an existing subscription, not %',
                    new.app_name, coalesce(new.subscription_id::text, 'null')
      using errcode = 'foreign_key_violation',
            hint = 'Create the subscription first: it decides the instance''s resources.';
  end if;

  new.cpu_limit := coalesce(new.cpu_limit, catalogue.cpu_limit);
  new.memory_limit_mb := coalesce(new.memory_limit_mb, catalogue.memory_limit_mb);
  new.storage_limit_gb := coalesce(new.storage_limit_gb, catalogue.storage_limit_gb);
  return new;
end
$$;

create or replace function private.check_status_transition() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
  if not exists (
    select from private.instance_status_transitions
     where from_status = old.status and to_status = new.status
  ) then
    raise exception 'instance % cannot go from % to %', old.id, old.status, coalesce(new.status, 'null')
      using errcode = 'check_violation',
            hint = coalesce(
              'From ' || old.status || ' it may go to: ' || (
                select string_agg(to_status, ', ' order by to_status)
                  from private.instance_status_transitions where from_status = old.status
              ) || '.',
              'This status is final: provision a new instance.'
            );
  end if;

  if old.status = 'stopped' and new.status <> 'deprovisioning' then
    new.stop_reason := null;
  end if;
  if new.status = 'running' then
    new.provisioned_at := coalesce(new.provisioned_at, now());
    if old.status in ('provisioning', 'stopped') then
      new.started_at := now();
    end if;
  elsif new.status = 'stopped' then
    new.stopped_at := now();
  elsif new.status = 'deprovisioned' then
    new.deprovisioned_at := now();
  end if;
  return new;
end
$$;

-- Not check constraints: those would read the whole config again at every heartbeat.
create or replace function private.check_instance_config() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  agents integer;
  max_agents integer;
begin
  if jsonb_typeof(new.config) <> 'object' or jsonb_typeof(new.app_config) <> 'object' then
    raise exception 'config and app_config of an instance are JSON objects'
      using errcode = 'check_violation',
            hint = 'Send {} for an empty one.';
  end if;
  if jsonb_typeof(new.config -> 'agents') not in ('object', 'array', 'null') then
    raise exception 'agents in an instance config are an object by name or a list, not a %',
                    jsonb_typeof(new.config -> 'agents')
      using errcode = 'check_violation',
            hint = 'Send {"agents": {"name": {...}}}.';
  end if;

  -- A smaller plan refuses no row that was within the larger one: only more agents than there were.
  agents := private.count_agents(new.config);
  if tg_op = 'UPDATE' and agents <= private.count_agents(old.config) then
    return null;
  end if;
  select subscriptions.max_agents into max_agents
    from public.subscriptions where account_id = new.account_id and in_force;
  if max_agents <> -1 and agents > max_agents then
    raise exception 'instance config has % agents, the plan allows %', agents, max_agents
      using errcode = 'check_violation',
            hint = 'Remove agents or upgrade the plan (max_agents of the subscription).';
  end if;
  return null;
end
$$;

-- A smaller plan stops none that is there. The caller has locked the account.
create or replace function private.check_instance_number(account uuid, statuses text[]) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  counted constant bigint := (
    select count(*) from public.instances where account_id = account and status = any (statuses)
  );
  max_instances constant integer := (
    select tiers.max_instances
      from public.subscriptions
      join private.tiers using (tier)
     where account_id = account and in_force
  );
begin
  if max_instances <> -1 and counted >= max_instances then
    raise exception 'account % has % instances, the plan allows %', account, counted, max_instances
      using errcode = 'check_violation',
            hint = 'Remove or stop one of them, or upgrade the plan.';
  end if;
end
$$;

create or replace function private.check_first_status() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
  if not pg_has_role(current_user, (select relowner from pg_class where oid = tg_relid), 'member') then
    raise exception 'a new instance is provisioning, not %', coalesce(new.status, 'null')
      using errcode = 'check_violation',
            hint = 'Leave the status out. Only the owner of the table adds an instance that exists already.';
  end if;
  return new;
end
$$;

create or replace function private.check_subdomain() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
  if exists (select from private.reserved_subdomains where subdomain = new.subdomain) then
    raise exception 'the subdomain % is reserved', new.subdomain
      using errcode = 'check_violation',
            hint = 'Choose another one. Reserved are those in private.reserved_subdomains.';
  end if;
  return new;
end
$$;

create or replace function private.release_subdomain() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
  insert into private.released_subdomains (subdomain, account_id)
  values (old.subdomain, old.account_id)
  on conflict (subdomain) do update
    set account_id = excluded.account_id, released_at = excluded.released_at;
  return null;
end
$$;

-- After the row is in the index: whoever waited there for a removal to be committed sees it here.
create or replace function private.check_released_subdomain() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  free_at timestamptz;
begin
  select released_at + keep_days * interval '24 hours' into free_at
    from private.released_subdomains
    join private.retention on table_name = 'released_subdomains'
   where subdomain = new.subdomain and account_id <> new.account_id;
  if free_at > now() then
    raise exception 'the subdomain % was another customer''s and is free again at % UTC',
                    new.subdomain, to_char(free_at at time zone 'utc', 'YYYY-MM-DD HH24:MI')
      using errcode = 'unique_violation',
            hint = 'Choose another one. How long it takes is in private.retention; to free it at once, delete its row of private.released_subdomains.';
  end if;
  return null;
end
$$;

-- The provisioner never touches a release that no row speaks of: deleting the row of a deployed
-- instance would leave it, with the customer's data, running for ever.
create or replace function private.keep_deployed_instance() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
  if old.status <> 'deprovisioned' then
    raise exception 'instance % (%) is %, not deprovisioned', old.id, old.app_name, old.status
      using errcode = 'restrict_violation',
            hint = 'Deprovision it first; delete it, or its account, when it is deprovisioned.';
  end if;
  return old;
end
$$;

comment on function private.count_agents(jsonb) is
  'How many entries agents has in an instance''s config, whether an object by name or a list.';
comment on function private.adopt_plan() is
  'subscription_id is the account''s subscription in force, whichever one the writer names.';
comment on function private.apply_tier_resources() is
  'Resource limits come from the tier of the subscription, on insert and when the instance moves to another subscription, unless the writer states them (subscriptions follow the same rule).';
comment on function private.check_status_transition() is
  'The status goes only along private.instance_status_transitions, and its timestamps with it.';
comment on function private.check_instance_config() is
  'config and app_config are objects; config has no more agents than the plan allows or there were.';
comment on function private.check_instance_number(uuid, text[]) is
  'Refuses one more instance in one of these statuses than an account''s plan allows.';
comment on function private.check_first_status() is
  'A new instance is provisioning, or was removed long ago. Only the table''s owner adds one that exists already (docs/migrating.md).';
comment on function private.check_subdomain() is
  'Refuses the reserved subdomains.';
comment on function private.release_subdomain() is
  'Notes the subdomain that an instance gives up, and whose it was.';
comment on function private.check_released_subdomain() is
  'Refuses the subdomain that another account gave up, for as long as private.retention says.';
comment on function private.keep_deployed_instance() is
  'Refuses to delete an instance that is not deprovisioned.';

revoke all on function
  private.count_agents(jsonb),
  private.adopt_plan(),
  private.apply_tier_resources(),
  private.check_status_transition(),
  private.check_instance_config(),
  private.check_instance_number(uuid, text[]),
  private.check_first_status(),
  private.check_subdomain(),
  private.release_subdomain(),
  private.check_released_subdomain(),
  private.keep_deployed_instance()
from public, anon, authenticated, service_role;

-- Triggers fire in the order of their names: adopt_* sets the subscription before apply_* reads its tier.
create or replace trigger instances_adopt_other_plan
  before update of subscription_id on public.instances
  for each row when (
    old.subscription_id is distinct from new.subscription_id
    and new.status not in ('deprovisioning', 'deprovisioned')
  )
  execute function private.adopt_plan();

create or replace trigger instances_adopt_plan
  before insert on public.instances
  for each row when (new.status not in ('deprovisioning', 'deprovisioned'))
  execute function private.adopt_plan();

create or replace trigger instances_apply_tier_resources
  before insert on public.instances
  for each row execute function private.apply_tier_resources();

create or replace trigger instances_apply_other_tier_resources
  before update of subscription_id on public.instances
  for each row when (old.subscription_id is distinct from new.subscription_id)
  execute function private.apply_tier_resources();

create or replace trigger instances_bound_config
  before insert or update of config on public.instances
  for each row execute function private.bound_json('1048576', 'config');

-- Helm's record of a release holds it: 1 MiB with all else, compressed.
create or replace trigger instances_bound_app_config
  before insert or update of app_config on public.instances
  for each row execute function private.bound_json('65536', 'app_config');

create or replace trigger instances_bound_health
  before insert or update of health_details on public.instances
  for each row execute function private.bound_json('65536', 'health_details');

create or replace trigger instances_check_first_status
  before insert on public.instances
  for each row when (new.status is null or new.status not in ('provisioning', 'deprovisioned'))
  execute function private.check_first_status();

create or replace trigger instances_check_first_subdomain
  before insert on public.instances
  for each row execute function private.check_subdomain();

create or replace trigger instances_check_subdomain
  before update of subdomain on public.instances
  for each row when (old.subdomain is distinct from new.subdomain)
  execute function private.check_subdomain();

create or replace trigger instances_release_subdomain
  after update of status, subdomain on public.instances
  for each row when (
    old.status <> 'deprovisioned'
    and (new.status = 'deprovisioned' or old.subdomain <> new.subdomain)
  )
  execute function private.release_subdomain();

create or replace trigger instances_check_first_released_subdomain
  after insert on public.instances
  for each row when (new.status <> 'deprovisioned')
  execute function private.check_released_subdomain();

create or replace trigger instances_check_released_subdomain
  after update of subdomain on public.instances
  for each row when (old.subdomain <> new.subdomain and new.status <> 'deprovisioned')
  execute function private.check_released_subdomain();

create or replace trigger instances_check_status_transition
  before update of status on public.instances
  for each row when (old.status is distinct from new.status)
  execute function private.check_status_transition();

-- Being used is no change of the instance, and is written too often to pay for one.
create or replace trigger instances_set_updated_at
  before update on public.instances
  for each row when (old.last_active_at is not distinct from new.last_active_at)
  execute function private.set_updated_at();

create or replace trigger instances_set_updated_at_when_used
  before update on public.instances
  for each row when (old.last_active_at is distinct from new.last_active_at)
  execute function private.set_updated_at('last_active_at', 'updated_at');

create or replace trigger instances_keep_deployed
  before delete on public.instances
  for each row execute function private.keep_deployed_instance();

create or replace trigger instances_check_first_config
  after insert on public.instances
  for each row execute function private.check_instance_config();

create or replace trigger instances_check_config
  after update of config, app_config on public.instances
  for each row when (
    old.config is distinct from new.config or old.app_config is distinct from new.app_config
  )
  execute function private.check_instance_config();

create or replace trigger instances_audit
  after insert or delete on public.instances
  for each row execute function private.audit_change(
    'instance', 'instance', 'status runtime app_name subdomain', ''
  );

create or replace trigger instances_audit_status
  after update of status on public.instances
  for each row when (old.status is distinct from new.status)
  execute function private.audit_change('instance', 'instance', 'status', '');

revoke all on public.instances from public, anon, authenticated, service_role;
grant select, update (config) on public.instances to authenticated;
grant select, insert, update, delete on public.instances to service_role;

drop policy if exists "users read their own instances" on public.instances;
create policy "users read their own instances" on public.instances
  for select to authenticated
  using (account_id = (select auth.uid()));

drop policy if exists "users configure their own instances" on public.instances;
create policy "users configure their own instances" on public.instances
  for update to authenticated
  using (account_id = (select auth.uid()))
  with check (account_id = (select auth.uid()));

drop policy if exists "services read every instance" on public.instances;
create policy "services read every instance" on public.instances
  for select to platform_service
  using (true);

drop policy if exists "services create instances" on public.instances;
create policy "services create instances" on public.instances
  for insert to platform_service
  with check (true);

drop policy if exists "services update every instance" on public.instances;
create policy "services update every instance" on public.instances
  for update to platform_service
  using (true)
  with check (true);

drop policy if exists "service_role has full access" on public.instances;
create policy "service_role has full access" on public.instances
  for all to service_role
  using (true)
  with check (true);
