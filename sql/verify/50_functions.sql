-- The functions: who may run them, and as whom they run.

-- check: The functions of public are exactly those of the contract, by their signatures; users execute the first seven, service_role all, PUBLIC and anon none.
with expected (name, for_roles) as (
  values
    ('get_user_instance(user_id uuid)', '{authenticated,service_role}'),
    ('get_all_user_instances(user_id uuid)', '{authenticated,service_role}'),
    ('has_active_subscription(user_id uuid)', '{authenticated,service_role}'),
    ('check_user_permission(user_id uuid, permission text)', '{authenticated,service_role}'),
    ('check_usage_limits(instance_id uuid)', '{authenticated,service_role}'),
    ('get_billing_metrics(account_id uuid, start_date date, end_date date)', '{authenticated,service_role}'),
    ('start_instance(instance_id uuid)', '{authenticated,service_role}'),
    ('track_usage(instance_id uuid, agent text, tool text, platform text, message_type text)', '{service_role}'),
    ('record_usage(instance_id uuid, events jsonb)', '{service_role}'),
    ('provision_instance(subscription_id uuid, config jsonb)', '{service_role}'),
    ('deprovision_instance(instance_id uuid, reason text)', '{service_role}'),
    ('update_instance_health(instance_id uuid, status text, details jsonb, error_message text)', '{service_role}'),
    ('reset_daily_usage()', '{service_role}'),
    ('calculate_storage_usage(instance_id uuid)', '{service_role}'),
    ('cleanup_expired_data()', '{service_role}'),
    ('auto_pause_inactive_instances()', '{service_role}'),
    ('export_account(account_id uuid)', '{service_role}'),
    ('erase_account(account_id uuid)', '{service_role}'),
    ('instance_of_token(token_hash text)', '{service_role}'),
    ('verify_api_key(key_hash text, instance_id uuid, permission text)', '{service_role}'),
    ('follow_subscriptions()', '{service_role}'),
    ('handle_stripe_event(event jsonb)', '{service_role}'),
    ('handle_stripe_object(object jsonb, observed_at timestamp with time zone)', '{service_role}')
),
found as (
  select p.oid, p.proname || '(' || pg_get_function_identity_arguments(p.oid) || ')' as name
    from pg_catalog.pg_proc p
   where p.pronamespace = to_regnamespace('public')
     and not exists (select from pg_catalog.pg_depend d where d.objid = p.oid and d.deptype = 'e')
)
select coalesce(expected.name, found.name) as function,
       role,
       case
         when found.oid is null then 'missing'
         when expected.name is null then 'not in the contract'
         when allowed then 'may not execute it'
         else 'may execute it'
       end as problem
  from expected
  full join found using (name)
 cross join unnest(array['public', 'anon', 'authenticated', 'service_role']) as role
 cross join lateral (
   select role = any (expected.for_roles::text[]) as allowed
 ) as wanted
 where expected.name is null
    or found.oid is null
    or has_function_privilege(role, found.oid, 'EXECUTE') <> allowed;

-- check: No API role, service_role and PUBLIC included, may execute a function of private.
select p.oid::regprocedure as function, role
  from pg_catalog.pg_proc p
 cross join unnest(array['public', 'anon', 'authenticated', 'service_role']) as role
 where p.pronamespace = to_regnamespace('private') and has_function_privilege(role, p.oid, 'EXECUTE');

-- check: No function that runs with its owner's rights is executable by PUBLIC, anon or authenticated.
select p.oid::regprocedure as function, role
  from pg_catalog.pg_proc p
 cross join unnest(array['public', 'anon', 'authenticated']) as role
 where p.pronamespace in (to_regnamespace('public'), to_regnamespace('private'))
   and p.prosecdef
   and not exists (select from pg_catalog.pg_depend d where d.objid = p.oid and d.deptype = 'e')
   and has_function_privilege(role, p.oid, 'EXECUTE');

-- check: Every function has the search_path pg_catalog, pg_temp of its own: with any other, the empty one included, a caller's temporary type is found before the real one and its code runs as the function's owner.
select p.oid::regprocedure as function, p.proconfig as settings
  from pg_catalog.pg_proc p
 where p.pronamespace in (to_regnamespace('public'), to_regnamespace('private'))
   and not exists (select from pg_catalog.pg_depend d where d.objid = p.oid and d.deptype = 'e')
   and not coalesce(p.proconfig, '{}') @> array['search_path=pg_catalog, pg_temp'];

-- check: Tables and functions have one owner: functions with the owner's rights pass its row-level security.
select kind, object, owner::regrole
  from (
    select 'table' as kind, c.oid::regclass::text as object, c.relowner as owner
      from pg_catalog.pg_class c
     where c.relnamespace in (to_regnamespace('public'), to_regnamespace('private'))
       and c.relkind in ('r', 'p')
       and not exists (select from pg_catalog.pg_depend d where d.objid = c.oid and d.deptype = 'e')
    union all
    select 'function', p.oid::regprocedure::text, p.proowner
      from pg_catalog.pg_proc p
     where p.pronamespace in (to_regnamespace('public'), to_regnamespace('private'))
       and not exists (select from pg_catalog.pg_depend d where d.objid = p.oid and d.deptype = 'e')
  ) as owned
 where owner is distinct from (
   select relowner from pg_catalog.pg_class where oid = to_regclass('public.accounts')
 );

-- check: Every function of ours says what it is for.
select p.oid::regprocedure as function_without_comment
  from pg_catalog.pg_proc p
 where p.pronamespace in (to_regnamespace('public'), to_regnamespace('private'))
   and obj_description(p.oid, 'pg_proc') is null
   and not exists (select from pg_catalog.pg_depend d where d.objid = p.oid and d.deptype = 'e');
