"""A failed statement, shown to the person who has to fix it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import psycopg
from psycopg.errors import Diagnostic

from migrate.connection import is_broken
from migrate.files import VERSIONED, File
from migrate.parser import Piece, Statement

_DO_BLOCK_LINE = re.compile(r"PL/pgSQL function inline_code_block line (\d+)")
_QUOTE = re.compile(r"\$\w*\$|[eE]?'")

_NOT_THERE = ("does_not_exist_skipping", "DropErrorMsgNonExistent")
"""The functions of the server that say `..., skipping` of DROP, in whatever language."""

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


@dataclass(frozen=True)
class Notice:
    """What a statement of a file had the server say, and did not fail.

    Attributes:
        place: `path:line:column`; the line of a DO block that said it.
        severity: `NOTICE`, `WARNING`, or another one that the file asks for.
        message: what it says, with its detail and hint in lines of their own.
    """

    place: str
    severity: str
    message: str

    def __str__(self) -> str:
        """In one line, its details below."""
        return f"{self.place}: {self.severity}: {self.message}"


def notice(file: File, statement: Statement, diagnostic: Diagnostic) -> Notice | None:
    """What the server said while a statement of a file was carried out.

    Returns:
        None for what DROP ... IF EXISTS did not find in a repeatable file, which is written so.
    """
    if file.folder.name != VERSIONED and diagnostic.source_function in _NOT_THERE:
        return None
    offset = _in_do_block(statement, diagnostic.context or "")
    lines = [_cut(diagnostic.message_primary or "")]
    for label, text in (("detail", diagnostic.message_detail), ("hint", diagnostic.message_hint)):
        if text:
            lines.append(f"  {label}: " + _cut(text).replace("\n", "\n    "))
    place = f"{file.path}:{statement.position(offset)}"
    return Notice(place, diagnostic.severity_nonlocalized or "NOTICE", "\n".join(lines))


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
