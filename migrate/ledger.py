"""The ledger: which file was applied, with which content, when and by whom."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from psycopg.types.json import Jsonb

from migrate import VERSION
from migrate.connection import Connection
from migrate.failure import readable
from migrate.files import File

SCHEMA = "migrate"

CREATE = f"""\
create schema if not exists {SCHEMA};
create table if not exists {SCHEMA}.ledger (
  folder text not null,
  name text not null,
  sha256 text not null,
  applied_at timestamptz not null default now(),
  applied_by text not null default session_user,
  duration_ms integer not null,
  engine_version text not null,
  primary key (folder, name)
);
create table if not exists {SCHEMA}.catalog (
  only_row boolean primary key default true check (only_row),
  objects jsonb not null,
  recorded_at timestamptz not null default now()
);"""
"""The DDL of the ledger; harmless where it exists.  `catalog` holds what the last run left."""

RECORD = f"""\
insert into {SCHEMA}.ledger (folder, name, sha256, duration_ms, engine_version)
values (%s, %s, %s, %s, '{VERSION}')
on conflict (folder, name) do update
set sha256 = excluded.sha256, applied_at = default, applied_by = default,
    duration_ms = excluded.duration_ms, engine_version = excluded.engine_version"""


@dataclass(frozen=True)
class Entry:
    """One applied file."""

    folder: str
    name: str
    sha256: str
    applied_at: datetime
    applied_by: str


def exists(connection: Connection) -> bool:
    """Whether the database has a ledger."""
    row = connection.execute(f"select to_regclass('{SCHEMA}.catalog') is not null").fetchone()
    return row == (True,)


@readable()
def entries(connection: Connection) -> list[Entry]:
    """All applied files by folder and name; none where there is no ledger."""
    if not exists(connection):
        return []
    rows = connection.execute(
        f"""select folder, name, sha256, applied_at, applied_by from {SCHEMA}.ledger
            order by folder, name collate "C" """
    )
    return [Entry(*row) for row in rows]


def record(connection: Connection, file: File, seconds: float) -> None:
    """Write a file's row, in the transaction that applied it."""
    connection.execute(RECORD, [file.path.parent.name, file.name, file.sha256, int(seconds * 1000)])


def forget(connection: Connection, folder: str, names: Sequence[str]) -> None:
    """Remove the rows of repeatable files that are no more; what they made stays."""
    if names:
        connection.execute(
            f"delete from {SCHEMA}.ledger where folder = %s and name = any(%s)",
            [folder, list(names)],
        )


def recorded_catalog(connection: Connection) -> dict[str, str] | None:
    """Object -> definition as the last run left them; None before the first."""
    if not exists(connection):
        return None
    row = connection.execute(f"select objects from {SCHEMA}.catalog").fetchone()
    return None if row is None else row[0]


def record_catalog(connection: Connection, objects: Mapping[str, str]) -> None:
    """Remember what this run leaves behind."""
    connection.execute(
        f"""insert into {SCHEMA}.catalog (objects) values (%s) on conflict (only_row)
            do update set objects = excluded.objects, recorded_at = now()""",
        [Jsonb(dict(objects))],
    )
