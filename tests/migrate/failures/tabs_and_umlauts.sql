-- Grüße: wörtlich
insert into orders (id, customer, amount, note)
values
	(13,	1,	2.0,	'für Zoë – naïve €'),	(14,	1,	'zwölf',	'ß');
