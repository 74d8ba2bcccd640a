-- What a person may ask for: all that is held about them, and that it be erased. sql/verify/ holds each
-- column that may have personal data to one of these two ways: its row goes with the account, or it is
-- named there.

-- Whatever has an account_id, so that a new table is exported with its first row; and what is found by
-- the account's instances and its customers at Stripe.
create or replace function public.export_account(account_id uuid) returns jsonb
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  owned record;
  found_rows jsonb;
  export jsonb := jsonb '{}';
begin
  perform private.check_account(account_id);
  for owned in
    select n.nspname as schema_name, c.relname as table_name,
           case when c.oid = 'public.accounts'::regclass then 'id' else 'account_id' end as key
      from pg_class as c
      join pg_namespace as n on n.oid = c.relnamespace
      join pg_attribute as a on a.attrelid = c.oid and not a.attisdropped
     where n.nspname in ('public', 'private')
       and c.relkind in ('r', 'p') and not c.relispartition
       and (a.attname = 'account_id' or c.oid = 'public.accounts'::regclass and a.attname = 'id')
     order by c.relname
  loop
    execute format(
      'select coalesce(jsonb_agg(to_jsonb(owned)), ''[]'') from %I.%I as owned where %I = $1',
      owned.schema_name, owned.table_name, owned.key
    ) into found_rows using account_id;
    export := export || jsonb_build_object(owned.table_name, found_rows);
  end loop;
  return export || jsonb_build_object(
    'audit_logs', (
      select coalesce(jsonb_agg(to_jsonb(log)), '[]')
        from public.audit_logs as log
       where export_account.account_id in (log.account_id, log.actor_user_id)
    ),
    'usage_events', (
      select coalesce(jsonb_agg(to_jsonb(event)), '[]')
        from private.usage_events as event
        join public.instances as instance on instance.id = event.instance_id
       where instance.account_id = export_account.account_id
    ),
    'stripe_subscriptions', (
      select coalesce(jsonb_agg(to_jsonb(subscription)), '[]')
        from private.stripe_subscriptions as subscription
        join private.stripe_customers as customer using (customer_id)
       where customer.account_id = export_account.account_id
    ),
    'stripe_events', (
      select coalesce(jsonb_agg(to_jsonb(event)), '[]')
        from private.stripe_events as event
        join private.stripe_customers as customer using (customer_id)
       where customer.account_id = export_account.account_id
    )
  );
end
$$;

-- Each call does all that can be done by now, and says what it waits for. Killed at any point, it has
-- done nothing: the next call goes on.
create or replace function public.erase_account(account_id uuid) returns jsonb
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  erasure private.erasures;
  waiting_for text[];
  instance uuid;
begin
  select * into erasure from private.erasures where account_id = erase_account.account_id;
  if not found then
    perform private.check_account(account_id);
    insert into private.erasures (account_id) values (erase_account.account_id)
    on conflict do nothing;
    if found then
      perform private.log_audit(
        account_id, 'account.erasure_requested', 'account', 'account', account_id
      );
    end if;
  end if;
  -- The lock of everything that changes what the account has.
  perform from public.accounts where id = erase_account.account_id for no key update;

  update public.api_keys set is_active = false
   where account_id = erase_account.account_id and is_active;
  update public.subscriptions set status = 'cancelled'
   where account_id = erase_account.account_id and status <> 'cancelled'
     and stripe_subscription_id is null;
  waiting_for := array(
    select stripe_subscription_id from public.subscriptions
     where account_id = erase_account.account_id and status <> 'cancelled' order by 1
  );
  if waiting_for <> '{}' then
    return jsonb_build_object('erased', false, 'step', 'subscriptions', 'waiting_for', waiting_for);
  end if;

  for instance in
    select id from public.instances
     where account_id = erase_account.account_id
       and status not in ('deprovisioning', 'deprovisioned')
     order by id
  loop
    perform private.set_instance_status(instance, 'deprovisioning', 'the account is erased');
  end loop;
  waiting_for := array(
    select app_name from public.instances
     where account_id = erase_account.account_id and status <> 'deprovisioned' order by 1
  );
  if waiting_for <> '{}' then
    return jsonb_build_object('erased', false, 'step', 'instances', 'waiting_for', waiting_for);
  end if;

  waiting_for := array(
    select app_name from public.instances
     where account_id = erase_account.account_id and runtime = 'kubernetes'
       and (erasure.volumes_deleted_at >= deprovisioned_at) is not true
     order by 1
  );
  if waiting_for <> '{}' then
    return jsonb_build_object('erased', false, 'step', 'volumes', 'waiting_for', waiting_for);
  end if;

  delete from private.usage_events where instance_id in (
    select id from public.instances where account_id = erase_account.account_id
  );
  delete from private.stripe_events where customer_id in (
    select customer_id from private.stripe_customers where account_id = erase_account.account_id
  );
  if has_table_privilege('auth.users', 'delete') then
    delete from auth.users where id = erase_account.account_id;
  elsif exists (select from auth.users where id = erase_account.account_id) then
    return jsonb_build_object(
      'erased', false, 'step', 'user', 'waiting_for', array[erase_account.account_id]
    );
  end if;
  -- Last, because the deletions above are audited, too.
  delete from public.audit_logs
   where account_id = erase_account.account_id or actor_user_id = erase_account.account_id;
  update private.erasures set erased_at = now()
   where account_id = erase_account.account_id and erased_at is null;
  return jsonb_build_object('erased', true, 'step', null, 'waiting_for', '{}'::text[]);
end
$$;

create or replace function private.check_account(account_id uuid) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  if account_id is null then
    raise exception 'account_id must not be null'
      using errcode = 'null_value_not_allowed', hint = 'Pass the id of an account.';
  elsif not exists (select from public.accounts where id = check_account.account_id) then
    raise exception 'no account %', account_id
      using errcode = 'no_data_found', hint = 'Pass the id of an account.';
  end if;
end
$$;

create or replace function private.refuse_erased(account_id uuid) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
  if exists (
    select from private.erasures where erasures.account_id = refuse_erased.account_id
  ) then
    raise exception 'account % is being erased', account_id
      using errcode = 'object_not_in_prerequisite_state',
            hint = 'It gets no instance and no API key any more.';
  end if;
end
$$;

comment on function private.refuse_erased(uuid) is
  'Refuses an account that erase_account() was called for.';
comment on function public.export_account(uuid) is
  'All rows of an account, by table: what a person may ask to see. No secret and no hash is among them.';
comment on function public.erase_account(uuid) is
  'Erases an account step by step: its subscriptions at Stripe, its instances, their volumes, its rows. Does what can be done, and says in step and waiting_for what somebody else has to do before the next call; erased is true when nothing is left.';
comment on function private.check_account(uuid) is
  'Refuses what is no account.';

revoke all on function
  public.export_account(uuid),
  public.erase_account(uuid),
  private.check_account(uuid),
  private.refuse_erased(uuid)
from public, anon, authenticated, service_role;
grant execute on function
  public.export_account(uuid),
  public.erase_account(uuid)
to service_role;
