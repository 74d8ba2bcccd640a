"""What a session on the database begins with, and sending it scripts.

A script is any number of statements in one message.  Which of them failed, and where, and which
had the server say something, is told by how many results came before.
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

SESSION_SETTINGS = """\
reset session authorization;
reset all;
set client_encoding = 'UTF8';
set client_connection_check_interval = '2s';
set lock_timeout = '5s';
set statement_timeout = '15min';
"""
"""What every file begins with, whatever the one before it set.

The files are UTF-8, whatever PGCLIENTENCODING says.  The server sees within seconds that a run was
killed, and lets its lock go.  No statement queues behind a lock for long and blocks all others; a
file that needs longer says `set local statement_timeout = ...`."""

NEW_SESSIONS = """\
select coalesce(string_agg(format('%s %s', setdatabase, setconfig), ' '), '')
from (select setdatabase, setconfig from pg_db_role_setting
      where setdatabase in (0, (select oid from pg_database where datname = current_database()))
      and setrole in (0, (select oid from pg_roles where rolname = session_user))
      order by setdatabase, setrole) as s;
"""
"""What `alter database ... set` and `alter role ... set` give a new session, as one text."""

DISCARD_SESSION_OBJECTS = "deallocate all;discard temp;close all;"
"""Takes away what the file before left in the session; no sooner, for its commit may need it."""


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


def send(
    connection: Connection, script: str, on_notice: Callable[[int, Diagnostic], None] | None = None
) -> list[PGresult]:
    """Run any number of statements by one message; the server stops at the first that fails.

    Args:
        connection: to the database.
        script: the statements.
        on_notice: is called with each notice, and how many results were there when it was read.
            It is of the next statement; or of the one after that, if that one has no rows.

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
    """Begin a new session in the same connection, with what new ones are given.

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


def new_sessions(connection: Connection) -> str:
    """What new sessions are given, as `NEW_SESSIONS` has it."""
    (result,) = send(connection, NEW_SESSIONS)
    return (result.get_value(0, 0) or b"").decode()
