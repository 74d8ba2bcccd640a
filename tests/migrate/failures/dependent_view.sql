create view notes as select note from orders;
alter table orders alter column note type varchar(20);
