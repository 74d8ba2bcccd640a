-- Fails on a table with rows.
alter table orders alter column note set not null;
