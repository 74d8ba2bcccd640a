"""Files without a transaction: statement by statement, each noted as done, continued after a crash.

A statement commits together with the note that it is done.  One that refuses that, because it
cannot run in a transaction or commits by itself, is noted afterwards: only such a one can be
carried out twice, when a run is cut off between the two.
"""

import hashlib
import re
import time
from dataclasses import replace

import psycopg
from psycopg.errors import Diagnostic

from migrate import concurrent_index, ledger, progress
from migrate.errors import MigrateError
from migrate.files import File
from migrate.forbidden import outside_transaction
from migrate.parser import Statement
from migrate.progress import Progress
from migrate.report import FailedFilesError, Report, report_notice
from migrate.session import (
    DISCARD_SESSION_OBJECTS,
    SESSION_SETTINGS,
    Connection,
    OutdatedSessionError,
    StatementError,
    is_broken,
    roll_back,
    send,
    session_defaults,
)

_SETTING = re.compile(r"(set|reset|select\s+(pg_catalog\.)?set_config)\b", re.IGNORECASE)

_INSERT = re.compile(r"insert\b", re.IGNORECASE)

_REINDEX = re.compile(r"reindex\b", re.IGNORECASE)

_REFUSALS = (
    psycopg.errors.ActiveSqlTransaction,
    psycopg.errors.InvalidTransactionTermination,  # a procedure or block that commits
)


def carry_out(connection: Connection, file: File, report: Report) -> None:
    """Carry out the statements that are not done yet, and write the ledger's row.

    Args:
        connection: which holds the lock of the run.
        file: a checked file.
        report: is told of notices.

    Raises:
        FailedFilesError: the server refused a statement.
        OutdatedSessionError: a statement changed what sessions begin with.
        MigrateError: REINDEX has left an invalid index.
    """
    started = time.monotonic()
    reached = progress.read(connection).get(file.label)
    if reached is None or not reached.is_of(file):
        reached = Progress()
        progress.note(connection, file, reached)
    send(connection, DISCARD_SESSION_OBJECTS)
    defaults = session_defaults(connection)
    digest = hashlib.sha256()
    for statement in file.script.statements():
        before = Progress(statement.number - 1, digest.hexdigest())
        digest.update(statement.text.encode())
        if statement.number <= reached.statements_done:
            if _SETTING.match(statement.text):  # holds for the rest of the file
                send(connection, statement.text)
            continue
        after = Progress(statement.number, digest.hexdigest())
        was_building = reached.building and reached.statements_done == before.statements_done
        _run_statement(connection, file, statement, before, after, was_building, report)
        if _INSERT.match(statement.text) or statement.number == file.script.count:
            continue
        if session_defaults(connection) != defaults:
            raise OutdatedSessionError
    _refuse_invalid(connection, file)
    with connection.transaction():
        connection.execute(SESSION_SETTINGS.encode())
        row = ledger.record(file, f"{time.monotonic() - started} * 1000")
        connection.execute(row.encode())
        progress.forget(connection, [file.label])


def _run_statement(
    connection: Connection,
    file: File,
    statement: Statement,
    before: Progress,
    after: Progress,
    was_building: bool,
    report: Report,
) -> None:
    def tell(_: int, diagnostic: Diagnostic) -> None:
        report_notice(report, file, statement, diagnostic)

    def note_building(building: bool, index: str | None) -> None:
        progress.note(connection, file, replace(before, building=building, index=index))

    try:
        if statement.builds_concurrently:
            concurrent_index.build(connection, statement, was_building, note_building, tell)
        elif not outside_transaction(statement):
            try:
                send(connection, "begin")
                send(connection, statement.text, tell)
                progress.note(connection, file, after)
                send(connection, "commit", tell)
                return
            except StatementError as failed:
                if not isinstance(failed.error, _REFUSALS):
                    raise
                roll_back(connection)
                send(connection, statement.text, tell)
        else:
            send(connection, statement.text, tell)
        progress.note(connection, file, after)
    except StatementError as failed:
        raise FailedFilesError([file], statement, failed.position, failed.error) from failed.error
    except psycopg.Error as error:
        raise FailedFilesError([file], statement, None, error) from error
    finally:
        roll_back(connection)


def _refuse_invalid(connection: Connection, file: File) -> None:
    invalid = "".join(
        concurrent_index.left_by_reindex(connection, statement)
        for statement in file.script.statements()
        if _REINDEX.match(statement.text)
    )
    if invalid:
        raise MigrateError(f"{file.path}: is not done{invalid}")


def what_is_done(connection: Connection, failed: FailedFilesError) -> str:
    """What of a file that failed is done, and stays so."""
    (file,), statement = failed.files, failed.statement
    assert statement is not None  # noqa: S101 - whatever fails is one
    done = statement.number - 1
    text = f"not rolled back: {done} of the statements of {file.name}"
    if done:
        text += ", which are done and not to be edited"
    builds = statement.builds_concurrently and not is_broken(failed.error)
    if builds and (name := concurrent_index.left_by_build(connection, statement)):
        text += f"\n  invalid index {name} is left, which the next run drops and builds again"
    return text
