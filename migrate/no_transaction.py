"""Files without a transaction: statement by statement, each noted as done, continued after a crash.

A statement commits together with the note that it is done.  One that refuses that, because it
cannot run in a transaction or commits by itself, is noted afterwards: only such a one can be
carried out twice, when a run is cut off between the two.  An index that was being built
CONCURRENTLY is found by its name: valid, it is done; invalid, it is dropped and built again.
Invalid indexes of others, and those that another session is building, are left alone.
"""

import hashlib
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass, replace
from functools import partial
from typing import Any

import psycopg
from psycopg import sql
from psycopg.errors import Diagnostic

from embedded.errors import with_remedy
from migrate import ledger
from migrate.errors import MigrateError
from migrate.files import VERSIONED, File
from migrate.forbidden import outside_transaction
from migrate.parser import Statement
from migrate.report import FailedFilesError, Report, report_notice
from migrate.session import (
    DISCARD_SESSION_OBJECTS,
    SESSION_SETTINGS,
    Connection,
    StatementError,
    is_broken,
    new_sessions,
    roll_back,
    send,
    translated_errors,
)

_SETTING = re.compile(r"(set|reset|select\s+(pg_catalog\.)?set_config)\b", re.IGNORECASE)

_INSERT = re.compile(r"insert\b", re.IGNORECASE)

_REINDEX = re.compile(r"reindex\b", re.IGNORECASE)

_REFUSALS = (
    psycopg.errors.ActiveSqlTransaction,
    psycopg.errors.InvalidTransactionTermination,  # a procedure or block that commits
)

_Tell = Callable[[int, Diagnostic], None]


@dataclass(frozen=True)
class _Progress:
    """How far a file has come in a run that did not end it.

    Attributes:
        done: how many of its statements are carried out.
        sha256: their common digest.
        building: the next one was building an index when the run was cut off.
        index: the quoted name of the index that the next one was building, or failed to build.
    """

    done: int
    sha256: str
    building: bool = False
    index: str | None = None


@translated_errors()
def begun(connection: Connection) -> dict[str, _Progress]:
    """Folder and name -> how far it has come, of the files that are half done."""
    try:
        rows = connection.execute(
            """select folder || '/' || name, statements, sha256, building, index_name
                from migrate.progress"""
        ).fetchall()
    except psycopg.errors.UndefinedTable:
        return {}
    return {label: _Progress(*rest) for label, *rest in rows}


# --- before a run ---


def problems(connection: Connection, folders: Sequence[str], pending: Sequence[File]) -> list[str]:
    """Why half-done files cannot be continued, or replaced by others; reads only.

    Args:
        connection: to the database.
        folders: that the run is about.
        pending: checked files.
    """
    present = {file.label: file for file in pending}
    found = []
    for label, progress in begun(connection).items():
        folder, _, _ = label.partition("/")
        file = present.get(label)
        if folder not in folders:
            continue
        if progress.done and folder == VERSIONED and file is None:
            problem = (
                f"{label}: was removed, but statements of it are done (the first {progress.done}), "
                "by a run that was cut off or failed"
            )
            found.append(with_remedy(problem, "restore it"))
        elif progress.done and folder == VERSIONED and file and not _continues(file, progress):
            problem = (
                f"{file.path}: was edited in statements that are done (the first {progress.done}), "
                "by a run that was cut off or failed"
            )
            found.append(with_remedy(problem, "restore them, and make the change behind them"))
        elif progress.index and not any(
            statement.builds_concurrently
            and progress.index.endswith(_quoted(statement.node.idxname))
            for statement in (file.script.statements() if file else ())
        ):
            invalid = _invalid(connection, progress.index)
            found += [f"{label}: had begun, and is another now{invalid}"] if invalid else []
    return found


def _continues(file: File, progress: _Progress) -> bool:
    """Whether a checked file still begins with the statements that are done."""
    digest = hashlib.sha256()
    for statement in file.script.statements():
        if statement.number > progress.done:
            break
        digest.update(statement.text.encode())
    return digest.hexdigest() == progress.sha256 and not file.script.transactional


