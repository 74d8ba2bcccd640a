"""A whole file, cut into pieces of whole statements and checked.

A file may have 50 MB: it is parsed a piece at a time, and no statement is kept.
"""

import re
from array import array
from collections.abc import Iterator, Sequence
from contextlib import suppress
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
    start, line, first = 0, 1, 1
    while start < len(content):
        try:
            piece, length, found = _next_piece(content, start, line, first)
        except _UnreadableError as error:
            problems = [str(error)]  # and none before it
            break
        if found and first == 1:
            transactional = not _NO_TRANSACTION.search(found[0].comment)
            sets_transaction = any(_SET_TRANSACTION.match(each.text) for each in found)
        problems += forbidden.problems(piece, length, found, transactional)
        text = piece.text[:length]
        stop = start + len(text.encode())
        ends = array("I", (statement.stop for statement in found))
        spans.append(_Span(start, stop, line, first, ends))
        start, line, first = stop, line + text.count("\n"), first + len(found)
    if first == 1 and not problems:
        problems.append(with_remedy(" holds no statement", "delete the file or fill it"))
    return Script(content, spans, transactional, sets_transaction, problems)


class _UnreadableError(Exception):
    """A content is no text, or the parser refuses it: the problem."""


def _next_piece(
    content: bytes, start: int, line: int, first: int
) -> tuple[Piece, int, list[Statement]]:
    """The next piece: how much of its text counts, and the statements in that.

    The window doubles until it has a statement that ends a line.  A cut may go through a string, a
    function body or a comment: then the parser refuses it, or that statement is left for the next
    piece.

    Raises:
        _UnreadableError: the rest of the file, of which the last piece is made, is refused; or this
            piece is no text.
    """
    window = _PIECE_SIZE
    while start + window < len(content):
        cut = content.rfind(b";\n", start, start + window)
        if cut >= 0:
            piece = Piece(_decoded(content[start : cut + len(b";\n")], line), line, first)
            with suppress(ParseError):
                length, found = _whole(piece.text, split(piece))
                if found:
                    return piece, length, found
        window *= 2
    piece = Piece(_decoded(content[start:], line), line, first)
    try:
        return piece, len(piece.text), split(piece)
    except ParseError as error:
        raise _UnreadableError(forbidden.syntax_problem(piece, error)) from None


def _whole(text: str, found: list[Statement]) -> tuple[int, list[Statement]]:
    """Characters up to the last statement that ends a line, and the statements up to it."""
    for count in range(len(found), 0, -1):
        if closing := _CLOSING.match(text, found[count - 1].stop):
            return closing.end(), found[:count]
    return 0, []


def _decoded(content: bytes, line: int) -> str:
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line += content.count(b"\n", 0, error.start)
        text = f"{line}: not UTF-8 (byte {content[error.start]:#04x})"
        raise _UnreadableError(with_remedy(text, "save the file as UTF-8")) from None
    if "\0" in text:  # where every parser in C would take the file to end
        line += text.count("\n", 0, text.index("\0"))
        text = f"{line}: holds a zero byte, so it is no text"
        raise _UnreadableError(with_remedy(text, "save the file as UTF-8"))
    return text
