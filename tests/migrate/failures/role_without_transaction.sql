-- migrate: no-transaction

set role pg_monitor;
create index concurrently orders_by_customer on orders (customer);