# --- in a run ---


def forget_changed(connection: Connection, folders: Sequence[str], pending: Sequence[File]) -> None:
    """Forget half-done files that are others now or no more; `problems` has let them pass.

    Args:
        connection: to the database.
        folders: that the run is about.
        pending: checked files.
    """
    continued = {file.label for file in pending if not file.script.transactional}
    within = tuple(f"{folder}/" for folder in folders)
    half_done = begun(connection).keys()
    if changed := [label for label in half_done - continued if label.startswith(within)]:
        _forget(connection, changed)


def carry_out(connection: Connection, file: File, report: Report) -> bool:
    """Go on behind the statements that are done; False where a new session has to go on.

    Args:
        connection: which holds the lock of the run.
        file: a checked file.
        report: is told of notices.

    Raises:
        FailedFilesError: the server refused a statement.
        MigrateError: REINDEX has left an invalid index.
    """
    progress = begun(connection).get(file.label)
    if progress is None or not _continues(file, progress):
        progress = _Progress(0, hashlib.sha256().hexdigest())
        _note(connection, file, progress)
    before = hashlib.sha256()
    started = time.monotonic()
    send(connection, DISCARD_SESSION_OBJECTS)
    given = new_sessions(connection)
    reindexed = []
    for statement in file.script.statements():
        if _REINDEX.match(statement.text):
            reindexed.append(statement)
        digest = before.copy()
        digest.update(statement.text.encode())
        if statement.number > progress.done:
            note = partial(_note, connection, file)
            done = partial(note, _Progress(statement.number, digest.hexdigest()))

            def tell(_: int, diagnostic: Diagnostic, by: Statement = statement) -> None:
                report_notice(report, file, by, diagnostic)

            try:
                if statement.builds_concurrently:
                    undone = _Progress(statement.number - 1, before.hexdigest())
                    was_building = progress.building and progress.done == undone.done
                    _build_index(connection, statement, note, undone, was_building, tell)
                    done()
                else:
                    _execute(connection, statement, done, tell)
            except StatementError as failed:
                raise FailedFilesError(
                    [file], statement, failed.position, failed.error
                ) from failed.error
            except psycopg.Error as error:
                raise FailedFilesError([file], statement, None, error) from error
            finally:
                roll_back(connection)
            last = statement.number == file.script.count
            if not (last or _INSERT.match(statement.text)) and new_sessions(connection) != given:
                return False
        elif _SETTING.match(statement.text):  # holds for the rest of the file
            send(connection, statement.text)
        before = digest
    if invalid := "".join(_left_by_reindex(connection, statement) for statement in reindexed):
        raise MigrateError(f"{file.path}: is not done{invalid}")
    with connection.transaction():
        connection.execute(SESSION_SETTINGS.encode())
        row = ledger.record(file, f"{time.monotonic() - started} * 1000")
        connection.execute(row.encode())
        _forget(connection, [file.label])
    return True


def _note(connection: Connection, file: File, progress: _Progress) -> None:
    """Note how far a file has come, whatever role it has taken on."""
    with connection.transaction():
        connection.execute("set local session authorization default; set local role to default")
        connection.execute(
            """insert into migrate.progress
                  (folder, name, statements, sha256, building, index_name)
                values (%s, %s, %s, %s, %s, %s)
                on conflict (folder, name) do update
                set statements = excluded.statements, sha256 = excluded.sha256,
                    building = excluded.building, index_name = excluded.index_name""",
            [file.folder.name, file.name, *astuple(progress)],
        )


def _forget(connection: Connection, labels: Sequence[str]) -> None:
    connection.execute(
        "delete from migrate.progress where folder || '/' || name = any(%s)", [list(labels)]
    )


