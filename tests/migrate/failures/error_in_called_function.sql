create function price_of(wanted bigint) returns numeric
language plpgsql
as $$
declare
  found numeric;
begin
  select amount into strict found
  from orders
  where id = wanted;
  return found;
end
$$;

select price_of(10);

select
  price_of(id + 89)
from orders;
