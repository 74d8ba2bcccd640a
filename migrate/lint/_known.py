"""What the files tell of a database, and how its objects are named."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from migrate.lint._findings import Findings, Place
from migrate.lint._nodes import Type, schema_of, type_names
from migrate.lint._privileges import API_ROLES, BUILT_IN, Default

_OF_CLIENTS = {"cascade", "drop", "rename"}
"""Rules of what hurts whose rows are elsewhere, too."""


@dataclass
class Relation:
    """What the files tell of a table, view or sequence; nothing, where they do not create it.

    Attributes:
        kind: "table", "view", "materialized view", "foreign table" or "sequence".
        new: the pending files create it.
        types: column -> type.
        filled: constraint -> columns that it keeps from null.
        unproved: the same of those that are NOT VALID.
        checks: CHECK constraint -> the columns that it names.
        untested: those of them that are NOT VALID.
        partitioned: it has partitions.
        keys: the columns by which it has.
        default: its default partition.
        open: the pending statement that leaves it without row-level security, or a view with its
            owner's rights.
        exposed: API role -> the pending statement that creates it with a privilege for that role.
    """

    kind: str = "table"
    new: bool = False
    types: dict[str, Type] = field(default_factory=dict)
    filled: dict[str, set[str]] = field(default_factory=dict)
    unproved: dict[str, set[str]] = field(default_factory=dict)
    checks: dict[str, set[str]] = field(default_factory=dict)
    untested: set[str] = field(default_factory=set)
    partitioned: bool = False
    keys: set[str] = field(default_factory=set)
    default: str | None = None
    open: Place | None = None
    exposed: dict[str, Place] = field(default_factory=dict)

    def tested(self, columns: set[str]) -> bool:
        """Whether every row passes a CHECK on these columns; it may imply a partition's bound."""
        return any(
            columns <= named for check, named in self.checks.items() if check not in self.untested
        )


@dataclass
class Function:
    """What the files tell of a function; that it is sound, where they do not create it.

    Attributes:
        new: the pending files create it.
        volatile: what it returns may differ from row to row.
        definer: it is SECURITY DEFINER.
        pinned: its search_path is its own and names pg_temp last, or is of no matter.
        changed: the pending statement that decided these two last.
        exposed: API role -> the pending statement that lets it execute the function.
    """

    new: bool = False
    volatile: bool = True
    definer: bool = False
    pinned: bool = True
    changed: Place | None = None
    exposed: dict[str, Place] = field(default_factory=dict)


class Index(NamedTuple):
    """An index: its table, and the columns that it is on."""

    table: str
    columns: Sequence[str] = ()


@dataclass
class Domain:
    """What the files tell of a domain.

    Attributes:
        base: the type below it.
        constrained: values are tested.
    """

    base: Type
    constrained: bool = False


Routine = tuple[str, tuple[str, ...]]
"""The name of a function, and the types of its arguments."""


