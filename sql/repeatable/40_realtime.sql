-- Clients listen to changes of their instances and subscriptions through Supabase Realtime, which reads
-- this publication (and applies row-level security). A plain Postgres has no such publication.
do $$
declare
  listened text;
begin
  for listened in
    select name
      from (values ('instances'), ('subscriptions')) as tables (name)
     where exists (select from pg_catalog.pg_publication where pubname = 'supabase_realtime')
       and not exists (
         select from pg_catalog.pg_publication_tables
          where pubname = 'supabase_realtime' and schemaname = 'public' and tablename = name
       )
  loop
    execute format('alter publication supabase_realtime add table public.%I', listened);
  end loop;
end
$$;
