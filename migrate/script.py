"""A whole file, cut into pieces of whole statements and checked.

A file may have 50 MB: it is parsed a piece at a time, and no statement is kept.
"""

import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from embedded.errors import with_remedy
from migrate import forbidden
from migrate.parser import ParseError, Piece, Statement, split

_CLOSING = re.compile(r"\s*;[ \t]*\n")
_SET_TRANSACTION = re.compile(r"set\s+transaction\b", re.IGNORECASE)
_NO_TRANSACTION = re.compile(r"^--\s*migrate:\s*no-transaction\s*$", re.MULTILINE)

_PIECE_SIZE = 1 << 16
"""Bytes of a piece, unless a statement is longer."""


class _Span(NamedTuple):
    """Where a piece is in a file.

    Attributes:
        start, stop: in bytes.
        line: the number of its first line.
        first: the number of its first statement.
        ends: where in the piece each statement ends, in characters.
    """

    start: int
    stop: int
    line: int
    first: int
    ends: Sequence[int]


@dataclass(frozen=True)
class Script:
    """A file's content, parsed and checked.

    Attributes:
        transactional: False where the comment that opens the file says
            `-- migrate: no-transaction`.
        sets_transaction: by SET TRANSACTION, which has to come before anything else in it.
        problems: each with `line:column: ` before it.
    """

    content: bytes
    spans: Sequence[_Span]
    transactional: bool
    sets_transaction: bool
    problems: Sequence[str]

    @property
    def count(self) -> int:
        """How many statements it has."""
        return sum(len(span.ends) for span in self.spans)

    def pieces(self) -> Iterator[Piece]:
        """The content in pieces, in their order."""
        for start, stop, line, first, _ in self.spans:
            yield Piece(self.content[start:stop].decode(), line, first)

    def statements(self) -> Iterator[Statement]:
        """The statements, in their order."""
        for piece in self.pieces():
            yield from split(piece)


def parse(content: bytes) -> Script:
    """Cut a file's content into pieces, and check each statement."""
    spans: list[_Span] = []
    problems: list[str] = []
    transactional, sets_transaction = True, False
    start, line, first, size = 0, 1, 1, _PIECE_SIZE
    while start < len(content):
        last = start + size >= len(content)
        closing = content.rfind(b";\n", start, start + size)
        if closing < 0 and not last:
            size *= 2
            continue
        stop = len(content) if last else closing + len(b";\n")
        try:
            piece = Piece(_decoded(content[start:stop], line), line, first)
            found = split(piece)
        except ParseError as error:
            if last:
                problems = [forbidden.syntax_problem(piece, error)]  # and none before it
                break
            found = []  # the cut went through a string, a function body or a comment; or so
        except _NoTextError as error:
            problems = [str(error)]
            break
        length = len(piece.text) if last else _closed_length(piece.text, found)
        if not length:
            size *= 2
            continue
        if length < len(piece.text):
            stop = start + len(piece.text[:length].encode())
        if found and first == 1:
            transactional = not _NO_TRANSACTION.search(found[0].comment)
            sets_transaction = any(_SET_TRANSACTION.match(each.text) for each in found)
        problems += forbidden.problems(piece, length, found, transactional)
        ends = array("I", (statement.stop for statement in found))
        spans.append(_Span(start, stop, line, first, ends))
        start, size = stop, _PIECE_SIZE
        line, first = line + piece.text.count("\n", 0, length), first + len(found)
    if first == 1 and not problems:
        problems.append(with_remedy(" holds no statement", "delete the file or fill it"))
    return Script(content, spans, transactional, sets_transaction, problems)


class _NoTextError(Exception):
    """Bytes are no text: the problem."""


def _decoded(content: bytes, line: int) -> str:
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line += content.count(b"\n", 0, error.start)
        text = f"{line}: not UTF-8 (byte {content[error.start]:#04x})"
        raise _NoTextError(with_remedy(text, "save the file as UTF-8")) from None
    if "\0" in text:  # where every parser in C would take the file to end
        line += text.count("\n", 0, text.index("\0"))
        text = f"{line}: holds a zero byte, so it is no text"
        raise _NoTextError(with_remedy(text, "save the file as UTF-8"))
    return text


def _closed_length(text: str, found: list[Statement]) -> int:
    """Characters up to the last statement that ends a line; takes away those behind it."""
    while found:
        if closing := _CLOSING.match(text, found[-1].stop):
            return closing.end()
        found.pop()
    return 0