def _execute(
    connection: Connection, statement: Statement, done: Callable[[], None], tell: _Tell
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


def standing(connection: Connection, failed: FailedFilesError) -> str:
    """What stands of a file that failed."""
    (file,), statement = failed.files, failed.statement
    done = statement.number - 1 if statement else file.script.count
    text = f"not rolled back: {done} of the statements of {file.name}"
    if done:
        text += ", which are done and not to be edited"
    if (
        statement
        and not is_broken(failed.error)
        and statement.builds_concurrently
        and _built_by(connection, statement)[1] is False
    ):
        name = statement.node.idxname
        text += f"\n  invalid index {name} is left, which the next run drops and builds again"
    return text


# --- indexes built CONCURRENTLY ---


def _build_index(
    connection: Connection,
    statement: Statement,
    note: Callable[[_Progress], None],
    undone: _Progress,
    was_building: bool,
    tell: _Tell,
) -> None:
    """Build an index, unless the run that was cut off has built it.

    Args:
        connection: which holds the lock of the run.
        statement: the CREATE INDEX.
        note: notes how far the file has come.
        undone: that the statement is not done.
        was_building: a run was cut off while it built this index.
        tell: is given what the server says meanwhile.
    """
    name, valid = _built_by(connection, statement)
    if valid and was_building:
        return
    if valid is False:
        send(connection, f"drop index concurrently {name}")
    if not valid:
        note(replace(undone, building=True, index=name))
    try:
        send(connection, statement.text, tell)
    except StatementError as failed:
        if not is_broken(failed.error):
            note(replace(undone, index=None if valid else name))
        raise


def _built_by(connection: Connection, statement: Statement) -> tuple[str, bool | None]:
    """The quoted name of the index that a CREATE INDEX builds, and whether it is valid.

    Returns:
        None for valid where there is no such index.
    """
    node = statement.node
    row = connection.execute(
        """select nspname, indisvalid
           from pg_class t join pg_namespace n on n.oid = t.relnamespace
           left join (pg_index join pg_class i on i.oid = indexrelid)
             on indrelid = t.oid and i.relname = %s
           where t.oid = to_regclass(%s)""",
        [node.idxname, _quoted(node.relation.schemaname, node.relation.relname)],
    ).fetchone()
    schema, valid = row or ("", None)
    return _quoted(schema, node.idxname), valid


def _invalid(connection: Connection, name: str) -> str:
    """The index of a quoted name with what to do, if it is invalid; otherwise empty."""
    return _with_remedy(
        connection.execute(
            """select indexrelid::regclass::text from pg_index
               where not indisvalid and indexrelid = to_regclass(%s)""",
            [name],
        )
    )


def _left_by_reindex(connection: Connection, statement: Statement) -> str:
    """The halves of indexes that a REINDEX CONCURRENTLY has left, with what to do, a line each."""
    relation = statement.node.relation
    name = _quoted(relation.schemaname, relation.relname) if relation else ""
    rows = connection.execute(
        r"""select indexrelid::regclass::text from pg_index join pg_class on oid = indexrelid
            where not indisvalid and relkind = 'i' and relname ~ '_cc(new|old)[0-9]*$'
            and (%(name)s = '' or indrelid = to_regclass(%(name)s)
                 or indrelid = (select i.indrelid from pg_index i
                                where i.indexrelid = to_regclass(%(name)s)))
            and not exists (
              select from pg_locks l where l.relation = indrelid and l.pid <> pg_backend_pid()
              and l.mode = 'ShareUpdateExclusiveLock')
            order by 1""",
        {"name": name},
    )
    return _with_remedy(rows)


def _quoted(*names: str) -> str:
    return sql.Identifier(*filter(None, names)).as_string()


def _with_remedy(rows: Iterable[tuple[Any, ...]]) -> str:
    return "".join(
        with_remedy(
            f"\n  invalid index {index}, left by a build CONCURRENTLY that did not end",
            f"DROP INDEX CONCURRENTLY {index}, then run again",
        )
        for (index,) in rows
    )
