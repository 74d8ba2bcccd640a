"""What a run does: compare files and ledger, apply what is pending, prove the result."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg.pq import ExecStatus

from migrate import catalog, files, ledger
from migrate.connection import SESSION, Connection, lock
from migrate.errors import DriftError, MigrateError
from migrate.failure import describe, readable
from migrate.files import REPEATABLE, VERIFY, VERSIONED, File

LOCK_WAIT = 60.0
"""Seconds that a run waits for another one to end."""

LOCK_TIMEOUT_RETRIES = 4
"""How often a file is tried again after a lock timeout, the wait doubling from one second."""

Report = Callable[[str], None]


@dataclass(frozen=True)
class Folder:
    """One folder of SQL files beside what the ledger knows of it.

    Attributes:
        files: what is there now, in name order.
        recorded: name -> sha256 of what was applied.
        versioned: applied once and never edited, or applied again whenever edited.
    """

    name: str
    files: list[File]
    recorded: Mapping[str, str]
    versioned: bool

    @property
    def problems(self) -> list[str]:
        """Why nothing may be applied: edited, removed or misplaced versioned files."""
        if not self.versioned:
            return []
        return files.history_problems(self.name, self.recorded, files.digests(self.files))

    @property
    def pending(self) -> list[File]:
        """What a run would apply, in its order."""
        return [file for file in self.files if self.recorded.get(file.name) != file.sha256]

    @property
    def gone(self) -> list[str]:
        """Names of repeatable files that were applied and are no more; a run forgets them."""
        if self.versioned:
            return []
        return sorted(self.recorded.keys() - {file.name for file in self.files})

    @property
    def work(self) -> list[str]:
        """Names of what a run would do something about; empty when it would do nothing."""
        return [file.name for file in self.pending] + self.gone


@readable()
def folders(
    connection: Connection, directory: Path, names: Sequence[str] = (VERSIONED, REPEATABLE)
) -> list[Folder]:
    """The folders of a directory beside the ledger; reads only.

    Raises:
        FilesError: a file cannot be read.
    """
    entries = ledger.entries(connection)
    return [
        Folder(
            name,
            files.read(directory / name),
            {entry.name: entry.sha256 for entry in entries if entry.folder == name},
            name == VERSIONED,
        )
        for name in names
    ]


@readable()
def plan(
    connection: Connection, directory: Path, names: Sequence[str] = (VERSIONED, REPEATABLE)
) -> list[Folder]:
    """The folders, checked, with what a run would apply as their `pending`; reads only.

    Raises:
        FilesError: files are wrong, or were edited or removed after they had been applied.
    """
    found = folders(connection, directory, names)
    problems = []
    for folder in found:
        if folder.versioned:
            problems += files.number_problems(folder.files)
        problems += folder.problems + files.content_problems(folder.pending)
    files.refuse(problems)
    return found


@readable()
def up(
    connection: Connection,
    directory: Path,
    names: Sequence[str] = (VERSIONED, REPEATABLE),
    report: Report = lambda _: None,
    wait: float = LOCK_WAIT,
) -> list[File]:
    """Apply what is pending, under the lock, and record the catalog that results.

    A versioned file commits by itself, together with its ledger row and the catalog it leaves;
    the repeatable files of a folder commit together, unless one runs without a transaction.  An
    object that had drifted before the run and that the run did not touch stays recorded as it
    should be, so that no run hides a drift.

    Args:
        connection: in autocommit mode, from `connect`.
        directory: holds the folders.
        names: the folders to apply, in this order.
        report: is told of each file in one line.
        wait: seconds to wait for another run to end.

    Returns:
        The files applied, none when all was done before.

    Raises:
        MigrateError: with what failed, what is committed and what to do.
    """
    with lock(connection, wait):
        found = plan(connection, directory, names)
        recorded = ledger.recorded_catalog(connection)
        if recorded is not None and not any(folder.work for folder in found):
            return []
        connection.execute(ledger.CREATE)
        before = catalog.read(connection)
        expected = before if recorded is None else recorded
        applied: list[File] = []

        def record_catalog() -> None:
            after = catalog.read(connection)
            ledger.record_catalog(connection, _expected(expected, before, after))

        try:
            for folder in found:
                batches = [[file] for file in folder.pending]
                if not folder.versioned and all(file.transactional for file in folder.pending):
                    batches = [folder.pending]
                for batch in filter(None, batches):
                    _apply_batch(connection, batch, [file.name for file in applied], record_catalog)
                    applied += batch
                    for file in batch:
                        report(f"applied {folder.name}/{file.name}")
                ledger.forget(connection, folder.name, folder.gone)
                for name in folder.gone:
                    report(f"forgot {folder.name}/{name}, which is gone; what it made stays")
        finally:
            if not connection.closed:
                record_catalog()  # what a file without a transaction did before it failed
        return applied


def _expected(
    expected: Mapping[str, str], before: Mapping[str, str], after: Mapping[str, str]
) -> dict[str, str]:
    untouched_drift = {
        name
        for name in expected.keys() | before.keys()
        if expected.get(name) != before.get(name) and before.get(name) == after.get(name)
    }
    kept = {name: text for name, text in expected.items() if name in untouched_drift}
    return {name: text for name, text in after.items() if name not in untouched_drift} | kept


def _apply_batch(
    connection: Connection,
    batch: list[File],
    committed: list[str],
    record_catalog: Callable[[], None],
) -> None:
    transactional = batch[0].transactional
    for attempt in range(LOCK_TIMEOUT_RETRIES + 1):
        file, number = batch[0], 0
        try:
            with connection.transaction() if transactional else nullcontext():
                for file in batch:
                    started = time.monotonic()
                    for number, statement in enumerate(file.statements, 1):  # noqa: B007
                        connection.execute(statement.text.encode())
                    number = 0
                    connection.execute(SESSION)
                    if not transactional and (invalid := _invalid_indexes(connection)):
                        raise MigrateError(f"{file.path}: is not done{invalid}")
                    ledger.record(connection, file, time.monotonic() - started)
                record_catalog()
            return
        except psycopg.Error as error:
            retry = transactional and attempt < LOCK_TIMEOUT_RETRIES
            if retry and isinstance(error, psycopg.errors.LockNotAvailable):
                time.sleep(2**attempt)
                continue
            stands = f"rolled back: {', '.join(file.name for file in batch)}"
            remedy = "correct the file and run again; it goes on where it stopped"
            if not transactional:
                done = number - 1 if number else len(file.statements)
                stands = f"not rolled back: statements of {file.name} that are done: {done}"
                remedy = (
                    "correct the file, so that all its statements can run again (IF NOT EXISTS, "
                    "DROP INDEX CONCURRENTLY IF EXISTS), and run again"
                )
                if not connection.closed:
                    stands += _invalid_indexes(connection)
            raise MigrateError(
                f"{describe(file, number, error)}\n"
                f"  {stands}\n"
                f"  committed in this run: {', '.join(committed) or 'nothing'}\n"
                f"  what to do: {remedy}"
            ) from error


def _invalid_indexes(connection: Connection) -> str:
    rows = connection.execute(
        """select indexrelid::regclass::text from pg_index join pg_class on oid = indexrelid
           where not indisvalid and relkind = 'i' order by 1"""
    )
    return "".join(
        f"\n  invalid index {name}, left by a CREATE INDEX CONCURRENTLY that failed: "
        f"DROP INDEX CONCURRENTLY {name}, then run again"
        for (name,) in rows
    )


@readable()
def drift(connection: Connection) -> list[str]:
    """Every object that differs from what the last run left, expected and found; reads only."""
    recorded = ledger.recorded_catalog(connection)
    return [] if recorded is None else catalog.differences(recorded, catalog.read(connection))


@readable()
def accept(connection: Connection) -> None:
    """Take the live catalog as it should be, drift included."""
    connection.execute(ledger.CREATE)
    ledger.record_catalog(connection, catalog.read(connection))


@readable()
def verify(connection: Connection, directory: Path) -> int:
    """Prove the database: no drift, and every query of `verify/` returns no row; reads only.

    Returns:
        The number of promises that were checked.

    Raises:
        FilesError: a verify file is wrong.
        DriftError: objects differ from what the last run left.
        MigrateError: a promise is broken; the message names it and the rows that break it.
    """
    proofs = files.read(directory / VERIFY)
    files.refuse(files.content_problems(proofs))
    differing = drift(connection)
    if differing:
        raise DriftError(
            f"{len(differing)} objects are not as the last run left them:\n"
            + "\n".join(differing)
            + "\n  what to do: undo the change; or, where it is to stay, run `python -m migrate "
            "verify --accept` and write a migration that makes it where it is missing"
        )
    checked = 0
    broken = []
    with connection.transaction():
        connection.execute("set transaction read only")
        for file in proofs:
            for number, statement in enumerate(file.statements, 1):
                checked += 1
                try:
                    cursor = connection.execute(statement.text.encode())
                except psycopg.Error as error:
                    raise MigrateError(describe(file, number, error)) from error
                result = cursor.pgresult
                asked = result is not None and result.status == ExecStatus.TUPLES_OK
                rows = cursor.fetchall() if asked else []  # a DO block has none, only an error
                if rows:
                    names = [column.name for column in cursor.description or []]
                    broken.append(
                        f"{file.path}: broken promise: {_promise(statement.comment)}\n"
                        + "\n".join(
                            "  " + ", ".join(f"{n}={v}" for n, v in zip(names, row, strict=True))
                            for row in rows[:20]
                        )
                    )
    if broken:
        raise MigrateError(
            "\n".join(broken)
            + "\n  what to do: what was applied stays applied; mend it with the next migration, or "
            "by editing a repeatable file"
        )
    return checked


def _promise(comment: str) -> str:
    _, _, text = comment.rpartition("-- promise:")
    return " ".join(line.strip().removeprefix("--").strip() for line in text.splitlines())
