-- Stops and removes what belongs to subscriptions that have ended, and starts what belongs to those that
-- are in force again; some hundred accounts at a time, each time committed, until nothing is left to do.
do $job$
declare
  done jsonb;
begin
  loop
    done := public.follow_subscriptions();
    commit;
    exit when not exists (select from jsonb_each(done) where value <> '0');
  end loop;
end
$job$;
