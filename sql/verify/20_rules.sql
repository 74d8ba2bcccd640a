-- The rules that the database itself enforces: constraints, unique indexes, triggers, catalogue data.

-- check: Every rule that a constraint enforces is there and was checked against the existing rows.
select t.name as table, t.rule as missing_or_unchecked_constraint
  from (values
    ('public.accounts', 'accounts_email_not_empty'),
    ('public.accounts', 'accounts_stripe_customer_id_key'),
    ('public.subscriptions', 'subscriptions_status_known'),
    ('public.subscriptions', 'subscriptions_tier_fkey'),
    ('public.subscriptions', 'subscriptions_limits_known'),
    ('public.subscriptions', 'subscriptions_stripe_subscription_id_key'),
    ('public.subscriptions', 'subscriptions_cancelled_at_known'),
    ('public.instances', 'instances_app_name_key'),
    ('public.instances', 'instances_app_name_valid'),
    ('public.instances', 'instances_subdomain_is_dns_label'),
    ('public.instances', 'instances_runtime_known'),
    ('public.instances', 'instances_status_known'),
    ('public.instances', 'instances_health_status_known'),
    ('public.usage_metrics', 'usage_metrics_pkey'),
    ('public.usage_metrics', 'usage_metrics_id_key'),
    ('public.support_tickets', 'support_tickets_priority_known'),
    ('public.support_tickets', 'support_tickets_status_known'),
    ('public.instance_backups', 'instance_backups_type_known'),
    ('public.instance_backups', 'instance_backups_status_known'),
    ('public.instance_backups', 'instance_backups_retention_known'),
    ('public.api_keys', 'api_keys_prefix_is_8_characters'),
    ('public.api_keys', 'api_keys_hash_is_not_here'),
    ('public.api_keys', 'api_keys_permissions_known'),
    ('private.api_key_hashes', 'api_key_hashes_key_hash_key'),
    ('private.api_key_hashes', 'api_key_hashes_key_hash_is_sha256')
  ) as t (name, rule)
 where not exists (
   select from pg_catalog.pg_constraint con
    where con.conrelid = to_regclass(t.name) and con.conname = t.rule and con.convalidated
 );

-- check: An email belongs to one account whatever its case, a subdomain to one instance that is not deprovisioned, and an account has at most one subscription that is not cancelled, and one in force.
select t.name as missing_or_wrong_index, pg_get_indexdef(i.indexrelid) as found
  from (values
    ('public.accounts_email_key', 'lower(email)', null),
    ('public.instances_subdomain_key', 'subdomain', '(status <> ''deprovisioned''::text)'),
    ('public.subscriptions_one_live_per_account', 'account_id', '(status <> ''cancelled''::text)'),
    ('public.subscriptions_in_force_key', 'account_id', 'in_force')
  ) as t (name, key, predicate)
  left join pg_catalog.pg_index i on i.indexrelid = to_regclass(t.name)
 where i.indexrelid is null
    or not (i.indisunique and i.indisvalid)
    or pg_get_indexdef(i.indexrelid, 1, false) <> t.key
    or i.indnkeyatts <> 1
    or pg_get_expr(i.indpred, i.indrelid) is distinct from t.predicate;

-- check: Every account with a subscription has one in force, and its instances follow it.
select account.id as account
  from public.accounts as account
  left join public.subscriptions as plan on plan.account_id = account.id and plan.in_force
 where (plan.id is null and exists (select from public.subscriptions where account_id = account.id))
    or exists (
      select from public.instances as instance
       where instance.account_id = account.id
         and instance.status not in ('deprovisioning', 'deprovisioned')
         and instance.subscription_id <> plan.id
    );

-- check: A backup's expires_at follows from its retention_days: the column is computed.
select coalesce(a.attname, 'expires_at') as column_not_computed
  from (select) as one
  left join pg_catalog.pg_attribute a
    on a.attrelid = to_regclass('public.instance_backups') and a.attname = 'expires_at'
 where a.attgenerated is distinct from 's';

-- check: Clients can read every time: whatever may be written into a timestamptz of public lies within years that they know, infinity does not.
select a.attrelid::regclass as table, a.attname as column
  from pg_catalog.pg_attribute a
  join pg_catalog.pg_class c on c.oid = a.attrelid and c.relkind in ('r', 'p')
 where c.relnamespace = to_regnamespace('public')
   and a.atttypid = 'timestamptz'::regtype
   and a.attnum > 0
   and not a.attisdropped
   and not exists (select from pg_catalog.pg_depend d where d.objid = c.oid and d.deptype = 'e')
   -- Written once per message, it has no check of its own: private.check_usage_day() sees to it.
   and c.oid <> to_regclass('public.usage_metrics')
   and not exists (
     select from pg_catalog.pg_constraint con
      where con.conrelid = c.oid
        and con.conname = c.relname || '_times_readable'
        and con.convalidated
        and a.attnum = any (con.conkey)
   );

