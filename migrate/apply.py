"""Applying a plan: a file's statements and its ledger row in one transaction.

The server is sent few and large messages, since each one costs a round trip.  A small file is one:

    BEGIN; a statement; SHOW role; a statement; ... INSERT INTO migrate.ledger ...; COMMIT

SHOW stands between the statements only to tell apart what the server says of them.  A large file
is sent in the pieces that its `Script` has, the first with the BEGIN, the last with the COMMIT.
"""

import re
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import psycopg
from psycopg.errors import Diagnostic
from psycopg.pq.abc import PGresult

from migrate import ledger, no_transaction
from migrate.errors import MigrateError
from migrate.files import File
from migrate.lock import blockers
from migrate.plan import Plan
from migrate.report import FailedFilesError, Report, Step, report_notice
from migrate.session import (
    DISCARD_SESSION_OBJECTS,
    NEW_SESSIONS,
    SESSION_SETTINGS,
    Connection,
    StatementError,
    is_broken,
    new_sessions,
    roll_back,
    send,
)
from migrate.statements import Piece, split

_RETRIES = 4
"""How often a file is tried again after a lock timeout, the wait doubling from one second."""

_OPENING = f"{DISCARD_SESSION_OBJECTS}begin;commit;begin;"
"""Its commit ends the transaction that DISCARD_SESSION_OBJECTS has begun, in which SET TRANSACTION
comes too late."""

_THIS_MESSAGE = "extract(epoch from clock_timestamp() - statement_timestamp()) * 1000"

_MARK = ";show role"
"""A statement that changes nothing, and has a row, before which no later notice is read."""

_INSERTS = re.compile(r"^insert\b", re.IGNORECASE | re.MULTILINE)


def apply_pending(
    connection: Connection, found: Plan, applied: list[File], report: Report = lambda _: None
) -> bool:
    """Apply what is pending, up to the first file that changes what new sessions are given.

    Args:
        connection: which holds the lock of the run.
        found: a checked plan.
        applied: what the run has applied before; what this applies is appended as it commits.
        report: is told of each step.

    Returns:
        False where a new session is needed to go on.

    Raises:
        MigrateError: with what failed, what stands, and what to do.
    """
    total = len(applied) + len(found.pending)
    given = new_sessions(connection)
    for folder in found.folders:
        for batch in _batches(folder.pending, together=not folder.versioned):
            report(Step("applying", batch[0].label, number=len(applied) + 1, total=total))
            started = time.monotonic()
            now = _apply(connection, batch, applied, report)
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


def _apply(
    connection: Connection, batch: Sequence[File], applied: Sequence[File], report: Report
) -> str | None:
    """Apply files together, again after a lock timeout.  One without a transaction comes alone.

    Returns:
        What new sessions are given afterwards; None where a file without a transaction has changed
        that, and is to go on in a new session.
    """
    transactional = batch[0].script.transactional
    attempt = 0
    while True:
        last = attempt == _RETRIES or not transactional
        watching: AbstractContextManager[list[str]] = (
            blockers(connection) if last else nullcontext([])
        )
        try:
            with watching as in_the_way:
                if transactional:
                    return _in_one_transaction(connection, batch, report)
                done = no_transaction.carry_out(connection, batch[0], report)
                return new_sessions(connection) if done else None
        except FailedFilesError as failed:
            if isinstance(failed.error, psycopg.errors.LockNotAvailable) and not last:
                seconds = 2.0**attempt
                why = str(failed.error).strip()
                report(Step("retrying", batch[0].label, seconds, detail=why))
                time.sleep(seconds)
                attempt += 1
                continue
            stands = (
                f"rolled back: {', '.join(file.name for file in batch)}"
                if transactional
                else no_transaction.standing(connection, failed)
            )
            if transactional and is_broken(failed.error) and failed.statement is None:
                stands = f"unless it broke at the very commit, {stands}"
            committed = ", ".join(file.name for file in applied) or "nothing"
            raise MigrateError(
                f"{failed}\n  {stands}\n  committed in this run: {committed}",
                _remedy(failed.error, in_the_way),
            ) from failed.error


