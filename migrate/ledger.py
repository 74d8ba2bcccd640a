"""The ledger: which file was applied, with which content, when and by whom."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from migrate import VERSION
from migrate.files import VERSIONED, File
from migrate.session import Connection, translated_errors

CREATE = """\
create schema if not exists migrate;
create table if not exists migrate.ledger (
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
create table if not exists migrate.progress (
  folder text not null,
  name text not null,
  statements integer not null,
  sha256 text not null,
  building boolean not null default false,
  index_name text,
  primary key (folder, name)
);
create table if not exists migrate.catalog (
  only_row boolean primary key default true check (only_row),
  objects jsonb not null,
  recorded_at timestamptz not null default now(),
  in_progress jsonb,
  leave jsonb not null
);
"""
"""The DDL of the ledger; harmless where it exists.

`content` is kept of repeatable files: a checkout has only their present text.
`progress` holds how far a file without a transaction has come.
`catalog` is a `RecordedCatalog`: `in_progress` is its `drift_before`.  `leave` is
what the files leave to others.
"""


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
        rows = connection.execute("select folder, name, sha256 from migrate.ledger").fetchall()
    except psycopg.errors.UndefinedTable:
        return Ledger({}, complete=True)
    complete = connection.execute(
        """select in_progress is null and not exists (select from migrate.progress)
            from migrate.catalog"""
    ).fetchone()
    digests: dict[str, dict[str, str]] = {}
    for folder, name, sha256 in rows:
        digests.setdefault(folder, {})[name] = sha256
    return Ledger(digests, complete == (True,))


@translated_errors()
def applications(connection: Connection) -> dict[str, tuple[datetime, str]]:
    """Folder and file name -> when it was applied, in UTC, and by which role."""
    try:
        rows = connection.execute(  # psycopg reads no time in another DateStyle
            """select folder || '/' || name, (extract(epoch from applied_at) * 1000000)::bigint,
                      applied_by
               from migrate.ledger"""
        ).fetchall()
    except psycopg.errors.UndefinedTable:
        return {}
    return {label: (datetime.fromtimestamp(at / 1e6, UTC), by) for label, at, by in rows}


def record(file: File, milliseconds: str) -> str:
    """The statement that writes a file's row, in the transaction that applies the file.

    Args:
        file: what is applied.
        milliseconds: an SQL expression for how long it took.
    """
    return _row(file, milliseconds, None if file.folder.name == VERSIONED else file.text)


def record_bundled(file: File) -> str:
    """The same for a script that holds the file anyway: without its text, and with no time."""
    return _row(file, "0", None)


def _row(file: File, milliseconds: str, content: str | None) -> str:
    values = (file.folder.name, file.name, file.sha256, content, VERSION)
    again = """
on conflict (folder, name) do update
set sha256 = excluded.sha256, content = excluded.content, applied_at = default,
    applied_by = default, duration_ms = excluded.duration_ms,
    engine_version = excluded.engine_version"""
    return f"""\
insert into migrate.ledger (duration_ms, folder, name, sha256, content, engine_version)
values ({milliseconds}, {", ".join(map(sql.quote, values))}){again if content else ""};
"""


def complete_contents(connection: Connection, files: Sequence[File]) -> None:
    """Add the texts of repeatable files that the bundle leaves out, where they are still the same.

    Args:
        connection: to the database.
        files: those of the run.
    """
    missing = connection.execute(
        """select folder, name, sha256 from migrate.ledger
           where content is null and folder <> %s""",
        [VERSIONED],
    ).fetchall()
    for file in files:
        if (file.folder.name, file.name, file.sha256) in missing:
            connection.execute(
                "update migrate.ledger set content = %s where folder = %s and name = %s",
                [file.text, file.folder.name, file.name],
            )


@translated_errors()
def contents(connection: Connection, folder: str) -> dict[str, str]:
    """Name -> text, as they were applied, of a folder of repeatable files."""
    rows = connection.execute(
        """select name, content from migrate.ledger
            where folder = %s and content is not null order by name collate "C" """,
        [folder],
    )
    return dict(rows.fetchall())


def remove(connection: Connection, folder: str, names: Sequence[str]) -> None:
    """Remove the rows of repeatable files that are no more; what they made stays."""
    if names:
        connection.execute(
            "delete from migrate.ledger where folder = %s and name = any(%s)",
            [folder, list(names)],
        )


@dataclass(frozen=True)
class RecordedCatalog:
    """The row of `migrate.catalog`.

    Attributes:
        objects: object -> definition, as it should be.
        leave: the objects that files leave to others.
        drift_before: while a run is in progress or after it was interrupted: object -> what there
            was before it instead of the recorded definition, None for nothing.  None after a
            run's end.
    """

    objects: Mapping[str, str]
    leave: Sequence[str]
    drift_before: Mapping[str, str | None] | None = None

    @property
    def in_progress(self) -> bool:
        """Whether a run is in progress, or was interrupted."""
        return self.drift_before is not None


def recorded_catalog(connection: Connection) -> RecordedCatalog | None:
    """What the last run has recorded; None before the first run."""
    with translated_errors(), connection.transaction():
        if connection.execute("select to_regclass('migrate.catalog')").fetchone() == (None,):
            return None
        row = connection.execute(
            "select objects, leave, in_progress from migrate.catalog"
        ).fetchone()
    return RecordedCatalog(*row) if row else None


def record_catalog(connection: Connection, catalog: RecordedCatalog) -> None:
    """Record what a run leaves behind; or, with `drift_before`, that a run is in progress."""
    drift = None if catalog.drift_before is None else Jsonb(dict(catalog.drift_before))
    connection.execute(
        """insert into migrate.catalog (objects, leave, in_progress) values (%s, %s, %s)
           on conflict (only_row) do update set objects = excluded.objects, leave = excluded.leave,
             in_progress = excluded.in_progress, recorded_at = default""",
        [Jsonb(dict(catalog.objects)), Jsonb(list(catalog.leave)), drift],
    )
