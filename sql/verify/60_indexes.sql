-- The indexes: enough and not more.

-- check: Every foreign key is indexed: its columns, in its order, are the first of an index over all rows.
select con.conrelid::regclass as table, con.conname as foreign_key
  from pg_catalog.pg_constraint con
 where con.contype = 'f'
   and con.connamespace in (to_regnamespace('public'), to_regnamespace('private'))
   and not exists (
     select from pg_catalog.pg_index i
      where i.indrelid = con.conrelid
        and i.indisvalid
        and i.indpred is null
        and (string_to_array(i.indkey::text, ' ')::smallint[])[1:cardinality(con.conkey)] = con.conkey
   );

-- check: No index is redundant: none is the beginning of another one on the same table, unless it keeps something unique.
select narrow.indrelid::regclass as table,
       narrow.indexrelid::regclass as redundant_index,
       wide.indexrelid::regclass as covered_by
  from pg_catalog.pg_index narrow
  join pg_catalog.pg_class c on c.oid = narrow.indrelid
  join pg_catalog.pg_index wide
    on wide.indrelid = narrow.indrelid and wide.indexrelid <> narrow.indexrelid
  join pg_catalog.pg_class narrow_class on narrow_class.oid = narrow.indexrelid
  join pg_catalog.pg_class wide_class on wide_class.oid = wide.indexrelid
 where c.relnamespace in (to_regnamespace('public'), to_regnamespace('private'))
   and narrow_class.relam = wide_class.relam
   and narrow.indexprs is null and wide.indexprs is null
   and pg_get_expr(narrow.indpred, narrow.indrelid) is not distinct from pg_get_expr(wide.indpred, wide.indrelid)
   and (string_to_array(wide.indkey::text, ' '))[1:narrow.indnkeyatts] = string_to_array(narrow.indkey::text, ' ')
   and (string_to_array(wide.indclass::text, ' '))[1:narrow.indnkeyatts] = string_to_array(narrow.indclass::text, ' ')
   and (string_to_array(wide.indoption::text, ' '))[1:narrow.indnkeyatts] = string_to_array(narrow.indoption::text, ' ')
   and (
     not narrow.indisunique
     -- Two unique indexes on the very same columns: one of them is too many.
     or (wide.indisunique and narrow.indkey::text = wide.indkey::text and narrow.indexrelid > wide.indexrelid)
   );

-- check: Every index is valid: none was left behind by a build that failed.
select i.indrelid::regclass as table, i.indexrelid::regclass as invalid_index
  from pg_catalog.pg_index i
  join pg_catalog.pg_class c on c.oid = i.indrelid
 where c.relnamespace in (to_regnamespace('public'), to_regnamespace('private'))
   and not (i.indisvalid and i.indisready);
