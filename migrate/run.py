"""A run: apply what is pending under the lock, and record the catalog that results."""

from collections.abc import Sequence
from contextlib import suppress

import psycopg

from migrate import adoption, catalog, ledger, no_transaction, plan
from migrate.apply import apply_pending
from migrate.errors import FilesError, LostError, MigrateError
from migrate.files import REPEATABLE, VERSIONED, File, Tree
from migrate.ledger import RecordedCatalog
from migrate.lock import LOCK_WAIT, lock
from migrate.report import Report, Step
from migrate.session import (
    SESSION_SETTINGS,
    Connection,
    StatementError,
    renew,
    send,
    translated_errors,
)


def up(
    connection: Connection,
    tree: Tree,
    names: Sequence[str] = (VERSIONED, REPEATABLE),
    report: Report = lambda _: None,
    wait: float = LOCK_WAIT,
) -> list[File]:
    """Apply what is pending, under the lock, and record the catalog that results.

    A versioned file commits by itself, together with its ledger row; the repeatable files of a
    folder commit together, unless one runs without a transaction.  A run that was cut off is
    finished by the next.  A database that psql has made is adopted before.

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
        with translated_errors():
            while plan.check(connection, tree, names).work:
                if _in_this_session(connection, tree, names, applied, report, wait):
                    break
                renew(connection)
    except LostError as error:
        raise LostError(error.reason, [file.name for file in applied]) from error
    except FilesError as error:
        raise FilesError(error.problems, [file.name for file in applied]) from error
    return applied


def _in_this_session(
    connection: Connection,
    tree: Tree,
    names: Sequence[str],
    applied: list[File],
    report: Report,
    wait: float,
) -> bool:
    """Apply what is pending; False where that takes a new session.

    It does after a file that changed what new sessions are given, such as their search_path, and
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
        ledger.complete_contents(connection, [f for folder in found.folders for f in folder.files])
        no_transaction.forget_changed(connection, names, found.pending)
        before = _recorded_before(connection, catalog.left_to_others(tree))
        ledger.record_catalog(connection, before)
        try:
            done = apply_pending(connection, found, applied, report)
        except BaseException:
            with suppress(psycopg.Error, StatementError, MigrateError):
                _record_result(connection, before)  # of the files, or of one, a part
            raise
        if done:
            _record_result(connection, before)
        return done


# Drift outlives a run.  An index that was dropped by hand is in the record and not in the live
# catalog.  A run that does not create it leaves it in the record, so that the drift is still told
# of.  After any other change to it the record has what there is.


def _recorded_before(connection: Connection, leave: Sequence[str]) -> RecordedCatalog:
    """What is recorded when a run begins: the catalog as it should be, and the drift from it.

    The drift is what differs now; after a run that was interrupted, what differed before that one.
    """
    live = catalog.read(connection, leave)
    recorded = ledger.recorded_catalog(connection)
    if recorded is None:
        return RecordedCatalog(live, leave, drift={})
    objects, drift = catalog.without(recorded.objects, leave), recorded.drift
    if drift is None:
        differences = catalog.differences(objects, live)
        drift = {difference.object: difference.found for difference in differences}
    return RecordedCatalog(objects, leave, drift)


def _record_result(connection: Connection, before: RecordedCatalog) -> None:
    """Record the catalog after a run; drift that the run left as it was stays drift."""
    send(connection, SESSION_SETTINGS)
    live = catalog.read(connection, before.leave)
    expected = dict(live)
    for name, found in (before.drift or {}).items():
        if live.get(name) == found:
            expected.pop(name, None)
            if name in before.objects:
                expected[name] = before.objects[name]
    ledger.record_catalog(connection, RecordedCatalog(expected, before.leave))
