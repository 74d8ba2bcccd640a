"""The one lock under which a database is changed, and who stands in the way of a file."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psycopg

from migrate.errors import MigrateError
from migrate.session import Connection, OutdatedSessionError

LOCK_KEY = 0x6D69677261746500
"""The advisory lock of a run: the letters of "migrate"."""

LOCK_WAIT = 60.0
"""Seconds that a run waits for another one to end."""

_LOOK = 1.0
"""Seconds between two looks at who stands in the way of a file."""


@contextmanager
def lock(connection: Connection, wait: float, waiting: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of a run.

    Args:
        connection: the connection that holds it; the server releases it if the connection dies.
        wait: seconds to wait for another run to end.
        waiting: is called once with who holds it, when it has to be waited for.

    Raises:
        MigrateError: another run holds it for longer than that, and the message names it; or a file
            let it go.
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
    held, outdated = True, None
    try:
        yield
    except OutdatedSessionError as error:
        outdated = error  # later: that a file let the lock go is to be told first
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
    if outdated:
        raise outdated


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


@contextmanager
def blockers(connection: Connection) -> Iterator[list[str]]:
    """Collect, from a second session, who blocks a connection; the list holds the last seen."""
    seen: list[str] = []
    done = threading.Event()
    info = connection.info
    pid = info.backend_pid

    def look() -> None:
        if done.wait(_LOOK):
            return
        with (
            suppress(psycopg.Error),
            psycopg.connect(
                info.dsn, password=info.password, connect_timeout=2, autocommit=True
            ) as other,
        ):
            while not done.wait(_LOOK):
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
