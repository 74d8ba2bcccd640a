insert into orders (id, customer, amount) values (13, 1, 1);
insert into orders (id, customer, amount) values (14, 77, 2);
