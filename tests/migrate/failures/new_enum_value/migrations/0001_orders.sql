create type state as enum ('open', 'paid');
create table orders (id int, amount numeric, state state not null default 'open');
