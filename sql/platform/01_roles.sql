-- The roles that every hosted Supabase project has, for a plain Postgres.
-- Run as superuser. Never run on Supabase, where these roles are reserved.
--
-- Roles belong to the whole cluster, and several of its databases may be set up at once. The lock is
-- on a catalog that all databases share, so concurrent runs take turns; it is free again at the end
-- of this transaction and never keeps anyone from logging in.
do $$
declare
  wanted record;
begin
  lock table pg_catalog.pg_authid in share row exclusive mode;

  for wanted in
    select *
      from (values
        ('anon', 'nologin inherit'),
        ('authenticated', 'nologin inherit'),
        ('service_role', 'nologin inherit bypassrls'),
        -- On Supabase PostgREST logs in as this one. Here the customer portal has a login role of
        -- its own, so this one needs no login.
        ('authenticator', 'nologin noinherit')
      ) as roles (name, attributes)
     where not exists (select from pg_catalog.pg_roles where rolname = name)
  loop
    execute format('create role %I %s', wanted.name, wanted.attributes);
  end loop;

  for wanted in
    select name
      from (values ('anon'), ('authenticated'), ('service_role')) as roles (name)
     where not exists (
       select from pg_catalog.pg_auth_members
        where roleid = name::regrole and member = 'authenticator'::regrole
     )
  loop
    execute format('grant %I to authenticator', wanted.name);
  end loop;

  for wanted in
    select *
      from (values
        ('anon', 'statement_timeout', '3s'),
        ('authenticated', 'statement_timeout', '8s'),
        ('authenticator', 'statement_timeout', '8s'),
        ('authenticator', 'lock_timeout', '8s')
      ) as settings (name, parameter, value)
     where not exists (
       select from pg_catalog.pg_db_role_setting
        where setrole = name::regrole and setdatabase = 0
          and parameter || '=' || value = any (setconfig)
     )
  loop
    execute format('alter role %I set %I = %L', wanted.name, wanted.parameter, wanted.value);
  end loop;
end
$$;
