alter table orders add column more text;
