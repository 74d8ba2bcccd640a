"""Applying files: in a transaction together with their ledger rows, or statement by statement."""

import hashlib
import re
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial

import psycopg
from psycopg.errors import Diagnostic
from psycopg.pq.abc import PGresult

from migrate import indexes, ledger
from migrate.connection import (
    DISCARD_SESSION_OBJECTS,
    SESSION_SETTINGS,
    SETTINGS,
    Connection,
    StatementError,
    blockers,
    is_broken,
    roll_back,
    send,
)
from migrate.errors import MigrateError
from migrate.files import VERSIONED, File
from migrate.ledger import Progress
from migrate.parser import Piece, Statement, outside_transaction, split
from migrate.report import Notice, describe, notice

_SETTING = re.compile(r"(set|reset|select\s+(pg_catalog\.)?set_config)\b", re.IGNORECASE)

_REINDEX = re.compile(r"reindex\b", re.IGNORECASE)

_REFUSALS = (
    psycopg.errors.ActiveSqlTransaction,
    psycopg.errors.InvalidTransactionTermination,  # a procedure or block that commits
)

_THIS_MESSAGE = "extract(epoch from clock_timestamp() - statement_timestamp()) * 1000"

_OPENING = f"{DISCARD_SESSION_OBJECTS}begin;commit;begin;"
"""Its commit ends the transaction that DISCARD_SESSION_OBJECTS has begun, in which SET TRANSACTION
comes too late."""

_MARK = ";show role"
"""A statement that changes nothing, and has a row, before which no later notice is read."""

_INSERTS = re.compile(r"^insert\b", re.IGNORECASE | re.MULTILINE)

OnNotice = Callable[[Notice | None], None]
"""Takes a notice or warning of a file; None for one that is not to be shown."""

RETRIES = 4
"""How often a file is tried again after a lock timeout, the wait doubling from one second."""


class _ApplyError(Exception):
    """Files failed.

    Attributes:
        files: one, or all that were to commit together.
        statement: which of its statements; None when they failed at their commit.
        offset: where in the statement, in characters from 0; None when the server did not say.
        error: what the server said.
    """

    def __init__(
        self,
        files: Sequence[File],
        statement: Statement | None,
        offset: int | None,
        error: psycopg.Error,
    ) -> None:
        super().__init__(str(error))
        self.files = files
        self.statement = statement
        self.offset = offset
        self.error = error


def batches(pending: Sequence[File], *, together: bool) -> list[Sequence[File]]:
    """Files as they commit: each by itself or, where all can run in one transaction, together."""
    if (
        pending
        and together
        and all(file.script.transactional for file in pending)
        and not any(file.script.sets_transaction for file in pending[1:])
    ):
        return [pending]
    return [[file] for file in pending]


def apply(
    connection: Connection,
    batch: Sequence[File],
    committed: Sequence[File],
    retrying: Callable[[str, float], None],
    on_notice: OnNotice = lambda _: None,
) -> str | None:
    """Apply files together: all of them, or none.  A file without a transaction comes alone.

    Args:
        connection: which holds the lock of the run.
        batch: checked files.
        committed: what the run has applied before, for the message.
        retrying: is on_notice why, and in how many seconds, it is tried again after a lock timeout.
        on_notice: is called with each notice and warning.

    Returns:
        What new sessions are given afterwards, as `SETTINGS` has it; None where a file without a
        transaction has changed that, and is to go on in a new session.

    Raises:
        MigrateError: with what failed, what stands, and what to do.
    """
    transactional = batch[0].script.transactional
    attempt = 0
    while True:
        last = attempt == RETRIES or not transactional
        watching: AbstractContextManager[list[str]] = (
            blockers(connection) if last else nullcontext([])
        )
        try:
            with watching as in_the_way:
                if transactional:
                    return _in_one_transaction(connection, batch, on_notice)
                return _one_by_one(connection, batch[0], on_notice)
        except _ApplyError as failed:
            if isinstance(failed.error, psycopg.errors.LockNotAvailable) and not last:
                retrying(str(failed.error).strip(), 2.0**attempt)
                time.sleep(2**attempt)
                attempt += 1
                continue
            stands = (
                f"rolled back: {', '.join(file.name for file in batch)}"
                if transactional
                else _standing(connection, failed)
            )
            if transactional and is_broken(failed.error) and failed.statement is None:
                stands = f"unless it broke at the very commit, {stands}"
            raise MigrateError(
                f"{describe(failed.files, failed.statement, failed.offset, failed.error)}\n"
                f"  {stands}\n"
                f"  committed in this run: {', '.join(f.name for f in committed) or 'nothing'}",
                _remedy(failed.error, in_the_way),
            ) from failed.error


