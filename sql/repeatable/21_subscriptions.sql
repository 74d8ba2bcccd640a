-- subscriptions: read by their owner, written by stripe-handler only.

create or replace function private.apply_tier() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  catalogue private.tiers;
begin
  select * into catalogue from private.tiers where tier = new.tier;
  if not found then
    raise exception 'unknown tier %', coalesce(quote_literal(new.tier), 'null')
      using errcode = 'check_violation',
            hint = 'Known tiers: ' || (select string_agg(tier, ', ' order by tier) from private.tiers) || '.';
  end if;

  if tg_op = 'INSERT' or new.account_id <> old.account_id then
    new.in_force := false;  -- until put_subscription_in_force() has compared it with the account's others
  end if;

  if tg_op = 'UPDATE' and new.tier <> old.tier then
    new.max_messages_per_day := nullif(new.max_messages_per_day, old.max_messages_per_day);
    new.max_storage_gb := nullif(new.max_storage_gb, old.max_storage_gb);
    new.max_agents := nullif(new.max_agents, old.max_agents);
    new.max_platforms := nullif(new.max_platforms, old.max_platforms);
    new.max_team_members := nullif(new.max_team_members, old.max_team_members);
    new.features := nullif(new.features, old.features);
  end if;

  new.max_messages_per_day := coalesce(new.max_messages_per_day, catalogue.max_messages_per_day);
  new.max_storage_gb := coalesce(new.max_storage_gb, catalogue.max_storage_gb);
  new.max_agents := coalesce(new.max_agents, catalogue.max_agents);
  new.max_platforms := coalesce(new.max_platforms, catalogue.max_platforms);
  new.max_team_members := coalesce(new.max_team_members, catalogue.max_team_members);
  new.features := coalesce(new.features, catalogue.features);
  return new;
end
$$;

create or replace function private.note_cancellation() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
  if new.status = 'cancelled' then
    new.cancelled_at := coalesce(new.cancelled_at, now());
  elsif tg_op = 'UPDATE' and old.status = 'cancelled' then
    new.cancelled_at := nullif(new.cancelled_at, old.cancelled_at);
  end if;
  return new;
end
$$;

-- The lock on the account lets a change of its plan and a new instance (private.adopt_plan) take turns:
-- neither sees what the other has not committed.
create or replace function private.put_subscription_in_force(account uuid) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  chosen uuid;
begin
  perform from public.accounts where id = account for no key update;
  chosen := (
    select id
      from public.subscriptions
     where account_id = account
     order by status = 'cancelled', cancelled_at desc,
              stripe_subscription_id desc nulls last, created_at desc, id
     limit 1
  );
  update public.subscriptions
     set in_force = false
   where account_id = account and in_force and id <> chosen;
  update public.subscriptions
     set in_force = true,
         storage_used_gb = (
           select coalesce(sum(storage_used_gb), 0)
             from public.instances where account_id = account and status <> 'deprovisioned'
         )
   where id = chosen and not in_force;
  update public.instances
     set subscription_id = chosen
   where account_id = account
     and subscription_id <> chosen
     and status not in ('deprovisioning', 'deprovisioned');
end
$$;

create or replace function private.choose_subscription_in_force() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
  if tg_op <> 'INSERT' then
    perform private.put_subscription_in_force(old.account_id);
  end if;
  if tg_op = 'INSERT' or tg_op = 'UPDATE' and new.account_id <> old.account_id then
    perform private.put_subscription_in_force(new.account_id);
  end if;
  return null;
end
$$;

-- The instances are resized by the provisioner, which reads their rows.
create or replace function private.resize_instances() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
  perform from public.accounts where id = new.account_id for no key update;  -- as above
  update public.instances as instance
     set cpu_limit = catalogue.cpu_limit,
         memory_limit_mb = catalogue.memory_limit_mb,
         storage_limit_gb = catalogue.storage_limit_gb
    from private.tiers as catalogue
   where instance.subscription_id = new.id
     and instance.status not in ('deprovisioning', 'deprovisioned')
     and catalogue.tier = new.tier;
  return null;
