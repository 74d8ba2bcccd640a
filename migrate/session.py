"""What a session on the database begins with, and sending it scripts.

A script is any number of statements in one message.  Which of them failed, or had the server say
something, is told by how many results came before.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
from psycopg import generators
from psycopg.abc import PQGen
from psycopg.errors import Diagnostic
from psycopg.pq import ExecStatus, TransactionStatus
from psycopg.pq.abc import PGconn, PGresult
from psycopg.rows import TupleRow

from migrate.errors import LostError, MigrateError

Connection = psycopg.Connection[TupleRow]


class OutdatedSessionError(Exception):
    """What is left has to be done in a new session: this one began with other settings."""


SESSION_SETTINGS = """\
reset session authorization;
reset all;
set client_encoding = 'UTF8';
set client_connection_check_interval = '2s';
set lock_timeout = '5s';
set statement_timeout = '15min';
"""
"""Sent when a session begins, and after the statements of each file, whatever that has set: so that
its ledger row and the next file find them.

The files are UTF-8, whatever PGCLIENTENCODING says.  The server sees within seconds that a run was
killed, and lets its lock go.  No statement queues behind a lock for long and blocks all others; a
file that needs longer says `set local statement_timeout = ...`."""

SESSION_DEFAULTS = """\
select coalesce(string_agg(format('%s %s', setdatabase, setconfig), ' '), '')
from (select setdatabase, setconfig from pg_db_role_setting
      where setdatabase in (0, (select oid from pg_database where datname = current_database()))
      and setrole in (0, (select oid from pg_roles where rolname = session_user))
      order by setdatabase, setrole) as s;
"""
"""The settings that `alter database ... set` and `alter role ... set` make a session begin with, as
one text.  A file that changes them is noticed by asking before and after it."""

DISCARD_SESSION_OBJECTS = "deallocate all;discard temp;close all;"
"""Sent before the next file's statements: deferred triggers of the one before may use its temporary
objects until the commit."""


def is_broken(error: psycopg.Error) -> bool:
    """Whether the connection is gone, or the server tells that it is about to be."""
    code = error.sqlstate
    return isinstance(error, psycopg.OperationalError) and (
        code is None or code.startswith(("08", "57P"))
    )


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turn what the server refuses outside of a file into an error for the operator.

    Raises:
        MigrateError: the server refused something, or the connection broke.
    """
    try:
        yield
    except (psycopg.Error, StatementError) as caught:
        error = caught.error if isinstance(caught, StatementError) else caught
        text = error.diag.message_primary or str(error).strip()
        if is_broken(error):
            raise LostError(text) from error
        code = f" (SQLSTATE {error.sqlstate})" if error.sqlstate else ""
        hint = ""
        if isinstance(error, psycopg.errors.InsufficientPrivilege):
            hint = "run as the role that owns the database and the schema migrate"
        raise MigrateError(f"the database refuses: {text}{code}", hint) from error


class StatementError(Exception):
    """The server refused a statement of a script.

    Attributes:
        done: how many statements before it were carried out.
        error: what the server said.
        position: where in the script, in characters from 0, if the server said so.
    """

    def __init__(self, done: int, error: psycopg.Error) -> None:
        super().__init__(str(error))
        self.done = done
        self.error = error
        position = error.diag.statement_position
        self.position = None if position is None else int(position) - 1


Tell = Callable[[int, Diagnostic], None]
"""Is called with how many results the server has sent, and what it says."""


def send(connection: Connection, script: str, on_notice: Tell | None = None) -> list[PGresult]:
    """Run any number of statements by one message; the server stops at the first that fails.

    Args:
        connection: to the database.
        script: the statements.
        on_notice: is called with each notice, and how many results were there when it was read.
            libpq hands over a notice that follows a complete result before that result.  So after n
            results it is of statement n, from 0; or of statement n + 1, if that one has no rows,
            for libpq goes no further than the description of rows.

    Returns:
        The result of each statement.

    Raises:
        StatementError: one failed.
        psycopg.OperationalError: the connection broke.
    """
    results: list[PGresult] = []

    def notice(diagnostic: Diagnostic) -> None:
        if on_notice:
            on_notice(len(results), diagnostic)

    connection.pgconn.send_query(script.encode())
    connection.add_notice_handler(notice)
    try:
        connection.wait(_receive(connection.pgconn, results))
    finally:
        connection.remove_notice_handler(notice)
    for done, result in enumerate(results):
        if result.status == ExecStatus.FATAL_ERROR:
            raise StatementError(done, psycopg.errors.error_from_result(result))
    return results


def _receive(pgconn: PGconn, results: list[PGresult]) -> PQGen[None]:
    yield from generators.send(pgconn)
    try:
        while result := (yield from generators.fetch(pgconn)):
            results.append(result)
            if result.status in (ExecStatus.COPY_IN, ExecStatus.COPY_OUT, ExecStatus.COPY_BOTH):
                break
    except psycopg.OperationalError:  # the server may have said why
        if not results or results[-1].status != ExecStatus.FATAL_ERROR:
            raise


def renew(connection: Connection) -> None:
    """Begin a new session in the same connection.

    Raises:
        psycopg.OperationalError: it cannot be reached any more.
    """
    connection.pgconn.reset()
    if connection.closed:
        raise psycopg.OperationalError(connection.pgconn.get_error_message())
    connection.pgconn.nonblocking = 1


def roll_back(connection: Connection) -> None:
    """End a transaction, if one is open and the connection lives."""
    if connection.pgconn.transaction_status in (
        TransactionStatus.INTRANS,
        TransactionStatus.INERROR,
    ):
        send(connection, "rollback")


def session_defaults(connection: Connection) -> str:
    """What a new session would begin with, as `SESSION_DEFAULTS` has it."""
    (result,) = send(connection, SESSION_DEFAULTS)
    return (result.get_value(0, 0) or b"").decode()
