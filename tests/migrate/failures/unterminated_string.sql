insert into customers values (3, 'Cleo', 'cleo@example.org');
update customers set name = 'Cleo where id = 3;
select 1;
