"""The ledger: which file was applied, with which content, when and by whom."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from datetime import datetime

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from embedded.errors import with_remedy
from migrate import VERSION
from migrate.connection import Connection, translated_errors
from migrate.files import File

SCHEMA = "migrate"

CREATE = f"""\
create schema if not exists {SCHEMA};
create table if not exists {SCHEMA}.ledger (
  folder text not null,
  name text not null,
  sha256 text not null,
  content text,
  applied_at timestamptz not null default now(),
  applied_by text not null default session_user,
  duration_ms integer not null,
  engine_version text not null,
  primary key (folder, name)
);
create table if not exists {SCHEMA}.progress (
  folder text not null,
  name text not null,
  statements integer not null,
  sha256 text not null,
  building boolean not null default false,
  index_name text,
  primary key (folder, name)
);
create table if not exists {SCHEMA}.catalog (
  only_row boolean primary key default true check (only_row),
  objects jsonb not null,
  recorded_at timestamptz not null default now(),
  in_progress jsonb,
  leave jsonb not null
);
"""
"""The DDL of the ledger; harmless where it exists.

`content` is kept of repeatable files, whose present text is all that is left in git.
`progress` holds how far a file without a transaction has come.
`catalog` holds what the last run left.  Its `in_progress` is null, unless a run is in
progress or was interrupted: then it holds the drift that there was before that run.  `leave` is
what the files leave to others.
"""

Objects = Mapping[str, str]
"""The catalog: object -> definition."""

Drift = Mapping[str, str | None]
"""Drifted objects: what was found instead of the recorded definition, None for nothing."""


@dataclass(frozen=True)
class Ledger:
    """What a database knows of the runs before.

    Attributes:
        digests: folder -> file name -> sha256 of what was applied.
        complete: no run is in progress or was interrupted, and no file is half applied; false for a
            database made from the bundle until its first run.
    """

    digests: Mapping[str, Mapping[str, str]]
    complete: bool


@translated_errors()
def read(connection: Connection) -> Ledger:
    """The ledger; an empty one where there is none."""
    try:
        rows = connection.execute(f"select folder, name, sha256 from {SCHEMA}.ledger").fetchall()
    except psycopg.errors.UndefinedTable:
        return Ledger({}, complete=True)
    complete = connection.execute(
        f"""select in_progress is null and not exists (select from {SCHEMA}.progress)
            from {SCHEMA}.catalog"""
    ).fetchone()
    digests: dict[str, dict[str, str]] = {}
    for folder, name, sha256 in rows:
        digests.setdefault(folder, {})[name] = sha256
    return Ledger(digests, complete == (True,))


@dataclass(frozen=True)
class Entry:
    """When a file was applied, and by which role."""

    applied_at: datetime
    applied_by: str


@translated_errors()
def entries(connection: Connection) -> dict[tuple[str, str], Entry]:
    """Folder and file name -> when it was applied."""
    try:
        rows = connection.execute(
            f"select folder, name, applied_at, applied_by from {SCHEMA}.ledger"
        ).fetchall()
    except psycopg.errors.UndefinedTable:
        return {}
    return {(folder, name): Entry(at, by) for folder, name, at, by in rows}


def record(file: File, content: str | None = None, milliseconds: str = "0") -> str:
    """The statement that writes a file's row, in the transaction that applies the file.

    Args:
        file: what is applied.
        content: its text, if it is a repeatable file, which may have a row already.
        milliseconds: an SQL expression for how long it took.
    """
    values = (file.folder.name, file.name, file.sha256, content, VERSION)
    again = """
on conflict (folder, name) do update
set sha256 = excluded.sha256, content = excluded.content, applied_at = default,
    applied_by = default, duration_ms = excluded.duration_ms,
    engine_version = excluded.engine_version"""
    return f"""\
