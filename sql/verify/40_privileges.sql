-- Who may do what: the privileges of the API roles, of PUBLIC and of the service group.

-- check: service_role reads and writes all eight tables, also where new tables are granted to nobody; but it updates no counts by name.
select t.name as table, privilege as missing_privilege
  from (values
    ('accounts'), ('subscriptions'), ('instances'), ('usage_metrics'), ('audit_logs'),
    ('support_tickets'), ('instance_backups'), ('api_keys')
  ) as t (name)
 cross join unnest(array['SELECT', 'INSERT', 'UPDATE', 'DELETE']) as privilege
 where (t.name, privilege) <> ('usage_metrics', 'UPDATE')
   and not has_table_privilege('service_role', to_regclass('public.' || t.name), privilege)
union all
select 'usage_metrics.' || a.attname, 'UPDATE'
  from pg_catalog.pg_attribute a
 where a.attrelid = to_regclass('public.usage_metrics')
   and a.attnum > 0
   and not a.attisdropped
   and has_column_privilege('service_role', a.attrelid, a.attnum, 'UPDATE')
       = (a.attname in ('agent_counts', 'tool_counts', 'platforms_active'));

-- check: Nothing in private is within reach of an API role: neither the schema nor any table.
select role, 'schema private' as object
  from unnest(array['anon', 'authenticated', 'service_role']) as role
 where has_schema_privilege(role, 'private', 'USAGE') or has_schema_privilege(role, 'private', 'CREATE')
union all
select role, c.oid::regclass::text
  from pg_catalog.pg_class c
 cross join unnest(array['anon', 'authenticated', 'service_role']) as role
 where c.relnamespace = to_regnamespace('private')
   and c.relkind in ('r', 'p', 'v', 'm')
   and (
     has_table_privilege(role, c.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER')
     or has_any_column_privilege(role, c.oid, 'SELECT, INSERT, UPDATE, REFERENCES')
   );

-- check: API roles use the schema public and create nothing in it.
select role,
       has_schema_privilege(role, 'public', 'USAGE') as may_use,
       has_schema_privilege(role, 'public', 'CREATE') as may_create
  from unnest(array['anon', 'authenticated', 'service_role']) as role
 where not has_schema_privilege(role, 'public', 'USAGE') or has_schema_privilege(role, 'public', 'CREATE');

-- check: API roles cannot log in, only service_role passes row-level security, and none of them is a superuser.
select rolname as role, rolcanlogin as login, rolsuper as superuser, rolbypassrls as bypassrls
  from pg_catalog.pg_roles
 where rolname in ('anon', 'authenticated', 'service_role')
   and (rolcanlogin or rolsuper or rolbypassrls <> (rolname = 'service_role'));

-- check: The group of the services is there and cannot log in, pass row-level security or create.
select 'platform_service' as role
 where not exists (
   select from pg_catalog.pg_roles
    where rolname = 'platform_service'
      and not (rolcanlogin or rolsuper or rolbypassrls or rolcreaterole or rolcreatedb or rolreplication)
 );

-- check: What the owner of the tables creates next in public or private is granted to nobody by default.
select coalesce(n.nspname, 'every schema') as schema,
       case d.defaclobjtype when 'r' then 'tables' when 'S' then 'sequences' when 'f' then 'functions' end as objects,
       case when acl.grantee = 0 then 'PUBLIC' else acl.grantee::regrole::text end as role,
       acl.privilege_type as privilege
  from pg_catalog.pg_default_acl d
  join pg_catalog.pg_class c on c.oid = to_regclass('public.accounts') and c.relowner = d.defaclrole
  left join pg_catalog.pg_namespace n on n.oid = d.defaclnamespace
 cross join aclexplode(d.defaclacl) as acl
 where d.defaclobjtype in ('r', 'S', 'f')
   and (d.defaclnamespace = 0 or n.nspname in ('public', 'private'))
   and acl.grantee in (0, to_regrole('anon'), to_regrole('authenticated'), to_regrole('service_role'))
union all
-- Without an entry of its own, the built-in default holds: functions for PUBLIC.
select 'every schema', 'functions', 'PUBLIC', 'EXECUTE'
 where not exists (
   select from pg_catalog.pg_default_acl d
     join pg_catalog.pg_class c on c.oid = to_regclass('public.accounts') and c.relowner = d.defaclrole
    where d.defaclnamespace = 0 and d.defaclobjtype = 'f'
 );

-- check: PUBLIC, anon and authenticated create no temporary objects in a database of ours.
select d.datname as database,
       case when acl.grantee = 0 then 'PUBLIC' else acl.grantee::regrole::text end as role,
       format(
         'revoke temporary on database %I from %s',
         d.datname, case when acl.grantee = 0 then 'public' else acl.grantee::regrole::text end
       ) as what_to_do
  from pg_catalog.pg_database d
  join pg_catalog.pg_class c on c.oid = to_regclass('public.accounts')
 cross join aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) as acl
 where d.datname = current_database()
   and acl.privilege_type = 'TEMPORARY'
   and acl.grantee in (0, to_regrole('anon'), to_regrole('authenticated'))
   -- Another's database (a hosted one may be) is its owner's to close.
   and pg_has_role(c.relowner, d.datdba, 'USAGE');
