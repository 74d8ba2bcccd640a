alter table orders add column amount int;
