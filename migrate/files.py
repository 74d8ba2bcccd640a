"""Migration files: finding and reading them, and what their names and history tell."""

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path

from embedded.errors import with_remedy
from migrate import forbidden
from migrate.errors import FilesError
from migrate.script import Script, parse

PLATFORM = "platform"
"""The folder with what a plain PostgreSQL lacks and a hosted one has; repeatable files."""

VERSIONED = "migrations"
"""The folder of the versioned files: `NNNN_name.sql`, applied once, in order, never edited."""

REPEATABLE = "repeatable"
"""The folder of the repeatable files: edited in place, applied again whenever they change."""

VERIFY = "verify"
"""The folder of the queries that prove the finished database."""

FOLDERS = (PLATFORM, VERSIONED, REPEATABLE, VERIFY)

_VERSIONED_NAME = re.compile(r"([0-9]{4})_[a-z0-9_]+\.sql")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_FIRST_READ = 1 << 13
"""Most files are smaller than this, and read by one call."""


@dataclass  # not frozen, and its digest no cached_property: both take longer than the digest
class File:
    """One SQL file, as it was when it was read.

    Attributes:
        name: identifies the file in the ledger, together with its folder's name.
        content: its bytes without a byte order mark and with LF line ends, so that a checkout with
            CRLF has the same.
        sha256: hex digest of the content.
    """

    folder: Path
    name: str
    content: bytes = field(repr=False)
    sha256: str = field(init=False)

    def __post_init__(self) -> None:
        """Take the digest, once."""
        self.sha256 = hashlib.sha256(self.content).hexdigest()

    @property
    def path(self) -> Path:
        """Where it is."""
        return self.folder / self.name

    @property
    def label(self) -> str:
        """Folder and name, as the ledger has them."""
        return f"{self.folder.name}/{self.name}"

    @property
    def text(self) -> str:
        """The content of a file that has no problems."""
        return self.content.decode()

    @cached_property
    def script(self) -> Script:
        """Its statements.

        Raises:
            FilesError: it is not UTF-8, the real PostgreSQL parser refuses it, it holds what no
                migration may hold, or nothing at all; each with file:line:column.
        """
        script = parse(self.content)
        raise_if_any([f"{self.path}:{problem}" for problem in script.problems])
        return script


def _unreadable(path: Path, error: OSError) -> str:
    return f"{path}: cannot be read: {error.strerror}"


def read(folder: Path) -> list[File]:
    """All `*.sql` files of a folder in name order; an absent folder holds none.

    Raises:
        FilesError: a file cannot be read, or is another tool's.
    """
    found: list[File] = []
    problems: list[str] = []
    try:
        within = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise FilesError([_unreadable(folder, error)]) from None
    try:
        for name in sorted(os.listdir(within)):
            if problem := _name_problem(folder, name):
                problems.append(problem)
            elif _is_read(name):
                try:
                    found.append(File(folder, name, _content(name, within)))
                except OSError as error:
                    problems.append(_unreadable(folder / name, error))
    finally:
        os.close(within)
    raise_if_any(problems)
    return found


def _is_read(name: str) -> bool:
    """Whether it is SQL, and not what an editor or a file system keeps beside it."""
    return name.endswith(".sql") and not name.startswith(".")


def _name_problem(folder: Path, name: str) -> str | None:
    if name.lower().endswith(".sql") and not name.endswith(".sql") and not name.startswith("."):
        return with_remedy(f"{folder / name}: does not end in .sql", "rename it")
    return forbidden.name_problem(folder, name)


def ignored(directory: Path) -> list[str]:
    """Paths of what lies in the folders and is not read, below the directory, in their order.

    Beside the folders: what is named almost as they are, or as a versioned file.
    """
    found = [
        entry.name
        for entry in sorted(os.scandir(directory), key=lambda entry: entry.name)
        if entry.name not in FOLDERS and (_misplaced(entry.name) or _misspelt(entry))
    ]
    for folder in FOLDERS:
        with suppress(OSError):
            names = sorted(os.listdir(directory / folder))
            found += [f"{folder}/{name}" for name in names if not _is_read(name)]
    return found


