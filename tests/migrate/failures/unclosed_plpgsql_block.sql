do $$
begin
  if exists (select from orders) then
    update orders set note = 'seen' where note is null;
end
$$;
