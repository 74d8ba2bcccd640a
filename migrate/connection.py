"""Connecting to a database whose lock holds: not behind a pooler in transaction mode."""

import re
import select
from collections.abc import Mapping
from contextlib import closing, suppress
from typing import Any

import psycopg
from psycopg import conninfo, generators
from psycopg.pq import ExecStatus

from migrate.errors import LostError, MigrateError, UnreachableError
from migrate.session import Connection, send, translated_errors

_OLDEST_SERVER = 15
"""The oldest PostgreSQL major version that is supported."""

_TRANSACTION_POOLER_PORT = 6543
"""Supabase's pooler in transaction mode, where session advisory locks do not hold."""

_APPLICATION = "migrate"

_CONNECT_TIMEOUT = 10
"""Seconds to wait for each address of the host, unless the URL says."""

ANOTHER_ENCODING = "create a database with `encoding 'UTF8'` and move the data there by pg_dump"

_SECOND_SESSION = 3
"""Seconds to wait for a second session of a pooler, which a pool of one session does not give."""

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
    defaults = {"application_name": _APPLICATION, "connect_timeout": _CONNECT_TIMEOUT}
    options = defaults | _parse(url) | {"client_encoding": "utf-8"}
    try:
        connection = psycopg.connect(autocommit=True, prepare_threshold=None, **options)  # type: ignore[arg-type]
    except (psycopg.Error, ValueError) as error:
        text = str(error).strip()
        raise UnreachableError(f"cannot connect to the database: {text}", _remedy(text)) from None
    place = f"{connection.info.host}:{connection.info.port}"
    try:
        with translated_errors():
            by_port = connection.info.port == _TRANSACTION_POOLER_PORT
            mode = "transaction" if by_port else _pool_mode(connection, options)
    except LostError as error:
        raise LostError(error.reason, committed=()) from error
    if mode:
        connection.close()
        raise MigrateError(
            f"{place} is a pooler in {mode} mode, where the lock of a run does not hold",
            "use its session mode (Supabase: port 5432), or the database itself",
        )
    if connection.info.server_version < _OLDEST_SERVER * 10000:
        found = connection.info.server_version // 10000
        connection.close()
        raise MigrateError(
            f"{place} is PostgreSQL {found}; {_OLDEST_SERVER} or newer is needed",
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
            for _ in range(6):  # a backend that is not given back at once hides it now and then
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
