-- migrate: no-transaction

create index concurrently orders_by_customer on orders (customer);
update orders set amount = amount - 5;
create index concurrently orders_by_amount on orders (amount);
