-- Removes what has expired, a slice of about a second at a time, until nothing is left to remove. Each
-- slice is committed: see cleanup_expired_data.
do $job$
declare
  removed jsonb;
begin
  loop
    removed := public.cleanup_expired_data();
    commit;
    exit when not exists (select from jsonb_each(removed) where value <> '0');
  end loop;

  -- Where this database has pg_cron and this role may read of its runs: the newest 1,000 of the
  -- platform's jobs stay, about three weeks. A run that never began has no time to go by.
  if exists (
    select from pg_catalog.pg_namespace
     where nspname = 'cron' and has_schema_privilege(oid, 'USAGE')
  ) then
    delete from cron.job_run_details
     where runid in (
       select runid
         from cron.job_run_details
         join cron.job using (jobid)
        where starts_with(jobname::text, 'mindroom.')
        order by runid desc
       offset 1000
     );
  end if;
end
$job$;
