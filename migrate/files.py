"""Migration files: finding, reading and checking them, all without a database."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from migrate.errors import FilesError
from migrate.statements import Statement, parse

VERSIONED = "migrations"
"""The folder of the versioned files: `NNNN_name.sql`, applied once, in order, never edited."""

REPEATABLE = "repeatable"
"""The folder of the repeatable files: edited in place, applied again whenever they change."""

VERIFY = "verify"
"""The folder of the queries that prove the finished database."""

_VERSIONED_NAME = re.compile(r"([0-9]{4})_[a-z0-9_]+\.sql")
_NO_TRANSACTION = re.compile(r"^--\s*migrate:\s*no-transaction\s*$", re.MULTILINE)


@dataclass(frozen=True)
class File:
    """One SQL file as it stands on disk; line ends are LF and a byte order mark is gone."""

    path: Path
    text: str

    @property
    def name(self) -> str:
        """The file's name, which identifies it in the ledger."""
        return self.path.name

    @cached_property
    def sha256(self) -> str:
        """Hex digest of the text; a checkout with CRLF line ends has the same."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @cached_property
    def statements(self) -> list[Statement]:
        """The statements in the file's order.

        Raises:
            FilesError: the real PostgreSQL parser refuses the file.
        """
        return parse(self.path, self.text)

    @property
    def transactional(self) -> bool:
        """False where the comment that opens the file says `-- migrate: no-transaction`."""
        return not any(_NO_TRANSACTION.search(s.comment) for s in self.statements[:1])


def read(folder: Path) -> list[File]:
    """All `*.sql` files of a folder in name order; an absent folder holds none.

    Raises:
        FilesError: a file cannot be read or is not UTF-8.
    """
    found: list[File] = []
    problems: list[str] = []
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".sql")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise FilesError([f"{folder}: cannot be read: {error.strerror}"]) from None
    for path in paths:
        try:
            text = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
            if "\0" in text:  # where every parser in C would take the file to end
                problems.append(f"{path}: holds a zero byte, so it is no text: save it as UTF-8")
            found.append(File(path, text))
        except UnicodeDecodeError as error:
            problems.append(
                f"{path}: not UTF-8 (byte {error.object[error.start]:#04x} at offset "
                f"{error.start}): save the file as UTF-8"
            )
        except OSError as error:
            problems.append(f"{path}: cannot be read: {error.strerror}")
    refuse(problems)
    return found


def refuse(problems: Sequence[str]) -> None:
    """Stop when there are problems.

    Raises:
        FilesError: there are.
    """
    if problems:
        raise FilesError(problems)


def content_problems(files: Sequence[File]) -> list[str]:
    """What a parser can find: syntax errors, forbidden commands, files without a statement."""
    problems = []
    for file in files:
        try:
            if not file.statements:
                problems.append(f"{file.path}: holds no statement: delete the file or fill it")
        except FilesError as error:
            problems += error.problems
    return problems


def number_problems(files: Sequence[File]) -> list[str]:
    """What is wrong with the names of versioned files: form, duplicates, gaps."""
    problems: list[str] = []
    previous, previous_name = 0, ""
    for file in files:
        match = _VERSIONED_NAME.fullmatch(file.name)
        if not match:
            problems.append(
                f"{file.path}: not named NNNN_name.sql (four digits, then lower-case letters, "
                "digits and _): rename it"
            )
            continue
        number = int(match[1])
        if number == previous and previous_name:
            problems.append(
                f"{file.path}: number {match[1]} is taken by {previous_name}: "
                "renumber the newer of the two"
            )
        elif number != previous + 1:
            problems.append(
                f"{file.path}: number {previous + 1:04d} is missing before it: "
                "numbers run from 0001 without a gap"
            )
        previous, previous_name = number, file.name
    return problems


def digests(files: Sequence[File]) -> dict[str, str]:
    """File name -> sha256, in the files' order."""
    return {file.name: file.sha256 for file in files}


def fingerprint(values: Mapping[str, str]) -> str:
    """One sha256 (hex) over a whole map, whatever its order."""
    text = json.dumps(values, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


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
    for name, digest in sorted(recorded.items()):
        if name not in present:
            problems.append(
                f"{folder}/{name}: was applied (sha256 {digest[:16]}) and is gone: restore the file"
            )
        elif present[name] != digest:
            problems.append(
                f"{folder}/{name}: was edited after it had been applied: recorded sha256 "
                f"{digest[:16]}, present {present[name][:16]}: restore the file and put the "
                "change into a new migration"
            )
    last = max(recorded, default="")
    problems += [
        f"{folder}/{name}: comes before {last}, which is applied already: give it the next number"
        for name in sorted(present)
        if name not in recorded and name < last
    ]
    return problems