-- check: No number is NaN: each numeric column has a checked constraint that says so, of its own or of its domain.
select a.attrelid::regclass as table, a.attname as column
  from pg_catalog.pg_attribute a
  join pg_catalog.pg_class c on c.oid = a.attrelid and c.relkind in ('r', 'p')
  join pg_catalog.pg_type t on t.oid = a.atttypid
 where c.relnamespace in (to_regnamespace('public'), to_regnamespace('private'))
   and coalesce(nullif(t.typbasetype, 0), t.oid) in ('numeric'::regtype, 'float8'::regtype, 'float4'::regtype)
   and a.attnum > 0
   and not a.attisdropped
   and not exists (select from pg_catalog.pg_depend d where d.objid = c.oid and d.deptype = 'e')
   and not exists (
     select from pg_catalog.pg_constraint con
      where con.convalidated
        and con.conname like '%\_finite'
        and (con.conrelid = c.oid and a.attnum = any (con.conkey) or con.contypid = t.oid)
   );

-- check: What is written as jsonb in public is bounded before anything reads it as text.
select a.attrelid::regclass as table, a.attname as column
  from pg_catalog.pg_attribute a
  join pg_catalog.pg_class c on c.oid = a.attrelid and c.relkind in ('r', 'p')
 where c.relnamespace = to_regnamespace('public')
   and a.atttypid = 'jsonb'::regtype
   -- Of usage_metrics: private.check_usage_counts() sees to these two, and nobody may update them.
   and a.attname not in ('agent_counts', 'tool_counts')
   and a.attnum > 0
   and not a.attisdropped
   and not exists (select from pg_catalog.pg_depend d where d.objid = c.oid and d.deptype = 'e')
   and not exists (
     select from pg_catalog.pg_trigger tg
      where tg.tgrelid = c.oid
        and tg.tgfoid = to_regprocedure('private.bound_json()')
        and tg.tgenabled in ('O', 'A')
        -- BEFORE (bit 2) each INSERT (4) and UPDATE (16), with the column as an argument
        and (tg.tgtype & 22) = 22
        and a.attname = any (string_to_array(encode(tg.tgargs, 'escape'), '\000'))
   );

-- check: Every rule that a trigger enforces has its trigger, enabled.
select t.name as table, t.trigger as missing_or_disabled_trigger
  from (values
    ('auth.users', 'mindroom_sync_account'),
    ('public.accounts', 'accounts_audit'),
    ('public.subscriptions', 'subscriptions_apply_tier'),
    ('public.subscriptions', 'subscriptions_note_cancellation'),
    ('public.subscriptions', 'subscriptions_put_in_force'),
    ('public.subscriptions', 'subscriptions_put_other_in_force'),
    ('public.subscriptions', 'subscriptions_resize_instances'),
    ('public.subscriptions', 'subscriptions_keep_billed'),
    ('public.subscriptions', 'subscriptions_audit'),
    ('public.instances', 'instances_adopt_plan'),
    ('public.instances', 'instances_adopt_other_plan'),
    ('public.instances', 'instances_apply_tier_resources'),
    ('public.instances', 'instances_apply_other_tier_resources'),
    ('public.instances', 'instances_check_first_status'),
    ('public.instances', 'instances_check_first_subdomain'),
    ('public.instances', 'instances_check_subdomain'),
    ('public.instances', 'instances_release_subdomain'),
    ('public.instances', 'instances_check_first_released_subdomain'),
    ('public.instances', 'instances_check_released_subdomain'),
    ('public.instances', 'instances_set_updated_at_when_used'),
    ('public.instances', 'instances_check_status_transition'),
    ('public.instances', 'instances_check_first_config'),
    ('public.instances', 'instances_check_config'),
    ('public.instances', 'instances_keep_deployed'),
    ('public.instances', 'instances_notify_insert'),
    ('public.instances', 'instances_notify_update'),
    ('public.instances', 'instances_audit'),
    ('public.instances', 'instances_audit_status'),
    ('public.usage_metrics', 'usage_metrics_check_day'),
    ('public.usage_metrics', 'usage_metrics_check_counts'),
    ('public.usage_metrics', 'usage_metrics_check_activity'),
    ('public.support_tickets', 'support_tickets_note_resolution'),
    ('public.support_tickets', 'support_tickets_check_first_priority'),
    ('public.support_tickets', 'support_tickets_check_priority'),
    ('public.support_tickets', 'support_tickets_check_status'),
    ('public.instance_backups', 'instance_backups_apply_retention'),
    ('public.api_keys', 'api_keys_store_hash'),
    ('public.api_keys', 'api_keys_check_permissions'),
    ('public.api_keys', 'api_keys_keep_revoked'),
    ('public.api_keys', 'api_keys_set_updated_at_when_used'),
    ('public.api_keys', 'api_keys_audit')
  ) as t (name, trigger)
 where not exists (
   select from pg_catalog.pg_trigger tg
    where tg.tgrelid = to_regclass(t.name) and tg.tgname = t.trigger and tg.tgenabled in ('O', 'A')
 );

