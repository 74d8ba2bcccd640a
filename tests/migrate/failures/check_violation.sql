insert into orders (id, customer, amount) values (13, 1, -1);
