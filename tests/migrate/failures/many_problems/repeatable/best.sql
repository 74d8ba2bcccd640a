create view best as
  select from orders
  where and id > 1;
