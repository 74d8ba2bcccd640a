-- migrate: no-transaction

set local statement_timeout = '2h';
create index concurrently orders_by_customer on orders (customer);
