"""How far a file without a transaction has come: `migrate.progress`, a row for one partly applied.

There is none for a file that was not begun, or that is done and has its row in the ledger.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import psycopg

from embedded.errors import with_remedy
from migrate import concurrent_index
from migrate.files import VERSIONED, File
from migrate.session import Connection, translated_errors


@dataclass(frozen=True)
class Progress:
    """How far a file has come.

    Attributes:
        statements_done: how many of its statements are carried out.
        sha256: their common digest.
        building: the next one was building an index when the run was cut off.
        index: the quoted name of the index that the next one was building, or failed to build.
    """

    statements_done: int = 0
    sha256: str = hashlib.sha256().hexdigest()
    building: bool = False
    index: str | None = None

    def is_of(self, file: File) -> bool:
        """Whether a checked file still begins with the statements that are done."""
        digest = hashlib.sha256()
        for statement in file.script.statements():
            if statement.number > self.statements_done:
                break
            digest.update(statement.text.encode())
        return digest.hexdigest() == self.sha256 and not file.script.transactional


@translated_errors()
def read(connection: Connection) -> dict[str, Progress]:
    """Folder and name -> how far it has come, of the files that are partly applied."""
    try:
        rows = connection.execute(
            """select folder || '/' || name, statements, sha256, building, index_name
                from migrate.progress"""
        ).fetchall()
    except psycopg.errors.UndefinedTable:
        return {}
    return {label: Progress(*rest) for label, *rest in rows}


def problems(connection: Connection, folders: Sequence[str], pending: Sequence[File]) -> list[str]:
    """Why partly applied files cannot be continued, or replaced by others; reads only.

    Args:
        connection: to the database.
        folders: that the run is about.
        pending: checked files.
    """
    present = {file.label: file for file in pending}
    found = []
    for label, progress in read(connection).items():
        folder, _, _ = label.partition("/")
        file, done = present.get(label), progress.statements_done
        if folder not in folders:
            continue
        if done and folder == VERSIONED and file is None:
            problem = (
                f"{label}: was removed, but statements of it are done (the first {done}), "
                "by a run that was cut off or failed"
            )
            found.append(with_remedy(problem, "restore it"))
        elif done and folder == VERSIONED and file and not progress.is_of(file):
            problem = (
                f"{file.path}: was edited in statements that are done (the first {done}), "
                "by a run that was cut off or failed"
            )
            found.append(with_remedy(problem, "restore them, and make the change behind them"))
        elif progress.index and not (file and concurrent_index.is_built_by(file, progress.index)):
            invalid = concurrent_index.invalid(connection, progress.index)
            text = f"{label}: was partly applied, and does not build the index any more{invalid}"
            found += [text] if invalid else []
    return found


def note(connection: Connection, file: File, progress: Progress) -> None:
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


def forget(connection: Connection, labels: Sequence[str]) -> None:
    """Delete the rows of files."""
    connection.execute(
        "delete from migrate.progress where folder || '/' || name = any(%s)", [list(labels)]
    )


def forget_replaced(
    connection: Connection, folders: Sequence[str], pending: Sequence[File]
) -> None:
    """Forget partly applied files that were replaced or removed; `problems` has let them pass.

    Args:
        connection: to the database.
        folders: that the run is about.
        pending: checked files.
    """
    continued = {file.label for file in pending if not file.script.transactional}
    within = tuple(f"{folder}/" for folder in folders)
    partly_applied = read(connection).keys()
    if replaced := [label for label in partly_applied - continued if label.startswith(within)]:
        forget(connection, replaced)