def _misplaced(name: str) -> bool:
    return bool(_VERSIONED_NAME.fullmatch(name))


def _misspelt(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir() and bool(get_close_matches(entry.name.lower(), FOLDERS, cutoff=0.8))


def _content(name: str, within: int) -> bytes:
    descriptor = os.open(name, os.O_RDONLY, dir_fd=within)
    try:
        content = os.read(descriptor, _FIRST_READ)
        if len(content) == _FIRST_READ:
            with open(descriptor, "rb", buffering=0, closefd=False) as file:
                file.seek(0)
                content = file.readall()
    finally:
        os.close(descriptor)
    return content.removeprefix(_BYTE_ORDER_MARK).replace(b"\r\n", b"\n")


Tree = Mapping[str, Sequence[File]]
"""The files of a directory, by folder."""


def read_tree(directory: Path) -> Tree:
    """The files of all folders that the engine knows.

    Raises:
        FilesError: a file cannot be read, or is another tool's.
    """
    return {name: read(directory / name) for name in FOLDERS}


def raise_if_any(problems: Sequence[str]) -> None:
    """Stop when there are problems.

    Raises:
        FilesError: there are.
    """
    if problems:
        raise FilesError(problems)


def sql_problems(files: Sequence[File]) -> list[str]:
    """What the parser finds in files: syntax errors, forbidden commands, none at all."""
    found: list[str] = []
    for file in files:
        try:
            file.script  # noqa: B018 for its problems
        except FilesError as error:
            found += error.problems
    return found


def number_problems(files: Sequence[File]) -> list[str]:
    """What is wrong with the names of versioned files: form, duplicates, gaps."""
    problems: list[str] = []
    previous, previous_name = 0, ""
    for file in files:
        match = _VERSIONED_NAME.fullmatch(file.name)
        if not match:
            problems.append(
                with_remedy(
                    f"{file.path}: not named NNNN_name.sql (four digits, then lower-case letters, "
                    "digits and _)",
                    "rename it",
                )
            )
            continue
        number = int(match[1])
        if number == previous and previous_name:
            problems.append(
                with_remedy(
                    f"{file.path}: number {match[1]} is taken by {previous_name}",
                    "renumber the newer of the two",
                )
            )
        elif number != previous + 1:
            problems.append(
                with_remedy(
                    f"{file.path}: number {previous + 1:04d} is missing before it",
                    "number the files from 0001 without a gap",
                )
            )
        previous, previous_name = number, file.name
    return problems


def history_problems(
    folder: str, recorded: Mapping[str, str], present: Mapping[str, str]
) -> list[str]:
    """What is wrong with versioned files that were applied before: edited, removed, out of order.

    Args:
        folder: the folder's name, for the messages.
        recorded: name -> sha256 of what was applied.
        present: name -> sha256 of what is there now.
    """
    problems = []
    new = {digest: name for name, digest in present.items() if name not in recorded}
    for name, digest in sorted(recorded.items()):
        if name not in present and digest in new:
            problems.append(
                with_remedy(
                    f"{folder}/{name}: was applied and is now named {new[digest]}", "rename it back"
                )
            )
        elif name not in present:
            problems.append(
                with_remedy(
                    f"{folder}/{name}: was applied (sha256 {digest[:16]}) and was removed",
                    "restore it, or update this checkout if it is older than the database",
                )
            )
        elif present[name] != digest:
            problems.append(
                with_remedy(
                    f"{folder}/{name}: was edited after it had been applied: recorded sha256 "
                    f"{digest[:16]}, present {present[name][:16]}",
                    "restore the file and put the change into a new migration",
                )
            )
    last = max(recorded, default="")
    problems += [
        with_remedy(
            f"{folder}/{name}: comes before {last}, which is applied already",
            "give it the next number",
        )
        for name in sorted(present)
        if name not in recorded and name < last
    ]
    return problems
