-- migrate: no-transaction

create table told (at timestamptz default now());
create unique index concurrently orders_by_amount on orders (amount);
drop index concurrently if exists orders_by_note;
