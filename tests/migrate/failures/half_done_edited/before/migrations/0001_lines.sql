-- migrate: no-transaction

create table lines (id int);
insert into lines values (1), (1);
create unique index concurrently lines_by_id on lines (id);
