"""The proof of a database: no drift, and every promise holds."""

from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.pq import ExecStatus

from migrate import catalog, ledger
from migrate.catalog import Difference
from migrate.connection import SESSION, Connection, lock, readable, send
from migrate.errors import Broken, DriftError, MigrateError, PromiseError, UnsettledError
from migrate.files import VERIFY, File, Tree, refuse
from migrate.run import LOCK_WAIT

if TYPE_CHECKING:  # the parser takes long to import, and drift alone parses nothing
    from migrate.statements import Statement

ROWS_SHOWN = 20


@readable()
def drift(connection: Connection) -> list[Difference]:
    """Every object that differs from what the last run left; reads only.

    Raises:
        UnsettledError: a run is under way or was cut off.
    """
    recorded = ledger.catalog(connection)
    if recorded is None:
        return []
    objects, under_way = recorded
    if under_way is not None:
        raise UnsettledError
    return catalog.differences(objects, catalog.read(connection))


@readable()
def accept(connection: Connection, wait: float = LOCK_WAIT) -> list[Difference]:
    """Take the live catalog as it should be, drift included.

    Returns:
        Every object that differed from what was recorded before.

    Raises:
        MigrateError: another run holds the lock for longer than `wait` seconds.
    """
    with lock(connection, wait, lambda _: None):
        send(connection, ledger.CREATE + ledger.UPGRADE)
        recorded, live = ledger.catalog(connection), catalog.read(connection)
        ledger.end(connection, live)
        return catalog.differences(recorded[0], live) if recorded else []


@readable()
def verify(connection: Connection, tree: Tree) -> int:
    """Prove the database: no drift, and every query of `verify/` returns no row; reads only.

    Returns:
        The number of promises that were checked.

    Raises:
        FilesError: a verify file is wrong.
        DriftError: objects differ from what the last run left.
        PromiseError: promises are broken.
        MigrateError: a promise cannot be checked.
    """
    from migrate import scripts

    refuse(scripts.problems(tree[VERIFY]))
    if differences := drift(connection):
        raise DriftError(differences)
    checked = 0
    broken = []
    send(connection, SESSION)
    with connection.transaction():
        connection.execute("set transaction read only")
        for file in tree[VERIFY]:
            for statement in scripts.statements(file):
                checked += 1
                if rows := _ask(connection, file, statement):
                    place = f"{file.path}:{statement.position()}"
                    broken.append(Broken(place, _promise(statement.comment), rows))
    if broken:
        raise PromiseError(broken)
    return checked


def _ask(connection: Connection, file: File, statement: "Statement") -> list[dict[str, Any]]:
    from migrate.failure import describe

    try:
        cursor = connection.execute(statement.text.encode())
    except psycopg.Error as error:
        position = error.diag.statement_position
        offset = None if position is None else int(position) - 1
        raise MigrateError(describe([file], statement, offset, error)) from error
    if cursor.pgresult is None or cursor.pgresult.status != ExecStatus.TUPLES_OK:
        return []  # a DO block has no rows, only an error
    names = [column.name for column in cursor.description or []]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchmany(ROWS_SHOWN)]


def _promise(comment: str) -> str:
    _, _, text = comment.rpartition("-- promise:")
    return " ".join(line.strip().removeprefix("--").strip() for line in text.splitlines())
