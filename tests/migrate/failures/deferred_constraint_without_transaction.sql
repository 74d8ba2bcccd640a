-- migrate: no-transaction

create table lines (
  order_id bigint not null references orders deferrable initially deferred,
  line int not null
);
insert into lines values (10, 1), (99, 1);
create index concurrently lines_by_order on lines (order_id);
