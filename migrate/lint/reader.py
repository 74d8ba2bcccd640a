"""Reading files in their order, to know what they made and what they hurt."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from postgast import nodes
from postgast import pg_query_pb2 as postgres

from migrate.files import File
from migrate.lint.findings import Findings, Place
from migrate.lint.locks import (
    ACCESS_EXCLUSIVE,
    ALTER_TABLE,
    HARMLESS,
    HINDERS,
    KINDS,
    LOCKS,
    SHARE,
    SHARE_ROW_EXCLUSIVE,
    VOLATILE,
    Kind,
)
from migrate.lint.nodes import (
    ROUTINES,
    SERIAL,
    Type,
    constant,
    constraint_name,
    filled_columns,
    granted,
    is_column,
    last_name,
    lock_mode,
    nodes_below,
    options_of,
    rewriting,
    schema_of,
    type_names,
    type_of,
    type_rule,
)
from migrate.lint.privileges import API_ROLES, BUILT_IN, EVERYBODY, Default
from migrate.parser import has_option

_BULK = re.compile(r"comment\b|insert\s+into\s+\S+\s*(\([^)]*\)\s*)?values\b", re.IGNORECASE)
"""What nothing is found in, unless it uses a new value of an enum; a file may hold millions."""
_DATA = re.compile(r"(delete|insert|merge|select|update|with)\b", re.IGNORECASE)
_LONGEST_DATA = 10_000

_CASCADE = postgres.DROP_CASCADE
_RESULTS = {postgres.FUNC_PARAM_OUT, postgres.FUNC_PARAM_TABLE}
_UNCALLABLE = {"trigger", "event_trigger"}
_PINNED = ["pg_catalog", "pg_temp"]
_SECURES = re.compile(r"enable\s+row\s+level\s+security", re.IGNORECASE)
_REVOKES = re.compile(
    r"revoke\b[^;]*\bon\s+(all\s+)?(function|procedure|routine)[^;]*\bfrom\b[^;]*\bpublic\b",
    re.IGNORECASE,
)


@dataclass
class _Relation:
    """What the files tell of a table, view or sequence; nothing, where they do not create it.

    Attributes:
        kind: "table", "view", "materialized view", "foreign table" or "sequence".
        new: the pending files create it.
        types: column -> type.
        filled: constraint -> columns that it keeps from null.
        unproved: the same of those that are NOT VALID.
        checks: CHECK constraints that every row passes.
        partitioned: it has partitions.
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
    checks: set[str] = field(default_factory=set)
    partitioned: bool = False
    default: str | None = None
    open: Place | None = None
    exposed: dict[str, Place] = field(default_factory=dict)


@dataclass
class _Function:
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


@dataclass
class _Domain:
    """What the files tell of a domain.

    Attributes:
        base: the type below it.
        constrained: values are tested.
    """

    base: Type
    constrained: bool = False


_Routine = tuple[str, tuple[str, ...]]
"""The name of a function, and the types of its arguments."""