def settings(connection: Connection) -> str:
    """What new sessions are given, as `SETTINGS` has it."""
    return _text(*send(connection, SETTINGS))


def _text(result: PGresult) -> str:
    return (result.get_value(0, 0) or b"").decode()


def _remedy(error: psycopg.Error, in_the_way: Sequence[str]) -> str:
    if is_broken(error):
        return "run again; the ledger knows what was committed"
    if isinstance(error, psycopg.errors.LockNotAvailable):
        who = f" ({'; '.join(in_the_way)})" if in_the_way else ""
        return f"see who holds the lock{who} and run again"
    return "correct the file and run again; it goes on where it stopped"


def _standing(connection: Connection, failed: _ApplyError) -> str:
    (file,), statement = failed.files, failed.statement
    done = statement.number - 1 if statement else file.script.count
    text = f"not rolled back: {done} of the statements of {file.name}"
    if done:
        text += ", which are done and not to be edited"
    if (
        statement
        and not is_broken(failed.error)
        and statement.builds_concurrently
        and indexes.built_by(connection, statement)[1] is False
    ):
        name = statement.node.idxname
        text += f"\n  invalid index {name} is left, which the next run drops and builds again"
    return text


def _in_one_transaction(connection: Connection, batch: Sequence[File], on_notice: OnNotice) -> str:
    """Apply files; one that is a single piece is one message, its begin and commit included."""
    try:
        for file in batch:
            started = time.monotonic()
            opening = _OPENING if file is batch[0] else ""
            for span, piece in zip(file.script.spans, file.script.pieces(), strict=True):
                committing, closing = [file], ""
                if span is file.script.spans[-1]:
                    before = f"{(time.monotonic() - started) * 1000:.0f}"
                    closing = f"\n;{SESSION_SETTINGS}" + _record(
                        file, f"{before} + {_THIS_MESSAGE}"
                    )
                    if file is batch[-1]:
                        committing, closing = list(batch), f"{closing}{SETTINGS}commit"
                large = len(file.script.spans) > 1
                results = _run_piece(
                    connection, committing, opening, piece, span.ends, closing, on_notice, large
                )
                opening = ""
        return _text(results[-2])  # before the commit's
    finally:
        roll_back(connection)


def _run_piece(
    connection: Connection,
    batch: Sequence[File],
    opening: str,
    piece: Piece,
    ends: Sequence[int],
    closing: str,
    on_notice: OnNotice,
    large: bool,
) -> list[PGresult]:
    """Send a piece; `batch` is what commits if `closing` does.

    The INSERTs of a large file, which is of data, have no marks to tell their notices apart; what a
    trigger says may then be taken for that of the one after.
    """
    file, before = batch[-1], opening.count(";")
    script, owners = piece.text, list(range(len(ends)))
    marks: Sequence[int] = ()
    if not (large and len(ends) == len(_INSERTS.findall(piece.text))):
        script, owners, marks = _marked(piece.text, ends)

    def tell(done: int, diagnostic: Diagnostic) -> None:
        if owners:
            owner = owners[min(max(done - before, 0), len(owners) - 1)]
            on_notice(notice(file, split(piece)[owner], diagnostic))

    try:
        return send(connection, opening + script + closing, tell)
    except StatementError as failed:
        number = max(failed.done - before, 0)
        if number >= len(owners):
            raise _ApplyError(batch, None, None, failed.error) from failed.error
        statement, offset = split(piece)[owners[number]], failed.position
        if offset is not None:
            offset -= len(opening)
            for mark in marks:
                offset -= len(_MARK) if offset > mark else 0
            offset -= statement.start
        raise _ApplyError([file], statement, offset, failed.error) from failed.error
    except psycopg.OperationalError as error:
        raise _ApplyError(batch, None, None, error) from error


