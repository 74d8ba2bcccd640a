create or replace view worst as select 1 as customer;
