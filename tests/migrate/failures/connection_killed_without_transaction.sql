-- migrate: no-transaction

update orders set note = 'seen';
select pg_terminate_backend(pg_backend_pid());
select 1;
