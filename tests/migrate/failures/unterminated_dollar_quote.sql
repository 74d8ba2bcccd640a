create table shares (customer bigint);

create function f() returns int language plpgsql as $body$
begin
  return 1;
end
$bdy$;

create index on shares (customer);
