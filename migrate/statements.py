"""SQL text into statements, by the PostgreSQL parser itself (pglast)."""

import re
from dataclasses import dataclass
from pathlib import Path

from pglast import ast, parser
from pglast.enums import TransactionStmtKind as Kind

from migrate.errors import FilesError

_CONTROL = {
    Kind.TRANS_STMT_BEGIN: "BEGIN",
    Kind.TRANS_STMT_START: "START TRANSACTION",
    Kind.TRANS_STMT_COMMIT: "COMMIT",
    Kind.TRANS_STMT_ROLLBACK: "ROLLBACK",
    Kind.TRANS_STMT_SAVEPOINT: "SAVEPOINT",
    Kind.TRANS_STMT_RELEASE: "RELEASE SAVEPOINT",
    Kind.TRANS_STMT_ROLLBACK_TO: "ROLLBACK TO SAVEPOINT",
    Kind.TRANS_STMT_PREPARE: "PREPARE TRANSACTION",
    Kind.TRANS_STMT_COMMIT_PREPARED: "COMMIT PREPARED",
    Kind.TRANS_STMT_ROLLBACK_PREPARED: "ROLLBACK PREPARED",
}


@dataclass(frozen=True)
class Statement:
    """One statement of a file.

    Attributes:
        text: the statement without the comments before it and without its semicolon.
        offset: where it begins in the file, in characters from 0.
        comment: the comments and blank lines between the statement before it and it.
    """

    text: str
    offset: int
    comment: str


def parse(path: Path, text: str) -> list[Statement]:
    """The statements of a file in their order.

    Raises:
        FilesError: a syntax error, a psql meta-command, transaction control, or COPY from or to
            the client, each with file:line:column.
    """
    try:
        tree = parser.parse_sql(text)
    except parser.ParseError as error:
        message, offset = error.args
        if offset is None:  # pglast has no place for what is missing at the end
            offset = len(text.rstrip()) if "end of input" in message else 0
        place = f"{path}:{position(text, offset)}"
        frame = excerpt(text, offset)
        if re.match(r"\\", text[offset:]):
            raise FilesError(
                [
                    f"{place}: psql meta-commands are not SQL and only psql runs them: "
                    f"remove the line\n{frame}"
                ]
            ) from None
        raise FilesError([f"{place}: {message}\n{frame}"]) from None
    statements: list[Statement] = []
    problems: list[str] = []
    end = 0
    for node, part in zip(tree, parser.split(text, only_slices=True), strict=True):
        statements.append(Statement(text[part], part.start, text[end : part.start].lstrip(";")))
        end = part.stop
        if isinstance(node.stmt, ast.TransactionStmt):
            command = _CONTROL[Kind(int(node.stmt.kind or 0))]
            problems.append(
                f"{path}:{position(text, part.start)}: {command} inside a migration: remove it, "
                "each file already runs in a transaction of its own\n" + excerpt(text, part.start)
            )
        if isinstance(node.stmt, ast.CopyStmt) and not node.stmt.filename:
            problems.append(
                f"{path}:{position(text, part.start)}: COPY with STDIN or STDOUT, which only psql "
                "can feed: use INSERT\n" + excerpt(text, part.start)
            )
    if problems:
        raise FilesError(problems)
    return statements


def position(text: str, offset: int) -> str:
    """`line:column` of a character offset, both from 1."""
    line = text.count("\n", 0, offset) + 1
    return f"{line}:{offset - text.rfind(chr(10), 0, offset)}"


def excerpt(text: str, offset: int) -> str:
    """The line at a character offset with its number, and a caret below it."""
    start = text.rfind("\n", 0, offset) + 1
    line = text[start:].partition("\n")[0]
    margin = f"{text.count(chr(10), 0, offset) + 1:>5} | "
    indent = re.sub(r"[^\t]", " ", line[: offset - start])
    return f"{margin}{line}\n{' ' * (len(margin) - 2)}| {indent}^"
