create or replace view totals as select customer, sum(amount) from orders group by 1;
