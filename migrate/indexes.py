"""Indexes that are built CONCURRENTLY, and what a build that failed or was cut off has left.

Invalid indexes of others, and those that another session is building, are none of a run's business.
"""

from collections.abc import Iterable
from typing import Any

from psycopg import sql

from embedded.errors import with_remedy
from migrate.connection import Connection
from migrate.parser import Statement


def built_by(connection: Connection, statement: Statement) -> tuple[str, bool | None]:
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


def builds(statement: Statement, name: str) -> bool:
    """Whether a statement builds the index of a quoted name CONCURRENTLY, in whatever schema."""
    return statement.builds_concurrently and name.endswith(_quoted(statement.node.idxname))


def invalid(connection: Connection, name: str) -> str:
    """The index of a quoted name with what to do, if it is invalid; else empty."""
    return _with_remedy(
        connection.execute(
            """select indexrelid::regclass::text from pg_index
               where not indisvalid and indexrelid = to_regclass(%s)""",
            [name],
        )
    )


def left_by_reindex(connection: Connection, statement: Statement) -> str:
    """The halves of indexes that a REINDEX CONCURRENTLY has left, with what to do, a line each."""
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
