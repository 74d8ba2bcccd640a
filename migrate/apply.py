"""Applying a plan: what commits together, and its rows in the ledger.

That is one versioned file, or all pending repeatable files of a folder, unless one of those cannot:
then each by itself.  A file without a transaction commits by the statement.  The server is sent few
and large messages, since each one costs a round trip: see `message.py`.
"""

import re
import time
from collections.abc import Sequence

import psycopg
from psycopg.errors import Diagnostic, LockNotAvailable
from psycopg.pq.abc import PGresult

from migrate import ledger, no_transaction
from migrate.errors import MigrateError
from migrate.files import File
from migrate.lock import blockers
from migrate.message import Message
from migrate.plan import Plan
from migrate.report import FailedFilesError, Report, Step, report_notice
from migrate.session import (
    DISCARD_SESSION_OBJECTS,
    SESSION_DEFAULTS,
    SESSION_SETTINGS,
    Connection,
    OutdatedSessionError,
    StatementError,
    is_broken,
    roll_back,
    send,
    session_defaults,
)

_RETRIES = 4
"""How often what commits together is tried again after a lock timeout, the wait doubling from one
second.  A file without a transaction is not: the next run goes on with it."""

_OPENING = f"{DISCARD_SESSION_OBJECTS}begin;commit;begin;"
"""SET TRANSACTION is refused after any other statement.  So the first `begin` and `commit` close
the transaction that discards, and the last `begin` opens the file's own."""

_THIS_MESSAGE = "extract(epoch from clock_timestamp() - statement_timestamp()) * 1000"
"""Milliseconds since the server received the message."""

_INSERTS = re.compile(r"^insert\b", re.IGNORECASE | re.MULTILINE)


def apply_pending(
    connection: Connection, found: Plan, applied: list[File], report: Report = lambda _: None
) -> None:
    """Apply what is pending.

    Args:
        connection: which holds the lock of the run.
        found: a checked plan.
        applied: what the run has applied before; what this applies is appended as it commits.
        report: is told of each step.

    Raises:
        OutdatedSessionError: the file applied last changed what sessions begin with.
        MigrateError: with what failed, what is committed, and what to do.
    """
    total = len(applied) + len(found.pending)
    defaults = session_defaults(connection)
    for folder in found.folders:
        for batch in _batches(folder.pending, together=not folder.versioned):
            report(Step("applying", batch[0].label, number=len(applied) + 1, total=total))
            started = time.monotonic()
            defaults_now = _apply_with_retries(connection, batch, applied, report)
            seconds = (time.monotonic() - started) / len(batch)
            for file in batch:
                applied.append(file)
                report(Step("applied", file.label, seconds, len(applied), total))
            if defaults_now != defaults:
                raise OutdatedSessionError
        ledger.remove(connection, folder.name, folder.removed)
        for name in folder.removed:
            report(Step("unrecorded", f"{folder.name}/{name}"))


def _batches(pending: Sequence[File], *, together: bool) -> list[Sequence[File]]:
    """Files as they commit: each by itself or, where all can run in one transaction, together."""
    if (
        pending
        and together
        and all(file.script.transactional for file in pending)
        and not any(file.script.sets_transaction for file in pending[1:])
    ):
        return [pending]
    return [[file] for file in pending]


def _apply_with_retries(
    connection: Connection, batch: Sequence[File], applied: Sequence[File], report: Report
) -> str:
    """Apply files together, again after a lock timeout.  One without a transaction comes alone.

    Returns:
        What a new session would begin with afterwards.

    Raises:
        OutdatedSessionError: a file without a transaction changed that, and is not at its end.
        MigrateError: with what failed, what is committed, and what to do.
    """
    in_the_way: list[str] = []
    try:
        for attempt in range(_RETRIES if batch[0].script.transactional else 0):
            try:
                return _attempt(connection, batch, report)
            except FailedFilesError as failed:
                if not isinstance(failed.error, LockNotAvailable):
                    raise
                seconds = 2.0**attempt
                reason = str(failed.error).strip()
                report(Step("retrying", batch[0].label, seconds, detail=reason))
                time.sleep(seconds)
        with blockers(connection) as in_the_way:
            return _attempt(connection, batch, report)
    except FailedFilesError as failed:
        done = _what_is_done(connection, batch, failed)
        committed = ", ".join(file.name for file in applied) or "nothing"
        raise MigrateError(
            f"{failed}\n  {done}\n  committed in this run: {committed}",
            _remedy(failed.error, in_the_way),
        ) from failed.error


