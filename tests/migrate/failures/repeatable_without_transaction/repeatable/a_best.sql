create or replace view best as select max(amount) from orders;