def _remedy(error: psycopg.Error, in_the_way: Sequence[str]) -> str:
    if is_broken(error):
        return "run again; the ledger knows what was committed"
    if isinstance(error, psycopg.errors.LockNotAvailable):
        who = f" ({'; '.join(in_the_way)})" if in_the_way else ""
        return f"see who holds the lock{who} and run again"
    return "correct the file and run again; it goes on where it stopped"


class _MarkedPiece(NamedTuple):
    """A piece with a mark between its statements, which tells whose a notice is.

    Attributes:
        text: with the marks.
        owners: for each result, those of the marks included, the index of the statement whose
            notices are read before it.
        marks: where in the piece they are.
    """

    text: str
    owners: Sequence[int]
    marks: Sequence[int]


def _in_one_transaction(connection: Connection, batch: Sequence[File], report: Report) -> str:
    """Apply files: all of them, or none."""
    opening = _OPENING
    try:
        for file in batch:
            started = time.monotonic()
            spans = file.script.spans
            for span, piece in zip(spans, file.script.pieces(), strict=True):
                committing, closing = [file], ""
                if span is spans[-1]:
                    before = f"{(time.monotonic() - started) * 1000:.0f}"
                    row = ledger.record(file, f"{before} + {_THIS_MESSAGE}")
                    closing = f"\n;{SESSION_SETTINGS}{row}"
                    if file is batch[-1]:
                        committing, closing = list(batch), f"{closing}{NEW_SESSIONS}commit"
                if len(spans) > 1 and len(span.ends) == len(_INSERTS.findall(piece.text)):
                    # Data, and much of it.  What a trigger says may be taken for that of the
                    # statement after.
                    marked = _MarkedPiece(piece.text, range(len(span.ends)), ())
                else:
                    marked = _with_marks(piece.text, span.ends)
                results = _run_piece(
                    connection, committing, opening, piece, marked, closing, report
                )
                opening = ""
        return (results[-2].get_value(0, 0) or b"").decode()  # the one before the commit's
    finally:
        roll_back(connection)


def _run_piece(
    connection: Connection,
    batch: Sequence[File],
    opening: str,
    piece: Piece,
    marked: _MarkedPiece,
    closing: str,
    report: Report,
) -> list[PGresult]:
    """Send a piece between what opens and what closes the transaction, if it is the first or last.

    `batch` is what has failed where no statement of the piece has.
    """
    file, before, owners = batch[-1], opening.count(";"), marked.owners

    def tell(done: int, diagnostic: Diagnostic) -> None:
        if owners:
            owner = owners[min(max(done - before, 0), len(owners) - 1)]
            report_notice(report, file, split(piece)[owner], diagnostic)

    try:
        return send(connection, opening + marked.text + closing, tell)
    except StatementError as failed:
        number = max(failed.done - before, 0)
        if number >= len(owners):
            raise FailedFilesError(batch, None, None, failed.error) from failed.error
        statement, offset = split(piece)[owners[number]], failed.position
        if offset is not None:
            offset -= len(opening)
            for mark in marked.marks:
                offset -= len(_MARK) if offset > mark else 0
            offset -= statement.start
        raise FailedFilesError([file], statement, offset, failed.error) from failed.error
    except psycopg.OperationalError as error:
        raise FailedFilesError(batch, None, None, error) from error


def _with_marks(text: str, ends: Sequence[int]) -> _MarkedPiece:
    marks = ends[:-1]  # none behind the last
    parts = [text[start:end] for start, end in zip([0, *marks], [*marks, None], strict=True)]
    owners = [number // 2 for number in range(1, 2 * len(ends))]
    return _MarkedPiece(_MARK.join(parts), owners, marks)
