-- Invoices, one for each order.

create table invoices (
  id bigint primary key,
  number text not null unique
);

alter tabel orders
  add column invoice bigint references invoices;

create index on orders (invoice);