-- check: updated_at is kept by a trigger wherever there is one.
select a.attrelid::regclass as table
  from pg_catalog.pg_attribute a
  join pg_catalog.pg_class c on c.oid = a.attrelid and c.relkind in ('r', 'p')
 where c.relnamespace in (to_regnamespace('public'), to_regnamespace('private'))
   and a.attname = 'updated_at'
   and not a.attisdropped
   and not exists (select from pg_catalog.pg_depend d where d.objid = c.oid and d.deptype = 'e')
   and not exists (
     select from pg_catalog.pg_trigger tg
      where tg.tgrelid = c.oid
        and tg.tgfoid = to_regprocedure('private.set_updated_at()')
        and tg.tgenabled in ('O', 'A')
   );

-- check: No trigger of ours is switched off, those of foreign keys included.
select tg.tgrelid::regclass as table, tg.tgname as trigger
  from pg_catalog.pg_trigger tg
  join pg_catalog.pg_class c on c.oid = tg.tgrelid
 where c.relnamespace in (to_regnamespace('public'), to_regnamespace('private'))
   and tg.tgenabled not in ('O', 'A')
   and not exists (select from pg_catalog.pg_depend d where d.objid = c.oid and d.deptype = 'e');

-- check: usage_metrics, written once per message, has no trigger that a count fires and no index on what a count changes.
select tg.tgname as trigger_or_index
  from pg_catalog.pg_trigger tg
 where tg.tgrelid = to_regclass('public.usage_metrics')
   and not tg.tgisinternal
   -- An upsert that counts fires every BEFORE INSERT trigger (bits 2 and 4) and each UPDATE trigger
   -- (bit 16) that is not bound to other columns.
   and (
     (tg.tgtype & 6) = 6
     or (
       (tg.tgtype & 16) = 16
       and not exists (
         select from pg_catalog.pg_attribute a
          where a.attrelid = tg.tgrelid
            and tg.tgattr::text = a.attnum::text
            and a.attname in ('usage_date', 'activity_noted_until')
       )
     )
   )
union all
select i.indexrelid::regclass::text
  from pg_catalog.pg_index i
  join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = any (i.indkey)
 where i.indrelid = to_regclass('public.usage_metrics')
   and a.attname not in ('id', 'account_id', 'instance_id', 'usage_date', 'limit_exceeded');

-- check: The tier catalogue holds exactly the four tiers, each with the same features as true or false.
select coalesce(expected.tier, found.tier) as tier,
       case
         when found.tier is null then 'missing'
         when expected.tier is null then 'unknown'
         else 'features differ or are not true/false: ' || found.features::text
       end as problem
  from (values ('free'), ('starter'), ('professional'), ('enterprise')) as expected (tier)
  full join private.tiers as found on found.tier = expected.tier
 where found.tier is null
    or expected.tier is null
    or not found.features ?& array[
         'api_access', 'priority_support', 'custom_agents', 'advanced_memory', 'voice_messages',
         'file_uploads', 'team_collaboration'
       ]
    or array(select jsonb_object_keys(found.features) order by 1) <> array(
         select jsonb_object_keys(enterprise.features) from private.tiers as enterprise
          where enterprise.tier = 'enterprise' order by 1
       )
    or jsonb_path_exists(found.features, '$.* ? (@.type() != "boolean")');

-- check: Instance states lead somewhere: only deprovisioned is final, each other one can be removed, and removal only goes on.
select state as status, array_agg(t.to_status order by t.to_status) as leads_to
  from unnest(array[
    'provisioning', 'running', 'stopped', 'failed', 'maintenance', 'deprovisioning', 'deprovisioned'
  ]) as state
  left join private.instance_status_transitions t on t.from_status = state
 group by state
having case state
         when 'deprovisioned' then count(t.to_status) > 0
         when 'deprovisioning' then array_agg(t.to_status) <> array['deprovisioned']
         else count(*) filter (where t.to_status = 'deprovisioning') = 0
       end;

-- check: Realtime, where it exists, publishes the tables that clients listen to.
select expected.name as table_not_published
  from (values ('instances'), ('subscriptions')) as expected (name)
 where exists (select from pg_catalog.pg_publication where pubname = 'supabase_realtime')
   and not exists (
     select from pg_catalog.pg_publication_tables
      where pubname = 'supabase_realtime' and schemaname = 'public' and tablename = expected.name
   );
