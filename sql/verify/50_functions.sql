-- The functions: who may run them, and as whom they run.

-- promise: No function is executable by PUBLIC, anon or authenticated, except those that users may call.
with callable (name) as (
  -- One line per function of public that users may call, by its full signature.
  select null::text where false
),
reader (name) as (
  values ('public'), ('anon'), ('authenticated')
)
select p.oid::regprocedure as function, reader.name as role
  from pg_catalog.pg_proc p
 cross join reader
 where p.pronamespace in (to_regnamespace('public'), to_regnamespace('private'))
   and not exists (select from pg_catalog.pg_depend d where d.objid = p.oid and d.deptype = 'e')
   and has_function_privilege(reader.name, p.oid, 'EXECUTE')
   and not exists (
     select from callable where to_regprocedure(callable.name) = p.oid and reader.name = 'authenticated'
   );

-- promise: No API role, service_role included, may execute a function of private.
select p.oid::regprocedure as function, role
  from pg_catalog.pg_proc p
 cross join unnest(array['anon', 'authenticated', 'service_role']) as role
 where p.pronamespace = to_regnamespace('private') and has_function_privilege(role, p.oid, 'EXECUTE');

-- promise: No function that runs with its owner's rights is executable by PUBLIC, anon or authenticated.
select p.oid::regprocedure as function, role
  from pg_catalog.pg_proc p
 cross join unnest(array['public', 'anon', 'authenticated']) as role
 where p.pronamespace in (to_regnamespace('public'), to_regnamespace('private'))
   and p.prosecdef
   and not exists (select from pg_catalog.pg_depend d where d.objid = p.oid and d.deptype = 'e')
   and has_function_privilege(role, p.oid, 'EXECUTE');

-- promise: Every function has an empty search_path of its own, so that nobody can put another object in the way.
select p.oid::regprocedure as function, p.proconfig as settings
  from pg_catalog.pg_proc p
 where p.pronamespace in (to_regnamespace('public'), to_regnamespace('private'))
   and not exists (select from pg_catalog.pg_depend d where d.objid = p.oid and d.deptype = 'e')
   and not coalesce(p.proconfig, '{}') @> array['search_path=""'];

-- promise: Tables and functions have one owner: functions with the owner's rights pass its row-level security.
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
