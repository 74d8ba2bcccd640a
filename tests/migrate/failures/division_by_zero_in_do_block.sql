create table shares (customer bigint, share numeric);

-- Everybody's part of what we earn with customer 3.
do $$
declare
  total numeric;
begin
  select coalesce(sum(amount), 0) into total
  from orders
  where customer = 3;

  insert into shares
    select customer, amount / total
    from orders;
end
$$;

create index on shares (customer);
