\set ON_ERROR_STOP on
create table shares (customer bigint);
\i more.sql
