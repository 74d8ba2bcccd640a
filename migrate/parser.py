"""Files into statements, by the PostgreSQL parser itself (postgast), and what no file may hold."""

import re
import unicodedata
from array import array
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, NamedTuple

from embedded.errors import with_remedy
from migrate import foreign

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
    r"|discard|set\s+(local|transaction)"
    r"|(create|drop|alter)\s+(database|tablespace|system|subscription))\b"
    r"|(create|drop|alter)\b.*\bconcurrently\b",
    re.IGNORECASE | re.DOTALL,
)
"""What `problem` has to look at; most statements of a large file it need not."""

_SPACE = " \t\n\r\f\v"
_BETWEEN = re.compile(r"(?:[\s;]+|--[^\n\r]*)*")
_COMMENT_BORDER = re.compile(r"/\*|\*/")

_COPY_BY_CLIENT = "COPY with STDIN or STDOUT, which only psql can feed", "use INSERT"

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
        return postgast().wrap(postgast().parse(self.text)).stmts[0].stmt

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
        parts = postgast().split(text)
    except postgast().PgQueryError as error:
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


def problem(statement: Statement, transactional: bool) -> tuple[str, str] | None:
    """Why a statement cannot be part of a migration, and what to do; None where it can."""
    if not _SUSPECT.match(statement.piece.text, statement.start, statement.stop):
        return None
    node, postgres = statement.node, postgast().pg_query_pb2
    match statement.kind:
        case "TransactionStmt":
            kind = postgres.TransactionStmtKind.Name(node.kind).removeprefix("TRANS_STMT_")
            return (
                f"{_CONTROL[kind]} inside a migration",
                "remove it, each file already runs in a transaction of its own",
            )
        case "CopyStmt" if not node.filename:
            return _COPY_BY_CLIENT
        case "DiscardStmt" if node.target == postgres.DISCARD_ALL:
            return (
                "DISCARD ALL lets the lock of the run go",
                "name what is to go, as DISCARD TEMP does",
            )
        case "VariableSetStmt" if node.is_local and not transactional:
            return (
                "SET LOCAL in a file without a transaction, where it holds for itself alone",
                "write SET, which holds to the end of the file",
            )
        case "VariableSetStmt" if node.name == "TRANSACTION" and not transactional:
            return (
                "SET TRANSACTION in a file without one",
                "write SET SESSION CHARACTERISTICS AS TRANSACTION, which holds to the end of the "
                "file",
            )
    if transactional and (by_itself := outside_transaction(statement)):
        return (
            f"{by_itself} cannot run inside a transaction",
            "put it into a file of its own that begins with `-- migrate: no-transaction`",
        )
    if statement.builds_concurrently and not node.idxname:
        return (
            "CREATE INDEX CONCURRENTLY without a name, by which a run that was cut off would find "
            "what it left",
            "name the index",
        )
    if statement.kind == "DropStmt" and node.concurrent and not node.missing_ok:
        return (
            "DROP INDEX CONCURRENTLY that cannot be repeated after a crash",
            "write DROP INDEX CONCURRENTLY IF EXISTS",
        )
    return None


_OUTSIDE_TRANSACTION = {
    "CreatedbStmt": "CREATE DATABASE",
    "DropdbStmt": "DROP DATABASE",
    "CreateTableSpaceStmt": "CREATE TABLESPACE",
    "DropTableSpaceStmt": "DROP TABLESPACE",
    "AlterSystemStmt": "ALTER SYSTEM",
}


def outside_transaction(statement: Statement) -> str | None:
    """The command, when it cannot run inside a transaction; else None.

    Source: the notes of each command in the documentation of PostgreSQL 18.
    """
    node, postgres = statement.node, postgast().pg_query_pb2
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
        case "AlterDatabaseStmt" if has_option(node.options, "tablespace"):
            return "ALTER DATABASE ... SET TABLESPACE"
        case "CreateSubscriptionStmt" if not (
            _is_off(node.options, "connect") or _is_off(node.options, "create_slot")
        ):
            return "CREATE SUBSCRIPTION that creates its slot"
        case "DropSubscriptionStmt" if not _NO_SLOT.search(
            statement.piece.text, 0, statement.start
        ):
            return "DROP SUBSCRIPTION that drops its slot"
        case "AlterSubscriptionStmt" if (
            node.kind == postgres.ALTER_SUBSCRIPTION_REFRESH
            or (node.publication and not _is_off(node.options, "refresh"))
            or any(option.defname in ("failover", "two_phase") for option in node.options)
        ):
            return "ALTER SUBSCRIPTION that asks the publisher"
    return _OUTSIDE_TRANSACTION.get(statement.kind)


