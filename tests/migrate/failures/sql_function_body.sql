create function total_of(wanted bigint) returns numeric
language sql
as $$
  select sum(amount)
  from orders
  where custmer = wanted
$$;
