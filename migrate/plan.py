"""A plan: the files beside the ledger, and what a run would do about them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import psycopg

from embedded.errors import with_remedy
from migrate import files, ledger, progress
from migrate.connection import ANOTHER_ENCODING
from migrate.files import PLATFORM, REPEATABLE, VERSIONED, File, Tree
from migrate.parser import Piece
from migrate.session import Connection, translated_errors

_BYTES = re.compile(r"0x[0-9a-f]{2}( 0x[0-9a-f]{2})*")


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
        """True for migrations/, whose files are applied once and never edited."""
        return self.name == VERSIONED

    @property
    def problems(self) -> list[str]:
        """Why nothing may be applied: edited, removed or misplaced versioned files."""
        present = {file.name: file.sha256 for file in self.files}
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
    def changes(self) -> list[str]:
        """Names of what a run would apply or unrecord."""
        return [file.name for file in self.pending] + self.removed


@dataclass(frozen=True)
class Plan:
    """What a run would do.

    Attributes:
        folders: in the order in which they are applied.
        complete: see `Ledger.complete`.
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
    def has_work(self) -> bool:
        """Whether a run would do anything."""
        return not self.complete or any(folder.changes for folder in self.folders)


@translated_errors()
def read(
    connection: Connection, tree: Tree, names: Sequence[str] = (VERSIONED, REPEATABLE)
) -> Plan:
    """The files beside the ledger, unchecked; reads only."""
    known = ledger.read(connection)
    return Plan(
        [Folder(name, tree[name], known.digests.get(name, {})) for name in names], known.complete
    )


def check(
    connection: Connection, tree: Tree, names: Sequence[str] = (VERSIONED, REPEATABLE)
) -> Plan:
    """What a run would do, after all checks that need no more than files and database.

    Args:
        connection: to a database that may have no ledger yet.
        tree: from `files.read_tree`.
        names: the folders to apply, in this order.

    Raises:
        FilesError: files are wrong, or were edited or removed after they had been applied.
        MigrateError: the server refuses to tell.
    """
    found = read(connection, tree, names)
    problems = [problem for folder in found.folders for problem in folder.problems]
    if found.has_work:
        problems += files.sql_problems(found.pending)
        files.raise_if_any(problems)
        problems += _encoding_problems(connection, found.pending)
        problems += progress.problems(connection, names, found.pending)
    files.raise_if_any(problems)
    return found


def _encoding_problems(connection: Connection, pending: Sequence[File]) -> list[str]:
    """Where files hold a character that the encoding of the database has not."""
    encoding = connection.info.parameter_status("server_encoding")
    problems = []
    for file in pending if encoding != "UTF8" else ():
        try:
            connection.execute("select length(%s)", [file.text])
        except psycopg.errors.UntranslatableCharacter as error:
            found = _BYTES.search(str(error))
            character = bytes.fromhex(found[0].replace("0x", "")).decode() if found else ""
            piece, offset = Piece(file.text), file.text.find(character)
            text = (
                f"{file.path}:{piece.position(offset)}: {character} is not in the database's "
                f"encoding {encoding}\n{piece.frame(offset)}"
            )
            problems.append(with_remedy(text, f"leave it out; or {ANOTHER_ENCODING}"))
    return problems