class Known(Findings):
    """What the files read so far have made, beside what was found in them.

    Relations and functions have their schema in their names, types have not.
    """

    schema = "public"  # in which an unqualified name is looked up
    utc = False  # the session's time zone is UTC

    def __init__(self) -> None:
        self.relations: dict[str, Relation] = {}
        self.functions: dict[Routine, Function] = {}
        self.domains: dict[str, Domain] = {}
        self.indexes: dict[str, Index] = {}  # by their last name
        self.defaults = set(BUILT_IN)
        self.start_pending()

    def start_pending(self, defaults: Collection[Default] | None = None) -> None:
        """What was read so far is applied, and not judged.

        Args:
            defaults: the default privileges that the database has, which may be others than the
                files give.
        """
        super().__init__()
        self.defaults = self.defaults if defaults is None else set(defaults)
        self.dropped: dict[str, tuple[str, Place]] = {}
        self.forget_new()
        for relation in self.relations.values():
            relation.open, relation.exposed = None, {}
        for function in self.functions.values():
            function.changed, function.exposed = None, {}

    def forget_new(self) -> None:
        """What was made so far is no longer new: it holds rows, and is in use."""
        self.new_indexes: set[str] = set()
        self.new_schemas: set[str] = set()
        self.new_types: set[str] = set()
        for relation in self.relations.values():
            relation.new = False
        for function in self.functions.values():
            function.new = False

    def begin(self) -> None:
        """A transaction begins."""
        super().begin()
        self.new_enums: set[str] = set()
        self.new_values: dict[str, str] = {}

    def hurt(self, name: str, rule: str, *words: object) -> None:
        """Find what hurts a relation that was there before; a foreign table holds no rows here."""
        relation = self.known(name)
        rows_elsewhere = relation.kind == "foreign table" and rule not in _OF_CLIENTS
        if not (relation.new or rows_elsewhere):
            self.find(rule, *words)

    def hold(self, table: str, lock: int) -> None:
        """The transaction holds a lock on a table from here to its end; on a new one it may."""
        if not self.known(table).new:
            super().hold(table, lock)

    def work(self, table: str) -> None:
        """The statement goes through a table; a new one is done soon."""
        if not self.known(table).new:
            super().work(table)

    def full(self, schema: str | None, name: str) -> str:
        """A name with its schema: where it would be found, unless that is given."""
        if not schema and f"pg_temp.{name}" in self.relations:
            schema = "pg_temp"
        return f"{schema or self.schema}.{name}"

    def relation(self, node: Any) -> str:
        """The name of a relation."""
        return self.full(node.schemaname, node.relname)

    def dotted(self, parts: Any) -> str:
        """The name that these parts make."""
        *schema, name = (getattr(part, "sval", "") for part in parts)
        return self.full(schema[-1] if schema else None, name)

    def known(self, name: str) -> Relation:
        """What is known of a relation."""
        return self.relations.setdefault(name, Relation())

    def routines(self, node: Any) -> list[Routine]:
        """What a name with argument types means, however the types are written."""
        key = self.dotted(node.objname), type_names(node.objargs)
        same = [other for other in self.functions if other[0] == key[0]]
        if key not in self.functions and same and (node.args_unspecified or len(same) == 1):
            return same
        self.functions.setdefault(key, Function())
        return [key]

    def columns_of(self, type_: str) -> list[str]:
        """The columns that the files give a type."""
        return [
            f"{name}.{column}"
            for name, relation in self.relations.items()
            for column, each in relation.types.items()
            if each.name.removesuffix("[]") == type_
        ]

    def is_new(self, kind: str, name: str) -> bool:
        """Whether the pending files create the object; by its kind, as KINDS has it."""
        if kind in ("TYPE", "DOMAIN"):
            return name in self.new_types
        if kind == "SCHEMA":
            return name in self.new_schemas
        if kind == "INDEX":
            return name.partition(".")[2] in self.new_indexes
        if kind in ("FUNCTION", "PROCEDURE", "ROUTINE", "AGGREGATE"):
            return any(key[0] == name and made.new for key, made in self.functions.items())
        return self.known(name).new

    def make(self, node: Any, kind: str = "table", *, replace: bool = False) -> Relation | None:
        """Note a new relation, unless it may be there already."""
        temporary = node.relpersistence == "t"
        name = self.full("pg_temp" if temporary else node.schemaname, node.relname)
        if replace and name in self.relations:
            return None
        made = Relation(kind, new=True)
        if kind in ("table", "view") and not temporary:
            made.open = self.place
        if kind in ("foreign table", "materialized view"):
            made.exposed = self.exposed_by_default("tables", schema_of(name))
        self.relations[name] = made
        self.dropped.pop(name, None)
        return made

    def exposed_by_default(self, kind: str, schema: str) -> dict[str, Place]:
        """API role -> here, for those to which default privileges give what is new here."""
        return {
            role: self.place
            for within, what, role in self.defaults
            if what == kind and within in (None, schema) and role in API_ROLES
        }
