do $$
declare
  missing int;
begin
  select count(*) into missing from orders where note is null;
  if missing > 0 then
    raise exception '% order(s) without a note', missing
      using errcode = 'MR001',
        detail = E'Notes are required from now on.\nThe first one is order 12.',
        hint = 'Fill orders.note first.';
  end if;
end
$$;
