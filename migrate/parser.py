"""SQL into statements, by PostgreSQL's own parser (postgast), each with its place in the file."""

import re
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

_SPACE = " \t\n\r\f\v"
_BETWEEN = re.compile(r"(?:[\s;]+|--[^\n\r]*)*")
_COMMENT_BORDER = re.compile(r"/\*|\*/")
_IN_COMMENT = re.compile(r"[^\n]")
_READS_AHEAD = re.compile(r"(not|nulls|with|without|format)\s*(--|/\*)", re.IGNORECASE)
"""Words that the parser reads together with the next one, before a comment."""

_LINES_BEFORE, _LINES_AFTER, _LONGEST = 4, 2, 200


@cache
def postgast() -> Any:
    """The parser.

    Imported here, which spares a run with nothing to do 0.03 s of 0.13 s.
    """
    import postgast
    from google._upb import _message  # type: ignore[import-untyped]

    # A tree deeper than 100 messages, as that of 50 `||` in a row, is refused otherwise.
    _message.SetAllowOversizeProtos(True)
    return postgast


class ParseError(Exception):
    """The parser refuses a text: the message, and where in characters from 0."""

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message)
        self.offset = offset


@dataclass(frozen=True)
class Piece:
    """A part of a file that holds whole statements.

    Attributes:
        line: the number of its first line in the file.
        first: the number of its first statement in the file.
    """

    text: str
    line: int = 1
    first: int = 1

    def position(self, offset: int) -> str:
        """`line:column` in the file of an offset in the piece, both from 1."""
        line = self.line + self.text.count("\n", 0, offset)
        return f"{line}:{offset - self.text.rfind(chr(10), 0, offset)}"

    def frame(self, offset: int, start: int = 0, stop: int | None = None) -> str:
        """The lines around an offset with their numbers, and a caret below its place.

        Args:
            offset: in characters from 0.
            start: no line before this offset's is shown.
            stop: nor one after this offset's.
        """
        begin = self.text.rfind("\n", 0, start) + 1
        end = self.text.find("\n", len(self.text) if stop is None else max(stop - 1, offset))
        lines = self.text[begin : None if end < 0 else end].split("\n")
        at = self.text.count("\n", begin, offset)
        column = offset - self.text.rfind("\n", 0, offset) - 1
        first = self.line + self.text.count("\n", 0, begin)
        shown = []
        for number in range(max(at - _LINES_BEFORE, 0), min(at + _LINES_AFTER + 1, len(lines))):
            from_ = max(column - _LONGEST // 2, 0) if number == at else 0
            line = lines[number][from_ : from_ + _LONGEST]
            shown.append(f"{first + number:>5} | {line}")
            if number == at:
                shown.append("      | " + "".join(map(_blank, line[: column - from_])) + "^")
        while shown[-1].endswith("| "):
            shown.pop()
        return "\n".join(shown)


def _blank(character: str) -> str:
    """What takes as much room on a terminal."""
    if character == "\t":
        return character
    wide = unicodedata.east_asian_width(character) in "WF"
    return "" if unicodedata.combining(character) else "  " if wide else " "


@dataclass  # not frozen, which would take longer for each of a million
class Statement:
    """One statement of a file.

    Attributes:
        piece: where it stands, from `start` to `stop`, its semicolon left out.
        number: which of the file's statements, from 1.
        comment: the comments and blank lines between the statement before it and it.
    """

    piece: Piece
    number: int
    start: int
    stop: int
    comment: str

    @property
    def text(self) -> str:
        """The statement without the comments before it and without its semicolon."""
        return self.piece.text[self.start : self.stop]

    def position(self, offset: int = 0) -> str:
        """`line:column` in the file of an offset in the statement."""
        return self.piece.position(self.start + offset)

    def frame(self, offset: int = 0) -> str:
        """Its lines around an offset in it, with a caret."""
        return self.piece.frame(self.start + offset, self.start, self.stop)

    @cached_property
    def node(self) -> Any:
        """Its parse tree, one of the classes of `postgast.nodes`."""
        return postgast().wrap(_parsed(postgast().parse, self.text)).stmts[0].stmt

    @property
    def kind(self) -> str:
        """The name of the node's class, as `IndexStmt`."""
        return type(self.node).__name__

    @property
    def builds_concurrently(self) -> bool:
        """Whether it is a CREATE INDEX CONCURRENTLY."""
        return self.kind == "IndexStmt" and self.node.concurrent


def split(piece: Piece) -> list[Statement]:
    """The statements of a piece, in their order.

    Raises:
        ParseError: the parser refuses it.
    """
    text = piece.text
    try:
        parts = _parsed(postgast().split, text)
    except postgast().PgQueryError as error:
        place = min(error.cursorpos - 1, len(text.rstrip()))  # not behind the end
        raise ParseError(error.message, max(place, 0)) from None
    found = []
    end = 0
    for number, part in enumerate(parts, piece.first):
        start = _next_begin(text, end)
        comment = text[end:start].lstrip(";")
        end = start + len(text[start : start + len(part)].rstrip(_SPACE))
        found.append(Statement(piece, number, start, end, comment))
    return found


def _parsed(parse: Callable[[str], Any], text: str) -> Any:
    """What the parser makes of a text; it takes no comment between words that it reads together."""
    try:
        return parse(text)
    except postgast().PgQueryError as error:
        if not _READS_AHEAD.match(text, max(error.cursorpos - 1, 0)):
            raise
        with suppress(postgast().PgQueryError):
            return parse(_without_comments(text))
        raise


def _without_comments(text: str) -> str:
    """A text with spaces in the place of its comments."""
    kinds = postgast().pg_query_pb2
    content, parts, end = text.encode(), [], 0
    for token in postgast().scan(text).tokens:
        if token.token in (kinds.SQL_COMMENT, kinds.C_COMMENT):
            comment = content[token.start : token.end].decode()
            parts += [content[end : token.start].decode(), _IN_COMMENT.sub(" ", comment)]
            end = token.end
    return "".join([*parts, content[end:].decode()])


def _next_begin(text: str, end: int) -> int:
    """Where the statement begins that follows one that ends at `end`."""
    while gap := _BETWEEN.match(text, end):
        end = gap.end()
        if not text.startswith("/*", end):
            break
        depth = 0
        for border in _COMMENT_BORDER.finditer(text, end):  # they nest
            depth += 1 if border[0] == "/*" else -1
            if not depth:
                end = border.end()
                break
    return end
