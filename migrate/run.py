"""A run: compare files and ledger, and apply what is pending under the lock."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

import psycopg

from migrate import adoption, catalog, files, ledger
from migrate.connection import SESSION, Connection, StatementError, lock, readable, send
from migrate.errors import FilesError, LostError, MigrateError
from migrate.files import PLATFORM, REPEATABLE, VERSIONED, File, Tree

LOCK_WAIT = 60.0
"""Seconds that a run waits for another one to end."""


@dataclass(frozen=True)
class Folder:
    """One folder of SQL files beside what the ledger knows of it.

    Attributes:
        files: what is there now, in name order.
        recorded: name -> sha256 of what was applied.
    """

    name: str
    files: Sequence[File]
    recorded: Mapping[str, str]

    @property
    def versioned(self) -> bool:
        """Applied once and never edited, or applied again whenever edited."""
        return self.name == VERSIONED

    @property
    def problems(self) -> list[str]:
        """Why nothing may be applied: edited, removed or misplaced versioned files."""
        present = files.digests(self.files)
        if not self.versioned or present == self.recorded:
            return []
        return files.number_problems(self.files) + files.history_problems(
            self.name, self.recorded, present
        )

    @cached_property
    def pending(self) -> list[File]:
        """What a run would apply, in its order."""
        return [file for file in self.files if self.recorded.get(file.name) != file.sha256]

    @property
    def removed(self) -> list[str]:
        """Names of repeatable files that were applied and then removed."""
        if self.versioned:
            return []
        return sorted(self.recorded.keys() - {file.name for file in self.files})

    @property
    def work(self) -> list[str]:
        """Names of what a run would do something about; empty when it would do nothing."""
        return [file.name for file in self.pending] + self.removed


@dataclass(frozen=True)
class Plan:
    """What a run would do.

    Attributes:
        folders: in the order in which they are applied.
        complete: the last run, if there was one, came to its end.
    """

    folders: Sequence[Folder]
    complete: bool

    @property
    def pending(self) -> list[File]:
        """What a run would apply, in its order."""
        return [file for folder in self.folders for file in folder.pending]

    @property
    def linted(self) -> tuple[list[File], list[File]]:
        """What lint is asked about: what is pending, and the versioned files before it.

        Not the platform's files, which make what others have made on a hosted database.
        """
        folders = [folder for folder in self.folders if folder.name != PLATFORM]
        pending = [file for folder in folders for file in folder.pending]
        applied = [
            file
            for folder in folders
            if folder.versioned
            for file in folder.files
            if file.name in folder.recorded
        ]
        return pending, applied

    @property
    def work(self) -> bool:
        """Whether a run would do anything."""
        return not self.complete or any(folder.work for folder in self.folders)


@dataclass(frozen=True)
class Step:
    """What a run tells of its progress.

    Attributes:
        event: "adopted" a database, "waiting" for another run, "applying", "retrying" after a lock
            timeout, "applied", or "unrecorded" a removed repeatable file.
        subject: folder and name of the file; of "waiting", who holds the lock.
        seconds: how long it took; of "retrying", until it is tried again.
        number, total: which of how many pending files.
        detail: of "retrying", what the server said.
    """

    event: str
    subject: str
    seconds: float = 0.0
    number: int = 0
    total: int = 0
    detail: str = ""

    def __str__(self) -> str:
        """The step in one line."""
        match self.event:
            case "waiting":
                return f"waiting for another run: {self.subject}"
            case "retrying":
                return f"retrying {self.subject} in {self.seconds:g} s: {self.detail}"
            case "unrecorded":
                return f"unrecorded {self.subject}, which was removed; what it made stays"
            case "applied":
                return f"applied {self.subject} ({self.seconds * 1000:.0f} ms)"
            case _:
                return f"{self.event} {self.subject}"


Report = Callable[[Step], None]


@readable()
def compare(
    connection: Connection, tree: Tree, names: Sequence[str] = (VERSIONED, REPEATABLE)
) -> Plan:
    """The files beside the ledger, unchecked; reads only, with one query."""
    known = ledger.read(connection)
    return Plan(
        [Folder(name, tree[name], known.digests.get(name, {})) for name in names], known.complete
    )


def plan(
    connection: Connection, tree: Tree, names: Sequence[str] = (VERSIONED, REPEATABLE)
) -> Plan:
    """What a run would do, after all checks that need no more than this; reads only.

    Args:
        connection: to a database that may have no ledger yet.
        tree: from `files.read_tree`.
        names: the folders to apply, in this order.

    Raises:
        FilesError: files are wrong, or were edited or removed after they had been applied.
        MigrateError: the server refuses to tell.
    """
    found = compare(connection, tree, names)
    problems = [problem for folder in found.folders for problem in folder.problems]
    if found.work:
        from migrate import parser  # here, because most runs parse nothing

        problems += parser.problems(found.pending)
        files.refuse(problems)
        problems += _half_done_problems(connection, found)
    files.refuse(problems)
    return found


def _half_done_problems(connection: Connection, found: Plan) -> list[str]:
    """What is wrong with versioned files of which a run has carried out a part."""
    from migrate.apply import half_done_problem, invalid_indexes
    from migrate.parser import outline

    problems = []
    pending = {(file.folder.name, file.name): file for file in found.pending}
    for key, begun in ledger.progress(connection).items():
        if key[0] == VERSIONED in (folder.name for folder in found.folders):
            file = pending.get(key)
            if begun.done and file is None:
                problems.append(
                    f"{'/'.join(key)}: was removed, but statements of it are done (the first "
                    f"{begun.done}), by a run that was cut off or failed: restore it"
                )
            elif begun.done and file and (problem := half_done_problem(file, begun)):
                problems.append(problem)
            elif (file is None or outline(file).transactional) and (
                invalid := invalid_indexes(connection)
            ):
                problems.append(f"{'/'.join(key)}: had begun, and is another now{invalid}")
    return problems


def up(
    connection: Connection,
    tree: Tree,
    names: Sequence[str] = (VERSIONED, REPEATABLE),
    report: Report = lambda _: None,
    wait: float = LOCK_WAIT,
) -> list[File]:
    """Apply what is pending, under the lock, and record the catalog that results.

    A versioned file commits by itself, together with its ledger row; the repeatable files of a
    folder commit together, unless one runs without a transaction.  An object that had drifted
    before the run and that the run did not touch stays recorded as it should be, so that no run
    hides a drift.  A run that was cut off is finished by the next.  A database that psql has made
    is adopted before.

    Args:
        connection: in autocommit mode, from `connect`.
        tree: from `files.read_tree`.
        names: the folders to apply, in this order.
        report: is told of each step.
        wait: seconds to wait for another run to end.

    Returns:
        The files applied, none when all was done before.

    Raises:
        AdoptionError: psql has made it, and something else than the files make.
        MigrateError: with what failed, what is committed and what to do.
    """
    applied: list[File] = []
    try:
        _run(connection, tree, names, applied, report, wait)
    except LostError as error:
        raise LostError(error.reason, [file.name for file in applied]) from error
    except FilesError as error:
        raise FilesError(error.problems, [file.name for file in applied]) from error
    return applied


@readable()
def _run(
    connection: Connection,
    tree: Tree,
    names: Sequence[str],
    applied: list[File],
    report: Report,
    wait: float,
) -> None:
    if not plan(connection, tree, names).work:
        return
    send(connection, SESSION)
    with lock(connection, wait, lambda holder: report(Step("waiting", holder))):
        if adoption.adopt(connection, tree):
            report(Step("adopted", "what psql had made"))
        found = plan(connection, tree, names)
        if not found.work:
            return
        send(connection, ledger.CREATE + ledger.UPGRADE)
        for folder in found.folders:
            if not folder.versioned:
                ledger.complete_contents(connection, folder.name, folder.files)
        _remove_progress(connection, found)
        objects, drift = _before(connection)
        ledger.begin(connection, objects, drift)
        try:
            _apply(connection, found, applied, report)
        except BaseException:
            with suppress(psycopg.Error, StatementError, MigrateError):
                _end(connection, objects, drift)  # what stands of a file without a transaction
            raise
        _end(connection, objects, drift)


def _apply(connection: Connection, found: Plan, applied: list[File], report: Report) -> None:
    from migrate.apply import apply, batches  # here, because most runs apply nothing

    total = len(found.pending)
    for folder in found.folders:
        for batch in batches(folder.pending, together=not folder.versioned):
            label = batch[0].label

            def retrying(why: str, seconds: float, label: str = label) -> None:
                report(Step("retrying", label, seconds, detail=why))

            report(Step("applying", label, number=len(applied) + 1, total=total))
            started = time.monotonic()
            apply(connection, batch, applied, retrying)
            seconds = (time.monotonic() - started) / len(batch)
            for file in batch:
                applied.append(file)
                report(Step("applied", file.label, seconds, len(applied), total))
        ledger.remove(connection, folder.name, folder.removed)
        for name in folder.removed:
            report(Step("unrecorded", f"{folder.name}/{name}"))


def _remove_progress(connection: Connection, found: Plan) -> None:
    """Of files that were begun, and now are others or no more; `plan` lets none with work done."""
    from migrate.parser import outline

    begun = {(f.folder.name, f.name) for f in found.pending if not outline(f).transactional}
    for folder, name in ledger.progress(connection).keys() - begun:
        if folder in (each.name for each in found.folders):
            ledger.remove_progress(connection, folder, name)


def _end(connection: Connection, objects: ledger.Objects, drift: ledger.Drift) -> None:
    send(connection, SESSION)
    ledger.end(connection, _expected(objects, drift, catalog.read(connection)))


def _before(connection: Connection) -> tuple[ledger.Objects, ledger.Drift]:
    """What the catalog should be, and where it is something else."""
    live = catalog.read(connection)
    recorded = ledger.catalog(connection)
    if recorded is None:
        return live, {}
    objects, in_progress = recorded
    if in_progress is not None:
        return objects, in_progress
    return objects, {
        name: live.get(name)
        for name in objects.keys() | live.keys()
        if objects.get(name) != live.get(name)
    }


def _expected(objects: ledger.Objects, drift: ledger.Drift, live: ledger.Objects) -> ledger.Objects:
    """The catalog after a run, but for the drift that it left as it was."""
    expected = dict(live)
    for name, found in drift.items():
        if live.get(name) == found:
            expected.pop(name, None)
            if name in objects:
                expected[name] = objects[name]
    return expected
