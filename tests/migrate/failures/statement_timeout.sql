set local statement_timeout = '20ms';

update orders set note = 'slow' where pg_sleep(10) is not null;
