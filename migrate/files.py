"""Migration files: finding, reading and hashing them, and what their names and history tell.

Nothing here needs a database or the parser.
"""

import codecs
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from migrate.errors import FilesError

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

BLOCK = 1 << 16
"""Bytes that are read at a time, so that a file of any size needs little memory."""

_FIRST_BLOCK = 1 << 13
"""Most files are smaller than this, and read by one call."""


class File(NamedTuple):
    """One SQL file on disk.

    Attributes:
        name: identifies the file in the ledger, together with its folder's name.
        sha256: hex digest of the text without a byte order mark and with LF line ends, so that a
            checkout with CRLF has the same.
    """

    folder: Path
    name: str
    sha256: str

    @property
    def path(self) -> Path:
        """Where it is."""
        return self.folder / self.name

    @property
    def label(self) -> str:
        """Folder and name, as the ledger has them."""
        return f"{self.folder.name}/{self.name}"

    def text(self) -> Iterator[str]:
        """The text, block by block.

        Raises:
            FilesError: it is not UTF-8, holds a zero byte, or is not what `sha256` was taken of.
        """
        decoder = codecs.getincrementaldecoder("utf-8")()
        digest = hashlib.sha256()
        line = 1
        try:
            for block in chain(_blocks(f"{self.folder}/{self.name}"), [b""]):
                digest.update(block)
                try:
                    text = decoder.decode(block, final=not block)
                except UnicodeDecodeError as error:
                    line += error.object.count(b"\n", 0, error.start)
                    byte = error.object[error.start]
                    wrong = f"not UTF-8 (byte {byte:#04x}): save the file as UTF-8"
                    raise FilesError([f"{self.path}:{line}: {wrong}"]) from None
                if "\0" in text:  # where every parser in C would take the file to end
                    line += text.count("\n", 0, text.index("\0"))
                    wrong = "holds a zero byte, so it is no text: save the file as UTF-8"
                    raise FilesError([f"{self.path}:{line}: {wrong}"])
                line += text.count("\n")
                yield text
        except OSError as error:
            raise FilesError([_unreadable(self.path, error)]) from None
        if digest.hexdigest() != self.sha256:
            raise FilesError([f"{self.path}: has changed since this run began: run again"])


def _blocks(path: str, within: int | None = None) -> Iterator[bytes]:
    """A file's bytes, without a byte order mark and with LF line ends."""
    descriptor = os.open(path, os.O_RDONLY, dir_fd=within)
    try:
        mark, size = _BYTE_ORDER_MARK, _FIRST_BLOCK
        while block := os.read(descriptor, size):
            whole = len(block) < size
            while block.endswith(b"\r") and (following := os.read(descriptor, 1)):
                block += following
            yield block.removeprefix(mark).replace(b"\r\n", b"\n")
            if whole:
                break
            mark, size = b"", BLOCK
    finally:
        os.close(descriptor)


def _sha256(name: str, within: int) -> str:
    """The digest of a file; that of a small one, as most are, without any detour."""
    descriptor = os.open(name, os.O_RDONLY, dir_fd=within)
    try:
        block = os.read(descriptor, _FIRST_BLOCK)
    finally:
        os.close(descriptor)
    if len(block) < _FIRST_BLOCK:
        text = block.removeprefix(_BYTE_ORDER_MARK).replace(b"\r\n", b"\n")
        return hashlib.sha256(text).hexdigest()
    digest = hashlib.sha256()
    for block in _blocks(name, within):
        digest.update(block)
    return digest.hexdigest()


def _unreadable(path: Path, error: OSError) -> str:
    return f"{path}: cannot be read: {error.strerror}"


def read(folder: Path) -> list[File]:
    """All `*.sql` files of a folder in name order; an absent folder holds none.

    Raises:
        FilesError: a file cannot be read.
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
            if name.endswith(".sql"):
                try:
                    found.append(File(folder, name, _sha256(name, within)))
                except OSError as error:
                    problems.append(_unreadable(folder / name, error))
    finally:
        os.close(within)
    refuse(problems)
    return found


Tree = Mapping[str, Sequence[File]]
"""The files of a directory, by folder."""


def read_tree(directory: Path) -> Tree:
    """The files of all folders that the engine knows.

    Raises:
        FilesError: a file cannot be read.
    """
    return {name: read(directory / name) for name in FOLDERS}


def refuse(problems: Sequence[str]) -> None:
    """Stop when there are problems.

    Raises:
        FilesError: there are.
    """
    if problems:
        raise FilesError(problems)


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
    new = {digest: name for name, digest in present.items() if name not in recorded}
    for name, digest in sorted(recorded.items()):
        if name not in present and digest in new:
            problems.append(
                f"{folder}/{name}: was applied and is now named {new[digest]}: rename it back"
            )
        elif name not in present:
            problems.append(
                f"{folder}/{name}: was applied (sha256 {digest[:16]}) and was removed: "
                "restore it, or update this checkout if it is older than the database"
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
