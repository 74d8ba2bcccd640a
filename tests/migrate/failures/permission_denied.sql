set local role pg_monitor;

select count(*)
from orders;
