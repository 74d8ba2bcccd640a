-- What everything else stands on: a schema that no API role can reach, a group for the platform's
-- services, and defaults that give nothing away.

create schema if not exists private;

comment on schema private is
  'Out of reach of the API: secrets, key hashes, the tier catalogue, and the functions behind triggers.';

-- The login roles of the services are declared by Pulumi and may not exist in a database made by
-- psql alone, so policies name this group instead. It decides which rows; which tables and columns a
-- service may touch is granted to its login role. A role belongs to the whole cluster: another
-- database may have created it, or be creating it at this moment.
do $$
begin
  if not exists (select from pg_catalog.pg_roles where rolname = 'platform_service') then
    create role platform_service nologin;
  end if;
exception
  when duplicate_object or unique_violation then
    null;
end
$$;

-- Older Supabase projects hand every new object in public to the API roles, newer ones hand out
-- nothing. From here on both behave like the newer: a grant is something that a file of ours says.
alter default privileges in schema public revoke all on tables from anon, authenticated, service_role;
alter default privileges in schema public revoke all on sequences from anon, authenticated, service_role;
alter default privileges in schema public revoke all on functions from anon, authenticated, service_role;

-- Without IN SCHEMA: the grant to PUBLIC is a global default, a per-schema revoke would not touch it.
alter default privileges revoke execute on functions from public;
