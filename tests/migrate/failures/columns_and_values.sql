insert into orders (id, customer, amount, note)
values
  (13, 1, 2.0, 'one'),
  (14, 1, 2.0, 'two', now()),
  (15, 1, 2.0, 'three');
