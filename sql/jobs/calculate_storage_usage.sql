-- Adds up the storage of every running instance, each in a transaction of its own, so that no
-- customer's rows stay locked for long, and none waits for another's to be mended.
do $job$
declare
  running uuid;
  failed integer := 0;
begin
  for running in select id from public.instances where status = 'running' order by id loop
    begin
      perform public.calculate_storage_usage(running);
    exception
      when no_data_found then
        null;  -- removed meanwhile
      when others then
        failed := failed + 1;
        raise warning 'instance %: %', running, sqlerrm;
    end;
    commit;
  end loop;
  if failed > 0 then
    raise exception 'the storage of % instances is not known; the warnings before this say why', failed
      using errcode = 'data_exception';
  end if;
end
$job$;
