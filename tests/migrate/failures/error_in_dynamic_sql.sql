do $$
declare
  name text;
begin
  foreach name in array array['customers', 'orders', 'shipments'] loop
    execute format('alter table %I add column changed_at timestamptz', name);
    execute format('create index on %I (changed_at) whre changed_at is not null', name);
  end loop;
end
$$;
