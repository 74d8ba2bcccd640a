"""Reading files in their order, to know what they made and what they hurt."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from postgast import nodes
from postgast import pg_query_pb2 as postgres

from migrate.files import File
from migrate.lint.nodes import (
    ACCESS_EXCLUSIVE,
    ROUTINES,
    SERIAL,
    Type,
    constant,
    constraint_name,
    filled_columns,
    is_column,
    is_public_execute,
    last_name,
    lock_mode,
    nodes_below,
    rewriting,
    schema_of,
    type_names,
    type_of,
    type_rule,
)
from migrate.lint.rules import RULES, Finding
from migrate.parser import Statement, has_option

_ALLOW = re.compile(r"^[ \t]*(--[ \t]*migrate:[ \t]*allow\b([^:\n]*):?(.*))", re.MULTILINE)

_DEFINITION = re.compile(
    r"(alter|cluster|create|do|drop|grant|lock|reindex|reset|revoke|set|truncate|vacuum)\b",
    re.IGNORECASE,
)
_DATA = re.compile(
    r"(delete|merge|select|update|with)\b|insert\b(?!\s+into\s+\S+\s*(\([^)]*\)\s*)?values\b)",
    re.IGNORECASE,
)
"""What changes rows, but for INSERT ... VALUES, of which a file may hold millions."""
_LONGEST_DATA = 10_000

_HINDERS = {5: "write to", 6: "write to", 7: "write to", 8: "read or write"}
"""Number of a lock mode in PostgreSQL -> what nobody else can do; lesser modes hinder nobody."""

_REWRITES = {
    postgres.AT_SetAccessMethod: "SET ACCESS METHOD",
    postgres.AT_SetLogged: "SET LOGGED",
    postgres.AT_SetTableSpace: "SET TABLESPACE",
    postgres.AT_SetUnLogged: "SET UNLOGGED",
}

_RESULTS = {postgres.FUNC_PARAM_OUT, postgres.FUNC_PARAM_TABLE}
_UNCALLABLE = {"trigger", "event_trigger"}
_PINNED = ["pg_catalog", "pg_temp"]
_SECURES = re.compile(r"enable\s+row\s+level\s+security", re.IGNORECASE)
_REVOKES = re.compile(
    r"revoke\b[^;]*\bon\s+(all\s+)?(function|procedure|routine)[^;]*\bfrom\b[^;]*\bpublic\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, eq=False)
class _Place:
    """A statement, with the rules that it acknowledges -> how far from it, and why."""

    file: File
    statement: Statement
    allowed: dict[str, tuple[int, str]] = field(default_factory=dict)

    @property
    def line(self) -> str:
        return self.statement.position().partition(":")[0]


@dataclass
class _Table:
    """What the files tell of a table; nothing, where they do not create it.

    Attributes:
        new: the pending files create it.
        types: column -> type.
        filled: constraint -> columns that it keeps from null.
        unproved: the same of those that are NOT VALID.
        open: the pending statement that leaves it without row-level security.
    """

    new: bool = False
    types: dict[str, Type] = field(default_factory=dict)
    filled: dict[str, set[str]] = field(default_factory=dict)
    unproved: dict[str, set[str]] = field(default_factory=dict)
    open: _Place | None = None


@dataclass
class _Function:
    """What the files tell of a function; that it is sound, where they do not create it.

    Attributes:
        definer: it is SECURITY DEFINER.
        pinned: its search_path is its own and names pg_temp last, or is of no matter.
        changed: the pending statement that decided these two last.
        exposed: the pending statement that lets PUBLIC execute it.
    """

    definer: bool = False
    pinned: bool = True
    changed: _Place | None = None
    exposed: _Place | None = None


_Routine = tuple[str, tuple[str, ...]]
"""The name of a function, and the types of its arguments."""


class Reader:
    """Reads files in their order, knows what they have made, and collects what hurts.

    Tables and functions have their schema in their names, types have not.
    """

    def __init__(self) -> None:
        self.tables: dict[str, _Table] = {}
        self.functions: dict[_Routine, _Function] = {}
        self.domains: set[str] = set()
        self.exposing = True  # PUBLIC may execute a new function
        self.start_pending()

    def start_pending(self) -> None:
        """What was read so far is applied, and not judged."""
        self.findings: list[Finding] = []
        self.acknowledging: list[_Place] = []
        self.used: set[tuple[_Place, str]] = set()
        self.age()
        for table in self.tables.values():
            table.open = None
        for function in self.functions.values():
            function.changed = function.exposed = None

    def age(self) -> None:
        """What was made so far is no longer new: it holds rows, and is in use."""
        self.new_indexes: set[str] = set()
        self.new_schemas: set[str] = set()
        for table in self.tables.values():
            table.new = False

    def _begin(self) -> None:
        """A transaction begins."""
        self.held: tuple[int, str, _Place] | None = None
        self.worked: set[str] = set()
        self.new_types: set[str] = set()
        self.new_values: dict[str, str] = {}

    def read(self, file: File) -> None:
        """Take in the next file.

        Raises:
            FilesError: the parser refuses it.
        """
        self.schema, self.utc = "public", False
        transactional = file.script.transactional
        self._begin()
        for statement in file.script.statements():
            self.place = _Place(file, statement)
            self._acknowledge(statement.comment)
            if self._matters(statement.text):
                node = statement.node
                self._check_values(node)
                self._visit(node)
            if not transactional:
                self._begin()

    def _acknowledge(self, comment: str) -> None:
        for line in _ALLOW.finditer(comment):
            rule, reason, offset = line[2].strip(), line[3].strip(), line.start(1) - len(comment)
            if rule not in RULES or rule == "acknowledgement":
                self._find(
                    "acknowledgement", f"{rule!r} is not a rule to acknowledge", offset=offset
                )
            elif not reason:
                self._find("acknowledgement", "it gives no reason", offset=offset)
            else:
                self.place.allowed[rule] = offset, reason
        if self.place.allowed:
            self.acknowledging.append(self.place)

    def _matters(self, text: str) -> bool:
        if _DEFINITION.match(text):
            return True
        return len(text) <= _LONGEST_DATA and (
            bool(_DATA.match(text)) or any(f"'{value}'" in text for value in self.new_values)
        )

    def finish(self) -> None:
        """Judge what the files leave behind."""
        for name, table in self.tables.items():
            if table.open:
                self._find("no-row-security", name, place=table.open)
        for (name, types), function in self.functions.items():
            title = f"{name}({', '.join(types)})"
            if function.definer and not function.pinned and function.changed:
                self._find("search-path", title, place=function.changed)
            if function.exposed:
                self._find("public-execute", title, place=function.exposed)
        for place in self.acknowledging:
            for rule, (offset, _) in place.allowed.items():
                if (place, rule) not in self.used:
                    why = f"{rule} finds nothing in the statement"
                    self._find("acknowledgement", why, place=place, offset=offset)

    def _find(
        self, rule: str, *words: object, place: _Place | None = None, offset: int = 0
    ) -> None:
        place = place or self.place
        self.used.add((place, rule))
        line, column = map(int, place.statement.position(offset).split(":"))
        message, remedy = RULES[rule]
        _, reason = place.allowed.get(rule, (0, None))
        message = message.format(*words)
        self.findings.append(Finding(place.file.path, line, column, rule, message, remedy, reason))

    def _hurt(self, table: str, rule: str, *words: object) -> None:
        """Find what hurts a table that was there before."""
        if not self._table(table).new:
            self._find(rule, *words)

    def _hold(self, table: str, lock: int) -> None:
        """The transaction holds a lock on the table from here to its end."""
        if not self._table(table).new and lock > (self.held[0] if self.held else 0):
            self.held = lock, table, self.place

    def _work(self, table: str) -> None:
        """The statement goes through the table, which takes its time."""
        if self.held and not self._table(table).new and table not in self.worked:
            self.worked.add(table)
            lock, locked, place = self.held
            self._find("work-under-lock", table, _HINDERS[lock], locked, place.line)

    # --- names ---------------------------------------------------------------------------------

    def _full(self, schema: str | None, name: str) -> str:
        if not schema and f"pg_temp.{name}" in self.tables:
            schema = "pg_temp"
        return f"{schema or self.schema}.{name}"

    def _relation(self, node: Any) -> str:
        return self._full(node.schemaname, node.relname)

    def _dotted(self, parts: Any) -> str:
        *schema, name = (part.sval for part in parts)
        return self._full(schema[-1] if schema else None, name)

    def _table(self, name: str) -> _Table:
        return self.tables.setdefault(name, _Table())

    def _routines(self, node: Any) -> list[_Routine]:
        """What a name with argument types means, however the types are written."""
        key = self._dotted(node.objname), type_names(node.objargs)
        same = [other for other in self.functions if other[0] == key[0]]
        if key not in self.functions and same and (node.args_unspecified or len(same) == 1):
            return same
        self.functions.setdefault(key, _Function())
        return [key]

    # --- statements ----------------------------------------------------------------------------

    def _visit(self, node: Any) -> None:
        if visit := _VISITS.get(type(node)):
            visit(self, node)

    def _make_table(self, node: Any, if_not_exists: bool = False) -> _Table | None:
        """Note a new table, unless it may be there already."""
        temporary = node.relpersistence == "t"
        name = self._full("pg_temp" if temporary else node.schemaname, node.relname)
        if if_not_exists and name in self.tables:
            return None
        self.tables[name] = _Table(new=True, open=None if temporary else self.place)
        return self.tables[name]

    def _create_table(self, node: Any) -> None:
        if not self._make_table(node.relation, node.if_not_exists):
            return
        name = self._relation(node.relation)
        for element in node.table_elts:
            if isinstance(element, nodes.ColumnDef):
                self._add_column(name, element)
            elif isinstance(element, nodes.Constraint):
                self._add_constraint(name, element)

    def _create_table_as(self, node: Any) -> None:
        table = self._make_table(node.into.rel, node.if_not_exists)
        if table and node.objtype == postgres.OBJECT_MATVIEW:
            table.open = None

    def _alter_table(self, node: Any) -> None:
        if node.objtype != postgres.OBJECT_TABLE:
            return
        name = self._relation(node.relation)
        table = self._table(name)
        self._hold(name, max(map(lock_mode, node.cmds)))
        # PostgreSQL, too, drops constraints first.
        for command in sorted(node.cmds, key=lambda c: c.subtype != postgres.AT_DropConstraint):
            match command.subtype:
                case postgres.AT_AddColumn:
                    self._add_column(name, command.def_)
                case postgres.AT_DropColumn:
                    table.types.pop(command.name, None)
                    self._hurt(name, "drop", f"{name}.{command.name}")
                case postgres.AT_AlterColumnType:
                    self._change_type(name, command.name, command.def_)
                case postgres.AT_SetNotNull:
                    self._set_not_null(name, command.name)
                case postgres.AT_DropNotNull:
                    table.filled.pop(constraint_name(name, command.name, "not_null"), None)
                case postgres.AT_AddConstraint:
                    self._add_constraint(name, command.def_)
                case postgres.AT_DropConstraint:
                    table.filled.pop(command.name, None)
                case postgres.AT_ValidateConstraint:
                    table.filled[command.name] = table.unproved.pop(command.name, set())
                    self._work(name)
                case postgres.AT_EnableRowSecurity:
                    table.open = None
                case postgres.AT_DisableRowSecurity:
                    table.open = self.place
                case other if other in _REWRITES:
                    self._hurt(name, "table-rewrite", f"{_REWRITES[other]} of {name}")

    def _add_column(self, name: str, node: Any) -> None:
        column, type_ = f"{name}.{node.colname}", type_of(node.type_name)
        if type_.name:
            self._table(name).types[node.colname] = type_
        given = {constraint.contype: constraint for constraint in node.constraints}
        if why := rewriting(type_, given):
            self._hurt(name, "column-rewrite", f"{column} ({why})")
        default = given.get(postgres.CONSTR_DEFAULT)
        filled = (
            SERIAL.fullmatch(type_.name)
            or given.keys() & {postgres.CONSTR_GENERATED, postgres.CONSTR_IDENTITY}
            or (default and not getattr(default.raw_expr, "isnull", False))
        )
        if given.keys() & {postgres.CONSTR_NOTNULL, postgres.CONSTR_PRIMARY} and not filled:
            self._hurt(name, "not-null-without-default", column)
        for constraint in given.values():
            self._add_constraint(name, constraint, node.colname, all_null=not filled)

    def _add_constraint(
        self, name: str, node: Any, column: str | None = None, all_null: bool = False
    ) -> None:
        title = f"{f'constraint {node.conname}' if node.conname else 'a constraint'} of {name}"
        match node.contype:
            case postgres.CONSTR_CHECK if not node.skip_validation:
                self._hurt(name, "constraint-scan", title, "read or write the table")
            case postgres.CONSTR_FOREIGN if not (node.skip_validation or all_null):
                self._hurt(name, "constraint-scan", title, "write to it or to the referenced table")
            case postgres.CONSTR_EXCLUSION | postgres.CONSTR_PRIMARY | postgres.CONSTR_UNIQUE:
                if not node.indexname:
                    self._hurt(name, "constraint-index", title)
            case postgres.CONSTR_NOTNULL if column is None and not node.skip_validation:
                self._set_not_null(name, node.keys[0].sval)
        if filled := filled_columns(node, column):
            kind = "check" if node.contype == postgres.CONSTR_CHECK else "not_null"
            constraint = node.conname or constraint_name(name, min(filled), kind)
            if node.contype == postgres.CONSTR_PRIMARY:  # without it they still are NOT NULL
                constraint = constraint_name(name, min(filled), kind)
            table = self._table(name)
            (table.unproved if node.skip_validation else table.filled)[constraint] = filled

    def _set_not_null(self, name: str, column: str) -> None:
        filled = self._table(name).filled
        if not any(column in columns for columns in filled.values()):
            self._hurt(name, "set-not-null", f"{name}.{column}")
        filled[constraint_name(name, column, "not_null")] = {column}

    def _change_type(self, name: str, column: str, node: Any) -> None:
        types, new = self._table(name).types, type_of(node.type_name)
        old = types.get(column)
        types[column] = new
        rule, doubt = type_rule(old or new, new), ""
        if not is_column(node.raw_default, column):
            rule = rule or "type-rewrite"
        elif new.name in self.domains or (old and old.name in self.domains):
            rule = None
        elif old is None:
            rule, doubt = "type-rewrite", " (unless the old type is stored alike)"
        elif {old.name, new.name} == {"timestamp", "timestamptz"}:
            rule, doubt = None if self.utc else rule, " (unless TimeZone is UTC)"
        if rule:
            change = f"{f'from {old} ' if old else ''}to {new}{doubt}"
            self._hurt(name, rule, f"{name}.{column} {change}")

    def _rename(self, node: Any) -> None:
        match node.rename_type:
            case postgres.OBJECT_TABLE:
                self._move(node.relation, node.relation.schemaname, node.newname)
            case postgres.OBJECT_COLUMN if node.relation_type == postgres.OBJECT_TABLE:
                name = self._relation(node.relation)
                types = self._table(name).types
                if node.subname in types:
                    types[node.newname] = types.pop(node.subname)
                self._hurt(name, "rename", f"{name}.{node.subname}")
                self._hold(name, ACCESS_EXCLUSIVE)
            case postgres.OBJECT_SCHEMA if node.subname not in self.new_schemas:
                self._find("rename", f"schema {node.subname}")
            case kind if kind in ROUTINES:
                self._forget(node.object)

    def _set_schema(self, node: Any) -> None:
        if node.object_type == postgres.OBJECT_TABLE:
            self._move(node.relation, node.newschema, node.relation.relname)
        elif node.object_type in ROUTINES:
            self._forget(node.object)

    def _move(self, relation: Any, schema: str | None, name: str) -> None:
        old = self._relation(relation)
        self._hurt(old, "rename", old)
        self._hold(old, ACCESS_EXCLUSIVE)
        self.tables[self._full(schema, name)] = self.tables.pop(old)

    def _drop(self, node: Any) -> None:
        for item in node.objects:
            match node.remove_type:
                case postgres.OBJECT_TABLE:
                    name = self._dotted(item.items)
                    self._hurt(name, "drop", name)
                    del self.tables[name]
                case postgres.OBJECT_INDEX if not node.concurrent:
                    if last_name(item.items) not in self.new_indexes:
                        self._find("drop-index", self._dotted(item.items))
                case postgres.OBJECT_SCHEMA if item.sval not in self.new_schemas:
                    self._find("drop", f"schema {item.sval}")
                case kind if kind in ROUTINES:
                    self._forget(item)

    def _create_index(self, node: Any) -> None:
        name = self._relation(node.relation)
        if self._table(name).new:
            columns = [element.name or "expr" for element in node.index_params]
            self.new_indexes.add(node.idxname or "_".join([name.split(".")[1], *columns, "idx"]))
        elif node.relation.inh and not node.concurrent:  # ON ONLY a parent builds nothing
            self._find("create-index", name)

    def _reindex(self, node: Any) -> None:
        if has_option(node.params, "concurrently"):
            return
        if node.relation is None:
            self._find("reindex", node.name or "the database")
        elif node.relation.relname not in self.new_indexes:
            self._hurt(self._relation(node.relation), "reindex", self._relation(node.relation))

    def _cluster(self, node: Any) -> None:
        self._rewrite("CLUSTER", [node.relation] if node.relation else [])

    def _vacuum(self, node: Any) -> None:
        if has_option(node.options, "full"):
            self._rewrite("VACUUM FULL", [vacuumed.relation for vacuumed in node.rels])

    def _rewrite(self, command: str, relations: Sequence[Any]) -> None:
        for name in map(self._relation, relations):
            self._hurt(name, "table-rewrite", f"{command} of {name}")
            self._hold(name, ACCESS_EXCLUSIVE)
        if not relations:
            self._find("table-rewrite", f"{command} of all tables")

    def _lock_tables(self, node: Any) -> None:
        if node.mode in _HINDERS:
            for name in map(self._relation, node.relations):
                self._hurt(name, "lock-table", _HINDERS[node.mode], name)
                self._hold(name, node.mode)

    def _truncate(self, node: Any) -> None:
        for name in map(self._relation, node.relations):
            self._hurt(name, "truncate", name)
            self._hold(name, ACCESS_EXCLUSIVE)

    def _create_schema(self, node: Any) -> None:
        self.new_schemas.add(node.schemaname)

    def _create_domain(self, node: Any) -> None:
        self.domains.add(last_name(node.domainname))

    def _create_enum(self, node: Any) -> None:
        self.new_types.add(last_name(node.type_name))

    def _alter_enum(self, node: Any) -> None:
        if not node.old_val and last_name(node.type_name) not in self.new_types:
            self.new_values[node.new_val] = last_name(node.type_name)

    def _change_rows(self, node: Any) -> None:
        if into := getattr(node, "into_clause", None):
            self._make_table(into.rel)
        queries = {query.ctename for query in nodes_below(node, nodes.CommonTableExpr)}
        for change in nodes_below(
            node, nodes.DeleteStmt, nodes.InsertStmt, nodes.MergeStmt, nodes.UpdateStmt
        ):
            target = self._relation(change.relation)
            source = getattr(change, "select_stmt", None)
            if not hasattr(change, "select_stmt"):
                self._work(target)
            elif source and not source.values_lists:
                for relation in nodes_below(source, nodes.RangeVar):
                    if relation.relname not in queries:
                        self._work(self._relation(relation))
            if not getattr(change, "where_clause", True):
                self._hurt(target, "missing-where", target)

    def _check_values(self, node: Any) -> None:
        """Find a new value of an enum beside that type, or a table with a column of it."""
        if not self.new_values:
            return
        types = {last_name(type_.names) for type_ in nodes_below(node, nodes.TypeName)}
        for relation in nodes_below(node, nodes.RangeVar):
            types |= {type_.name for type_ in self._table(self._relation(relation)).types.values()}
        constants = {constant(literal) for literal in nodes_below(node, nodes.A_Const)}
        for value, name in self.new_values.items():
            if value in constants and name in types:
                self._find("new-enum-value", f"{value!r} of {name}")

    def _create_function(self, node: Any) -> None:
        given = [p.arg_type for p in node.parameters if p.mode not in _RESULTS]
        key = self._dotted(node.funcname), type_names(given)
        old = self.functions.get(key) if node.replace else None
        result = node.return_type and last_name(node.return_type.names)
        exposed = self.exposing and result not in _UNCALLABLE and schema_of(key[0]) != "pg_temp"
        self.functions[key] = _Function(
            pinned=node.sql_body is not None,  # its names were looked up when it was created
            changed=self.place,
            exposed=old.exposed if old else self.place if exposed else None,
        )
        self._set_options(self.functions[key], node.options)

    def _alter_function(self, node: Any) -> None:
        for key in self._routines(node.func):
            self._set_options(self.functions[key], node.actions)

    def _set_options(self, function: _Function, options: Any) -> None:
        for option in options:
            if option.defname == "security":
                function.definer, function.changed = option.arg.boolval, self.place
            elif option.defname == "set" and option.arg.name in ("search_path", ""):
                path = [value.val.sval for value in option.arg.args]
                function.pinned, function.changed = path == _PINNED, self.place

    def _forget(self, node: Any) -> None:
        for key in self._routines(node):
            del self.functions[key]

    def _grant(self, node: Any) -> None:
        if is_public_execute(node):
            for key in self._granted(node):
                self.functions[key].exposed = self.place if node.is_grant else None

    def _alter_default_privileges(self, node: Any) -> None:
        # For one schema they can only add to those of the others.
        if is_public_execute(node.action) and not has_option(node.options, "schemas"):
            self.exposing = node.action.is_grant

    def _granted(self, node: Any) -> list[_Routine]:
        if node.targtype == postgres.ACL_TARGET_ALL_IN_SCHEMA:
            schemas = {schema.sval for schema in node.objects}
            return [key for key in self.functions if schema_of(key[0]) in schemas]
        return [key for item in node.objects for key in self._routines(item)]

    def _do(self, node: Any) -> None:
        body = next(option.arg.sval for option in node.args if option.defname == "as")
        if _SECURES.search(body):
            for table in self.tables.values():
                table.open = None
        if _REVOKES.search(body):
            for function in self.functions.values():
                function.exposed = None

    def _set_variable(self, node: Any) -> None:
        values = [constant(name) for name in node.args]
        if node.name == "search_path":
            self.schema = next((name for name in values if name and name != "$user"), "public")
        elif node.name == "timezone":
            self.utc = values == ["UTC"]


_VISITS: Mapping[type, Callable[[Reader, Any], None]] = {
    nodes.AlterDefaultPrivilegesStmt: Reader._alter_default_privileges,
    nodes.AlterEnumStmt: Reader._alter_enum,
    nodes.AlterFunctionStmt: Reader._alter_function,
    nodes.AlterObjectSchemaStmt: Reader._set_schema,
    nodes.AlterTableStmt: Reader._alter_table,
    nodes.ClusterStmt: Reader._cluster,
    nodes.CreateDomainStmt: Reader._create_domain,
    nodes.CreateEnumStmt: Reader._create_enum,
    nodes.CreateFunctionStmt: Reader._create_function,
    nodes.CreateSchemaStmt: Reader._create_schema,
    nodes.CreateStmt: Reader._create_table,
    nodes.CreateTableAsStmt: Reader._create_table_as,
    nodes.DeleteStmt: Reader._change_rows,
    nodes.DoStmt: Reader._do,
    nodes.DropStmt: Reader._drop,
    nodes.GrantStmt: Reader._grant,
    nodes.IndexStmt: Reader._create_index,
    nodes.InsertStmt: Reader._change_rows,
    nodes.LockStmt: Reader._lock_tables,
    nodes.MergeStmt: Reader._change_rows,
    nodes.ReindexStmt: Reader._reindex,
    nodes.RenameStmt: Reader._rename,
    nodes.SelectStmt: Reader._change_rows,
    nodes.TruncateStmt: Reader._truncate,
    nodes.UpdateStmt: Reader._change_rows,
    nodes.VacuumStmt: Reader._vacuum,
    nodes.VariableSetStmt: Reader._set_variable,
}
"""What a statement does, by the class of its node."""
