begin;
create table shares (customer bigint);
savepoint made;
insert into shares values (1);
commit;