end
$$;

-- Of what Stripe says nothing the clock decides, but not of past_due: there Stripe is still trying, and
-- says how it ends.
create or replace function private.has_ended(plan public.subscriptions, grace_days integer) returns boolean
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
  return case
    when plan.status = 'cancelled' or plan.unpaid then true
    when plan.status = 'past_due' then false
    else coalesce(
      now() >= case
                 when plan.status = 'active' then plan.current_period_end
                 else coalesce(plan.trial_ends_at, plan.current_period_end)
               end + grace_days * interval '24 hours',
      false
    )
  end;
end
$$;

-- Those that somebody else stopped stay so, and those for which the plan has no room, whose time of
-- removal is lifted all the same.
create or replace function private.resume_instances(account uuid) returns integer
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  room integer;
  kept uuid[];
begin
  if not exists (
    select from public.instances
     where account_id = account
       and remove_after is not null
       and status not in ('deprovisioning', 'deprovisioned')
  ) then
    return 0;
  end if;
  perform from public.accounts where id = account for no key update;  -- as above
  select case when tiers.max_instances <> -1 then greatest(tiers.max_instances - active.number, 0) end
    into room
    from public.subscriptions as plan
    join private.tiers using (tier)
   cross join lateral (
     select count(*)::integer
       from public.instances
      where account_id = account and status in ('provisioning', 'running', 'maintenance')
   ) as active (number)
   where plan.account_id = account and plan.in_force and not private.has_ended(plan, tiers.grace_days);
  if not found then
    return 0;
  end if;
  with lifted as (
    update public.instances
       set remove_after = null
     where account_id = account
       and remove_after is not null
       and status not in ('deprovisioning', 'deprovisioned')
    returning id
  )
  select array_agg(id) into kept from lifted;
  update public.instances
     set status = 'running'
   where id in (
     select id
       from public.instances
      where id = any (kept) and status = 'stopped' and stop_reason = 'subscription ended'
      order by coalesce(last_active_at, created_at) desc, id
      limit room
   );
  return cardinality(kept);
end
$$;

create or replace function private.resume_instances_of_plan() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
  perform private.resume_instances(new.account_id);
  return null;
end
$$;

-- A customer whose row is gone would still be charged.
create or replace function private.keep_billed_subscription() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
  if old.status <> 'cancelled' and old.stripe_subscription_id is not null then
    raise exception 'subscription % is %, Stripe still bills it', old.id, old.status
      using errcode = 'restrict_violation',
            hint = 'Cancel it in Stripe first; delete it, or its account, when the status here is cancelled.';
  end if;
  return old;
end
$$;

comment on function private.apply_tier() is
  'Limits and features come from the tier, on insert and on a change of tier, unless the writer states them. Stated means: not null and, on a change of tier, not what it was before.';
comment on function private.note_cancellation() is
  'cancelled_at is when it was cancelled, and null again when it is revived.';
comment on function private.put_subscription_in_force(uuid) is
  'Resolves an account''s plan: marks the subscription in force, the one that is not cancelled, else the one cancelled last. The instances follow it, except those that are being removed.';
comment on function private.choose_subscription_in_force() is
  'Whatever may change which subscription is in force resolves it again.';
comment on function private.resize_instances() is
  'A new tier sets the resource limits of the instances, except those that are being removed.';
comment on function private.has_ended(public.subscriptions, integer) is
  'Has the entitlement of a subscription ended? Cancelled or unpaid; or past its period or trial for longer than the tier''s days of grace, unless past_due.';
comment on function private.resume_instances(uuid) is
  'Starts an account''s instances that were stopped because its subscription had ended, as many as the plan allows, the last used first, and plans no removal any more: if the subscription has not ended. How many instances had one planned.';
comment on function private.resume_instances_of_plan() is
  'A subscription that is in force again starts the instances that its end had stopped.';
comment on function private.keep_billed_subscription() is
  'Refuses to delete a subscription that Stripe still bills.';

