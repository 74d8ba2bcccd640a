-- Jobs that a scheduler runs: each may run twice, at the same time, late, or after days of absence.
-- reset_daily_usage and calculate_storage_usage are beside what they belong to.
--
-- The scheduler is made where there is one, and not by a migration:
-- migrate: leave extension pg_cron: whoever schedules the jobs makes it

-- Removes what private.retention has no more time for. A call ends after about a second: a longer
-- snapshot would keep the dead versions of rows that are counted up from being reused, and track_usage
-- would read past all of them. So call it until it has removed nothing. Rows that somebody holds are
-- left for the next call.
create or replace function public.cleanup_expired_data() returns jsonb
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  batch constant integer := 5000;
  deadline constant timestamptz := clock_timestamp() + interval '1 second';
  keep record;
  affected integer;
  done jsonb := '{}'::jsonb;
begin
  for keep in
    -- Hours, since a day of the session's time zone may have 23 or 25.
    select table_name, now() - keep_days * interval '24 hours' as cutoff
      from private.retention
     order by table_name
  loop
    done := done || jsonb_build_object(keep.table_name, 0);
    loop
      case keep.table_name
        when 'audit_logs' then
          delete from public.audit_logs
           where id in (
             select id from public.audit_logs
              where created_at < keep.cutoff
              order by created_at
              limit batch for update skip locked
           );
        when 'usage_metrics' then
          delete from public.usage_metrics
           where (usage_date, instance_id) in (
             select usage_date, instance_id from public.usage_metrics
              where usage_date < (keep.cutoff at time zone 'utc')::date
              order by usage_date
              limit batch for update skip locked
           );
        when 'usage_events' then
          delete from private.usage_events
           where (instance_id, event_id) in (
             select instance_id, event_id from private.usage_events
              where recorded_at < keep.cutoff
              limit batch for update skip locked
           );
        when 'instance_backups' then
          delete from public.instance_backups
           where id in (
             select id from public.instance_backups
              where expires_at < keep.cutoff
              order by expires_at
              limit batch for update skip locked
           );
        when 'api_keys' then
          update public.api_keys
             set is_active = false
           where id in (
             select id from public.api_keys
              where is_active and expires_at < keep.cutoff
              order by expires_at
              limit batch for no key update skip locked
           );
        when 'stripe_events' then
          delete from private.stripe_events
           where event_id in (
             select event_id from private.stripe_events
              where received_at < keep.cutoff
              order by received_at
              limit batch for update skip locked
           );
        when 'stripe_customers' then
          delete from private.stripe_customers
           where customer_id in (
             select customer_id from private.stripe_customers
              where account_id is null and recorded_at < keep.cutoff
              order by recorded_at
              limit batch for update skip locked
           );
        when 'released_subdomains' then
          delete from private.released_subdomains
           where subdomain in (
             select subdomain from private.released_subdomains
              where released_at < keep.cutoff
              order by released_at
              limit batch for update skip locked
           );
        else
          raise exception 'retention names the table %, which is not known here', keep.table_name
            using errcode = 'invalid_table_definition',
                  hint = 'Remove the row from private.retention, or teach cleanup_expired_data the table.';
      end case;
      get diagnostics affected = row_count;
      done := jsonb_set(
        done, array[keep.table_name], to_jsonb((done ->> keep.table_name)::integer + affected)
      );
      exit when affected < batch or clock_timestamp() > deadline;
    end loop;
  end loop;
  return done;
end
$$;

-- Use is what the customer does: messages, or starting it. An instance that was never used counts from
-- its creation.
create or replace function public.auto_pause_inactive_instances() returns setof uuid
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  idle record;
begin
  for idle in
    select instance.id, tiers.pause_after_idle_days as days
      from public.instances as instance
      join public.subscriptions as plan on plan.account_id = instance.account_id and plan.in_force
      join private.tiers using (tier)
     where instance.status = 'running'
       and greatest(instance.last_active_at, instance.started_at, instance.created_at)
           < now() - tiers.pause_after_idle_days * interval '24 hours'
     order by instance.id
       for no key update of instance skip locked
  loop
    if private.set_instance_status(
      idle.id, 'stopped', format('unused for %s days', idle.days), 'unused'
    ) then
      return next idle.id;
    end if;
  end loop;
