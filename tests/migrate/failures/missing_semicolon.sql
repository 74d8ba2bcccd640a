create table invoices (
  id bigint primary key,
  number text not null unique
)

create table payments (
  id bigint primary key
);
