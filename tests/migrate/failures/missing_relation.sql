alter table orders add column shipped_at timestamptz;

update orders
set shipped_at = s.at
from shipments s
where s.order_id = orders.id;