class Reader(Findings):
    """Reads files in their order, knows what they have made, and collects what hurts.

    Relations and functions have their schema in their names, types have not.
    """

    def __init__(self) -> None:
        self.relations: dict[str, _Relation] = {}
        self.functions: dict[_Routine, _Function] = {}
        self.domains: dict[str, _Domain] = {}
        self.indexes: dict[str, str] = {}  # by their last name, and their tables
        self.defaults: set[Default] = set(BUILT_IN)
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
        self.age()
        for relation in self.relations.values():
            relation.open, relation.exposed = None, {}
        for function in self.functions.values():
            function.changed, function.exposed = None, {}

    def age(self) -> None:
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

    def read(self, file: File) -> None:
        """Take in the next file.

        Raises:
            FilesError: the parser refuses it.
        """
        self.schema, self.utc = "public", False
        transactional = file.script.transactional
        self.begin()
        for statement in file.script.statements():
            self.enter(file, statement)
            if self._matters(statement.text):
                node = statement.node
                self._check_values(node)
                self._visit(node)
            if not transactional:
                self.begin()
        self.leave()

    def _matters(self, text: str) -> bool:
        if _BULK.match(text):
            return any(f"'{value}'" in text for value in self.new_values)
        return len(text) <= _LONGEST_DATA or not _DATA.match(text)

    def finish(self) -> None:
        """Judge what the files leave behind."""
        for name, relation in self.relations.items():
            if relation.open:
                rule = "view-security" if relation.kind == "view" else "no-row-security"
                self.find(rule, name, place=relation.open)
            for role, place in relation.exposed.items():
                self.find("default-privileges", role, name, place=place)
        for (name, types), function in self.functions.items():
            title = f"{name}({', '.join(types)})"
            if function.definer and not function.pinned and function.changed:
                self.find("search-path", title, place=function.changed)
            for place in dict.fromkeys(function.exposed.values()):
                roles = [role for role, where in function.exposed.items() if where is place]
                by_name = " and ".join(sorted(set(roles) - {EVERYBODY}))
                told = " and ".join(
                    [f"{EVERYBODY}, which is every role,"] * (EVERYBODY in roles)
                    + [f"{by_name}, by default privileges,"] * bool(by_name)
                )
                self.find("public-execute", told, title, place=place)
        for name, (kind, place) in self.dropped.items():
            self.find("drop", f"the {kind} {name}", place=place)
        super().finish()

    def _hurt(self, name: str, rule: str, *words: object) -> None:
        """Find what hurts a relation that was there before."""
        if not self._known(name).new:
            self.find(rule, *words)

    def hold(self, table: str, lock: int) -> None:
        """The transaction holds a lock on a table from here to its end; on a new one it may."""
        if not self._known(table).new:
            super().hold(table, lock)

    def work(self, table: str) -> None:
        """The statement goes through a table; a new one is done soon."""
        if not self._known(table).new:
            super().work(table)

    # --- names ---------------------------------------------------------------------------------

    def _full(self, schema: str | None, name: str) -> str:
        if not schema and f"pg_temp.{name}" in self.relations:
            schema = "pg_temp"
        return f"{schema or self.schema}.{name}"

    def _relation(self, node: Any) -> str:
        return self._full(node.schemaname, node.relname)

    def _dotted(self, parts: Any) -> str:
        *schema, name = (part.sval for part in parts)
        return self._full(schema[-1] if schema else None, name)

    def _known(self, name: str) -> _Relation:
        return self.relations.setdefault(name, _Relation())

    def _routines(self, node: Any) -> list[_Routine]:
        """What a name with argument types means, however the types are written."""
        key = self._dotted(node.objname), type_names(node.objargs)
        same = [other for other in self.functions if other[0] == key[0]]
        if key not in self.functions and same and (node.args_unspecified or len(same) == 1):
            return same
        self.functions.setdefault(key, _Function())
        return [key]

    def _columns_of(self, type_: str) -> list[str]:
        """The columns that the files give a type."""
        return [
            f"{name}.{column}"
            for name, relation in self.relations.items()
            for column, each in relation.types.items()
            if each.name.removesuffix("[]") == type_
        ]

    def _is_new(self, kind: str, name: str) -> bool:
        if kind in ("TYPE", "DOMAIN"):
            return name in self.new_types
        if kind == "SCHEMA":
            return name in self.new_schemas
        if kind == "INDEX":
            return name.partition(".")[2] in self.new_indexes
        if kind in ("FUNCTION", "PROCEDURE", "ROUTINE", "AGGREGATE"):
            return any(key[0] == name and made.new for key, made in self.functions.items())
        return self._known(name).new

    # --- statements ----------------------------------------------------------------------------

    def _visit(self, node: Any) -> None:
        kind = type(node).__name__
        if kind in LOCKS:
            named, lock = LOCKS[kind]
            self.hold(self._relation(getattr(node, named)), lock)
        elif visit := _VISITS.get(type(node)):
            visit(self, node)
        elif kind not in HARMLESS:
            self.find("unknown-statement", kind.removesuffix("Stmt"))

    def _kind(self, number: int) -> tuple[str, Kind]:
        """A kind of object, and what is known of it."""
        kind = postgres.ObjectType.Name(number).removeprefix("OBJECT_")
        if kind not in KINDS:
            self.find("unknown-statement", kind.lower().replace("_", " "))
        return kind, KINDS.get(kind, Kind(kind.lower()))

    def _make(self, node: Any, kind: str = "table", *, replace: bool = False) -> _Relation | None:
        """Note a new relation, unless it may be there already."""
        temporary = node.relpersistence == "t"
        name = self._full("pg_temp" if temporary else node.schemaname, node.relname)
        if replace and name in self.relations:
            return None
        made = _Relation(kind, new=True)
        if kind in ("table", "view") and not temporary:
            made.open = self.place
        if kind in ("foreign table", "materialized view"):
            made.exposed = self._exposed("tables", schema_of(name))
        self.relations[name] = made
        self.dropped.pop(name, None)
        return made

    def _exposed(self, kind: str, schema: str) -> dict[str, Place]:
        """API role -> here, for those to which default privileges give what is new here."""
        return {
            role: self.place
            for within, what, role in self.defaults
            if what == kind and within in (None, schema) and role in API_ROLES
        }

    def _create_table(self, node: Any, kind: str = "table") -> None:
        made = self._make(node.relation, kind, replace=node.if_not_exists)
        if made is None:
            return
        name = self._relation(node.relation)
        made.partitioned = node.partspec is not None
        if node.partbound is not None:
            parent = self._relation(node.inh_relations[0])
            made.types = dict(self._known(parent).types)
            self.hold(parent, ACCESS_EXCLUSIVE)
            self._bound(parent, name, node.partbound)
        for element in node.table_elts:
            if isinstance(element, nodes.ColumnDef):
                self._add_column(name, element)
            elif isinstance(element, nodes.Constraint):
                self._add_constraint(name, element)

    def _create_foreign_table(self, node: Any) -> None:
        self._create_table(node.base_stmt, "foreign table")

    def _create_table_as(self, node: Any) -> None:
        matview = node.objtype == postgres.OBJECT_MATVIEW
        kind = "materialized view" if matview else "table"
        self._make(node.into.rel, kind, replace=node.if_not_exists)
        if not node.into.skip_data:
            self._read_through(node.query)

    def _create_view(self, node: Any) -> None:
        name = self._relation(node.view)
        view = self._make(node.view, "view", replace=node.replace)
        if view is None:
            view = self._known(name)
            view.kind, view.open = "view", self.place
            self.hold(name, ACCESS_EXCLUSIVE)
        if options_of(node.options).get("security_invoker"):
            view.open = None

    def _create_sequence(self, node: Any) -> None:
        self._make(node.sequence, "sequence", replace=node.if_not_exists)

    def _refresh(self, node: Any) -> None:
        name = self._relation(node.relation)
        if not node.concurrent:
            self.hold(name, ACCESS_EXCLUSIVE)
        if not (node.concurrent or node.skip_data):
            self._hurt(name, "refresh", name)

    def _alter_table(self, node: Any) -> None:
        if node.objtype == postgres.OBJECT_TYPE:
            self._alter_composite(node)
            return
        name = self._relation(node.relation)
        if node.objtype == postgres.OBJECT_INDEX:
            name = self.indexes.get(node.relation.relname, name)
        relation = self._known(name)
        # PostgreSQL, too, drops constraints first.
        for command in sorted(node.cmds, key=lambda c: c.subtype != postgres.AT_DropConstraint):
            kind = postgres.AlterTableType.Name(command.subtype).removeprefix("AT_")
            lock = lock_mode(command)
            if lock is None:
                self.find("unknown-statement", f"ALTER TABLE ({kind})")
                continue
            effect = ALTER_TABLE[kind]
            self.hold(name, lock)
            if effect.rule and lock == effect.lock:
                what = f"{name}.{command.name}" if command.name else name
                title = f"{effect.title} of {what}" if effect.title else what
                self._hurt(name, effect.rule, title)
            if kind == "DropColumn" and command.behavior == _CASCADE:
                self._hurt(name, "cascade", f"{name}.{command.name}")
            match kind:
                case "AddColumn":
                    self._add_column(name, command.def_)
                case "DropColumn":
                    relation.types.pop(command.name, None)
                    self._hurt(name, "drop", f"{name}.{command.name}")
                case "AlterColumnType":
                    self._change_type(name, command.name, command.def_)
                case "SetNotNull":
                    self._set_not_null(name, command.name)
                case "DropNotNull":
                    relation.filled.pop(constraint_name(name, command.name, "not_null"), None)
                case "AddConstraint":
                    self._add_constraint(name, command.def_)
                case "DropConstraint":
                    relation.filled.pop(command.name, None)
                    relation.checks.discard(command.name)
                case "ValidateConstraint":
                    relation.checks.add(command.name)
                    relation.filled[command.name] = relation.unproved.pop(command.name, set())
                    self.work(name)
                case "EnableRowSecurity":
                    relation.open = None
                case "DisableRowSecurity":
                    relation.open = self.place
                case "SetRelOptions" | "ResetRelOptions":
                    options = options_of(command.def_.items)
                    if node.objtype == postgres.OBJECT_VIEW and "security_invoker" in options:
                        invoker = kind == "SetRelOptions" and options["security_invoker"]
                        relation.kind, relation.open = "view", None if invoker else self.place
                case "AttachPartition" if node.objtype == postgres.OBJECT_TABLE:
                    child = self._relation(command.def_.name)
                    self.hold(child, ACCESS_EXCLUSIVE)
                    if not self._known(child).checks:
                        self._hurt(child, "attach-partition", child)
                    self._bound(name, child, command.def_.bound)

    def _bound(self, parent: str, child: str, bound: Any) -> None:
        """A partition comes to its parent, and what the default one holds may not belong there."""
        relation = self._known(parent)
        relation.partitioned = True
        if bound.is_default:
            relation.default = child
        elif relation.default:
            self.hold(relation.default, ACCESS_EXCLUSIVE)
            if not self._known(relation.default).checks:
                self._hurt(relation.default, "attach-partition", relation.default)

    def _alter_composite(self, node: Any) -> None:
        name = node.relation.relname
        if name in self.new_types:
            return
        for command in node.cmds:
            if command.subtype == postgres.AT_DropColumn:
                self.find("drop", f"{name}.{command.name}")
            elif command.subtype == postgres.AT_AlterColumnType and command.behavior == _CASCADE:
                self.find("type-rewrite", f"{name}.{command.name} in every table of this type")

    def _add_column(self, name: str, node: Any) -> None:
        column, type_ = f"{name}.{node.colname}", type_of(node.type_name)
        if type_.name:
            self._known(name).types[node.colname] = type_
        given = {constraint.contype: constraint for constraint in node.constraints}
        default = given.get(postgres.CONSTR_DEFAULT)
        domain = self.domains.get(type_.name)
        why = rewriting(type_, given) or (default and self._volatile(default.raw_expr))
        if domain and domain.constrained:
            why = why or f"every value of {type_} is tested"
        if why:
            self._hurt(name, "column-rewrite", f"adding {column} ({why})")
        filled = (
            SERIAL.fullmatch(type_.name)
            or given.keys() & {postgres.CONSTR_GENERATED, postgres.CONSTR_IDENTITY}
            or (default and not getattr(default.raw_expr, "isnull", False))
        )
        if given.keys() & {postgres.CONSTR_NOTNULL, postgres.CONSTR_PRIMARY} and not filled:
            self._hurt(name, "not-null-without-default", column)
        for constraint in given.values():
            self._add_constraint(name, constraint, node.colname, all_null=not filled)

    def _volatile(self, expression: Any) -> str | None:
        """Why a default differs from row to row; None where it does not."""
        for call in nodes_below(expression, nodes.FuncCall):
            name = self._dotted(call.funcname)
            known = [made for key, made in self.functions.items() if key[0] == name]
            if any(made.volatile for made in known) or (
                not known and last_name(call.funcname) in VOLATILE
            ):
                return "its default is volatile"
            if not known and len(call.funcname) > 1 and schema_of(name) != "pg_catalog":
                return f"its default is volatile, unless {name}() is not"
        return None

    def _add_constraint(
        self, name: str, node: Any, column: str | None = None, all_null: bool = False
    ) -> None:
        title = f"{f'constraint {node.conname}' if node.conname else 'a constraint'} of {name}"
        relation = self._known(name)
        match node.contype:
            case postgres.CONSTR_CHECK if not node.skip_validation:
                self._hurt(name, "constraint-scan", title, "read or write the table")
                relation.checks.add(node.conname or title)
            case postgres.CONSTR_FOREIGN:
                if not relation.new:
                    self.hold(self._relation(node.pktable), SHARE_ROW_EXCLUSIVE)
                if node.skip_validation and relation.partitioned:
                    self.find("partitioned", "a foreign key NOT VALID (before version 18)", name)
                elif not (node.skip_validation or all_null):
                    tables = "write to it or to the referenced table"
                    self._hurt(name, "constraint-scan", title, tables)
            case postgres.CONSTR_EXCLUSION | postgres.CONSTR_PRIMARY | postgres.CONSTR_UNIQUE:
                if node.indexname and relation.partitioned:
                    self.find("partitioned", "a constraint USING INDEX", name)
                elif not node.indexname:
                    self._hurt(name, "constraint-index", title)
            case postgres.CONSTR_NOTNULL if column is None and not node.skip_validation:
                self._set_not_null(name, node.keys[0].sval)
        if filled := filled_columns(node, column):
            kind = "check" if node.contype == postgres.CONSTR_CHECK else "not_null"
            constraint = node.conname or constraint_name(name, min(filled), kind)
            if node.contype == postgres.CONSTR_PRIMARY:  # without it they still are NOT NULL
                constraint = constraint_name(name, min(filled), kind)
            (relation.unproved if node.skip_validation else relation.filled)[constraint] = filled

    def _set_not_null(self, name: str, column: str) -> None:
        filled = self._known(name).filled
        if not any(column in columns for columns in filled.values()):
            self._hurt(name, "set-not-null", f"{name}.{column}")
        filled[constraint_name(name, column, "not_null")] = {column}

    def _change_type(self, name: str, column: str, node: Any) -> None:
        types, new = self._known(name).types, type_of(node.type_name)
        old = types.get(column)
        types[column] = new
        bare_old, bare_new = self._base(old), self._base(new)
        rule, doubt = type_rule(bare_old or bare_new, bare_new), ""
        if not is_column(node.raw_default, column):
            rule = rule or "type-rewrite"
        elif old is None:
            rule, doubt = "type-rewrite", " (unless the old type is stored alike)"
        elif new.name in self.domains and self.domains[new.name].constrained and old != new:
            rule = rule or "type-rewrite"
        elif {bare_old.name, bare_new.name} == {"timestamp", "timestamptz"}:
            rule, doubt = None if self.utc else rule, " (unless TimeZone is UTC)"
        if rule:
            change = f"{f'from {old} ' if old else ''}to {new}{doubt}"
            self._hurt(name, rule, f"{name}.{column} {change}")

    def _base(self, type_: Type | None) -> Any:
        """The type below a domain, and below that."""
        while type_ and type_.name in self.domains:
            type_ = self.domains[type_.name].base
        return type_

    def _name_of(self, kind: str, node: Any) -> str:
        """The name of an object of this kind, as DROP and ALTER have it."""
        if hasattr(node, "items"):
            return self._dotted(node.items)
        if hasattr(node, "objname"):
            return self._dotted(node.objname)
        if kind in ("TYPE", "DOMAIN"):
            return last_name(node.names)
        return str(getattr(node, "sval", ""))

    def _rename(self, node: Any) -> None:
        kind, known = self._kind(node.rename_type)
        if known.locked == "itself":
            self._move(node.relation, node.relation.schemaname, node.newname)
        elif known.locked == "its table" and kind != "INDEX":
            name = self._relation(node.relation)
            self.hold(name, ACCESS_EXCLUSIVE)
            if kind == "COLUMN":
                types = self._known(name).types
                if node.subname in types:
                    types[node.newname] = types.pop(node.subname)
                self._hurt(name, "rename", f"{name}.{node.subname}")
        elif kind == "ATTRIBUTE":
            if node.relation.relname not in self.new_types:
                self.find("rename", f"{node.relation.relname}.{node.subname}")
        elif known.named and kind not in ("ROLE", "DATABASE"):
            name = node.subname if kind == "SCHEMA" else self._name_of(kind, node.object)
            if not self._is_new(kind, name):
                self.find("rename", f"{known.title} {name}")
            if node.rename_type in ROUTINES:
                self._forget(node.object)

    def _set_schema(self, node: Any) -> None:
        kind, known = self._kind(node.object_type)
        if known.locked == "itself":
            self._move(node.relation, node.newschema, node.relation.relname)
        elif known.named:
            name = self._name_of(kind, node.object)
            if not self._is_new(kind, name):
                self.find("rename", f"{known.title} {name}")
            if node.object_type in ROUTINES:
                self._forget(node.object)

    def _move(self, relation: Any, schema: str | None, name: str) -> None:
        old = self._relation(relation)
        self._hurt(old, "rename", old)
        self.hold(old, ACCESS_EXCLUSIVE)
        self.relations[self._full(schema, name)] = self.relations.pop(old)

    def _drop(self, node: Any) -> None:
        kind, known = self._kind(node.remove_type)
        for item in node.objects:
            name = self._name_of(kind, item)
            new = known.locked != "its table" and self._is_new(kind, name)
            if kind == "INDEX":
                self._drop_index(node, last_name(item.items), name)
            elif kind == "SCHEMA":
                if not new:
                    self.find("drop", f"schema {name}")
                continue
            elif known.locked == "itself":
                self.hold(name, ACCESS_EXCLUSIVE)
                if kind in ("VIEW", "FOREIGN_TABLE"):  # no data, and often made anew
                    self.dropped |= {} if new else {name: (known.title, self.place)}
                else:
                    self._hurt(name, "drop", name)
                del self.relations[name]
            elif known.locked == "its table":
                self.hold(self._dotted(item.items[:-1]), ACCESS_EXCLUSIVE)
            if node.behavior == _CASCADE and not new:
                columns = self._columns_of(name) if kind in ("TYPE", "DOMAIN") else []
                which = f" (as {', '.join(columns)})" if columns else ""
                self.find("cascade", f"{known.title} {name}{which}")
            if node.remove_type in ROUTINES:
                self._forget(item)

    def _drop_index(self, node: Any, index: str, name: str) -> None:
        table = self.indexes.pop(index, None)
        if node.concurrent:
            if table and self._known(table).partitioned:
                self.find("partitioned", "DROP INDEX CONCURRENTLY", table)
        elif index not in self.new_indexes:
            self.find("drop-index", name)
            if table:
                self.hold(table, ACCESS_EXCLUSIVE)

    def _drop_owned(self, node: Any) -> None:
        owners = ", ".join(role.rolename or "the present role" for role in node.roles)
        self.find("drop", f"all that {owners} owns")

    def _create_index(self, node: Any) -> None:
        name = self._relation(node.relation)
        columns = [element.name or "expr" for element in node.index_params]
        index = node.idxname or "_".join([name.split(".")[1], *columns, "idx"])
        table = self._known(name)
        self.indexes[index] = name
        if node.concurrent and table.partitioned:
            self.find("partitioned", "CREATE INDEX CONCURRENTLY", name)
        elif table.new:
            self.new_indexes.add(index)
        elif not node.concurrent:
            self.hold(name, SHARE)
            if node.relation.inh:  # ON ONLY a parent builds nothing
                self.find("create-index", name)

    def _reindex(self, node: Any) -> None:
        if has_option(node.params, "concurrently"):
            return
        if node.relation is None:
            self.find("reindex", node.name or "the database")
        elif node.relation.relname not in self.new_indexes:
            name = self._relation(node.relation)
            table = self.indexes.get(node.relation.relname, name)
            self._refuse_parts("REINDEX", table)
            self.hold(table, ACCESS_EXCLUSIVE)
            self._hurt(name, "reindex", name)

    def _refuse_parts(self, command: str, table: str) -> None:
        if self._known(table).partitioned and self.place.file.script.transactional:
            self.find("partitioned", f"{command} in a transaction", table)

    def _cluster(self, node: Any) -> None:
        if node.relation:
            self._refuse_parts("CLUSTER", self._relation(node.relation))
        self._rewrite("CLUSTER", [node.relation] if node.relation else [])

    def _vacuum(self, node: Any) -> None:
        if has_option(node.options, "full"):
            self._rewrite("VACUUM FULL", [vacuumed.relation for vacuumed in node.rels])

    def _rewrite(self, command: str, relations: Sequence[Any]) -> None:
        for name in map(self._relation, relations):
            self._hurt(name, "table-rewrite", f"{command} of {name}")
            self.hold(name, ACCESS_EXCLUSIVE)
        if not relations:
            self.find("table-rewrite", f"{command} of all tables")

    def _lock_tables(self, node: Any) -> None:
        if node.mode in HINDERS:
            for name in map(self._relation, node.relations):
                self._hurt(name, "lock-table", HINDERS[node.mode], name)
                self.hold(name, node.mode)

    def _truncate(self, node: Any) -> None:
        for name in map(self._relation, node.relations):
            referencing = " and of what references it" if node.behavior == _CASCADE else ""
            self._hurt(name, "truncate", name + referencing)
            self.hold(name, ACCESS_EXCLUSIVE)

    def _create_schema(self, node: Any) -> None:
        if node.schemaname:
            self.new_schemas.add(node.schemaname)
        outside, self.schema = self.schema, node.schemaname or self.schema
        for element in node.schema_elts:
            self._visit(element)
        self.schema = outside

    def _create_domain(self, node: Any) -> None:
        name, base = last_name(node.domainname), type_of(node.type_name)
        tested = {postgres.CONSTR_CHECK, postgres.CONSTR_NOTNULL}
        below = self.domains.get(base.name)
        constrained = any(constraint.contype in tested for constraint in node.constraints)
        self.domains[name] = _Domain(base, constrained or bool(below and below.constrained))
        self.new_types.add(name)

    def _alter_domain(self, node: Any) -> None:
        """See AlterDomainStmt in parsenodes.h for the letters."""
        name = last_name(node.type_name)
        columns = self._columns_of(name)
        if node.subtype in "CO" and name in self.domains:
            self.domains[name].constrained = True
        if node.subtype == "V":
            tables = {column.rpartition(".")[0] for column in columns}
            for act in (self.work, partial(self.hold, lock=SHARE)):
                for table in sorted(tables):
                    act(table)
        adds = node.subtype == "O" or (node.subtype == "C" and not node.def_.skip_validation)
        if adds and name not in self.new_types:
            title = f"the constraint of domain {name}"
            where = ", ".join(columns) or "the database knows which columns"
            self.find("constraint-scan", title, f"write to a table with a column of it ({where})")

    def _create_composite(self, node: Any) -> None:
        self.new_types.add(node.typevar.relname)

    def _create_enum(self, node: Any) -> None:
        self.new_enums.add(last_name(node.type_name))
        self.new_types.add(last_name(node.type_name))

    def _alter_enum(self, node: Any) -> None:
        name = last_name(node.type_name)
        if node.old_val:
            if name not in self.new_types:
                self.find("rename", f"value {node.old_val!r} of {name}")
        elif name not in self.new_enums:
            self.new_values[node.new_val] = name

    def _inner(self, node: Any) -> None:
        """What stands in a PREPARE, or in an EXPLAIN that runs it."""
        if not isinstance(node, nodes.ExplainStmt) or has_option(node.options, "analyze"):
            self._visit(node.query)

    def _copy(self, node: Any) -> None:
        if node.query:
            self._visit(node.query)
        elif not node.is_from:
            self.work(self._relation(node.relation))

    def _move_all(self, node: Any) -> None:
        self.find("table-rewrite", f"SET TABLESPACE of all in {node.orig_tablespacename}")

    def _read_through(self, query: Any) -> None:
        queries = {each.ctename for each in nodes_below(query, nodes.CommonTableExpr)}
        for relation in nodes_below(query, nodes.RangeVar):
            if relation.relname not in queries:
                self.work(self._relation(relation))

    def _change_rows(self, node: Any) -> None:
        if into := getattr(node, "into_clause", None):
            self._make(into.rel)
        for change in nodes_below(
            node, nodes.DeleteStmt, nodes.InsertStmt, nodes.MergeStmt, nodes.UpdateStmt
        ):
            target = self._relation(change.relation)
            source = getattr(change, "select_stmt", None)
            if not hasattr(change, "select_stmt"):
                self.work(target)
            elif source and not source.values_lists:
                self._read_through(source)
            if not getattr(change, "where_clause", True):
                self._hurt(target, "missing-where", target)

    def _check_values(self, node: Any) -> None:
        """Find a new value of an enum beside that type, or a table with a column of it."""
        if not self.new_values:
            return
        types = {last_name(type_.names) for type_ in nodes_below(node, nodes.TypeName)}
        for relation in nodes_below(node, nodes.RangeVar):
            types |= {type_.name for type_ in self._known(self._relation(relation)).types.values()}
        constants = {constant(literal) for literal in nodes_below(node, nodes.A_Const)}
        for value, name in self.new_values.items():
            if value in constants and name in types:
                self.find("new-enum-value", f"{value!r} of {name}")

    def _create_function(self, node: Any) -> None:
        given = [p.arg_type for p in node.parameters if p.mode not in _RESULTS]
        key = self._dotted(node.funcname), type_names(given)
        old = self.functions.get(key) if node.replace else None
        result = node.return_type and last_name(node.return_type.names)
        schema = schema_of(key[0])
        callable_ = result not in _UNCALLABLE and schema != "pg_temp"
        self.functions[key] = _Function(
            new=old is None or old.new,
            pinned=node.sql_body is not None,  # its names were looked up when it was created
            changed=self.place,
            exposed=old.exposed if old else self._exposed("functions", schema) if callable_ else {},
        )
        self._set_options(self.functions[key], node.options)

    def _alter_function(self, node: Any) -> None:
        for key in self._routines(node.func):
            self._set_options(self.functions[key], node.actions)

    def _set_options(self, function: _Function, options: Any) -> None:
        for option in options:
            if option.defname == "volatility":
                function.volatile = option.arg.sval == "volatile"
            elif option.defname == "security":
                function.definer, function.changed = option.arg.boolval, self.place
            elif option.defname == "set" and option.arg.name in ("search_path", ""):
                path = [value.val.sval for value in option.arg.args]
                function.pinned, function.changed = path == _PINNED, self.place

    def _forget(self, node: Any) -> None:
        for key in self._routines(node):
            del self.functions[key]

    def _grant(self, node: Any) -> None:
        exposed: list[dict[str, Place]] = []
        roles: set[str] = set()
        if node.objtype in ROUTINES:
            roles = granted(node, "execute")
            exposed = [self.functions[key].exposed for key in self._granted(node)]
        elif node.objtype == postgres.OBJECT_TABLE:
            roles = granted(node, "select")
            exposed = [self._known(name).exposed for name in self._granted_tables(node)]
        for each in exposed:
            for role in roles:
                each.pop(role, None)  # a grant by name is meant
            if EVERYBODY in roles and node.is_grant and node.objtype in ROUTINES:
                each[EVERYBODY] = self.place

    def _alter_default_privileges(self, node: Any) -> None:
        action = node.action
        kind, right = (
            ("functions", "execute") if action.objtype in ROUTINES else ("tables", "select")
        )
        if action.objtype not in ROUTINES | {postgres.OBJECT_TABLE}:
            return
        # For one schema they can only add to those of all.
        schemas = next((o.arg.items for o in node.options if o.defname == "schemas"), [None])
        about = {
            (schema and schema.sval, kind, role)
            for schema in schemas
            for role in granted(action, right)
        }
        self.defaults = self.defaults | about if action.is_grant else self.defaults - about

    def _granted(self, node: Any) -> list[_Routine]:
        if node.targtype == postgres.ACL_TARGET_ALL_IN_SCHEMA:
            schemas = {schema.sval for schema in node.objects}
            return [key for key in self.functions if schema_of(key[0]) in schemas]
        return [key for item in node.objects for key in self._routines(item)]

    def _granted_tables(self, node: Any) -> list[str]:
        if node.targtype == postgres.ACL_TARGET_ALL_IN_SCHEMA:
            schemas = {schema.sval for schema in node.objects}
            return [name for name in self.relations if schema_of(name) in schemas]
        return [self._relation(item) for item in node.objects]

    def _do(self, node: Any) -> None:
        body = next(option.arg.sval for option in node.args if option.defname == "as")
        if _SECURES.search(body):
            for relation in self.relations.values():
                if relation.kind == "table":
                    relation.open = None
        if _REVOKES.search(body):
            for function in self.functions.values():
                function.exposed = {}

    def _set_variable(self, node: Any) -> None:
        values = [constant(name) for name in node.args]
        if node.name == "search_path":
            self.schema = next((name for name in values if name and name != "$user"), "public")
        elif node.name == "timezone":
            self.utc = values == ["UTC"]


