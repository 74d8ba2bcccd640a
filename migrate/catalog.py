"""The live catalog as a map of object -> definition, to compare and to fingerprint.

It covers the schemas that belong to the role that owns the ledger, and `public`; and of what lies
in no schema, what belongs to that role.  Left out are what an extension brought, and the privileges
of roles that can log in, which belong to whoever manages the accounts.  The owner of the ledger
appears as `us`, so that two databases made by different roles compare equal.

It is the same whatever session, role and database are set to, and on every supported version.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping

from migrate import ledger
from migrate.connection import Connection, translated_errors
from migrate.errors import Difference
from migrate.files import PLATFORM, REPEATABLE, VERSIONED, Tree
from migrate.objects import QUERIES, SQL

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

_WITHOUT_PREFIX = 160000
"""The first server version whose texts of views are taken as they are."""

LEAVE = re.compile(
    r"^[ \t]*--[ \t]*migrate:[ \t]*leave[ \t]+([^:\n]+?)[ \t]*:[ \t]*\S", re.MULTILINE | re.I
)
"""In the comment before a statement: what is left to others, and why."""

_PARTITIONS = "partitions of "
_KINDS = {_PARTITIONS, "comment on ", "dependence of ", "label of ", "privileges o"} | {
    re.findall("'([a-z -]+)", query.name)[0] for query in QUERIES
}
"""What the name of an object begins with."""

_ORDER = "column order of "
_VERSION = "version of extension "
_SETTING = re.compile(r"setting (\S+) of the database")

_COLUMN = r"\.(?:\"(?:[^\"]|\"\")+\"|[^\".]+)"
_PARTITION = re.compile(r"table (.+?): kind .*, partition of (.+?)(?: \(detaching\))?, .*")
_OF_TABLE = re.compile(
    rf"table (?P<table>.+?)(?: in publication .+)?|column (?P<column>.+){_COLUMN}"
    r"|column order of (?P<order>.+)"
    r"|(?:(?:triggers of )?constraint|policy|trigger|rule) .+ on (?P<on>.+)"
)
_INDEX = re.compile(r"valid \w: CREATE .+? ON (?:ONLY )?(.+?) USING .*", re.DOTALL)
_SEQUENCE = re.compile(rf"owner .*, of column (.+){_COLUMN}")
_STATISTICS = re.compile(r"CREATE STATISTICS .+ FROM (.+), owner .*", re.DOTALL)
_DERIVED = re.compile(
    r"(?:comment|privileges of .+?|label of .+?) on (?P<any>.+)"
    r"|dependence of (?P<dependent>.+) on extension .+"
    r"|version of (?P<extension>.+) on PostgreSQL \d+"
    r"|privileges on .+ of (?P<brought>extension .+)"
)


@translated_errors()
def read(connection: Connection, leave: Iterable[str] | None = None) -> dict[str, str]:
    """Object -> definition of everything that is ours, in one query.

    The ledger's owner tells what is ours; where there is no ledger, the session's role.

    Args:
        connection: in a transaction or not.
        leave: what to leave out, from `left`; None for what the last run left out.
    """
    if leave is None:
        recorded = ledger.recorded_catalog(connection)
        leave = recorded.leave if recorded else ()
    with connection.transaction(force_rollback=True):  # takes the settings back, too
        for name, value in (_SETTINGS | _PLANNING).items():
            connection.execute("select set_config(%s, %s, true)", [name, value])
        objects: dict[str, str] = dict(sorted(connection.execute(SQL)))
    if connection.info.server_version < _WITHOUT_PREFIX:
        from migrate.views import unprefixed  # 0.1 s

        for name, definition in objects.items():
            if name.startswith("view "):
                before, colon, text = definition.partition(": ")
                objects[name] = before + colon + unprefixed(text)
    return without(objects, leave)


def left(tree: Tree) -> list[str]:
    """What files leave to others: names, of which each stands in a comment with its reason.

    `-- migrate: leave partitions of public.reading: a job makes and drops them`; what is left may
    be any object, by the name that `read` has for it.
    """
    return sorted(
        {
            match[1]
            for name in (PLATFORM, VERSIONED, REPEATABLE)
            for file in tree[name]
            if b"leave" in file.content
            for statement in file.script.statements()
            for match in LEAVE.finditer(statement.comment)
        }
    )


def is_name(text: str) -> bool:
    """Whether it may be the name of an object, or of what may be left to others."""
    return text.startswith(tuple(_KINDS))


def without(objects: Mapping[str, str], leave: Iterable[str]) -> dict[str, str]:
    """A catalog without what is left to others, and what comes and goes with that."""
    gone = set(leave)
    if not gone:
        return dict(objects)
    parents = {name.removeprefix(_PARTITIONS) for name in gone if name.startswith(_PARTITIONS)}
    tables = {name.removeprefix("table ") for name in gone if name.startswith("table ")}
    partitions = [
        (match[1], match[2])
        for name, definition in objects.items()
        if (match := _PARTITION.fullmatch(f"{name}: {definition}"))
    ]
    while found := {table for table, parent in partitions if parent in parents} - parents:
        parents |= found
        tables |= found
    gone |= {name for name, definition in objects.items() if _table(name, definition) in tables}

    def is_gone(name: str | None) -> bool:
        return name is not None and (name in gone or _table(name, "") in tables)

    return {
        name: definition
        for name, definition in objects.items()
        if name not in gone
        and not ((match := _DERIVED.fullmatch(name)) and any(map(is_gone, match.groups())))
    }


def _table(name: str, definition: str) -> str | None:
    """The table that an object belongs to."""
    match = _OF_TABLE.fullmatch(name)
    if match is None:
        kinds = {"index": _INDEX, "sequence": _SEQUENCE, "statistics": _STATISTICS}
        kind = kinds.get(name.partition(" ")[0])
        match = kind and kind.fullmatch(definition)
    return match and next(filter(None, match.groups()))


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


def object_digests(objects: Mapping[str, str]) -> dict[str, str]:
    """Object -> a short digest of its definition."""
    return {name: hashlib.sha256(text.encode()).hexdigest()[:12] for name, text in objects.items()}


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
