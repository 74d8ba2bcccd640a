"""What the parser's nodes tell by themselves: names, types, locks, what is rewritten."""

import re
from collections.abc import Iterator, Mapping
from math import inf
from typing import Any, NamedTuple

from postgast import nodes, walk_typed
from postgast import pg_query_pb2 as postgres

from migrate.forbidden import has_option
from migrate.lint._locks import (
    ACCESS_EXCLUSIVE,
    ALTER_TABLE,
    EXCLUSIVE_OPTIONS,
    SHARE_ROW_EXCLUSIVE,
    SHARE_UPDATE_EXCLUSIVE,
)

SERIAL = re.compile("(big|small)?serial|serial[248]")
_WIDER = {
    "date": {"timestamp", "timestamptz"},
    "float4": {"float8", "numeric"},
    "float8": {"numeric"},
    "int2": {"float4", "float8", "int4", "int8", "numeric"},
    "int4": {"float4", "float8", "int8", "numeric"},
    "int8": {"float4", "float8", "numeric"},
}
_TIMES = {"interval", "time", "timestamp", "timestamptz", "timetz"}
_GROWING = {"numeric", "varbit", "varchar"} | _TIMES
"""Types that store a value in the same way whatever their limit."""
_STORED_ALIKE = {("cidr", "inet"), ("citext", "varchar"), ("varchar", "citext")}
ROUTINES = {postgres.OBJECT_FUNCTION, postgres.OBJECT_PROCEDURE, postgres.OBJECT_ROUTINE}


class Type(NamedTuple):
    """A type by its last name, with what it is limited to, as numeric(10,2)."""

    name: str
    limits: tuple[int, ...]

    def __str__(self) -> str:
        """The type as it is written."""
        return self.name + (f"({','.join(map(str, self.limits))})" if self.limits else "")


def nodes_below(node: Any, *kinds: type) -> Iterator[Any]:
    """The node and all below it that are of these kinds."""
    return (below for _, below in walk_typed(node) if isinstance(below, kinds))


def constant(node: Any) -> str | None:
    """The text of a constant, if it is one."""
    return getattr(getattr(node, "val", None), "sval", None)


def last_name(names: Any) -> str:
    """The name without its schema."""
    return str(getattr(names[-1], "sval", ""))


def schema_of(name: str) -> str:
    """The schema of a name that has one."""
    return name.partition(".")[0]


def is_column(expression: Any, column: str) -> bool:
    """Whether a USING only names the column, casts it, or is not there."""
    if isinstance(expression, nodes.TypeCast):
        expression = expression.arg
    is_name = isinstance(expression, nodes.ColumnRef) and last_name(expression.fields) == column
    return expression is None or is_name


def granted(node: Any, right: str) -> set[str]:
    """The roles that a GRANT or REVOKE of all, or of this right, is about; PUBLIC is one."""
    rights = {given.priv_name for given in node.privileges}
    if rights and right not in rights:
        return set()
    public = postgres.ROLESPEC_PUBLIC
    return {"PUBLIC" if role.roletype == public else role.rolename for role in node.grantees}


def lock_mode(command: Any) -> int | None:
    """The lock of a subcommand of ALTER TABLE; None for one that is not known."""
    effect = ALTER_TABLE.get(postgres.AlterTableType.Name(command.subtype).removeprefix("AT_"))
    definition = command.def_
    if effect is None:
        return None
    if getattr(definition, "contype", None) == postgres.CONSTR_FOREIGN:
        return SHARE_ROW_EXCLUSIVE
    if getattr(definition, "concurrent", False):
        return SHARE_UPDATE_EXCLUSIVE
    options = {option.defname for option in getattr(definition, "items", ())}
    return ACCESS_EXCLUSIVE if options & EXCLUSIVE_OPTIONS else effect.lock


def options_of(definition: Any) -> Mapping[str, bool]:
    """The options of a relation, and whether each is on."""
    return {option.defname: has_option([option], option.defname) for option in definition}


def rewriting(type_: Type, given: Mapping[int, Any]) -> str | None:
    """What about a new column rewrites its table, whatever its default."""
    if SERIAL.fullmatch(type_.name):
        return type_.name
    if postgres.CONSTR_IDENTITY in given:
        return "an identity column"
    if any(constraint.generated_kind == "s" for constraint in given.values()):
        return "a stored generated column"
    return None


def filled_columns(node: Any, column: str | None) -> set[str]:
    """The columns that a constraint keeps from null."""
    if node.contype in (postgres.CONSTR_NOTNULL, postgres.CONSTR_PRIMARY):
        return {column} if column else {key.sval for key in node.keys}
    if node.contype != postgres.CONSTR_CHECK:
        return set()
    conjunction = getattr(node.raw_expr, "boolop", None) == postgres.AND_EXPR
    return {
        last_name(test.arg.fields)
        for test in (node.raw_expr.args if conjunction else [node.raw_expr])
        if isinstance(test, nodes.NullTest)
        and test.nulltesttype == postgres.IS_NOT_NULL
        and isinstance(test.arg, nodes.ColumnRef)
    }


def constraint_name(table: str, column: str, kind: str) -> str:
    """The name that PostgreSQL gives to a constraint without one."""
    return f"{table.partition('.')[2]}_{column}_{kind}"


def type_of(node: Any) -> Type:
    """The type that a column or an argument is given."""
    if node is None:  # a column that only says more of its parent's, or its type's
        return Type("", ())
    limits = tuple(getattr(getattr(limit, "val", None), "ival", 0) for limit in node.typmods)
    return Type(last_name(node.names) + "[]" * len(node.array_bounds), limits)


def type_names(types: Any) -> tuple[str, ...]:
    """The names of types, as they tell functions apart."""
    return tuple(type_of(node).name for node in types)


def _room(type_: Type) -> tuple[float, float]:
    """How much a type holds; of numeric, how much before and after the point."""
    if type_.name == "numeric" and type_.limits:
        precision, scale = (*type_.limits, 0)[:2]
        return precision - scale, scale
    if type_.name in _TIMES:
        return (type_.limits or (6,))[-1], inf
    return type_.limits[0] if type_.limits else inf, inf


def type_rule(old: Type, new: Type) -> str | None:
    """The rule that a change of a column's type breaks; None where all is stored as before."""
    kind, new_kind = (re.sub("^text$", "varchar", type_.name) for type_ in (old, new))
    room, new_room = _room(old), _room(new)
    if kind in _WIDER.get(new_kind, ()):
        return "type-narrowing"
    if kind != new_kind:
        alike = (kind, new_kind) in _STORED_ALIKE and new_room[0] == inf
    elif new_room[0] < room[0] or new_room[1] < room[1]:
        return "type-narrowing"
    else:
        alike = room == new_room or (kind in _GROWING and new_room[1] in (room[1], inf))
    return None if alike else "type-rewrite"
