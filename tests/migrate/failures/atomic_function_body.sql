create function total_of(wanted bigint) returns numeric
begin atomic
  select count(*) from customers;
  select sum(amount) from orders where customer = wantd;
end;
