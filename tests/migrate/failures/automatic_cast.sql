alter table orders
  alter column note type int;
