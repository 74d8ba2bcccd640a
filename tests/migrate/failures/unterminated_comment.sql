create table shares (customer bigint);
/* Later:
create index on shares (customer);
