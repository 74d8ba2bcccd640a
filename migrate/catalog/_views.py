"""The text of a view as PostgreSQL 16 and newer write it, for one that an older server wrote."""

import re
from collections.abc import Iterator
from typing import Any

from migrate.parser import postgast

_PREFIX = re.compile(rb'("([^"]|"")*"|[^."]+)\.')


def unprefixed(text: str) -> str:
    """Take away the table's name before each column where there is but one table to read from.

    PostgreSQL 15 writes it, since it counts the OLD and NEW of the view's rule as tables, too.  In
    queries within the query each version writes it.
    """
    try:
        query = postgast().parse(text).stmts[0].stmt.select_stmt
    except postgast().PgQueryError:
        return text
    if len(query.from_clause) != 1 or query.from_clause[0].HasField("join_expr"):
        return text
    content = text.encode()
    for at in sorted(_prefixes(query), reverse=True):
        content = content[:at] + _PREFIX.sub(b"", content[at:], count=1)
    return content.decode()


def _prefixes(query: Any) -> Iterator[int]:
    """Where the columns of a query stand that have a prefix, as offsets in bytes."""
    ambiguous = set()
    for item in query.sort_clause:  # by which a name alone means what the query returns
        column = item.sort_by.node.column_ref
        for target in (each.res_target for each in query.target_list):
            name = target.name or _names(target.val.column_ref)[-1:]
            if [name] == _names(column)[-1:] and _names(target.val.column_ref) != _names(column):
                ambiguous.add(column.location)
    for column in _columns(query):
        names = _names(column)
        if len(names) == 2 and len(column.fields) == 2 and column.location not in ambiguous:
            yield column.location


def _names(column: Any) -> list[str]:
    return [field.string.sval for field in column.fields if field.HasField("string")]


def _columns(message: Any) -> Iterator[Any]:
    """The columns in a part of a query, but for those in queries within it."""
    if message.DESCRIPTOR.name == "ColumnRef":
        yield message
    for field, value in message.ListFields():
        if field.message_type and field.name not in ("with_clause", "from_clause", "subselect"):
            repeated = field.label == field.LABEL_REPEATED
            for part in value if repeated else [value]:
                yield from _columns(part)
