"""Roles and their settings (`ALTER ROLE .. SET`), which belong to the server, not to a schema."""

from collections.abc import Mapping

from psycopg import sql

from migrate.session import Connection, translated_errors


@translated_errors()
def on_server(connection: Connection) -> tuple[frozenset[str], frozenset[str]]:
    """Names of the server's databases, and of its roles."""
    databases = connection.execute("select datname from pg_database")
    roles = connection.execute("select rolname from pg_roles")
    return frozenset(name for (name,) in databases), frozenset(name for (name,) in roles)


def settings(connection: Connection, role: str) -> dict[str, str]:
    """The role's settings for every database, name -> value as it was written."""
    rows = connection.execute(
        """select unnest(setconfig) from pg_db_role_setting
           join pg_roles on pg_roles.oid = setrole where rolname = %s and setdatabase = 0""",
        [role],
    )
    return dict(row[0].split("=", 1) for row in rows)


def set_settings(connection: Connection, role: str, wanted: Mapping[str, str]) -> None:
    """Set these settings of the role and leave its others alone."""
    for name, value in wanted.items():
        connection.execute(
            sql.SQL("alter role {} set {} = {}").format(
                sql.Identifier(role), sql.Identifier(name), value
            )
        )
