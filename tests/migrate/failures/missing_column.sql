create view totals as
select
  o.customer,
  sum(o.amout) as total
from orders o
group by o.customer;
