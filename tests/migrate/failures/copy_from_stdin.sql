create table shares (customer bigint, share numeric);

copy shares (customer, share) from stdin;
1	0.5
2	0.25
\.

create index on shares (customer);
