insert into customers (id, name, email)
values
  (3, 'Cleo', 'cleo@example.org'),
  (4, 'Dan', 'ada@example.org');
