create table if not exists lines (
  order_id bigint references orders deferrable initially deferred
);
insert into lines values (99);
