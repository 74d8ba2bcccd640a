"""Backs a database up and proves it: `python -m ops.database_backup`, with settings in variables.

The dump is uploaded, downloaded again and restored into a throwaway PostgreSQL, where the migration
engine verifies the schema and the rows of each table are counted.  Only then is it a backup:
`private.database_backups` has a row for it.

    DATABASE_URL    of the role that owns the tables
    BACKUP_URL      where backups are kept: s3://BUCKET/PREFIX
    AWS_*           how S3 is reached: AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID,
                    AWS_SECRET_ACCESS_KEY
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import obstore
import psycopg
from obstore.exceptions import BaseError
from obstore.store import ObjectStore, from_url
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.types.json import Jsonb

from components import ROOT
from embedded.errors import UserError
from embedded.postgres import embedded_bin
from migrate import plan, verify
from migrate.connection import connect
from migrate.files import read_tree
from migrate.session import Connection, translated_errors
from migrate.throwaway import throwaway

DUMP, ROLES = "database.dump", "roles.sql"
"""The files of a backup: pg_dump's custom format, and roles without their passwords."""


@dataclass(frozen=True)
class Proof:
    """What was seen of a backup that was restored.

    Attributes:
        location: where it is kept, without the file names.
        taken_at: the moment that it is of.
        size_bytes: of both files.
        row_counts: table -> rows.
        checks: how many checks of sql/verify/ passed; None where the database has other migrations
            than this program, whose checks say nothing of it then.
    """

    location: str
    taken_at: datetime
    size_bytes: int
    row_counts: Mapping[str, int]
    checks: int | None


def back_up(database_url: str, backup_url: str) -> Proof:
    """Back a database up, prove the backup and record it.

    Raises:
        UserError: what failed, and what to do. Nothing is recorded then.
    """
    store = _store(backup_url)
    with tempfile.TemporaryDirectory(prefix="backup-") as name:
        directory = Path(name)
        with _connected(database_url) as database, _snapshot(database) as (snapshot, taken_at):
            row_counts = _row_counts(database)
            _dump(database_url, directory, snapshot)
            database_name = database.info.dbname
        folder = f"{taken_at:%Y-%m-%dT%H-%M-%SZ}"
        size = 0
        for file in (DUMP, ROLES):
            path, key = directory / file, f"{folder}/{file}"
            size += path.stat().st_size
            _upload(store, key, path)
            path.unlink()
            _download(store, key, path)
        checks = _prove(directory, database_name, row_counts)
    proof = Proof(f"{backup_url.rstrip('/')}/{folder}", taken_at, size, row_counts, checks)
    with _connected(database_url) as database:  # no session waits for hours to be used again
        database.execute(
            """insert into private.database_backups (location, taken_at, size_bytes, row_counts)
               values (%s, %s, %s, %s)""",
            [proof.location, taken_at, size, Jsonb(row_counts)],
        )
    return proof


@contextmanager
def _connected(url: str) -> Iterator[Connection]:
    try:
        with psycopg.connect(url, autocommit=True) as connection:
            yield connection
    except psycopg.Error as error:
        text = error.diag.message_primary or str(error).strip()
        if error.sqlstate is None and isinstance(error, psycopg.ProgrammingError):
            text = "it is not postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
        raise UserError(f"DATABASE_URL: {text}", "correct it, or see to the database") from None


def _store(url: str) -> ObjectStore:
    try:
        return from_url(url)
    except (BaseError, ValueError) as error:
        raise UserError(f"BACKUP_URL: {error}", "set it to s3://BUCKET/PREFIX, and AWS_*") from None


@contextmanager
def _snapshot(database: Connection) -> Iterator[tuple[str, datetime]]:
    """A snapshot that pg_dump can share, for as long as it is needed, and its time."""
    with database.transaction():
        database.execute("set transaction isolation level repeatable read, read only")
        [[snapshot, now]] = database.execute("select pg_export_snapshot(), now()").fetchall()
        yield snapshot, now.astimezone(UTC)


