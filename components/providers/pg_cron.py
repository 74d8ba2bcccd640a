"""Jobs of pg_cron: a group of them that works on one database, kept as declared.

pg_cron has the jobs of all databases in the one that its setting `cron.database_name` names, which
may be another than ours.  So a job is called GROUP.DATABASE.NAME there.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from migrate.connection import connect
from migrate.errors import MigrateError
from migrate.session import Connection

LONGEST_NAME = 63
"""Bytes of a job's name that pg_cron before 1.5 keeps."""


def read(connection: Connection, group: str) -> dict[str, dict[str, str]]:
    """The group's jobs that pg_cron runs on this database: name -> its `schedule` and `sql`."""
    with _home(connection) as home:
        return {
            name: {"schedule": schedule, "sql": sql}
            for _, name, schedule, sql, runs in _found(home, group, connection.info.dbname)
            if runs
        }


def sync(connection: Connection, group: str, jobs: Mapping[str, Mapping[str, str]]) -> None:
    """Make the group's jobs on this database exactly these: name -> its `schedule` and `sql`.

    With a job that is removed the log of its runs is removed, too.

    Raises:
        MigrateError: the server has no pg_cron, or a name is too long.
    """
    database = connection.info.dbname
    names = {name: f"{group}.{database}.{name}" for name in jobs}
    for full_name in names.values():
        if len(full_name.encode()) > LONGEST_NAME:
            raise MigrateError(
                f"the name {full_name} is over {LONGEST_NAME} bytes long, which pg_cron may cut "
                "off",
                "give the database a shorter name, or choose another scheduler than pg_cron",
            )
    if jobs:
        require(connection)
    with _home(connection) as home, home.transaction():
        if jobs:
            home.execute("create extension if not exists pg_cron with schema pg_catalog")
        kept = set()
        for number, name, schedule, sql, runs in _found(home, group, database):
            if runs and jobs.get(name) == {"schedule": schedule, "sql": sql}:
                kept.add(name)
                continue
            home.execute("select cron.unschedule(%s::bigint)", [number])
            home.execute("delete from cron.job_run_details where jobid = %s", [number])
        for name in jobs.keys() - kept:
            home.execute(
                "select cron.schedule_in_database(%s, %s, %s, %s)",
                [names[name], jobs[name]["schedule"], jobs[name]["sql"], database],
            )


def require(connection: Connection) -> None:
    """Check that the server has pg_cron.

    Raises:
        MigrateError: it has no pg_cron.
    """
    if _home_name(connection) is None:
        raise MigrateError(
            "the server has no pg_cron",
            "install it (on Debian the package "
            "postgresql-NN-cron), add it to shared_preload_libraries and restart the server; or "
            "choose another scheduler than pg_cron",
        )


def _home_name(connection: Connection) -> str | None:
    """The database in which pg_cron has its jobs; None where the server has no pg_cron."""
    try:
        row = connection.execute("select current_setting('cron.database_name')").fetchone()
    except psycopg.errors.UndefinedObject:
        return None
    except psycopg.errors.InsufficientPrivilege:  # a hosted server, which has one database
        return connection.info.dbname
    return row[0] if row else None


@contextmanager
def _home(connection: Connection) -> Iterator[Connection]:
    """A connection to that database; where there is no pg_cron, the same one."""
    name, here = _home_name(connection), connection.info.dbname
    if name in (None, here):
        yield connection
        return
    info = connection.info
    with connect(make_conninfo(info.dsn, password=info.password, dbname=name)) as home:
        yield home


def _found(home: Connection, group: str, database: str) -> list[tuple[Any, ...]]:
    """Number, name, schedule, SQL of the group's jobs, and whether they run on the database."""
    if not home.execute("select 1 from pg_extension where extname = 'pg_cron'").fetchone():
        return []
    return home.execute(
        """select jobid, substring(jobname::text from '[^.]*$'), schedule, command,
                  active and database = %s
           from cron.job
           where username = current_user
             and regexp_replace(jobname::text, '\\.[^.]*$', '') = %s""",
        [database, f"{group}.{database}"],
    ).fetchall()
