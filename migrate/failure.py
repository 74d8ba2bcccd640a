"""A failed statement, told to the person who has to mend it."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from migrate.errors import MigrateError
from migrate.files import File
from migrate.statements import excerpt, position


def describe(file: File, number: int, error: psycopg.Error) -> str:
    """Where a file failed, and everything the server said about it.

    Args:
        file: the file that failed.
        number: which of its statements, from 1; 0 when it failed at its commit.
        error: what the server said.
    """
    told = error.diag
    place, frame = f"{file.path}: at commit", []
    if number:
        statement = file.statements[number - 1]
        offset = statement.offset + max(int(told.statement_position or 1) - 1, 0)
        place = f"{file.path}:{position(file.text, offset)}"
        frame = [
            f"  statement {number} of {len(file.statements)}:",
            excerpt(file.text, offset),
        ]
    code = f" (SQLSTATE {told.sqlstate})" if told.sqlstate else ""
    lines = [f"{place}: {told.message_primary or str(error).strip()}{code}", *frame]
    for label, text in (
        ("detail", told.message_detail),
        ("hint", told.message_hint),
        ("context", told.context),
    ):
        if text:
            lines.append(f"  {label}: " + text.replace("\n", "\n    "))
    return "\n".join(lines)


@contextmanager
def readable() -> Iterator[None]:
    """Tell what the server refuses outside of a file, such as for want of a privilege.

    Raises:
        MigrateError: the server refused something, or the connection broke.
    """
    try:
        yield
    except psycopg.Error as error:
        text = error.diag.message_primary or str(error).strip()
        code = f" (SQLSTATE {error.sqlstate})" if error.sqlstate else ""
        hint = ""
        if isinstance(error, psycopg.errors.InsufficientPrivilege):
            hint = "\n  what to do: run as the role that owns the database and the schema migrate"
        raise MigrateError(f"the database refuses: {text}{code}{hint}") from error