end
$$;

-- The accounts are locked first: of a plan that changes meanwhile, what comes second sees the other. Those
-- that somebody holds are left for the next call. Instances in maintenance are left to who works on them.
create or replace function public.follow_subscriptions() returns jsonb
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  batch constant integer := 200;
  accounts uuid[];
  stopped integer;
  removed integer := 0;
  resumed integer := 0;
  expired record;
  account uuid;
begin
  accounts := array(
    select id
      from public.accounts
     where id in (
       select instance.account_id
         from public.instances as instance
         join public.subscriptions as plan on plan.account_id = instance.account_id and plan.in_force
         join private.tiers using (tier)
        where instance.status not in ('maintenance', 'deprovisioning', 'deprovisioned')
          and case
                when private.has_ended(plan, tiers.grace_days)
                then instance.status in ('provisioning', 'running')
                     or instance.remove_after is null
                     or instance.remove_after <= now()
                else instance.remove_after is not null
              end
     )
     order by id
     limit batch
       for no key update skip locked
  );

  perform set_config('mindroom.audit_reason', 'the subscription has ended', true);
  update public.instances as instance
     set status = case
           when instance.status in ('provisioning', 'running') then 'stopped' else instance.status
         end,
         stop_reason = case
           when instance.status in ('provisioning', 'running') then 'subscription ended'
           else instance.stop_reason
         end,
         remove_after = coalesce(
           instance.remove_after, now() + tiers.instance_retention_days * interval '24 hours'
         )
    from public.subscriptions as plan
    join private.tiers using (tier)
   where instance.account_id = any (accounts)
     and plan.account_id = instance.account_id
     and plan.in_force
     and private.has_ended(plan, tiers.grace_days)
     and instance.status not in ('maintenance', 'deprovisioning', 'deprovisioned')
     and (instance.status in ('provisioning', 'running') or instance.remove_after is null);
  get diagnostics stopped = row_count;

  perform set_config('mindroom.audit_reason', 'the subscription is in force again', true);
  foreach account in array accounts loop
    resumed := resumed + private.resume_instances(account);
  end loop;
  perform set_config('mindroom.audit_reason', '', true);

  for expired in
    select instance.id, tiers.instance_retention_days as days
      from public.instances as instance
      join public.subscriptions as plan on plan.account_id = instance.account_id and plan.in_force
      join private.tiers using (tier)
     where instance.account_id = any (accounts)
       and instance.status not in ('maintenance', 'deprovisioning', 'deprovisioned')
       and instance.remove_after <= now()
     order by instance.id
  loop
    if public.deprovision_instance(
      expired.id, format('kept for %s days after the subscription had ended', expired.days)
    ) then
      removed := removed + 1;
    end if;
  end loop;
  return jsonb_build_object('stopped', stopped, 'removed', removed, 'resumed', resumed);
end
$$;

comment on function public.cleanup_expired_data() is
  'Removes what private.retention has no more time for, for about a second; how many rows per table. Call it until all are 0.';
comment on function public.auto_pause_inactive_instances() is
  'Stops running instances that were unused for their tier''s pause_after_idle_days; which.';
comment on function public.follow_subscriptions() is
  'Brings the instances of some hundred accounts to what their subscriptions say: of one that has ended they are stopped, and removed after the tier''s instance_retention_days; of one that is in force again they are started. How many of each. Call it until all are 0.';

revoke all on function
  public.cleanup_expired_data(),
  public.auto_pause_inactive_instances(),
  public.follow_subscriptions()
from public, anon, authenticated, service_role;
grant execute on function
  public.cleanup_expired_data(),
  public.auto_pause_inactive_instances(),
  public.follow_subscriptions()
to service_role;
