"""What a run says: each step, what the server notes, and which statement of which file failed."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psycopg
from psycopg.errors import Diagnostic

from migrate.files import VERSIONED, File
from migrate.parser import Piece, Statement
from migrate.session import is_broken

_DO_BLOCK_LINE = re.compile(r"PL/pgSQL function inline_code_block line (\d+)")
_QUOTE = re.compile(r"\$\w*\$|[eE]?'")

_NOT_THERE = ("does_not_exist_skipping", "DropErrorMsgNonExistent")
"""The functions of the server that say `..., skipping` of DROP, in whatever language."""

_LONGEST = 2000
"""Characters that are shown of what the server says; it may quote a whole value."""


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


@dataclass(frozen=True)
class Step:
    """What a run tells of its progress.

    Attributes:
        event: "adopted" a database, "waiting" for another run, "applying", "retrying" after a lock
            timeout, "notice" of the server, "applied", or "unrecorded" a removed repeatable file.
        subject: folder and name of the file; of "waiting", who holds the lock; of "adopted", what.
        seconds: how long it took, on average of the files that commit together; of "retrying",
            until it is tried again.
        number, total: which of how many pending files.
        detail: of "retrying", what the server said.
        notice: of "notice", what the server said.
    """

    event: str
    subject: str
    seconds: float = 0.0
    number: int = 0
    total: int = 0
    detail: str = ""
    notice: Notice | None = None

    def __str__(self) -> str:
        """The step in one line."""
        match self.event:
            case "waiting":
                return f"waiting for another run: {self.subject}"
            case "retrying":
                return f"retrying {self.subject} in {self.seconds:g} s: {self.detail}"
            case "notice":
                return str(self.notice)
            case "unrecorded":
                return f"unrecorded {self.subject}, which was removed; what it made stays"
            case "applied":
                return f"applied {self.subject} ({self.seconds * 1000:.0f} ms)"
            case _:
                return f"{self.event} {self.subject}"


Report = Callable[[Step], None]
"""Is told of each step."""


def report_notice(report: Report, file: File, statement: Statement, diagnostic: Diagnostic) -> None:
    """Tell what the server said while a statement of a file was carried out.

    Left out is what DROP ... IF EXISTS did not find in a repeatable file, which is written so.
    """
    if file.folder.name != VERSIONED and diagnostic.source_function in _NOT_THERE:
        return
    place = f"{file.path}:{statement.position(_in_do_block(statement, diagnostic.context or ''))}"
    message = [_cut(diagnostic.message_primary or "")]
    message += _labelled(detail=diagnostic.message_detail, hint=diagnostic.message_hint)
    severity = diagnostic.severity_nonlocalized or "NOTICE"
    report(Step("notice", file.label, notice=Notice(place, severity, "\n".join(message))))


class FailedFilesError(Exception):
    """The server refused files; as text, where and everything that it said about it.

    Attributes:
        files: the file that failed, or all that were to commit together.
        statement: which of its statements; None when the commit failed, or the connection broke.
        offset: where in the statement, in characters from 0; None when the server did not say.
        error: what the server said.
    """

    def __init__(
        self,
        files: Sequence[File],
        statement: Statement | None,
        offset: int | None,
        error: psycopg.Error,
    ) -> None:
        self.files = files
        self.statement = statement
        self.offset = offset
        self.error = error
        super().__init__(self._described())

    def _described(self) -> str:
        files, statement, said = self.files, self.statement, self.error.diag
        code = f" (SQLSTATE {said.sqlstate})" if said.sqlstate else ""
        message = _cut(said.message_primary or str(self.error).strip()) + code
        if is_broken(self.error) and not said.sqlstate:
            message = f"the connection broke: {message}"
        elif statement is None:
            message = f"at commit: {message}"
        if statement is None:
            lines = [f"{', '.join([str(files[0].path), *(f.name for f in files[1:])])}: {message}"]
        else:
            offset = self.offset
            if offset is None:
                offset = _in_do_block(statement, said.context or "")
            lines = [
                f"{files[0].path}:{statement.position(offset)}: {message}",
                f"  statement {statement.number} of {files[0].script.count}:",
                statement.frame(offset),
            ]
        if said.internal_query:
            at = max(int(said.internal_position or 1) - 1, 0)
            lines += ["  in the query:", Piece(said.internal_query).frame(at)]
        lines += _labelled(detail=said.message_detail, hint=said.message_hint, context=said.context)
        return "\n".join(lines)


def _labelled(**texts: str | None) -> list[str]:
    return [
        f"  {label}: " + _cut(text).replace("\n", "\n    ") for label, text in texts.items() if text
    ]


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
