-- migrate: no-transaction

create index concurrently on orders (customer);
drop index concurrently orders_by_amount;
