"""A run: apply what is pending under the lock, and record the catalog that results."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import psycopg

from migrate import adoption, catalog, ledger, plan
from migrate.apply import apply, batches, settings
from migrate.connection import (
    LOCK_WAIT,
    SESSION_SETTINGS,
    Connection,
    StatementError,
    lock,
    renew,
    send,
    translated_errors,
)
from migrate.errors import FilesError, LostError, MigrateError
from migrate.files import REPEATABLE, VERSIONED, File, Tree
from migrate.plan import Plan
from migrate.report import Notice


@dataclass(frozen=True)
class Step:
    """What a run tells of its progress.

    Attributes:
        event: "adopted" a database, "waiting" for another run, "applying", "retrying" after a lock
            timeout, "notice" of the server, "applied", or "unrecorded" a removed repeatable file.
        subject: folder and name of the file; of "waiting", who holds the lock.
        seconds: how long it took; of "retrying", until it is tried again.
        number, total: which of how many pending files.
        detail: of "retrying", what the server said.
        notice: of "notice", what the server said.
    """

    event: str
    subject: str
    seconds: float = 0.0
    number: int = 0
    total: int = 0
    detail: str = ""
    notice: Notice | None = None

    def __str__(self) -> str:
        """The step in one line."""
        match self.event:
            case "waiting":
                return f"waiting for another run: {self.subject}"
            case "retrying":
                return f"retrying {self.subject} in {self.seconds:g} s: {self.detail}"
            case "notice":
                return str(self.notice)
            case "unrecorded":
                return f"unrecorded {self.subject}, which was removed; what it made stays"
            case "applied":
                return f"applied {self.subject} ({self.seconds * 1000:.0f} ms)"
            case _:
                return f"{self.event} {self.subject}"


Report = Callable[[Step], None]


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


@translated_errors()
def _run(
    connection: Connection,
    tree: Tree,
    names: Sequence[str],
    applied: list[File],
    report: Report,
    wait: float,
) -> None:
    while plan.check(connection, tree, names).work:
        if _finish(connection, tree, names, applied, report, wait):
            return
        renew(connection)


def _finish(
    connection: Connection,
    tree: Tree,
    names: Sequence[str],
    applied: list[File],
    report: Report,
    wait: float,
) -> bool:
    """Apply what is pending; False where a new session is needed to go on, or for what comes next.

    That is after a file that changed what new sessions are given, such as their search_path, and
    after another run was waited for, which may have done so.
    """
    send(connection, SESSION_SETTINGS)
    waited = False

    def waiting(holder: str) -> None:
        nonlocal waited
        waited = True
        report(Step("waiting", holder))

    with lock(connection, wait, waiting):
        if waited:
            return False
        if adoption.adopt(connection, tree):
            report(Step("adopted", "what psql had made"))
        found = plan.check(connection, tree, names)
        if not found.work:
            return True
        send(connection, ledger.CREATE)
        for folder in found.folders:
            if not folder.versioned:
                ledger.complete_contents(connection, folder.name, folder.files)
        _remove_progress(connection, found)
        leave = catalog.left(tree)
        objects, drift = _before(connection, leave)
        ledger.mark_running(connection, objects, drift, leave)
        try:
            done = _apply(connection, found, applied, report)
        except BaseException:
            # What stands of a file without a transaction.
            with suppress(psycopg.Error, StatementError, MigrateError):
                _end(connection, objects, drift, leave)
            raise
        if done:
            _end(connection, objects, drift, leave)
        return done


def _apply(connection: Connection, found: Plan, applied: list[File], report: Report) -> bool:
    """Apply what is pending, up to the first that changes what new sessions are given."""
    total = len(applied) + len(found.pending)
    given = settings(connection)
    for folder in found.folders:
        for batch in batches(folder.pending, together=not folder.versioned):
            label = batch[0].label

            def retrying(why: str, seconds: float, label: str = label) -> None:
                report(Step("retrying", label, seconds, detail=why))

            def on_notice(notice: Notice | None, label: str = label) -> None:
                if notice:
                    report(Step("notice", label, notice=notice))

            report(Step("applying", label, number=len(applied) + 1, total=total))
            started = time.monotonic()
            now = apply(connection, batch, applied, retrying, on_notice)
            if now is None:
                return False
            seconds = (time.monotonic() - started) / len(batch)
            for file in batch:
                applied.append(file)
                report(Step("applied", file.label, seconds, len(applied), total))
            if now != given:
                return False
        ledger.remove(connection, folder.name, folder.removed)
        for name in folder.removed:
            report(Step("unrecorded", f"{folder.name}/{name}"))
    return True


def _remove_progress(connection: Connection, found: Plan) -> None:
    """Of files that were begun, and now are others or no more; `plan` lets none with work done."""
    begun = {(f.folder.name, f.name) for f in found.pending if not f.script.transactional}
    for folder_name, name in ledger.progress(connection).keys() - begun:
        if folder_name in (folder.name for folder in found.folders):
            ledger.remove_progress(connection, folder_name, name)


def _end(
    connection: Connection, objects: ledger.Objects, drift: ledger.Drift, leave: Sequence[str]
) -> None:
    send(connection, SESSION_SETTINGS)
    live = catalog.read(connection, leave)
    ledger.record_catalog(connection, _expected(objects, drift, live), leave)


def _before(connection: Connection, leave: Sequence[str]) -> tuple[ledger.Objects, ledger.Drift]:
    """What the catalog should be, and where it is something else."""
    live = catalog.read(connection, leave)
    recorded = ledger.recorded_catalog(connection)
    if recorded is None:
        return live, {}
    objects = catalog.without(recorded.objects, leave)
    if recorded.drift is not None:
        return objects, recorded.drift
    return objects, {each.object: each.found for each in catalog.differences(objects, live)}


def _expected(objects: ledger.Objects, drift: ledger.Drift, live: ledger.Objects) -> ledger.Objects:
    """The catalog after a run, but for the drift that it left as it was."""
    expected = dict(live)
    for name, found in drift.items():
        if live.get(name) == found:
            expected.pop(name, None)
            if name in objects:
                expected[name] = objects[name]
    return expected