_VISITS: Mapping[type, Callable[[Reader, Any], None]] = {
    nodes.AlterDefaultPrivilegesStmt: Reader._alter_default_privileges,
    nodes.AlterDomainStmt: Reader._alter_domain,
    nodes.AlterEnumStmt: Reader._alter_enum,
    nodes.AlterFunctionStmt: Reader._alter_function,
    nodes.AlterObjectSchemaStmt: Reader._set_schema,
    nodes.AlterTableMoveAllStmt: Reader._move_all,
    nodes.AlterTableStmt: Reader._alter_table,
    nodes.ClusterStmt: Reader._cluster,
    nodes.CompositeTypeStmt: Reader._create_composite,
    nodes.CopyStmt: Reader._copy,
    nodes.CreateDomainStmt: Reader._create_domain,
    nodes.CreateEnumStmt: Reader._create_enum,
    nodes.CreateForeignTableStmt: Reader._create_foreign_table,
    nodes.CreateFunctionStmt: Reader._create_function,
    nodes.CreateSchemaStmt: Reader._create_schema,
    nodes.CreateSeqStmt: Reader._create_sequence,
    nodes.CreateStmt: Reader._create_table,
    nodes.CreateTableAsStmt: Reader._create_table_as,
    nodes.DeleteStmt: Reader._change_rows,
    nodes.DoStmt: Reader._do,
    nodes.DropOwnedStmt: Reader._drop_owned,
    nodes.DropStmt: Reader._drop,
    nodes.ExplainStmt: Reader._inner,
    nodes.GrantStmt: Reader._grant,
    nodes.IndexStmt: Reader._create_index,
    nodes.InsertStmt: Reader._change_rows,
    nodes.LockStmt: Reader._lock_tables,
    nodes.MergeStmt: Reader._change_rows,
    nodes.PrepareStmt: Reader._inner,
    nodes.RefreshMatViewStmt: Reader._refresh,
    nodes.ReindexStmt: Reader._reindex,
    nodes.RenameStmt: Reader._rename,
    nodes.SelectStmt: Reader._change_rows,
    nodes.TruncateStmt: Reader._truncate,
    nodes.UpdateStmt: Reader._change_rows,
    nodes.VacuumStmt: Reader._vacuum,
    nodes.VariableSetStmt: Reader._set_variable,
    nodes.ViewStmt: Reader._create_view,
}
"""What a statement does, by the class of its node; see LOCKS and HARMLESS for the others."""
