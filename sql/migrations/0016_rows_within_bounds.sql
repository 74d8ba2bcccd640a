-- The rows that were there before 0015_bounds.sql.

-- A key that never expires has no expires_at. In one statement, since both bounds hold by now.
update public.api_keys
   set expires_at = case when expires_at <= '9999-12-31 00:00+00' then expires_at end,
       permissions = array(select distinct unnest(permissions) order by 1)
 where expires_at > '9999-12-31 00:00+00'
    or array_ndims(permissions) <> 1
    or cardinality(permissions) <> (select count(distinct each) from unnest(permissions) as each);

alter table public.accounts validate constraint accounts_times_readable;
alter table public.subscriptions validate constraint subscriptions_times_readable;
alter table public.instances validate constraint instances_times_readable;
alter table public.audit_logs validate constraint audit_logs_times_readable;
alter table public.audit_logs validate constraint audit_logs_forwarded_for_length;
alter table public.support_tickets validate constraint support_tickets_times_readable;
alter table public.instance_backups validate constraint instance_backups_times_readable;
alter table public.api_keys validate constraint api_keys_times_readable;
alter table public.api_keys validate constraint api_keys_permissions_known;

-- Users whose email another account had when 0003_accounts.sql ran, and who got none.
do $$
begin
  if pg_catalog.has_table_privilege('auth.users', 'select') then
    insert into public.accounts (id, email, created_at)
    select users.id, users.id || '@duplicate.invalid', coalesce(users.created_at, now())
      from auth.users
      left join public.accounts on accounts.id = users.id
     where btrim(users.email) <> '' and accounts.id is null
    on conflict do nothing;
  end if;
end
$$;
