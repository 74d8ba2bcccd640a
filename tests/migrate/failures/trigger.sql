create function no_gifts() returns trigger
language plpgsql
as $$
begin
  if new.amount = 0 then
    raise exception 'order % is a gift', new.id using errcode = 'check_violation';
  end if;
  return new;
end
$$;

create trigger no_gifts before insert on orders for each row execute function no_gifts();

insert into orders (id, customer, amount) values (13, 1, 1);
insert into orders (id, customer, amount) values (14, 1, 0);
