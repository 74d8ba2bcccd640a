-- The schemas of a Supabase project and who may use them.
--
-- For a database that nobody uses yet: no timeouts.

create schema if not exists public;
create schema if not exists extensions;
create schema if not exists auth;

-- The default since PostgreSQL 15, but a database restored from an older one still has the grant.
revoke create on schema public from public;

grant usage on schema public, extensions, auth to anon, authenticated, service_role;
