"""Tables: what is made of them, and how changing them hurts."""

from typing import Any

from postgast import nodes
from postgast import pg_query_pb2 as postgres

from migrate.lint._known import Index, Known
from migrate.lint._locks import ACCESS_EXCLUSIVE, ALTER_TABLE, SHARE, VOLATILE
from migrate.lint._nodes import (
    SERIAL,
    Type,
    constraint_name,
    filled_columns,
    is_column,
    last_name,
    lock_mode,
    nodes_below,
    options_of,
    rewriting,
    schema_of,
    type_of,
    type_rule,
)

_CASCADE = postgres.DROP_CASCADE
_NO_INDEX = Index("")


class Tables(Known):
    """Tables, their columns, constraints, partitions and indexes."""

    def _create_table(self, node: Any, kind: str = "table") -> None:
        made = self.make(node.relation, kind, replace=node.if_not_exists)
        if made is None:
            return
        name = self.relation(node.relation)
        if node.partspec is not None:
            made.partitioned = True
            made.keys = {key.name for key in node.partspec.part_params if key.name}
        if node.partbound is not None:
            parent = self.relation(node.inh_relations[0])
            made.types = dict(self.known(parent).types)
            self.hold(parent, ACCESS_EXCLUSIVE)
            self._bound(parent, name, node.partbound)
        for element in node.table_elts:
            if isinstance(element, nodes.ColumnDef):
                self._add_column(name, element)
            elif isinstance(element, nodes.Constraint):
                self._add_constraint(name, element)

    def _alter_table(self, node: Any) -> None:
        if node.objtype == postgres.OBJECT_TYPE:
            self._alter_composite(node)
            return
        name = self.relation(node.relation)
        if node.objtype == postgres.OBJECT_INDEX:
            name = self.indexes.get(node.relation.relname, Index(name)).table
        relation = self.known(name)
        if node.objtype == postgres.OBJECT_FOREIGN_TABLE:
            relation.kind = "foreign table"
        # PostgreSQL, too, drops constraints first.
        for command in sorted(node.cmds, key=lambda c: c.subtype != postgres.AT_DropConstraint):
            kind = postgres.AlterTableType.Name(command.subtype).removeprefix("AT_")
            lock = lock_mode(command)
            if lock is None:
                self.find("unknown-statement", f"ALTER TABLE ({kind})")
                continue
            effect = ALTER_TABLE[kind]
            self.hold(name, lock)
            if effect.rule and lock == effect.lock and node.objtype != postgres.OBJECT_SEQUENCE:
                of_column = effect.rule == "column-rewrite"
                what = f"{name}.{command.name}" if of_column else name
                title = f"{effect.title} of {what}" if effect.title else what
                self.hurt(name, effect.rule, title)
            if kind == "DropColumn" and command.behavior == _CASCADE:
                self.hurt(name, "cascade", f"{name}.{command.name}")
            match kind:
                case "AddColumn":
                    self._add_column(name, command.def_)
                case "DropColumn":
                    relation.types.pop(command.name, None)
                    self.hurt(name, "drop", f"{name}.{command.name}")
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
                    relation.checks.pop(command.name, None)
                case "ValidateConstraint":
                    relation.untested.discard(command.name)
                    relation.filled[command.name] = relation.unproved.pop(command.name, set())
                    self.work(name)
                case "AlterConstraint" if (
                    command.def_.alter_enforceability and command.def_.is_enforced
                ):
                    title = f"constraint {command.def_.conname} of {name}"
                    self.hurt(name, "constraint-scan", title, "read or write the table")
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
                    child = self.relation(command.def_.name)
                    self.hold(child, ACCESS_EXCLUSIVE)
                    if not self.known(child).tested(relation.keys):
                        self.hurt(child, "attach-partition", child)
                    self._bound(name, child, command.def_.bound)
                case "DetachPartition" if relation.default == self.relation(command.def_.name):
                    relation.default = None

    def _bound(self, parent: str, child: str, bound: Any) -> None:
        """A partition comes to its parent, and what the default one holds may not belong there."""
        relation = self.known(parent)
        relation.partitioned = True
        if bound.is_default:
            relation.default = child
        elif relation.default in self.relations:
            self.hold(relation.default, ACCESS_EXCLUSIVE)
            if not self.known(relation.default).tested(relation.keys):
                self.hurt(relation.default, "attach-partition", relation.default)

    def _add_column(self, name: str, node: Any) -> None:
        column, type_ = f"{name}.{node.colname}", type_of(node.type_name)
        if type_.name:
            self.known(name).types[node.colname] = type_
        given = {constraint.contype: constraint for constraint in node.constraints}
        default = given.get(postgres.CONSTR_DEFAULT)
        domain = self.domains.get(type_.name)
        why = rewriting(type_, given) or (default and self._volatile(default.raw_expr))
        if domain and domain.constrained:
            why = why or f"every value of {type_} is tested"
        if why:
            self.hurt(name, "column-rewrite", f"adding {column} ({why})")
        filled = (
            SERIAL.fullmatch(type_.name)
            or given.keys() & {postgres.CONSTR_GENERATED, postgres.CONSTR_IDENTITY}
            or (default and not getattr(default.raw_expr, "isnull", False))
        )
        if given.keys() & {postgres.CONSTR_NOTNULL, postgres.CONSTR_PRIMARY} and not filled:
            self.hurt(name, "not-null-without-default", column)
        for constraint in given.values():
            self._add_constraint(name, constraint, node.colname, all_null=not filled)

    def _volatile(self, expression: Any) -> str | None:
        """Why a default differs from row to row; None where it does not."""
        for call in nodes_below(expression, nodes.FuncCall):
            name = self.dotted(call.funcname)
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
        relation = self.known(name)
        match node.contype:
            case postgres.CONSTR_CHECK:
                check = node.conname or title
                columns = nodes_below(node.raw_expr, nodes.ColumnRef)
                relation.checks[check] = {last_name(column.fields) for column in columns}
                if node.skip_validation:
                    relation.untested.add(check)
                else:
                    self.hurt(name, "constraint-scan", title, "read or write the table")
            case postgres.CONSTR_FOREIGN:
                if node.skip_validation and relation.partitioned:
                    self.find("partitioned", "a foreign key NOT VALID (before version 18)", name)
                elif not (node.skip_validation or all_null):
                    tables = "write to it or to the referenced table"
                    self.hurt(name, "constraint-scan", title, tables)
            case postgres.CONSTR_EXCLUSION | postgres.CONSTR_PRIMARY | postgres.CONSTR_UNIQUE:
                if not node.indexname:
                    self.hurt(name, "constraint-index", title)
                elif relation.partitioned:
                    self.find("partitioned", "a constraint USING INDEX", name)
                elif node.contype == postgres.CONSTR_PRIMARY:
                    for key in self.indexes.get(node.indexname, _NO_INDEX).columns:
                        self._set_not_null(name, key)
            case postgres.CONSTR_NOTNULL if column is None and not node.skip_validation:
                self._set_not_null(name, node.keys[0].sval)
        if filled := filled_columns(node, column):
            kind = "check" if node.contype == postgres.CONSTR_CHECK else "not_null"
            constraint = node.conname or constraint_name(name, min(filled), kind)
            if node.contype == postgres.CONSTR_PRIMARY:  # without it they still are NOT NULL
                constraint = constraint_name(name, min(filled), kind)
            (relation.unproved if node.skip_validation else relation.filled)[constraint] = filled

    def _set_not_null(self, name: str, column: str) -> None:
        filled = self.known(name).filled
        if not any(column in columns for columns in filled.values()):
            self.hurt(name, "set-not-null", f"{name}.{column}")
        filled[constraint_name(name, column, "not_null")] = {column}

    def _change_type(self, name: str, column: str, node: Any) -> None:
        types, new = self.known(name).types, type_of(node.type_name)
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
            self.hurt(name, rule, f"{name}.{column} {change}")

    def _base(self, type_: Type | None) -> Any:
        """The type below a domain, and below that."""
        while type_ and type_.name in self.domains:
            type_ = self.domains[type_.name].base
        return type_

    def _create_index(self, node: Any) -> None:
        name = self.relation(node.relation)
        columns = [element.name or "expr" for element in node.index_params]
        index = node.idxname or "_".join([name.split(".")[1], *columns, "idx"])
        table = self.known(name)
        self.indexes[index] = Index(name, columns)
        if node.concurrent and table.partitioned:
            self.find("partitioned", "CREATE INDEX CONCURRENTLY", name)
        elif table.new:
            self.new_indexes.add(index)
        elif not node.concurrent:
            self.hold(name, SHARE)
            if node.relation.inh:  # ON ONLY a parent builds nothing
                self.find("create-index", name)

    def _drop_index(self, node: Any, index: str, name: str) -> None:
        known = self.indexes.pop(index, None)
        if node.concurrent:
            if known and self.known(known.table).partitioned:
                self.find("partitioned", "DROP INDEX CONCURRENTLY", known.table)
        elif index not in self.new_indexes:
            self.find("drop-index", name)
            if known:
                self.hold(known.table, ACCESS_EXCLUSIVE)

    def _alter_composite(self, node: Any) -> None:
        name = node.relation.relname
        if name in self.new_types:
            return
        for command in node.cmds:
            if command.subtype == postgres.AT_DropColumn:
                self.find("drop", f"{name}.{command.name}")
            elif command.subtype == postgres.AT_AlterColumnType and command.behavior == _CASCADE:
                self.find("type-rewrite", f"{name}.{command.name} in every table of this type")