def _marked(text: str, ends: Sequence[int]) -> tuple[str, list[int], Sequence[int]]:
    """A piece with a mark between its statements, which tells whose a notice is.

    Returns:
        The text; for each result, those of the marks included, the index of the statement whose
        notices are read before it; and where in the piece the marks are.
    """
    marks = ends[:-1]  # none behind the last
    parts = [text[start:end] for start, end in zip([0, *marks], [*marks, None], strict=True)]
    return _MARK.join(parts), [number // 2 for number in range(1, 2 * len(ends))], marks


def _record(file: File, milliseconds: str) -> str:
    content = None if file.folder.name == VERSIONED else file.text
    return ledger.record(file, content, milliseconds)


def _one_by_one(connection: Connection, file: File, on_notice: OnNotice) -> str | None:
    """Go on behind the statements that are done; None where a new session has to go on.

    A statement commits together with the note that it is done.  One that refuses that, because it
    cannot run in a transaction or commits by itself, is noted afterwards: only such a one can be
    carried out twice, when a run is cut off between the two.
    """
    begun = ledger.progress(connection).get((file.folder.name, file.name))
    if begun is None or begun.problem(file):
        begun = Progress(0, hashlib.sha256().hexdigest())
        ledger.advance(connection, file, begun)
    before = hashlib.sha256()
    started = time.monotonic()
    send(connection, DISCARD_SESSION_OBJECTS)
    given = settings(connection)
    reindexed = []
    for statement in file.script.statements():
        if _REINDEX.match(statement.text):
            reindexed.append(statement)
        digest = before.copy()
        digest.update(statement.text.encode())
        if statement.number > begun.done:
            advance = partial(ledger.advance, connection, file)
            done = partial(advance, Progress(statement.number, digest.hexdigest()))

            def tell(_: int, diagnostic: Diagnostic, by: Statement = statement) -> None:
                on_notice(notice(file, by, diagnostic))

            try:
                if statement.builds_concurrently:
                    undone = Progress(statement.number - 1, before.hexdigest())
                    was_building = begun.building and begun.done == undone.done
                    _build_index(connection, statement, advance, undone, was_building, tell)
                    done()
                else:
                    _carry_out(connection, statement, done, tell)
            except StatementError as failed:
                raise _ApplyError(
                    [file], statement, failed.position, failed.error
                ) from failed.error
            except psycopg.Error as error:
                raise _ApplyError([file], statement, None, error) from error
            finally:
                roll_back(connection)
            last = statement.number == file.script.count
            if not (last or _INSERTS.match(statement.text)) and settings(connection) != given:
                return None
        elif _SETTING.match(statement.text):  # holds for the rest of the file
            send(connection, statement.text)
        before = digest
    if invalid := "".join(
        indexes.left_by_reindex(connection, statement) for statement in reindexed
    ):
        raise MigrateError(f"{file.path}: is not done{invalid}")
    with connection.transaction():
        connection.execute(SESSION_SETTINGS.encode())
        connection.execute(_record(file, f"{time.monotonic() - started} * 1000").encode())
        ledger.remove_progress(connection, file.folder.name, file.name)
    return settings(connection)


def _carry_out(
    connection: Connection,
    statement: Statement,
    done: Callable[[], None],
    tell: Callable[[int, Diagnostic], None],
) -> None:
    """Run a statement and note that it is done: in one transaction, unless it refuses that."""
    if not outside_transaction(statement):
        try:
            send(connection, "begin")
            send(connection, statement.text, tell)
            done()
            send(connection, "commit", tell)
            return
        except StatementError as failed:
            if not isinstance(failed.error, _REFUSALS):
                raise
            roll_back(connection)
    send(connection, statement.text, tell)
    done()


def _build_index(
    connection: Connection,
    statement: Statement,
    advance: Callable[[Progress], None],
    undone: Progress,
    was_building: bool,
    tell: Callable[[int, Diagnostic], None],
) -> None:
    """Build an index CONCURRENTLY, unless the run that was cut off has built it.

    Args:
        connection: which holds the lock of the run.
        statement: the CREATE INDEX.
        advance: notes how far the file has come.
        undone: that the statement is not done.
        was_building: a run was cut off while it built this index.
        tell: is given what the server says meanwhile.
    """
    name, valid = indexes.built_by(connection, statement)
    if valid and was_building:
        return
    if valid is False:
        send(connection, f"drop index concurrently {name}")
    if not valid:
        advance(replace(undone, building=True, index=name))
    try:
        send(connection, statement.text, tell)
    except StatementError as failed:
        if not is_broken(failed.error):
            advance(replace(undone, index=None if valid else name))
        raise
