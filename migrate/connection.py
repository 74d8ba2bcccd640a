"""Connecting, and the one lock under which a database is changed."""

import re
import select
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from typing import Any

import psycopg
from psycopg import conninfo, generators
from psycopg.abc import PQGen
from psycopg.errors import Diagnostic
from psycopg.pq import ExecStatus, TransactionStatus
from psycopg.pq.abc import PGconn, PGresult
from psycopg.rows import TupleRow

from migrate.errors import LostError, MigrateError, UnreachableError

Connection = psycopg.Connection[TupleRow]

OLDEST_SERVER = 15
"""The oldest PostgreSQL major version that is supported."""

TRANSACTION_POOLER_PORT = 6543
"""Supabase's pooler in transaction mode, where session advisory locks do not hold."""

LOCK_KEY = 0x6D69677261746500
"""The advisory lock of a run: the letters of "migrate"."""

LOCK_WAIT = 60.0
"""Seconds that a run waits for another one to end."""

APPLICATION = "migrate"

CONNECT_TIMEOUT = 10
"""Seconds to wait for each address of the host, unless the URL says."""

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

ANOTHER_ENCODING = "create a database with `encoding 'UTF8'` and move the data there by pg_dump"

_SECOND_SESSION = 3
"""Seconds to wait for a second session of a pooler, which a pool of one session does not give."""

LOOK = 1.0
"""Seconds between two looks at who stands in the way of a file."""

SETTINGS = """\
select coalesce(string_agg(format('%s %s', setdatabase, setconfig), ' '), '')
from (select setdatabase, setconfig from pg_db_role_setting
      where setdatabase in (0, (select oid from pg_database where datname = current_database()))
      and setrole in (0, (select oid from pg_roles where rolname = session_user))
      order by setdatabase, setrole) as s;
"""
"""What `alter database ... set` and `alter role ... set` give a new session, as one text."""

DISCARD_SESSION_OBJECTS = "deallocate all;discard temp;close all;"
"""Takes away what the file before left in the session; no sooner, for its commit may need it."""

_URL = re.compile(r"postgres(ql)?://([^/?@]*@)?[^@?]*(\?.*)?", re.DOTALL)
"""Not a password with a raw @ or /, which libpq takes for the host's begin, and then shows it."""


def connect(url: str) -> Connection:
    """A connection in autocommit mode.

    Args:
        url: anything libpq understands; empty means libpq's environment and service files.

    Raises:
        UnreachableError: it cannot be reached or refuses us.
        LostError: the connection broke at once.
        MigrateError: it is too old, a transaction pooler, or encoded in SQL_ASCII.
    """
    defaults = {"application_name": APPLICATION, "connect_timeout": CONNECT_TIMEOUT}
    options = defaults | _parse(url) | {"client_encoding": "utf-8"}
    try:
        connection = psycopg.connect(autocommit=True, prepare_threshold=None, **options)  # type: ignore[arg-type]
    except (psycopg.Error, ValueError) as error:
        text = str(error).strip()
        raise UnreachableError(f"cannot connect to the database: {text}", _remedy(text)) from None
    place = f"{connection.info.host}:{connection.info.port}"
    try:
        with translated_errors():
            by_port = connection.info.port == TRANSACTION_POOLER_PORT
            mode = "transaction" if by_port else _pool_mode(connection, options)
    except LostError as error:
        raise LostError(error.reason, committed=()) from error
    if mode:
        connection.close()
        raise MigrateError(
            f"{place} is a pooler in {mode} mode, where the lock of a run does not hold",
            "use its session mode (Supabase: port 5432), or the database itself",
        )
    if connection.info.server_version < OLDEST_SERVER * 10000:
        found = connection.info.server_version // 10000
        connection.close()
        raise MigrateError(
            f"{place} is PostgreSQL {found}; {OLDEST_SERVER} or newer is needed",
            "upgrade the server",
        )
    if connection.info.parameter_status("server_encoding") == "SQL_ASCII":
        name = connection.info.dbname
        connection.close()
        raise MigrateError(
            f"{name} on {place} has the encoding SQL_ASCII, in which no letter but ASCII's is one",
            ANOTHER_ENCODING,
        )
    return connection


def _pool_mode(connection: Connection, options: Mapping[str, Any]) -> str | None:
    """After what a pooler gives the session another backend: "transaction" or "statement".

    A session that is a backend's own has the process id that it was given at the login.  Of a
    pooler's, a second one tells: while it holds its backend in a transaction, that is one which the
    first session had before, or the first one is given another, then or afterwards.  Leaves nothing
    in any backend.
    """
    had = {_backend(connection)}
    if had == {connection.info.backend_pid}:
        return None
    with suppress(psycopg.Error, TimeoutError):  # there is no second one where the first is bound
        options = {**options, "connect_timeout": _SECOND_SESSION}
        with closing(psycopg.connect(autocommit=True, **options)) as other:
            for _ in range(3):
                try:
                    shared = _backend(other, "begin;", _SECOND_SESSION) in had
                except psycopg.errors.ProtocolViolation:  # it allows no transaction
                    return "statement"
                had |= set() if shared else {_backend(connection)}
                send(other, "rollback")
                if shared or len(had | {_backend(connection), _backend(connection)}) > 1:
                    return "transaction"
    return None