insert into {SCHEMA}.ledger (duration_ms, folder, name, sha256, content, engine_version)
values ({milliseconds}, {", ".join(map(sql.quote, values))}){again if content else ""};
"""


def complete_contents(connection: Connection, folder: str, files: Sequence[File]) -> None:
    """Add the texts that the bundle leaves out, where the files are still the same."""
    missing = connection.execute(
        f"select name, sha256 from {SCHEMA}.ledger where folder = %s and content is null", [folder]
    ).fetchall()
    for file in files:
        if (file.name, file.sha256) in missing:
            connection.execute(
                f"update {SCHEMA}.ledger set content = %s where folder = %s and name = %s",
                [file.text, folder, file.name],
            )


@translated_errors()
def contents(connection: Connection, folder: str) -> dict[str, str]:
    """Name -> text, as they were applied, of a folder of repeatable files."""
    rows = connection.execute(
        f"""select name, content from {SCHEMA}.ledger
            where folder = %s and content is not null order by name collate "C" """,
        [folder],
    )
    return dict(rows.fetchall())


def remove(connection: Connection, folder: str, names: Sequence[str]) -> None:
    """Remove the rows of repeatable files that are no more; what they made stays."""
    if names:
        connection.execute(
            f"delete from {SCHEMA}.ledger where folder = %s and name = any(%s)",
            [folder, list(names)],
        )


@dataclass(frozen=True)
class Progress:
    """How far a file without a transaction has come in a run that did not end it.

    Attributes:
        done: how many of its statements are carried out.
        sha256: their common digest.
        building: the next one was building an index when the run was cut off.
        index: the quoted name of the index that the next one was building, or failed to build.
    """

    done: int
    sha256: str
    building: bool = False
    index: str | None = None

    def problem(self, file: File) -> str | None:
        """Why a checked file is not continued: it is not what a run began; None where it is."""
        digest = hashlib.sha256()
        for statement in file.script.statements():
            if statement.number > self.done:
                break
            digest.update(statement.text.encode())
        if digest.hexdigest() == self.sha256 and not file.script.transactional:
            return None
        return with_remedy(
            f"{file.path}: was edited in statements that are done (the first {self.done}), by a "
            "run that was cut off or failed",
            "restore them, and make the change behind them",
        )


@translated_errors()
def progress(connection: Connection) -> dict[tuple[str, str], Progress]:
    """Folder and file name -> how far it has come, of the files that are half done."""
    try:
        rows = connection.execute(
            f"""select folder, name, statements, sha256, building, index_name
                from {SCHEMA}.progress"""
        ).fetchall()
    except psycopg.errors.UndefinedTable:
        return {}
    return {(folder, name): Progress(*rest) for folder, name, *rest in rows}


def advance(connection: Connection, file: File, progress: Progress) -> None:
    """Remember how far a file without a transaction has come, whatever role it has taken on."""
    with connection.transaction():
        connection.execute("set local session authorization default; set local role to default")
        connection.execute(
            f"""insert into {SCHEMA}.progress
                  (folder, name, statements, sha256, building, index_name)
                values (%s, %s, %s, %s, %s, %s)
                on conflict (folder, name) do update
                set statements = excluded.statements, sha256 = excluded.sha256,
                    building = excluded.building, index_name = excluded.index_name""",
            [file.folder.name, file.name, *astuple(progress)],
        )


def remove_progress(connection: Connection, folder: str, name: str) -> None:
    """Remove the note of how far a file has come."""
    connection.execute(
        f"delete from {SCHEMA}.progress where folder = %s and name = %s", [folder, name]
    )


@dataclass(frozen=True)
class Record:
    """The catalog as the last run left it.

    Attributes:
        objects: as it should be.
        drift: what there was before the run that is in progress or was interrupted; else None.
        leave: what the files leave to others.
    """

    objects: Objects
    drift: Drift | None
    leave: Sequence[str]


def recorded_catalog(connection: Connection) -> Record | None:
    """What the last run has recorded; None before the first run."""
    with translated_errors(), connection.transaction():
        if connection.execute("select to_regclass(%s)", [f"{SCHEMA}.catalog"]).fetchone() == (
            None,
        ):
            return None
        row = connection.execute(
            f"select objects, in_progress, leave from {SCHEMA}.catalog"
        ).fetchone()
    return Record(*row) if row else None


def mark_running(
    connection: Connection, objects: Objects, drift: Drift, leave: Sequence[str]
) -> None:
    """A run is in progress; what it does to the catalog is drift only when it was there before."""
    _write_catalog(connection, objects, Jsonb(dict(drift)), leave)


def record_catalog(connection: Connection, objects: Objects, leave: Sequence[str]) -> None:
    """Remember what a run leaves behind."""
    _write_catalog(connection, objects, None, leave)


def _write_catalog(
    connection: Connection, objects: Objects, in_progress: Jsonb | None, leave: Sequence[str]
) -> None:
    connection.execute(
        f"""insert into {SCHEMA}.catalog (objects, in_progress, leave) values (%s, %s, %s)
            on conflict (only_row) do update set objects = excluded.objects,
              in_progress = excluded.in_progress, recorded_at = default, leave = excluded.leave""",
        [Jsonb(dict(objects)), in_progress, Jsonb(list(leave))],
    )
