"""A failed statement, shown to the person who has to fix it."""

import re
from collections.abc import Sequence

import psycopg

from migrate.connection import is_broken
from migrate.files import File
from migrate.parser import Piece, Statement

_DO_BLOCK_LINE = re.compile(r"PL/pgSQL function inline_code_block line (\d+)")
_QUOTE = re.compile(r"\$\w*\$|[eE]?'")

_LONGEST = 2000
"""Characters that are shown of what the server says; it may quote a whole value."""


def describe(
    files: Sequence[File], statement: Statement | None, offset: int | None, error: psycopg.Error
) -> str:
    """Where files failed, and everything the server said about it.

    Args:
        files: the file that failed, or all that were to commit together.
        statement: which of its statements; None when they failed at their commit.
        offset: where in the statement, in characters from 0; None when the server did not say.
        error: what the server said.
    """
    diagnostics = error.diag
    code = f" (SQLSTATE {diagnostics.sqlstate})" if diagnostics.sqlstate else ""
    message = _cut(diagnostics.message_primary or str(error).strip()) + code
    if is_broken(error) and not diagnostics.sqlstate:
        message = f"the connection broke: {message}"
    elif statement is None:
        message = f"at commit: {message}"
    if statement is None:
        lines = [f"{', '.join([str(files[0].path), *(f.name for f in files[1:])])}: {message}"]
    else:
        if offset is None:
            offset = _in_do_block(statement, diagnostics.context or "")
        lines = [
            f"{files[0].path}:{statement.position(offset)}: {message}",
            f"  statement {statement.number} of {files[0].script.count}:",
            statement.frame(offset),
        ]
    if diagnostics.internal_query:
        at = max(int(diagnostics.internal_position or 1) - 1, 0)
        lines += ["  in the query:", Piece(diagnostics.internal_query).frame(at)]
    for label, text in (
        ("detail", diagnostics.message_detail),
        ("hint", diagnostics.message_hint),
        ("context", diagnostics.context),
    ):
        if text:
            lines.append(f"  {label}: " + _cut(text).replace("\n", "\n    "))
    return "\n".join(lines)


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


def _in_do_block(statement: Statement, context: str) -> int:
    """The offset of the line of a DO block that failed; 0 for any other statement."""
    lines = _DO_BLOCK_LINE.findall(context)
    if not lines or statement.kind != "DoStmt":
        return 0
    body = next(option for option in statement.node.args if option.defname == "as")
    offset = len(statement.text.encode()[: body.location].decode())
    quote = _QUOTE.match(statement.text, offset)
    offset = quote.end() if quote else offset
    for _ in range(int(lines[-1]) - 1):
        offset = statement.text.index("\n", offset) + 1
    rest = statement.text[offset:]
    return offset + len(rest) - len(rest.lstrip(" \t"))