def _backend(connection: Connection, before: str = "", wait: float | None = None) -> int:
    """The process id of the backend that carries out a statement.

    Raises:
        TimeoutError: there is no answer within `wait` seconds.
    """
    connection.pgconn.send_query(f"{before}select pg_backend_pid()".encode())
    connection.pgconn.flush()
    if not select.select([connection.pgconn.socket], [], [], wait)[0]:
        raise TimeoutError
    *_, result = connection.wait(generators.execute(connection.pgconn))
    if result.status == ExecStatus.FATAL_ERROR:
        raise psycopg.errors.error_from_result(result)
    return int(result.get_value(0, 0) or 0)


def _parse(url: str) -> dict[str, Any]:
    try:
        given = conninfo.conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        given = None
    if given is None or (url.startswith("postgres") and not _URL.fullmatch(url)):
        raise MigrateError(
            "the database URL cannot be parsed (it is not shown, since it may hold a password)",
            "write postgresql://USER:PASSWORD@HOST:PORT/DATABASE and percent-encode the password",
        )
    return given


def _remedy(refusal: str) -> str:
    remedies = {
        "password authentication failed": "check user and password",
        "Tenant or user not found": "behind Supabase's pooler a user is ROLE.PROJECT, and each "
        "region has a pooler of its own: check user and host",
        "Connection refused": "is the server running, and is the port right?",
        "could not translate host name": "check the host name",
        "failed to resolve host": "check the host name",
        "does not exist": "create it first, or check the name",
        "timeout expired": "check host, port and firewall",
        "conversion between": ANOTHER_ENCODING,
    }
    return next((remedy for part, remedy in remedies.items() if part in refusal), "")


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


@contextmanager
def lock(connection: Connection, wait: float, waiting: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of a run.

    Args:
        connection: the connection that holds it; the server releases it if the connection dies.
        wait: seconds to wait for another run to end.
        waiting: is called once with who holds it, when it has to be waited for.

    Raises:
        MigrateError: another run holds it for longer than that; the message names it.
    """
    deadline = time.monotonic() + wait
    reported = False
    while connection.execute("select pg_try_advisory_lock(%s)", [LOCK_KEY]).fetchone() != (True,):
        if time.monotonic() >= deadline:
            raise MigrateError(
                f"another run holds the migration lock: {_holder(connection)}; waited {wait:g} s",
                "wait for it and run again; nothing was changed by this run",
            )
        if not reported:
            waiting(_holder(connection))
            reported = True
        time.sleep(0.2)
    held = True
    try:
        yield
    finally:
        if not connection.closed:
            unlock = connection.execute("select pg_advisory_unlock(%s)", [LOCK_KEY])
            held = unlock.fetchone() == (True,)
    if not held:
        raise MigrateError(
            "one of the files let the lock of this run go, as pg_advisory_unlock_all() does: "
            "another run may have worked at the same time",
            "run `verify`; leave that call out of the next files",
        )


@contextmanager
def blockers(connection: Connection) -> Iterator[list[str]]:
    """Collect, from a second session, who blocks a connection; the list holds the last seen."""
    seen: list[str] = []
    done = threading.Event()
    info = connection.info
    pid = info.backend_pid

    def look() -> None:
        if done.wait(LOOK):
            return
        with (
            suppress(psycopg.Error),
            psycopg.connect(
                info.dsn, password=info.password, connect_timeout=2, autocommit=True
            ) as other,
        ):
            while not done.wait(LOOK):
                found = other.execute(
                    """select concat_ws(', ', 'pid ' || pid, nullif(application_name, ''),
                                        'user ' || usename, state,
                                        nullif(backend_type, 'client backend'))
                       from pg_stat_activity where pid = any(pg_blocking_pids(%s))""",
                    [pid],
                )
                seen[:] = [text for (text,) in found] or seen

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


def _holder(connection: Connection) -> str:
    row = connection.execute(
        """select format('pid %%s (%%s)', pid, concat_ws(', ', nullif(application_name, ''),
                                                       'user ' || usename))
                  || coalesce(', connected since ' || date_trunc('second', backend_start), '')
           from pg_locks join pg_stat_activity using (pid)
           where locktype = 'advisory' and granted and objsubid = 1
             and database = (select oid from pg_database where datname = current_database())
             and (classid::bigint << 32) | objid::bigint = %s""",
        [LOCK_KEY],
    ).fetchone()
    return "a run that has just ended" if row is None else str(row[0])
