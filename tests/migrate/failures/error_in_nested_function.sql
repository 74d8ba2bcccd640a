create function half(value numeric) returns numeric
language sql
as 'select value / (value - 9.5)';

create function halves() returns numeric
language plpgsql
as $$
declare
  total numeric := 0;
  one numeric;
begin
  for one in select amount from orders order by id loop
    total := total + half(one);
  end loop;
  return total;
end
$$;

do $$
begin
  perform halves();
end
$$;
