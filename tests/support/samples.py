"""Rows of every table for the tests, made from the catalog: a new table needs no word here.

Where a constraint or a trigger wants a value of its own kind, `GIVEN` says which.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import NamedTuple
from uuid import NAMESPACE_OID, uuid5

import psycopg

Row = Mapping[str, str | None]
"""Column -> value, None for its default."""

GIVEN: Mapping[str, Row] = {
    # So that they may be deleted.
    "public.subscriptions": {"status": "cancelled"},
    "public.instances": {"status": "deprovisioned"},
    # Which a plan has to allow.
    "public.support_tickets": {"priority": "high"},
    # Which a user may ask for.
    "public.instance_backups": {"backup_type": "manual"},
    "public.api_keys": {
        "key_prefix": "mr_12345",
        "permissions": "{read}",
        "expires_at": "2126-01-01",
    },
}
"""Table -> column -> the value that it needs."""


class Column(NamedTuple):
    """A column as the live catalog has it; without its default for one that is computed.

    Attributes:
        key: whether it is part of the primary key.
        unique: whether it is part of any unique index.
        choice: a value that a check constraint or an enum lists.
    """

    name: str
    type: str
    generated: bool
    key: bool
    unique: bool
    choice: str | None


class ForeignKey(NamedTuple):
    """A foreign key: these columns are those of another table."""

    columns: list[str]
    table: str
    others: list[str]


@dataclass(frozen=True)
class Table:
    """What a row has to fit."""

    columns: list[Column] = field(default_factory=list)
    foreign_keys: list[ForeignKey] = field(default_factory=list)

    @property
    def key(self) -> set[str]:
        """The columns of the primary key."""
        return {column.name for column in self.columns if column.key}


def tables_of(connection: psycopg.Connection) -> dict[str, Table]:
    """Every table, view and the like of public and private, in the order they were made."""
    found: dict[str, Table] = {}
    for table, *column in connection.execute(
        """select c.relnamespace::regnamespace || '.' || c.relname, a.attname,
                  coalesce(nullif(t.typbasetype, 0), t.oid)::regtype::text,
                  a.attgenerated <> '' or a.attidentity <> '',
                  exists (select from pg_index i where i.indrelid = c.oid and i.indisprimary
                          and a.attnum = any(i.indkey)),
                  exists (select from pg_index i where i.indrelid = c.oid and i.indisunique
                          and a.attnum = any(i.indkey)),
                  coalesce(
                    (select enumlabel from pg_enum e where e.enumtypid = t.oid
                     order by enumsortorder limit 1),
                    (select min(substring(pg_get_constraintdef(con.oid) from 'ARRAY\\[''([^'']*)'))
                     from pg_constraint con where con.conrelid = c.oid and con.contype = 'c'
                     and con.conkey = array[a.attnum]))
           from pg_class c join pg_attribute a on a.attrelid = c.oid
           join pg_type t on t.oid = a.atttypid
           where c.relnamespace in ('public'::regnamespace, 'private'::regnamespace)
             and c.relkind in ('r', 'p', 'v', 'm', 'f') and a.attnum > 0 and not a.attisdropped
           order by c.oid, a.attnum"""
    ):
        found.setdefault(table, Table()).columns.append(Column(*column))
    for table, *foreign_key in connection.execute(
        """select c.relnamespace::regnamespace || '.' || c.relname,
                  (select array_agg(a.attname::text order by n)
                   from unnest(con.conkey) with ordinality as k (attnum, n)
                   join pg_attribute a on a.attrelid = con.conrelid and a.attnum = k.attnum),
                  other.relnamespace::regnamespace || '.' || other.relname,
                  (select array_agg(a.attname::text order by n)
                   from unnest(con.confkey) with ordinality as k (attnum, n)
                   join pg_attribute a on a.attrelid = con.confrelid and a.attnum = k.attnum)
           from pg_constraint con join pg_class c on c.oid = con.conrelid
           join pg_class other on other.oid = con.confrelid
           where con.contype = 'f'
             and c.relnamespace in ('public'::regnamespace, 'private'::regnamespace)"""
    ):
        found[table].foreign_keys.append(ForeignKey(*foreign_key))
    return found


def sample_rows(
    tables: Mapping[str, Table],
    name: str,
    given: Mapping[str, Row],
    first: Mapping[str, Row] | None = None,
) -> dict[str, Row]:
    """A whole row of each table.

    Args:
        tables: the tables, each after those that it refers to.
        name: distinguishes these rows from others.
        given: table -> column -> its value, as `GIVEN`, which it goes before.
        first: the rows to refer to, where another row of the table may refer to the same; without
            them, and where it may not, these refer to each other.
    """
    rows: dict[str, Row] = {}
    for table, shape in tables.items():
        row = {column.name: _value(table, column, name) for column in shape.columns}
        for columns, other, others in shape.foreign_keys:
            among = rows if first is None or shape.key <= set(columns) else first
            if referred := among.get(other):
                row |= {mine: referred[its] for mine, its in zip(columns, others, strict=True)}
        rows[table] = {**row, **GIVEN.get(table, {}), **given.get(table, {})}
    return rows


def insert(table: str, row: Row) -> tuple[bytes, list[str | None]]:
    """The query and its values."""
    values = ", ".join("default" if value is None else "%s" for value in row.values())
    given: list[str | None] = [value for value in row.values() if value is not None]
    return f"insert into {table} ({', '.join(row)}) values ({values})".encode(), given


def _value(table: str, column: Column, name: str) -> str | None:
    """A value for what refers to nothing."""
    uid = uuid5(NAMESPACE_OID, f"{table}.{column.name} of {name}")
    number = uid.int % 9_999 + 1 if column.unique else 1
    if column.generated:
        return None
    if column.type.endswith("[]"):
        return f"{{{column.choice or ''}}}"
    return column.choice or {
        "uuid": str(uid),
        "text": name,
        "smallint": str(number),
        "integer": str(number),
        "bigint": str(number),
        "numeric": str(number),
        "double precision": str(number),
        "boolean": "false",
        "jsonb": "{}",
        "inet": "192.0.2.1",
        "date": str(date(2026, 1, 1) - timedelta(days=number)),
        "timestamp with time zone": "2026-01-01",
    }.get(column.type)
