"""What files leave to others, such as partitions that a job makes and drops: it is no drift.

`-- migrate: leave partitions of public.reading: a job makes and drops them`, in the comment before
a statement; what is left may be any object, by the name that the catalog has for it.
"""

import re
from collections.abc import Iterable, Mapping

from migrate.catalog._objects import QUERIES
from migrate.files import PLATFORM, REPEATABLE, VERSIONED, Tree

_LEAVE = re.compile(
    r"^[ \t]*--[ \t]*migrate:[ \t]*leave[ \t]+([^:\n]+?)[ \t]*:[ \t]*\S", re.MULTILINE | re.I
)
"""In the comment before a statement: what is left to others, and why."""

_PARTITIONS = "partitions of "
_KINDS = {_PARTITIONS, "comment on ", "dependence of ", "label of ", "privileges o"} | {
    re.findall("'([a-z -]+)", query.name)[0] for query in QUERIES
}
"""What the name of an object begins with."""

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


def left_by(comment: str) -> list[str]:
    """What the comment before a statement leaves to others: names that an object may have."""
    return [match[1] for match in _LEAVE.finditer(comment) if match[1].startswith(tuple(_KINDS))]


def left_to_others(tree: Tree) -> list[str]:
    """What files leave to others: names, of which each stands in a comment with its reason."""
    return sorted(
        {
            left
            for name in (PLATFORM, VERSIONED, REPEATABLE)
            for file in tree[name]
            if b"leave" in file.content
            for statement in file.script.statements()
            for left in left_by(statement.comment)
        }
    )


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
