insert into customers (id, name)
values
  (3, 'O'Neill'),
  (4, 'Dan');
