-- migrate: no-transaction

insert into customers values (3, 'Cleo', 'cleo@example.org');
set lock_timeout = '20ms';
create index concurrently orders_by_customer on orders (customer);
