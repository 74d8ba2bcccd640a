"""A run: apply what is pending under the lock, and record the catalog that results.

What is done, in this order, and what the next run does where this one is killed there:

    plan        nothing pending and the record complete: there is no run, and no lock
    lock        one run at a time; the server frees it when the connection is gone
    adopt       a database that psql has made of the files gets its ledger
    mark        the record says that a run is in progress, and which drift there was before it
    apply       what commits together has its ledger rows with it: the next run goes on behind that,
                in a file without a transaction behind the statement that was noted last
    record      the catalog as it is now; killed before, the mark makes the next run record it

A file may change what sessions begin with, such as their search_path.  The rest of the run is then
done in a new session, from the top.
"""

from collections.abc import Sequence
from contextlib import suppress

import psycopg

from migrate import adoption, catalog, ledger, plan, progress
from migrate.apply import apply_pending
from migrate.errors import FilesError, LostError, MigrateError
from migrate.files import REPEATABLE, VERSIONED, File, Tree
from migrate.ledger import RecordedCatalog
from migrate.lock import LOCK_WAIT, lock
from migrate.report import Report, Step
from migrate.session import (
    SESSION_SETTINGS,
    Connection,
    OutdatedSessionError,
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
            while plan.check(connection, tree, names).has_work:
                try:
                    _run_in_session(connection, tree, names, applied, report, wait)
                    break
                except OutdatedSessionError:
                    renew(connection)
    except LostError as error:
        raise LostError(error.reason, [file.name for file in applied]) from error
    except FilesError as error:
        raise FilesError(error.problems, [file.name for file in applied]) from error
    return applied


def _run_in_session(
    connection: Connection,
    tree: Tree,
    names: Sequence[str],
    applied: list[File],
    report: Report,
    wait: float,
) -> None:
    """Lock, adopt, mark, apply and record.

    Raises:
        OutdatedSessionError: a file changed what sessions begin with; or another run was waited
            for, which may have.
    """
    send(connection, SESSION_SETTINGS)
    waited = False

    def waiting(holder: str) -> None:
        nonlocal waited
        waited = True
        report(Step("waiting", holder))

    with lock(connection, wait, waiting):
        if waited:
            raise OutdatedSessionError
        if adoption.adopt(connection, tree):
            report(Step("adopted", "what psql had made"))
        found = plan.check(connection, tree, names)
        if not found.has_work:
            return
        send(connection, ledger.CREATE)
        ledger.complete_contents(connection, [f for folder in found.folders for f in folder.files])
        progress.forget_replaced(connection, names, found.pending)
        before = _recorded_before(connection, catalog.left_to_others(tree))
        ledger.record_catalog(connection, before)
        try:
            apply_pending(connection, found, applied, report)
        except OutdatedSessionError:
            raise
        except BaseException:
            with suppress(psycopg.Error, StatementError, MigrateError):
                _record_result(connection, before)  # of whatever part was applied
            raise
        _record_result(connection, before)


# Drift that a run does not touch is still drift afterwards.  An index that was dropped by hand is
# in the record and not in the live catalog.  A run that does not create it leaves it in the record,
# so that the drift is still told of.  After any other change to it the record has what there is.


def _recorded_before(connection: Connection, leave: Sequence[str]) -> RecordedCatalog:
    """What is recorded when a run begins: the catalog as it should be, and the drift from it.

    The drift is what differs now; if a run was interrupted, or goes on in a new session, what
    differed when that began.
    """
    live = catalog.read(connection, leave)
    recorded = ledger.recorded_catalog(connection)
    if recorded is None:
        return RecordedCatalog(live, leave, drift_before={})
    objects, drift = catalog.without(recorded.objects, leave), recorded.drift_before
    if drift is None:
        differences = catalog.differences(objects, live)
        drift = {difference.object: difference.found for difference in differences}
    return RecordedCatalog(objects, leave, drift)


def _record_result(connection: Connection, before: RecordedCatalog) -> None:
    """Record the catalog after a run; drift that the run left as it was stays drift."""
    send(connection, SESSION_SETTINGS)
    live = catalog.read(connection, before.leave)
    expected = dict(live)
    for name, found in (before.drift_before or {}).items():
        if live.get(name) == found:
            expected.pop(name, None)
            if name in before.objects:
                expected[name] = before.objects[name]
    ledger.record_catalog(connection, RecordedCatalog(expected, before.leave))
