"""Verification of a database: no drift, and every check of verify/ passes."""

from itertools import islice
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.types.string import TextLoader

from migrate import catalog, ledger
from migrate.errors import (
    Difference,
    DriftError,
    FailedCheck,
    FailedChecksError,
    IncompleteRunError,
    MigrateError,
)
from migrate.files import VERIFY, VERSIONED, File, Tree, raise_if_any, sql_problems
from migrate.ledger import RecordedCatalog
from migrate.lock import LOCK_WAIT, lock
from migrate.parser import Statement
from migrate.report import FailedFilesError
from migrate.session import (
    SESSION_SETTINGS,
    Connection,
    roll_back,
    send,
    translated_errors,
)

_ROWS_SHOWN = 20

_AS_WRITTEN = (
    *("date", "time", "timetz", "timestamp", "timestamptz", "interval"),
    *("daterange", "tsrange", "tstzrange", "datemultirange", "tsmultirange", "tstzmultirange"),
)
"""Types whose values are shown as the server writes them; Python has none for `infinity`."""


@translated_errors()
def drift(connection: Connection) -> list[Difference]:
    """Every object that differs from what the last run left; reads only.

    Raises:
        IncompleteRunError: a run is in progress or was interrupted; or none has recorded what there
            should be.
    """
    recorded = ledger.recorded_catalog(connection)
    if recorded is None:
        if VERSIONED in ledger.read(connection).digests:
            raise IncompleteRunError("no run has recorded what there is", "run `up`, which does")
        return []
    if recorded.in_progress:
        raise IncompleteRunError
    return catalog.differences(recorded.objects, catalog.read(connection, recorded.leave))


@translated_errors()
def accept(connection: Connection, wait: float = LOCK_WAIT) -> list[Difference]:
    """Take the live catalog as it should be, drift included.

    Returns:
        Every object that differed from what was recorded before.

    Raises:
        MigrateError: another run holds the lock for longer than `wait` seconds.
    """
    with lock(connection, wait, lambda _: None):
        send(connection, ledger.CREATE)
        recorded = ledger.recorded_catalog(connection)
        leave = recorded.leave if recorded else ()
        live = catalog.read(connection, leave)
        ledger.record_catalog(connection, RecordedCatalog(live, leave))
        return catalog.differences(recorded.objects, live) if recorded else []


@translated_errors()
def check(connection: Connection, tree: Tree) -> int:
    """Verify the database: no drift, and every query of `verify/` returns no row; reads only.

    Returns:
        The number of checks that passed.

    Raises:
        FilesError: a verify file is wrong.
        DriftError: objects differ from what the last run left.
        FailedChecksError: checks fail.
        MigrateError: a check cannot be run.
    """
    raise_if_any(sql_problems(tree[VERIFY]))
    if differences := drift(connection):
        raise DriftError(differences)
    passed = 0
    failed = []
    send(connection, SESSION_SETTINGS)
    try:
        for file in tree[VERIFY]:
            for statement in file.script.statements():
                if connection.info.transaction_status != TransactionStatus.INTRANS:
                    roll_back(connection)
                    send(connection, "begin read only")
                if rows := _ask(connection, file, statement):
                    place = f"{file.path}:{statement.position()}"
                    failed.append(FailedCheck(place, _name(statement.comment), rows))
                else:
                    passed += 1
    finally:
        roll_back(connection)
    if failed:
        raise FailedChecksError(failed)
    return passed


def _ask(connection: Connection, file: File, statement: Statement) -> list[dict[str, Any]]:
    """The first rows; the query is cancelled where there are more, and its transaction with it."""
    try:
        with connection.cursor() as cursor:
            for type_ in map(cursor.adapters.types.__getitem__, _AS_WRITTEN):
                cursor.adapters.register_loader(type_.oid, TextLoader)
                cursor.adapters.register_loader(type_.array_oid, TextLoader)
            rows = cursor.stream(statement.text.encode())
            found = list(islice(rows, _ROWS_SHOWN))
            rows.close()  # type: ignore[attr-defined]  # a generator
            names = [column.name for column in cursor.description or []]
    except psycopg.Error as error:
        if isinstance(error, psycopg.ProgrammingError) and error.sqlstate is None:
            return []  # a DO block has no rows, only an error
        position = error.diag.statement_position
        offset = None if position is None else int(position) - 1
        raise MigrateError(str(FailedFilesError([file], statement, offset, error))) from error
    return [dict(zip(names, row, strict=True)) for row in found]


def _name(comment: str) -> str:
    _, _, text = comment.rpartition("-- check:")
    return " ".join(line.strip().removeprefix("--").strip() for line in text.splitlines())
