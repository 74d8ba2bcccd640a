-- The balance of a customer, and what to do about it.

create table reminders (
  customer bigint not null references customers,
  level int not null
);

create function remind(only_customer bigint default null) returns int
language plpgsql
set search_path = ''
as $body$
declare
  sent int := 0;
  one record;
  due numeric;
begin
  for one in
    select c.id, c.name, sum(o.amount) as total
    from public.customers c
    join public.orders o on o.customer = c.id
    where only_customer is null or c.id = only_customer
    group by c.id, c.name
  loop
    due := one.total;

    -- Small sums are not worth a letter.
    if due < 5 then
      continue;
    end if;

    case
      when due < 50 then
        insert into public.reminders values (one.id, 1);
      when due < 500 then
        insert into public.reminders values (one.id, 2);
      else
        insert into public.reminders values (one.id, 3);
    end case;

    if due > 1000 the
      raise notice 'customer % owes %', one.name, due;
    end if;

    sent := sent + 1;
  end loop;

  return sent;
end
$body$;

comment on function remind is 'Writes a reminder for everyone who owes us something.';