_NO_SLOT = re.compile(r"\balter\s+subscription\b[^;]*\bslot_name\s*=\s*none\b", re.IGNORECASE)


def has_option(options: Any, name: str) -> bool:
    """Whether an option is there, and not off."""
    return any(option.defname == name and _said(option) not in _OFF for option in options)


_OFF = {"false", "f", "no", "n", "off", "0"}


def _said(option: Any) -> str:
    """What an option is set to; `off` is parsed as the name of a type."""
    value = option.arg
    names = getattr(value, "names", None)
    value = names[-1] if names else value
    return str(getattr(value, "sval", getattr(value, "ival", "on"))).lower()


def _is_off(options: Any, name: str) -> bool:
    return any(option.defname == name for option in options) and not has_option(options, name)


_COPY_DATA = re.compile(
    r"(?:^|;)\s*(copy\s[^;]*\sfrom\s+stdin\b[^;]*);[ \t]*\n[^;]*\Z",
    re.IGNORECASE | re.MULTILINE,
)
_CLOSING = re.compile(r"\s*;[ \t]*\n")
_LONGEST_MESSAGE = 200

_SET_TRANSACTION = re.compile(r"set\s+transaction\b", re.IGNORECASE)
_NO_TRANSACTION = re.compile(r"^--\s*migrate:\s*no-transaction\s*$", re.MULTILINE)


PIECE_SIZE = 1 << 16
"""Bytes of a piece, unless a statement is longer."""


class Span(NamedTuple):
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
    spans: Sequence[Span]
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
    spans: list[Span] = []
    problems: list[str] = []
    transactional, sets_transaction = True, False
    start, line, first, size = 0, 1, 1, PIECE_SIZE
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
                problems = [_syntax_problem(piece, error)]  # whatever the pieces before it hold
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
        for statement in found:
            if found_problem := problem(statement, transactional):
                text, remedy = found_problem
                text = f"{statement.position()}: {text}\n{statement.frame()}"
                problems.append(with_remedy(text, remedy))
        if marker := foreign.marker(piece.text, _comments, length):
            problems.append(_foreign_problem(piece, *marker))
        ends = array("I", (statement.stop for statement in found))
        spans.append(Span(start, stop, line, first, ends))
        start, size = stop, PIECE_SIZE
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


def _comments(text: str) -> Iterator[int]:
    """Where the comments of a text that begin with `--` begin; nothing where it has no end."""
    encoded = text.encode()
    with suppress(postgast().PgQueryError):
        for token in postgast().scan(text).tokens:
            if token.token == postgast().pg_query_pb2.SQL_COMMENT:
                yield len(encoded[: token.start].decode())


def _foreign_problem(piece: Piece, offset: int, message: str, remedy: str) -> str:
    return with_remedy(f"{piece.position(offset)}: {message}\n{piece.frame(offset)}", remedy)


def _syntax_problem(piece: Piece, error: ParseError) -> str:
    message, remedy, offset = str(error), "", error.offset
    if marker := foreign.marker(piece.text, _comments):  # ... or its statements lack semicolons
        return _foreign_problem(piece, *marker)
    if template := foreign.placeholder(piece.text, offset):
        message, remedy = template
    if piece.text.startswith("\\", offset):
        message = "psql meta-commands are not SQL and only psql runs them"
        remedy = "remove the line"
    if copy := _COPY_DATA.search(piece.text, 0, offset):
        (message, remedy), offset = _COPY_BY_CLIENT, copy.start(1)
    if len(message) > _LONGEST_MESSAGE:  # it quotes the rest of the file
        message = f"{message[:_LONGEST_MESSAGE]} ..."
    return with_remedy(f"{piece.position(offset)}: {message}\n{piece.frame(offset)}", remedy)
