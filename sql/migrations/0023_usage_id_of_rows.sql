-- migrate: no-transaction
-- The rows that were there before 0022_usage_id.sql, day by day: each day is found by the key, and a
-- message waits for its own day only.
do $$
declare
  day date;
begin
  for day in select distinct usage_date from public.usage_metrics order by usage_date loop
    update public.usage_metrics set id = gen_random_uuid() where usage_date = day and id is null;
    commit;
  end loop;
end
$$;
