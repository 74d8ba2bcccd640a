"""Indexes that are built CONCURRENTLY, which a crash or an error leaves invalid.

An index is found by its name.  Invalid, it is dropped and built again.  Valid, it is done, if a run
was cut off while it built this one; otherwise somebody else has made it, and the server says so.
"""

from collections.abc import Callable, Iterable
from typing import Any

from psycopg import sql

from embedded.errors import with_remedy
from migrate.files import File
from migrate.parser import Statement
from migrate.session import Connection, StatementError, Tell, is_broken, send


def is_built_by(file: File, index: str) -> bool:
    """Whether a file builds the index of a quoted name."""
    return any(
        statement.builds_concurrently and index.endswith(_quoted(statement.node.idxname))
        for statement in file.script.statements()
    )


def build(
    connection: Connection,
    statement: Statement,
    was_building: bool,
    note: Callable[[bool, str | None], None],
    tell: Tell,
) -> None:
    """Build an index, unless the run that was cut off has built it.

    Args:
        connection: which holds the lock of the run.
        statement: the CREATE INDEX.
        was_building: a run was cut off while it built this index.
        note: notes whether the index is being built, and its quoted name once it may be there.
        tell: is given what the server says meanwhile.

    Raises:
        StatementError: the server refused it.
    """
    name, valid = _state(connection, statement)
    if valid and was_building:
        return
    if valid is False:
        send(connection, f"drop index concurrently {name}")
    if not valid:
        note(True, name)
    try:
        send(connection, statement.text, tell)
    except StatementError as failed:
        if not is_broken(failed.error):
            note(False, None if valid else name)
        raise


def left_by_build(connection: Connection, statement: Statement) -> str:
    """The name of the invalid index that a CREATE INDEX has left; empty without one."""
    return statement.node.idxname if _state(connection, statement)[1] is False else ""


def _state(connection: Connection, statement: Statement) -> tuple[str, bool | None]:
    """The quoted name of the index that a CREATE INDEX builds, and whether it is valid.

    Returns:
        None for valid where there is no such index.
    """
    node = statement.node
    row = connection.execute(
        """select nspname, indisvalid
           from pg_class t join pg_namespace n on n.oid = t.relnamespace
           left join (pg_index join pg_class i on i.oid = indexrelid)
             on indrelid = t.oid and i.relname = %s
           where t.oid = to_regclass(%s)""",
        [node.idxname, _quoted(node.relation.schemaname, node.relation.relname)],
    ).fetchone()
    schema, valid = row or ("", None)
    return _quoted(schema, node.idxname), valid


def invalid(connection: Connection, name: str) -> str:
    """The index of a quoted name with what to do, if it is invalid; otherwise empty."""
    return _with_remedy(
        connection.execute(
            """select indexrelid::regclass::text from pg_index
               where not indisvalid and indexrelid = to_regclass(%s)""",
            [name],
        )
    )


def left_by_reindex(connection: Connection, statement: Statement) -> str:
    """The halves of indexes that a REINDEX CONCURRENTLY has left, with what to do, a line each.

    Not those that another session is building.
    """
    relation = statement.node.relation
    name = _quoted(relation.schemaname, relation.relname) if relation else ""
    rows = connection.execute(
        r"""select indexrelid::regclass::text from pg_index join pg_class on oid = indexrelid
            where not indisvalid and relkind = 'i' and relname ~ '_cc(new|old)[0-9]*$'
            and (%(name)s = '' or indrelid = to_regclass(%(name)s)
                 or indrelid = (select i.indrelid from pg_index i
                                where i.indexrelid = to_regclass(%(name)s)))
            and not exists (
              select from pg_locks l where l.relation = indrelid and l.pid <> pg_backend_pid()
              and l.mode = 'ShareUpdateExclusiveLock')
            order by 1""",
        {"name": name},
    )
    return _with_remedy(rows)


def _quoted(*names: str) -> str:
    return sql.Identifier(*filter(None, names)).as_string()


def _with_remedy(rows: Iterable[tuple[Any, ...]]) -> str:
    return "".join(
        with_remedy(
            f"\n  invalid index {index}, left by a build CONCURRENTLY that did not end",
            f"DROP INDEX CONCURRENTLY {index}, then run again",
        )
        for (index,) in rows
    )
