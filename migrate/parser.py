"""Files into statements, by the PostgreSQL parser itself (postgast), and what no file may hold.

A file is read block by block and never held as a whole, unless it is one statement.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from migrate.errors import FilesError
from migrate.files import BLOCK, File

_CONTROL = {
    "BEGIN": "BEGIN",
    "START": "START TRANSACTION",
    "COMMIT": "COMMIT",
    "ROLLBACK": "ROLLBACK",
    "SAVEPOINT": "SAVEPOINT",
    "RELEASE": "RELEASE SAVEPOINT",
    "ROLLBACK_TO": "ROLLBACK TO SAVEPOINT",
    "PREPARE": "PREPARE TRANSACTION",
    "COMMIT_PREPARED": "COMMIT PREPARED",
    "ROLLBACK_PREPARED": "ROLLBACK PREPARED",
}
"""Kind of a TransactionStmt -> the command."""

_SUSPECT = re.compile(
    r"(begin|start|commit|end|abort|rollback|savepoint|release|prepare|copy|reindex|vacuum|cluster"
    r"|discard|set\s+local"
    r"|(create|drop|alter)\s+(database|tablespace|system))\b"
    r"|(create|drop|alter)\b.*\bconcurrently\b",
    re.IGNORECASE | re.DOTALL,
)
"""What `problem` has to look at; most statements of a large file it need not."""

_SPACE = " \t\n\r\f\v"
_BETWEEN = re.compile(r"(?:[\s;]+|--[^\n\r]*)*")
_COMMENT_BORDER = re.compile(r"/\*|\*/")

COPY_BY_CLIENT = "COPY with STDIN or STDOUT, which only psql can feed: use INSERT"

_LINES_BEFORE, _LINES_AFTER, _LONGEST = 4, 2, 200


@cache
def _postgast() -> Any:
    """The parser.

    Imported here, because that takes 0.1 s, of 0.2 s in a run with nothing to do.
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
        count: how many statements it has; -1 before it was parsed.
    """

    text: str
    line: int = 1
    first: int = 1
    count: int = -1

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


@dataclass(frozen=True)
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
        return _postgast().wrap(_postgast().parse(self.text)).stmts[0].stmt

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
        parts = _postgast().split(text)
    except _postgast().PgQueryError as error:
        place = min(error.cursorpos - 1, len(text.rstrip()))  # not behind the end
        raise ParseError(error.message, max(place, 0)) from None
    found = []
    end = 0
    for number, part in enumerate(parts, piece.first):
        start = _next_begin(text, end)
        comment = text[end:start].lstrip(";")
        end = start + len(part.rstrip(_SPACE))
        found.append(Statement(piece, number, start, end, comment))
    return found


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


def is_closed(piece: Piece, found: list[Statement]) -> bool:
    """Whether the last statement has its semicolon, so that it cannot go on behind the piece."""
    return not found or piece.text[found[-1].stop :].lstrip().startswith(";")


def problem(statement: Statement, transactional: bool) -> str | None:
    """Why a statement cannot be part of a migration, and what to do; None where it can."""
    if not _SUSPECT.match(statement.text):
        return None
    node, postgres = statement.node, _postgast().pg_query_pb2
    match statement.kind:
        case "TransactionStmt":
            kind = postgres.TransactionStmtKind.Name(node.kind).removeprefix("TRANS_STMT_")
            return (
                f"{_CONTROL[kind]} inside a migration: remove it, each file already runs in a "
                "transaction of its own"
            )
        case "CopyStmt" if not node.filename:
            return COPY_BY_CLIENT
        case "DiscardStmt" if node.target == postgres.DISCARD_ALL:
            return (
                "DISCARD ALL lets the lock of the run go: name what is to go, as DISCARD TEMP does"
            )
        case "VariableSetStmt" if node.is_local and not transactional:
            return (
                "SET LOCAL in a file without a transaction, where it holds for itself alone: write "
                "SET, which holds to the end of the file"
            )
    if transactional and (by_itself := alone(statement)):
        return (
            f"{by_itself} cannot run inside a transaction: put it into a file of its own that "
            "begins with `-- migrate: no-transaction`"
        )
    if statement.builds_concurrently and not node.idxname:
        return (
            "CREATE INDEX CONCURRENTLY without a name, by which a run that was cut off would find "
            "what it left: name the index"
        )
    if statement.kind == "DropStmt" and node.concurrent and not node.missing_ok:
        return (
            "DROP INDEX CONCURRENTLY that cannot be repeated after a crash: write DROP INDEX "
            "CONCURRENTLY IF EXISTS"
        )
    return None


_ALONE = {
    "CreatedbStmt": "CREATE DATABASE",
    "DropdbStmt": "DROP DATABASE",
    "CreateTableSpaceStmt": "CREATE TABLESPACE",
    "DropTableSpaceStmt": "DROP TABLESPACE",
    "AlterSystemStmt": "ALTER SYSTEM",
}


def alone(statement: Statement) -> str | None:
    """The command, when it cannot run inside a transaction; else None.

    Source: the notes of each command in the documentation of PostgreSQL 18.
    """
    node, postgres = statement.node, _postgast().pg_query_pb2
    match statement.kind:
        case "IndexStmt" if node.concurrent:
            return "CREATE INDEX CONCURRENTLY"
        case "DropStmt" if node.concurrent:
            return "DROP INDEX CONCURRENTLY"
        case "ReindexStmt" if has_option(node.params, "concurrently"):
            return "REINDEX CONCURRENTLY"
        case "ReindexStmt" if node.kind not in (
            postgres.REINDEX_OBJECT_INDEX,
            postgres.REINDEX_OBJECT_TABLE,
        ):
            return "REINDEX of many tables"
        case "VacuumStmt" if node.is_vacuumcmd:
            return "VACUUM"
        case "ClusterStmt" if node.relation is None:
            return "CLUSTER of all tables"
        case "AlterTableStmt" if any(
            getattr(command.def_, "concurrent", False) for command in node.cmds
        ):
            return "DETACH PARTITION CONCURRENTLY"
    return _ALONE.get(statement.kind)


def has_option(options: Any, name: str) -> bool:
    """Whether an option is there, and not off."""
    return any(
        option.defname == name
        and str(getattr(option.arg, "sval", getattr(option.arg, "ival", "on"))).lower()
        not in ("false", "off", "0")
        for option in options
    )


_COPY_DATA = re.compile(
    r"(?:^|;)\s*(copy\s[^;]*\sfrom\s+stdin\b[^;]*);[ \t]*\n[^;]*\Z",
    re.IGNORECASE | re.MULTILINE,
)
_CLOSING = re.compile(r"\s*;[ \t]*\n")
_LONGEST_MESSAGE = 200

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
        if len(what) > _LONGEST_MESSAGE:  # it quotes the rest of the file
            what = f"{what[:_LONGEST_MESSAGE]} ..."
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
