-- Personal data goes with its account: what erase_account() would leave is found here.

-- check: A column that may hold personal data is in a table whose rows go with their account (ON DELETE CASCADE); or it is named here, with the reason why nothing of an erased account stays in it.
with recursive gone (id) as (
  select to_regclass('public.accounts')::oid
  union
  select con.conrelid
    from pg_catalog.pg_constraint con
    join gone on con.confrelid = gone.id
   where con.contype = 'f' and con.confdeltype = 'c'
)
select a.attrelid::regclass as table, a.attname as column, a.atttypid::regtype as type
  from pg_catalog.pg_attribute a
  join pg_catalog.pg_class c on c.oid = a.attrelid and c.relkind in ('r', 'p')
  join pg_catalog.pg_type t on t.oid = a.atttypid
 where c.relnamespace in (to_regnamespace('public'), to_regnamespace('private'))
   and a.attnum > 0
   and not a.attisdropped
   -- All but booleans, times, numbers and keys.
   and t.typcategory not in ('B', 'D', 'N', 'T')
   and a.atttypid <> 'uuid'::regtype
   and c.oid not in (select id from gone)
   and not exists (
     select
       from (values
         -- erase_account() deletes the account's rows.
         ('public.audit_logs', null),
         ('private.stripe_events', null),
         ('private.usage_events', null),
         -- Kept for as long as private.retention says: links to it lead nowhere until then.
         ('private.released_subdomains', 'subdomain'),
         -- The platform's own: no customer writes these.
         ('private.tiers', null),
         ('private.retention', null),
         ('private.database_backups', null),
         ('private.reserved_subdomains', null),
         ('private.instance_status_transitions', null),
         ('private.stripe_prices', null)
       ) as known (name, column_name)
      where to_regclass(known.name) = c.oid and coalesce(known.column_name, a.attname) = a.attname
   )
   and not exists (select from pg_catalog.pg_depend d where d.objid = c.oid and d.deptype = 'e');
