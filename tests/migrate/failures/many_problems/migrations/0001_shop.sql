create table orders (id int);
commit;
