create table lines (
  order_id bigint not null references orders deferrable initially deferred,
  line int not null
);
insert into lines values (10, 1), (99, 1);
create index on lines (order_id);
