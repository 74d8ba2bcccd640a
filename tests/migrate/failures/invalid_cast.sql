alter table orders alter column note type int using note::int;
