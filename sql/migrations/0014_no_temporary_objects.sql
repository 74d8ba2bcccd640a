-- Nobody but the database's owner creates temporary objects: a temporary type is found before the real
-- one by every function that does not name pg_temp last in its search_path, and then runs its creator's
-- code with the rights of the function's owner. The functions here do; this closes the door for those
-- of others. On a database of another owner the server answers with a warning, and the functions' own
-- search_path is what protects them.

do $$
begin
  execute pg_catalog.format('revoke temporary on database %I from public', pg_catalog.current_database());
end
$$;
