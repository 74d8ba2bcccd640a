-- The policies: who sees and writes which rows.

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