revoke all on function
  private.apply_tier(),
  private.note_cancellation(),
  private.put_subscription_in_force(uuid),
  private.choose_subscription_in_force(),
  private.resize_instances(),
  private.has_ended(public.subscriptions, integer),
  private.resume_instances(uuid),
  private.resume_instances_of_plan(),
  private.keep_billed_subscription()
from public, anon, authenticated, service_role;

create or replace trigger subscriptions_apply_tier
  before insert or update on public.subscriptions
  for each row execute function private.apply_tier();

create or replace trigger subscriptions_bound_json
  before insert or update of features on public.subscriptions
  for each row execute function private.bound_json('65536', 'features');

create or replace trigger subscriptions_note_cancellation
  before insert or update of status on public.subscriptions
  for each row execute function private.note_cancellation();

create or replace trigger subscriptions_set_updated_at
  before update on public.subscriptions
  for each row execute function private.set_updated_at();

create or replace trigger subscriptions_keep_billed
  before delete on public.subscriptions
  for each row execute function private.keep_billed_subscription();

create or replace trigger subscriptions_put_in_force
  after insert or delete on public.subscriptions
  for each row execute function private.choose_subscription_in_force();

create or replace trigger subscriptions_put_other_in_force
  after update on public.subscriptions
  for each row when (
    -- A comparison of rows would come out of a backup in other words, which is drift.
    old.account_id is distinct from new.account_id
    or old.status is distinct from new.status
    or old.in_force is distinct from new.in_force
    or new.status = 'cancelled' and old.cancelled_at is distinct from new.cancelled_at
  )
  execute function private.choose_subscription_in_force();

create or replace trigger subscriptions_resize_instances
  after update of tier on public.subscriptions
  for each row when (old.tier is distinct from new.tier)
  execute function private.resize_instances();

create or replace trigger subscriptions_resume_instances
  after update on public.subscriptions
  for each row when (
    new.in_force
    and (
      old.in_force is distinct from new.in_force
      or old.status is distinct from new.status
      or old.unpaid is distinct from new.unpaid
      or old.live_until is distinct from new.live_until
    )
  )
  execute function private.resume_instances_of_plan();

create or replace trigger subscriptions_audit
  after insert or update or delete on public.subscriptions
  for each row execute function private.audit_change(
    'subscription', 'billing',
    'tier status max_messages_per_day max_storage_gb max_agents max_platforms max_team_members features '
    'unpaid stripe_price_id trial_started_at trial_ends_at current_period_start current_period_end cancelled_at',
    'storage_used_gb live_until in_force'
  );

-- What was written before these triggers were there.
do $$
begin
  perform private.put_subscription_in_force(account.id)
     from public.accounts as account
    where exists (select from public.subscriptions where account_id = account.id)
      and (
        not exists (select from public.subscriptions where account_id = account.id and in_force)
        or exists (
          select
            from public.instances as instance
            join public.subscriptions as plan on plan.id = instance.subscription_id
           where instance.account_id = account.id
             and instance.status not in ('deprovisioning', 'deprovisioned')
             and not plan.in_force
        )
      );
end
$$;

revoke all on public.subscriptions from public, anon, authenticated, service_role;
grant select on public.subscriptions to authenticated;
grant select, insert, update, delete on public.subscriptions to service_role;

drop policy if exists "users read their own subscriptions" on public.subscriptions;
create policy "users read their own subscriptions" on public.subscriptions
  for select to authenticated
  using (account_id = (select auth.uid()));

drop policy if exists "services read every subscription" on public.subscriptions;
create policy "services read every subscription" on public.subscriptions
  for select to platform_service
  using (true);

drop policy if exists "services create subscriptions" on public.subscriptions;
create policy "services create subscriptions" on public.subscriptions
  for insert to platform_service
  with check (true);

drop policy if exists "services update every subscription" on public.subscriptions;
create policy "services update every subscription" on public.subscriptions
  for update to platform_service
  using (true)
  with check (true);

drop policy if exists "service_role has full access" on public.subscriptions;
create policy "service_role has full access" on public.subscriptions
  for all to service_role
  using (true)
  with check (true);
