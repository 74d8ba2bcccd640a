alter table orders
  add constraint amount_is_worth_it check (amount > 5);
