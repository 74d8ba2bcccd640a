-- What every failure begins with: applied as 0001_shop.sql, and committed.

create table customers (
  id bigint primary key,
  name text not null,
  email text unique
);

create table orders (
  id bigint primary key,
  customer bigint not null references customers,
  amount numeric(10, 2) not null check (amount >= 0),
  note text
);

insert into customers values (1, 'Ada', 'ada@example.org'), (2, 'Bob', 'bob@example.org');
insert into orders values (10, 1, 9.50, '12'), (11, 2, 3.00, 'twelve'), (12, 2, 3.00, null);