def _attempt(connection: Connection, batch: Sequence[File], report: Report) -> str:
    if batch[0].script.transactional:
        return _in_one_transaction(connection, batch, report)
    no_transaction.carry_out(connection, batch[0], report)
    return session_defaults(connection)


def _what_is_done(connection: Connection, batch: Sequence[File], failed: FailedFilesError) -> str:
    if not batch[0].script.transactional:
        return no_transaction.what_is_done(connection, failed)
    rolled_back = f"rolled back: {', '.join(file.name for file in batch)}"
    if is_broken(failed.error) and failed.statement is None:
        return f"unless it broke at the very commit, {rolled_back}"
    return rolled_back


def _remedy(error: psycopg.Error, in_the_way: Sequence[str]) -> str:
    if is_broken(error):
        return "run again; the ledger knows what was committed"
    if isinstance(error, LockNotAvailable):
        who = f" ({'; '.join(in_the_way)})" if in_the_way else ""
        return f"see who holds the lock{who} and run again"
    return "correct the file and run again; it goes on where it stopped"


def _in_one_transaction(connection: Connection, batch: Sequence[File], report: Report) -> str:
    """Apply files: all of them, or none.

    Returns:
        What a new session would begin with afterwards.
    """
    opening = _OPENING
    try:
        for file in batch:
            started = time.monotonic()
            spans = file.script.spans
            for span, piece in zip(spans, file.script.pieces(), strict=True):
                blamed, closing = [file], ""
                if span is spans[-1]:
                    before = f"{(time.monotonic() - started) * 1000:.0f}"
                    row = ledger.record(file, f"{before} + {_THIS_MESSAGE}")
                    closing = f"\n;{SESSION_SETTINGS}{row}"
                    if file is batch[-1]:
                        blamed, closing = list(batch), f"{closing}{SESSION_DEFAULTS}commit"
                # Much data is sent as it is: what a trigger says may be taken for a notice of the
                # statement before.
                data = len(spans) > 1 and len(span.ends) == len(_INSERTS.findall(piece.text))
                message = Message(piece, span.ends, opening, closing, marked=not data)
                results = _send(connection, message, blamed, report)
                opening = ""
        return (results[-2].get_value(0, 0) or b"").decode()  # the one before the commit's
    finally:
        roll_back(connection)


def _send(
    connection: Connection, message: Message, blamed: Sequence[File], report: Report
) -> list[PGresult]:
    """Send a message.

    Args:
        connection: to the database.
        message: a piece of the last of the files.
        blamed: for what fails in none of its statements, such as the commit.
        report: is told of notices.

    Raises:
        FailedFilesError: with the statement that failed, and where in it.
    """
    file, count = blamed[-1], len(message.ends)

    def tell(results: int, diagnostic: Diagnostic) -> None:
        if count:
            index = min(message.index(results), count - 1)
            report_notice(report, file, message.statements[index], diagnostic)

    try:
        return send(connection, message.text, tell)
    except StatementError as failed:
        index = message.index(failed.done)
        if index >= count:
            raise FailedFilesError(blamed, None, None, failed.error) from failed.error
        statement, offset = message.statements[index], failed.position
        if offset is not None:
            offset = message.offset(offset, statement)
        raise FailedFilesError([file], statement, offset, failed.error) from failed.error
    except psycopg.OperationalError as error:
        raise FailedFilesError(blamed, None, None, error) from error
