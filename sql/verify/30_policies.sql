-- The policies: who sees and writes which rows.

-- check: The policies are exactly these, one permissive policy per table, role and command; a policy for all commands counts as four.
with expected (name, role, commands) as (
  values
    ('public.accounts', 'authenticated', 'rw'),
    ('public.subscriptions', 'authenticated', 'r'),
    ('public.instances', 'authenticated', 'rw'),
    ('public.usage_metrics', 'authenticated', 'r'),
    ('public.audit_logs', 'authenticated', 'r'),
    ('public.support_tickets', 'authenticated', 'raw'),
    ('public.instance_backups', 'authenticated', 'ra'),
    ('public.api_keys', 'authenticated', 'raw'),
    ('public.accounts', 'platform_service', 'raw'),
    ('public.subscriptions', 'platform_service', 'raw'),
    ('public.instances', 'platform_service', 'raw'),
    ('public.usage_metrics', 'platform_service', 'r'),
    ('public.audit_logs', 'platform_service', 'ra'),
    ('public.support_tickets', 'platform_service', 'raw'),
    ('public.instance_backups', 'platform_service', 'raw'),
    ('public.api_keys', 'platform_service', 'r'),
    ('public.accounts', 'service_role', 'rawd'),
    ('public.subscriptions', 'service_role', 'rawd'),
    ('public.instances', 'service_role', 'rawd'),
    ('public.usage_metrics', 'service_role', 'rawd'),
    ('public.audit_logs', 'service_role', 'rawd'),
    ('public.support_tickets', 'service_role', 'rawd'),
    ('public.instance_backups', 'service_role', 'rawd'),
    ('public.api_keys', 'service_role', 'rawd'),
    ('private.tiers', 'platform_service', 'r'),
    ('private.retention', 'platform_service', 'r'),
    ('private.instance_status_transitions', 'platform_service', 'r'),
    ('private.reserved_subdomains', 'platform_service', 'r'),
    ('private.instance_secrets', 'platform_service', 'rawd'),
    ('private.provisioning', 'platform_service', 'rawd'),
    ('private.api_key_hashes', 'platform_service', 'r'),
    ('private.stripe_events', 'platform_service', 'r'),
    ('private.stripe_prices', 'platform_service', 'r'),
    ('private.stripe_customers', 'platform_service', 'r'),
    ('private.stripe_subscriptions', 'platform_service', 'r')
),
found as (
  select p.polrelid as relation, role.oid as role, command, count(*) as policies
    from pg_catalog.pg_policy p
    join pg_catalog.pg_class c on c.oid = p.polrelid
   cross join unnest(p.polroles) as role (oid)
   cross join unnest(string_to_array(case p.polcmd when '*' then 'r,a,w,d' else p.polcmd::text end, ',')) as command
   where c.relnamespace in (to_regnamespace('public'), to_regnamespace('private'))
     and p.polpermissive
     and not exists (select from pg_catalog.pg_depend d where d.objid = c.oid and d.deptype = 'e')
   group by p.polrelid, role.oid, command
)
select coalesce(wanted.relation, found.relation)::regclass as table,
       case when coalesce(wanted.role, found.role) = 0 then 'PUBLIC'
            else coalesce(wanted.role, found.role)::regrole::text end as role,
       case coalesce(wanted.command, found.command)
         when 'r' then 'select' when 'a' then 'insert' when 'w' then 'update' else 'delete'
       end as command,
       coalesce(found.policies, 0) as policies,
       case when wanted.role is null then 0 else 1 end as expected
  from (
    select to_regclass(name)::oid as relation, to_regrole(role)::oid as role, command
      from expected
     cross join regexp_split_to_table(commands, '') as command
  ) as wanted
  full join found using (relation, role, command)
 where found.policies is distinct from 1 or wanted.role is null;

-- check: A user's policy admits rows of the user's own account and no others, on reading and on writing.
select p.tablename as table, p.policyname as policy, p.cmd as command, p.qual as "using", p.with_check
  from pg_catalog.pg_policies p
 cross join lateral (
   select case p.tablename when 'accounts' then '(id = ' else '(account_id = ' end
          || '( SELECT auth.uid() AS uid))' as condition
 ) as own
 where p.schemaname = 'public'
   and p.roles && array['anon', 'authenticated']::name[]
   and (
     (p.cmd <> 'INSERT' and p.qual is distinct from own.condition)
     or (p.cmd = 'INSERT' and position(own.condition in p.with_check) is distinct from 1
                          and p.with_check not like '(' || own.condition || ' AND %')
     or (p.cmd not in ('INSERT', 'SELECT') and p.with_check is distinct from own.condition)
   );

-- check: No policy asks who is calling for each row: auth.uid() and its like stand in a sub-select, computed once.
select p.schemaname as schema, p.tablename as table, p.policyname as policy, expression
  from pg_catalog.pg_policies p
 cross join unnest(array[p.qual, p.with_check]) as expression
 where p.schemaname in ('public', 'private')
   and regexp_replace(expression, '\( SELECT (auth\.\w+|current_setting)\([^()]*\) AS \w+\)', '', 'g')
       ~ '(auth\.|current_setting)';

-- check: No policy looks into another table: that costs hundreds of times the plain query.
select p.polrelid::regclass as table, p.polname as policy, d.refobjid::regclass as looks_into
  from pg_catalog.pg_policy p
  join pg_catalog.pg_depend d
    on d.classid = 'pg_catalog.pg_policy'::regclass
   and d.objid = p.oid
   and d.refclassid = 'pg_catalog.pg_class'::regclass
   and d.refobjid <> p.polrelid
  join pg_catalog.pg_class c on c.oid = p.polrelid
 where c.relnamespace in (to_regnamespace('public'), to_regnamespace('private'));

-- check: A service appends to the audit log in its own name only.
select coalesce(p.policyname, 'no insert policy') as policy, p.with_check
  from (select) as one
  left join pg_catalog.pg_policies p
    on p.schemaname = 'public' and p.tablename = 'audit_logs'
   and p.cmd = 'INSERT' and p.roles = array['platform_service']::name[]
 where p.with_check is null or p.with_check not like '(actor_role = COALESCE(NULLIF(( SELECT current_setting(%';
