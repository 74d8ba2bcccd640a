create or replace view best as
  select customer
  from totals
  where total > 5;
