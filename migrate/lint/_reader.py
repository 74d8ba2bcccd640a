"""Reading files in their order, to know what they made and what they hurt."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from postgast import nodes
from postgast import pg_query_pb2 as postgres

from migrate.files import File
from migrate.forbidden import has_option
from migrate.lint._functions import Functions
from migrate.lint._known import Domain, Index
from migrate.lint._locks import ACCESS_EXCLUSIVE, HARMLESS, HINDERS, KINDS, LOCKS, SHARE, Kind
from migrate.lint._nodes import ROUTINES, constant, last_name, nodes_below, options_of, type_of
from migrate.lint._privileges import EVERYBODY
from migrate.lint._tables import Tables

_BULK = re.compile(r"comment\b|insert\s+into\s+\S+\s*(\([^)]*\)\s*)?values\b", re.IGNORECASE)
"""What nothing is found in, unless it uses a new value of an enum; a file may hold millions."""
_DATA = re.compile(r"(delete|insert|merge|select|update|with)\b", re.IGNORECASE)
_LONGEST_DATA = 10_000

_PLACEHOLDER = re.compile(r"\$\{[\w.:-]+\}|\{\{-?\s*[.$]?[A-Za-z_][\w. ]*-?\}\}")
_CODE = re.compile(r"(create\s+(or\s+replace\s+)?(function|procedure)|do)\b", re.IGNORECASE)

_CASCADE = postgres.DROP_CASCADE
_SECURES = re.compile(r"enable\s+row\s+level\s+security", re.IGNORECASE)
_REVOKES = re.compile(
    r"revoke\b[^;]*\bon\s+(all\s+)?(function|procedure|routine)[^;]*\bfrom\b[^;]*\bpublic\b",
    re.IGNORECASE,
)


class Reader(Tables, Functions):
    """Reads files in their order, knows what they have made, and collects what hurts."""

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
            if placeholder := _placeholder(statement.text):
                self.find("placeholder", placeholder)
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
                who = " and ".join(
                    [f"{EVERYBODY}, which is every role,"] * (EVERYBODY in roles)
                    + [f"{by_name}, by default privileges,"] * bool(by_name)
                )
                self.find("public-execute", who, title, place=place)
        for name, (kind, place) in self.dropped.items():
            self.find("drop", f"the {kind} {name}", place=place)
        super().finish()

    def _visit(self, node: Any) -> None:
        kind = type(node).__name__
        if kind in LOCKS:
            named, lock = LOCKS[kind]
            self.hold(self.relation(getattr(node, named)), lock)
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

    def _create_foreign_table(self, node: Any) -> None:
        self._create_table(node.base_stmt, "foreign table")

    def _create_table_as(self, node: Any) -> None:
        matview = node.objtype == postgres.OBJECT_MATVIEW
        kind = "materialized view" if matview else "table"
        self.make(node.into.rel, kind, replace=node.if_not_exists)
        if not node.into.skip_data:
            self._read_through(node.query)

    def _create_view(self, node: Any) -> None:
        name = self.relation(node.view)
        view = self.make(node.view, "view", replace=node.replace)
        if view is None:
            view = self.known(name)
            view.kind, view.open = "view", self.place
            self.hold(name, ACCESS_EXCLUSIVE)
        if options_of(node.options).get("security_invoker"):
            view.open = None

    def _create_sequence(self, node: Any) -> None:
        self.make(node.sequence, "sequence", replace=node.if_not_exists)

    def _refresh(self, node: Any) -> None:
        name = self.relation(node.relation)
        if not node.concurrent:
            self.hold(name, ACCESS_EXCLUSIVE)
        if not (node.concurrent or node.skip_data):
            self.hurt(name, "refresh", name)

    def _name_of(self, kind: str, node: Any) -> str:
        """The name of an object of this kind, as DROP and ALTER have it."""
        if kind in ("TYPE", "DOMAIN"):
            return last_name(getattr(node, "names", None) or node.items)
        if parts := getattr(node, "items", None) or getattr(node, "objname", None):
            return self.dotted(parts)
        return str(getattr(node, "sval", ""))

    def _rename(self, node: Any) -> None:
        kind, known = self._kind(node.rename_type)
        if known.locked == "itself":
            self._move(node.relation, node.relation.schemaname, node.newname)
        elif known.locked == "its table" and kind != "INDEX":
            name = self.relation(node.relation)
            self.hold(name, ACCESS_EXCLUSIVE)
            if kind == "COLUMN":
                types = self.known(name).types
                if node.subname in types:
                    types[node.newname] = types.pop(node.subname)
                self.hurt(name, "rename", f"{name}.{node.subname}")
        elif kind == "ATTRIBUTE":
            if node.relation.relname not in self.new_types:
                self.find("rename", f"{node.relation.relname}.{node.subname}")
        elif known.named:
            name = node.subname or self._name_of(kind, node.object)
            if not self.is_new(kind, name):
                self.find("rename", f"{known.title} {name}")
            if node.rename_type in ROUTINES:
                self._forget(node.object)

    def _set_schema(self, node: Any) -> None:
        kind, known = self._kind(node.object_type)
        if known.locked == "itself":
            self._move(node.relation, node.newschema, node.relation.relname)
        elif known.named:
            name = self._name_of(kind, node.object)
            if not self.is_new(kind, name):
                self.find("rename", f"{known.title} {name}")
            if node.object_type in ROUTINES:
                self._forget(node.object)

    def _move(self, relation: Any, schema: str | None, name: str) -> None:
        old = self.relation(relation)
        self.hurt(old, "rename", old)
        self.hold(old, ACCESS_EXCLUSIVE)
        self.relations[self.full(schema, name)] = self.relations.pop(old)

    def _drop(self, node: Any) -> None:
        kind, known = self._kind(node.remove_type)
        for item in node.objects:
            name = self._name_of(kind, item)
            new = known.locked != "its table" and self.is_new(kind, name)
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
                    self.hurt(name, "drop", name)
                del self.relations[name]
            elif known.locked == "its table":
                self.hold(self.dotted(item.items[:-1]), ACCESS_EXCLUSIVE)
            if node.behavior == _CASCADE and not new:
                columns = self.columns_of(name) if kind in ("TYPE", "DOMAIN") else []
                which = f" (as {', '.join(columns)})" if columns else ""
                self.find("cascade", f"{known.title} {name}{which}")
            if node.remove_type in ROUTINES:
                self._forget(item)

    def _drop_owned(self, node: Any) -> None:
        owners = ", ".join(role.rolename or "the present role" for role in node.roles)
        self.find("drop", f"all that {owners} owns")

    def _drop_database(self, node: Any) -> None:
        self.find("drop", f"database {node.dbname}")

    def _reindex(self, node: Any) -> None:
        if has_option(node.params, "concurrently"):
            return
        if node.relation is None:
            self.find("reindex", node.name or "the database")
        elif node.relation.relname not in self.new_indexes:
            name = self.relation(node.relation)
            table = self.indexes.get(node.relation.relname, Index(name)).table
            self._refuse_parts("REINDEX", table)
            self.hold(table, ACCESS_EXCLUSIVE)
            self.hurt(name, "reindex", name)

    def _refuse_parts(self, command: str, table: str) -> None:
        if self.known(table).partitioned and self.place.file.script.transactional:
            self.find("partitioned", f"{command} in a transaction", table)

    def _cluster(self, node: Any) -> None:
        if node.relation:
            self._refuse_parts("CLUSTER", self.relation(node.relation))
        self._rewrite("CLUSTER", [node.relation] if node.relation else [])

    def _vacuum(self, node: Any) -> None:
        if has_option(node.options, "full"):
            self._rewrite("VACUUM FULL", [vacuumed.relation for vacuumed in node.rels])

    def _rewrite(self, command: str, relations: Sequence[Any]) -> None:
        for name in map(self.relation, relations):
            self.hurt(name, "table-rewrite", f"{command} of {name}")
            self.hold(name, ACCESS_EXCLUSIVE)
        if not relations:
            self.find("table-rewrite", f"{command} of all tables")

    def _lock_tables(self, node: Any) -> None:
        if node.mode in HINDERS:
            for name in map(self.relation, node.relations):
                self.hurt(name, "lock-table", HINDERS[node.mode], name)
                self.hold(name, node.mode)

    def _truncate(self, node: Any) -> None:
        for name in map(self.relation, node.relations):
            referencing = " and of what references it" if node.behavior == _CASCADE else ""
            self.hurt(name, "truncate", name + referencing)
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
        self.domains[name] = Domain(base, constrained or bool(below and below.constrained))
        self.new_types.add(name)

    def _alter_domain(self, node: Any) -> None:
        """See AlterDomainStmt in parsenodes.h for the letters."""
        name = last_name(node.type_name)
        columns = self.columns_of(name)
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
            self.work(self.relation(node.relation))

    def _move_all(self, node: Any) -> None:
        self.find("table-rewrite", f"SET TABLESPACE of all in {node.orig_tablespacename}")

    def _read_through(self, query: Any) -> None:
        queries = {each.ctename for each in nodes_below(query, nodes.CommonTableExpr)}
        for relation in nodes_below(query, nodes.RangeVar):
            if relation.relname not in queries:
                self.work(self.relation(relation))

    def _change_rows(self, node: Any) -> None:
        if into := getattr(node, "into_clause", None):
            self.make(into.rel)
            self._read_through(node)
        for change in nodes_below(
            node, nodes.DeleteStmt, nodes.InsertStmt, nodes.MergeStmt, nodes.UpdateStmt
        ):
            target = self.relation(change.relation)
            source = getattr(change, "select_stmt", None)
            if not hasattr(change, "select_stmt"):
                self.work(target)
            elif source and not source.values_lists:
                self._read_through(source)
            if not getattr(change, "where_clause", True) or _always(change):
                self.hurt(target, "missing-where", target)

    def _check_values(self, node: Any) -> None:
        """Find a new value of an enum beside that type, or a table with a column of it."""
        if not self.new_values:
            return
        types = {last_name(type_.names) for type_ in nodes_below(node, nodes.TypeName)}
        for relation in nodes_below(node, nodes.RangeVar):
            types |= {type_.name for type_ in self.known(self.relation(relation)).types.values()}
        constants = {constant(literal) for literal in nodes_below(node, nodes.A_Const)}
        for value, name in self.new_values.items():
            if value in constants and name in types:
                self.find("new-enum-value", f"{value!r} of {name}")

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


def _placeholder(text: str) -> str | None:
    """What in a statement only another tool would fill in; a function's body may mean it."""
    if ("${" not in text and "{{" not in text) or _CODE.match(text):
        return None
    found = _PLACEHOLDER.search(text)
    return found and found[0]


def _always(change: Any) -> bool:
    """Whether the WHERE of an UPDATE or DELETE asks nothing of a row."""
    where = getattr(change, "where_clause", None)
    asked = nodes.ColumnRef, nodes.CurrentOfExpr, nodes.FuncCall, nodes.SubLink
    return where is not None and not any(nodes_below(where, *asked))


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
    nodes.DropdbStmt: Reader._drop_database,
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
