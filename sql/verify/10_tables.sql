-- The tables of the contract: row-level security, the customer's id on every row, what must be there.

-- check: Row-level security is on for every table in public and private, and not forced on the owner, whose functions need to pass.
select n.nspname as schema, c.relname as table, c.relrowsecurity as enabled, c.relforcerowsecurity as forced
  from pg_catalog.pg_class c
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
 where n.nspname in ('public', 'private')
   and c.relkind in ('r', 'p')
   and not exists (select from pg_catalog.pg_depend d where d.objid = c.oid and d.deptype = 'e')
   and (not c.relrowsecurity or c.relforcerowsecurity);

-- check: Every table in public and private has a primary key.
select n.nspname as schema, c.relname as table
  from pg_catalog.pg_class c
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
 where n.nspname in ('public', 'private')
   and c.relkind in ('r', 'p')
   and not exists (select from pg_catalog.pg_depend d where d.objid = c.oid and d.deptype = 'e')
   and not exists (select from pg_catalog.pg_index i where i.indrelid = c.oid and i.indisprimary);

-- check: Every row of a customer carries account_id: a uuid, never null (but in the audit log), the first column of an index.
select t.name as table,
       a.atttypid::regtype as type,
       a.attnotnull as not_null,
       indexed.yes as indexed
  from (
    values
      ('subscriptions'), ('instances'), ('usage_metrics'), ('audit_logs'), ('support_tickets'),
      ('instance_backups'), ('api_keys')
    union
    select c.relname::text
      from pg_catalog.pg_class c
      join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attname = 'account_id'
     where c.relnamespace = to_regnamespace('public') and c.relkind in ('r', 'p')
  ) as t (name)
  left join pg_catalog.pg_attribute a
    on a.attrelid = to_regclass('public.' || t.name) and a.attname = 'account_id' and not a.attisdropped
  cross join lateral (
    select exists (
      select from pg_catalog.pg_index i
       where i.indrelid = a.attrelid and i.indkey[0] = a.attnum and i.indisvalid and i.indpred is null
    ) as yes
  ) as indexed
 where a.attnum is null
    or a.atttypid <> 'uuid'::regtype
    or (not a.attnotnull and t.name <> 'audit_logs')
    or not indexed.yes;

-- check: account_id is kept true: a foreign key leads to the account, and wherever a row names an instance or a subscription too, one key holds both.
select t.name as table, t.columns as columns_of_the_missing_key, t.target
  from (values
    ('accounts', '{id}', 'auth.users'),
    ('subscriptions', '{account_id}', 'public.accounts'),
    ('instances', '{account_id}', 'public.accounts'),
    ('instances', '{account_id,subscription_id}', 'public.subscriptions'),
    ('usage_metrics', '{account_id,instance_id}', 'public.instances'),
    ('support_tickets', '{account_id}', 'public.accounts'),
    ('support_tickets', '{account_id,instance_id}', 'public.instances'),
    ('instance_backups', '{account_id,instance_id}', 'public.instances'),
    ('api_keys', '{account_id}', 'public.accounts')
  ) as t (name, columns, target)
 where not exists (
   select from pg_catalog.pg_constraint con
    where con.conrelid = to_regclass('public.' || t.name)
      and con.contype = 'f'
      and con.convalidated
      and con.confrelid = to_regclass(t.target)
      and t.columns::name[] = array(
        select a.attname
          from pg_catalog.pg_attribute a
         where a.attrelid = con.conrelid and a.attnum = any (con.conkey)
         order by a.attname
      )
 );

-- check: The audit log outlives what it speaks of: it has no foreign key.
select con.conname as foreign_key, con.confrelid::regclass as target
  from pg_catalog.pg_constraint con
 where con.conrelid = to_regclass('public.audit_logs') and con.contype = 'f';

-- check: created_at and updated_at are timestamptz and never null.
select a.attrelid::regclass as table, a.attname as column, a.atttypid::regtype as type, a.attnotnull as not_null
  from pg_catalog.pg_attribute a
  join pg_catalog.pg_class c on c.oid = a.attrelid and c.relkind in ('r', 'p')
 where c.relnamespace = 'public'::regnamespace
   and a.attname in ('created_at', 'updated_at')
   and not a.attisdropped
   and not exists (select from pg_catalog.pg_depend d where d.objid = c.oid and d.deptype = 'e')
   and (a.atttypid <> 'timestamptz'::regtype or not a.attnotnull);

-- check: No table that users read has a column named like a secret, but the write-only key_hash.
select a.attrelid::regclass as table, a.attname as column
  from pg_catalog.pg_attribute a
  join pg_catalog.pg_class c on c.oid = a.attrelid and c.relkind in ('r', 'p', 'v', 'm')
 where c.relnamespace = 'public'::regnamespace
   and a.attnum > 0
   and not a.attisdropped
   and a.attname ~ '(token|secret|passw|credential|hash|_key$)'
   and (a.attrelid, a.attname) is distinct from (to_regclass('public.api_keys')::oid, 'key_hash'::name)
   and not exists (select from pg_catalog.pg_depend d where d.objid = c.oid and d.deptype = 'e');

-- check: Views in public, if there are any, obey the reader's row-level security.
select c.oid::regclass as view
  from pg_catalog.pg_class c
 where c.relnamespace = 'public'::regnamespace
   and c.relkind in ('v', 'm')
   and not coalesce(c.reloptions, '{}') && array['security_invoker=true', 'security_invoker=on', 'security_invoker=1']
   and not exists (select from pg_catalog.pg_depend d where d.objid = c.oid and d.deptype = 'e');

-- check: Every table of ours says what it is for.
select c.oid::regclass as table_without_comment
  from pg_catalog.pg_class c
 where c.relnamespace in (to_regnamespace('public'), to_regnamespace('private'))
   and c.relkind in ('r', 'p')
   and obj_description(c.oid, 'pg_class') is null
   and not exists (select from pg_catalog.pg_depend d where d.objid = c.oid and d.deptype = 'e');
