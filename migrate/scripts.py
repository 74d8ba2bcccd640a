"""Files as scripts: checked by the parser, and cut into pieces that hold whole statements.

A file is read block by block and never held as a whole, unless it is one statement.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from migrate.errors import FilesError
from migrate.files import BLOCK, File
from migrate.statements import (
    COPY_BY_CLIENT,
    ParseError,
    Piece,
    Statement,
    problem,
    split,
)

_COPY_DATA = re.compile(
    r"(?:^|;)\s*(copy\s[^;]*\sfrom\s+stdin\b[^;]*);[ \t]*\n[^;]*\Z",
    re.IGNORECASE | re.MULTILINE,
)
_CLOSING = re.compile(r"\s*;[ \t]*\n")
_LONGEST = 200

_NO_TRANSACTION = re.compile(r"^--\s*migrate:\s*no-transaction\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Outline:
    """What one pass of the parser over a file leaves to know.

    Attributes:
        pieces: the characters and the statements of each piece.
        transactional: False where the comment that opens the file says
            `-- migrate: no-transaction`.
    """

    pieces: Sequence[tuple[int, int]]
    transactional: bool

    @property
    def statements(self) -> int:
        """How many statements the file has."""
        return sum(count for _, count in self.pieces)


def _parsed(file: File) -> Iterator[tuple[int, list[Statement]]]:
    """The statements of a file piece by piece, with the length of each piece in characters."""
    text, line, first, refused = "", 1, 1, 0
    for block in file.text():
        text += block
        end = text.rfind(";\n") + 2
        if end < max(BLOCK, 2 * refused):
            continue
        try:
            found = split(Piece(text[:end], line, first))
        except ParseError:  # the cut went through a string, a function body or a comment; or so
            found = []
        length = 0
        while found and not length:  # end behind a statement, not in a comment
            if closing := _CLOSING.match(text, found[-1].stop):
                length = closing.end()
            else:
                found.pop()
        if length:
            yield length, found
            line, first = line + text.count("\n", 0, length), first + len(found)
            text = text[length:]
        refused = 0 if length else end
    piece = Piece(text, line, first)
    try:
        yield len(text), split(piece)
    except ParseError as error:
        what, offset = str(error), error.offset
        if text.startswith("\\", offset):
            what = "psql meta-commands are not SQL and only psql runs them: remove the line"
        if copy := _COPY_DATA.search(text, 0, offset):
            what, offset = COPY_BY_CLIENT, copy.start(1)
        if len(what) > _LONGEST:  # it quotes the rest of the file
            what = f"{what[:_LONGEST]} ..."
        place = f"{file.path}:{piece.position(offset)}"
        raise FilesError([f"{place}: {what}\n{piece.frame(offset)}"]) from None


@cache
def outline(file: File) -> Outline:
    """Parse and check the whole file.

    Raises:
        FilesError: it is not UTF-8, the real PostgreSQL parser refuses it, it holds what no
            migration may hold, or nothing at all; each with file:line:column.
    """
    pieces = []
    problems = []
    transactional = True
    for length, found in _parsed(file):
        pieces.append((length, len(found)))
        if found and found[0].number == 1:
            transactional = not _NO_TRANSACTION.search(found[0].comment)
        for statement in found:
            if text := problem(statement, transactional):
                place = f"{file.path}:{statement.position()}"
                problems.append(f"{place}: {text}\n{statement.frame()}")
    if not any(count for _, count in pieces):
        problems.append(f"{file.path}: holds no statement: delete the file or fill it")
    if problems:
        raise FilesError(problems)
    return Outline(pieces, transactional)


def problems(files: Sequence[File]) -> list[str]:
    """What the parser finds in files: syntax errors, forbidden commands, none at all."""
    found: list[str] = []
    for file in files:
        try:
            outline(file)
        except FilesError as error:
            found += error.problems
    return found


def pieces(file: File) -> Iterator[Piece]:
    """The pieces of a checked file, in their order; the last only when it is what was checked.

    Raises:
        FilesError: it is not what was checked.
    """
    blocks = file.text()
    text, line, first = "", 1, 1
    last = len(outline(file).pieces)
    for number, (length, count) in enumerate(outline(file).pieces, 1):
        while len(text) < length:
            text += next(blocks)
        if number == last:
            for _ in blocks:  # to the end, where the digest is compared
                pass
        yield Piece(text[:length], line, first, count)
        line, first, text = line + text.count("\n", 0, length), first + count, text[length:]


def statements(file: File) -> Iterator[Statement]:
    """The statements of a checked file, in their order."""
    for piece in pieces(file):
        yield from split(piece)
