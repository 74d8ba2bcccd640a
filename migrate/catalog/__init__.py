"""The live catalog as a map of object -> definition, to compare and to fingerprint.

It covers the schemas that belong to the role that owns the ledger, and `public`; and of what lies
in no schema, what belongs to that role.  Left out are what an extension brought, and the privileges
of roles that can log in, which belong to whoever manages the accounts.  The owner of the ledger
appears as `us`, so that two databases made by different roles compare equal.

It is the same whatever session, role and database are set to, and on every supported version.
"""

import re
from collections.abc import Iterable, Mapping

from psycopg.types.json import Jsonb

from migrate import ledger
from migrate.catalog._leave import left_by, left_to_others, without
from migrate.catalog._objects import SQL
from migrate.errors import Difference
from migrate.session import Connection, translated_errors

_SETTINGS = {
    "search_path": "pg_catalog, pg_temp",
    "timezone": "UTC",
    "datestyle": "ISO, YMD",
    "intervalstyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "lc_monetary": "C",
    "quote_all_identifiers": "off",
    "standard_conforming_strings": "on",
}
"""Under which the catalog is read: what decides how names and values are written."""

_OF_CLIENTS = {
    "client_encoding",
    "client_min_messages",
    "lc_messages",
    "lc_numeric",
    "lc_time",
    "xmlbinary",
}
"""Further settings that decide what clients are told, and nothing in the database."""

_PLANNING = {
    "statement_timeout": "60s",
    "join_collapse_limit": "1",  # for plans as they are written, which takes a third of the time
    "from_collapse_limit": "1",
    "jit": "off",
}
"""And what decides how long it takes."""

__all__ = ["differences", "left_by", "left_to_others", "portable", "read", "without"]

_WITHOUT_PREFIX = 160000
"""The first server version whose texts of views are taken as they are."""

_ORDER = "column order of "
_VERSION = "version of extension "
_SETTING = re.compile(r"setting (\S+) of the database")


@translated_errors()
def read(connection: Connection, leave: Iterable[str] | None = None) -> dict[str, str]:
    """Object -> definition of everything that is ours.

    The ledger's owner tells what is ours; where there is no ledger, the session's role.

    Args:
        connection: in a transaction or not.
        leave: what to leave out, from `left_to_others`; None for what the last run left out.
    """
    if leave is None:
        recorded = ledger.recorded_catalog(connection)
        leave = recorded.leave if recorded else ()
    with connection.transaction(force_rollback=True):  # takes the settings back, too
        connection.execute(
            "select set_config(key, value, true) from jsonb_each_text(%s)",
            [Jsonb(_SETTINGS | _PLANNING)],
        )
        objects: dict[str, str] = dict(sorted(connection.execute(SQL)))
    if connection.info.server_version < _WITHOUT_PREFIX:
        from migrate.catalog._views import unprefixed  # 0.1 s

        for name, definition in objects.items():
            if name.startswith("view "):
                before, colon, text = definition.partition(": ")
                objects[name] = before + colon + unprefixed(text)
    return without(objects, leave)


def portable(objects: Mapping[str, str]) -> dict[str, str]:
    """What is the same in every database that the same files have made.

    Left out is how a database writes values, as a restored one may do otherwise, and the versions
    of its extensions, which a server brings.
    """
    return {
        name: definition
        for name, definition in objects.items()
        if not name.startswith(_VERSION)
        and not ((match := _SETTING.fullmatch(name)) and _only_writes(match[1]))
    }


def _only_writes(setting: str) -> bool:
    """Whether a setting decides only how values are written, or what clients are told."""
    return setting.lower() in _SETTINGS.keys() | _OF_CLIENTS


def differences(expected: Mapping[str, str], found: Mapping[str, str]) -> list[Difference]:
    """Every object that differs, by name."""
    return [
        Difference(name, expected.get(name), found.get(name))
        for name in sorted(expected.keys() | found.keys())
        if expected.get(name) != found.get(name)
        and _matters(name, expected.get(name), found.get(name))
    ]


def _matters(name: str, expected: str | None, found: str | None) -> bool:
    """Whether a difference is one, or follows from another, or is nobody's doing."""
    if name.startswith(_ORDER):  # a column more or less is told of by itself
        if expected is None or found is None:
            return False
        columns, others = expected.split(", "), found.split(", ")
        return [c for c in columns if c in others] != [c for c in others if c in columns]
    if name.startswith(_VERSION):  # on another major version it is another
        return expected is not None and found is not None
    if expected is None and (match := _SETTING.fullmatch(name)):
        return not _only_writes(match[1])
    return True
