alter table orders add column note txet;
alter table orders ad column more text;