def _row_counts(database: Connection) -> dict[str, int]:
    """Table -> rows, of every table that is neither the server's nor temporary."""
    tables = database.execute(
        """select nspname, relname
             from pg_class as c join pg_namespace as n on n.oid = relnamespace
            where relkind = 'r' and relpersistence = 'p'
              and nspname not in ('pg_catalog', 'information_schema')
            order by 1, 2"""
    ).fetchall()
    counts = {}
    for name in tables:
        query = sql.SQL("select count(*) from {}").format(sql.Identifier(*name))
        [[counts[".".join(name)]]] = database.execute(query).fetchall()
    return counts


def _dump(database_url: str, directory: Path, snapshot: str) -> None:
    custom = ("--format=custom", "--create", f"--snapshot={snapshot}", f"--file={directory / DUMP}")
    _run("pg_dump", database_url, *custom)
    _run(
        "pg_dumpall",
        database_url,
        "--roles-only",
        "--no-role-passwords",
        f"--file={directory / ROLES}",
    )


def _upload(store: ObjectStore, key: str, path: Path) -> None:
    try:
        obstore.put(store, key, path)
    except (BaseError, OSError) as error:
        raise UserError(
            f"{key} cannot be uploaded: {_first_line(error)}",
            "see to the bucket, its room and AWS_*",
        ) from None


def _download(store: ObjectStore, key: str, path: Path) -> None:
    try:
        with path.open("wb") as file:
            for chunk in obstore.get(store, key):
                file.write(chunk)
    except (BaseError, OSError) as error:
        raise UserError(
            f"{key} was uploaded and cannot be downloaded: {_first_line(error)}",
            "give these credentials the right to read, too",
        ) from None


@translated_errors()
def _prove(directory: Path, name: str, row_counts: Mapping[str, int]) -> int | None:
    """Restore a backup, and compare it with what was dumped; returns how many checks passed."""
    with throwaway() as server:
        url = make_conninfo(server.info.dsn, password=server.info.password)
        # Whoever superuser is there exists already, which is no failure.
        _run("psql", url, "--quiet", "--no-psqlrc", f"--file={directory / ROLES}")
        _run("pg_restore", url, "--create", "--exit-on-error", directory / DUMP)
        with connect(make_conninfo(url, dbname=name)) as restored:
            found = _row_counts(restored)
            if differences := {
                table for table in row_counts if found.get(table) != row_counts[table]
            }:
                raise UserError(
                    f"the restored backup has other rows: {', '.join(sorted(differences))}",
                    "keep the backups before it, and look at the server's log",
                )
            tree = read_tree(ROOT / "sql")
            if plan.check(restored, tree).has_work:
                verify.drift(restored)
                return None
            return verify.check(restored, tree)


def _run(program: str, url: str, *arguments: str | Path) -> None:
    """Run one of PostgreSQL's programs on a database; its password is in no argument."""
    parts = conninfo_to_dict(url)
    password = str(parts.pop("password", "") or "")
    done = subprocess.run(
        [embedded_bin() / program, f"--dbname={make_conninfo('', **parts)}", *arguments],
        env={**os.environ, "PGPASSWORD": password, "LC_ALL": "C"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"it ended with {done.returncode}"]
        raise UserError(f"{program}: {last[0]}", "see to the server; nothing was recorded")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def main() -> int:
    """Back up, and print what was proven as one line of JSON; returns the exit code."""
    started = time.monotonic()
    missing = [name for name in ("DATABASE_URL", "BACKUP_URL") if not os.environ.get(name)]
    if missing:
        print(f"error: {' and '.join(missing)} must be set", file=sys.stderr)
        return 2
    try:
        proof = back_up(os.environ["DATABASE_URL"], os.environ["BACKUP_URL"])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    seconds = round(time.monotonic() - started, 1)
    print(json.dumps({"event": "backup proven", **asdict(proof), "seconds": seconds}, default=str))
    return 0


if __name__ == "__main__":
    sys.exit(main())
