alter type state add value 'void';

update orders
set state = 'void'
where amount = 0;
