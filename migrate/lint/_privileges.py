"""Privileges that an object has from its creation on, by default, for the roles of an API."""

from migrate.session import Connection, translated_errors

EVERYBODY = "PUBLIC"
API_ROLES = frozenset({EVERYBODY, "anon", "authenticated"})
"""The roles of those who come through an API, as hosted Supabase has them."""

Default = tuple[str | None, str, str]
"""A default privilege: the schema, None for all of them; "functions" or "tables"; the role."""

BUILT_IN: frozenset[Default] = frozenset({(None, "functions", EVERYBODY)})
"""What PostgreSQL begins with."""


@translated_errors()
def default_privileges(connection: Connection) -> set[Default]:
    """Who may execute functions and read tables that the present role creates; reads only."""
    rows = connection.execute(
        """select nspname, case defaclobjtype when 'f' then 'functions' else 'tables' end,
                  coalesce(rolname, 'PUBLIC')
           from pg_catalog.pg_default_acl
           cross join pg_catalog.aclexplode(defaclacl)
           left join pg_catalog.pg_namespace n on n.oid = defaclnamespace
           left join pg_catalog.pg_roles r on r.oid = grantee
           where defaclrole = current_user::pg_catalog.regrole
             and (defaclobjtype, privilege_type) in (('f', 'EXECUTE'), ('r', 'SELECT'))
           union
           select null, 'functions', 'PUBLIC'
           where not exists (
             select from pg_catalog.pg_default_acl
             where defaclrole = current_user::pg_catalog.regrole
               and defaclnamespace = 0 and defaclobjtype = 'f'
           )"""
    )
    return {(schema, kind, role) for schema, kind, role in rows}
