"""Functions: what is made of them, and who may execute them, or read what has no row security."""

from typing import Any

from postgast import pg_query_pb2 as postgres

from migrate.lint._known import Function, Known, Relation
from migrate.lint._nodes import ROUTINES, granted, last_name, schema_of, type_names
from migrate.lint._privileges import EVERYBODY

_RESULTS = {postgres.FUNC_PARAM_OUT, postgres.FUNC_PARAM_TABLE}
_UNCALLABLE = {"trigger", "event_trigger"}
_PINNED = ["pg_catalog", "pg_temp"]


class Functions(Known):
    """Functions, and privileges on them."""

    def _create_function(self, node: Any) -> None:
        given = [p.arg_type for p in node.parameters if p.mode not in _RESULTS]
        key = self.dotted(node.funcname), type_names(given)
        old = self.functions.get(key) if node.replace else None
        result = node.return_type and last_name(node.return_type.names)
        schema = schema_of(key[0])
        callable_ = result not in _UNCALLABLE and schema != "pg_temp"
        exposed = self.exposed_by_default("functions", schema) if callable_ else {}
        self.functions[key] = Function(
            new=old is None or old.new,
            pinned=node.sql_body is not None,  # its names were looked up when it was created
            changed=self.place,
            exposed=old.exposed if old else exposed,
        )
        self._set_options(self.functions[key], node.options)

    def _alter_function(self, node: Any) -> None:
        for key in self.routines(node.func):
            self._set_options(self.functions[key], node.actions)

    def _set_options(self, function: Function, options: Any) -> None:
        for option in options:
            if option.defname == "volatility":
                function.volatile = option.arg.sval == "volatile"
            elif option.defname == "security":
                function.definer, function.changed = option.arg.boolval, self.place
            elif option.defname == "set" and option.arg.name in ("search_path", ""):
                path = [value.val.sval for value in option.arg.args]
                function.pinned, function.changed = path == _PINNED, self.place

    def _forget(self, node: Any) -> None:
        for key in self.routines(node):
            del self.functions[key]

    def _grant(self, node: Any) -> None:
        functions = node.objtype in ROUTINES
        if not functions and node.objtype != postgres.OBJECT_TABLE:
            return
        made: list[Function] | list[Relation]
        if node.targtype == postgres.ACL_TARGET_ALL_IN_SCHEMA:
            schemas = {schema.sval for schema in node.objects}
            made = (
                [known for key, known in self.functions.items() if schema_of(key[0]) in schemas]
                if functions
                else [known for name, known in self.relations.items() if schema_of(name) in schemas]
            )
        elif functions:
            made = [self.functions[key] for item in node.objects for key in self.routines(item)]
        else:
            made = [self.known(self.relation(item)) for item in node.objects]
        roles = granted(node, "execute" if functions else "select")
        for each in made:
            for role in roles:
                each.exposed.pop(role, None)  # a grant by name is meant
            if EVERYBODY in roles and node.is_grant and functions:
                each.exposed[EVERYBODY] = self.place

    def _alter_default_privileges(self, node: Any) -> None:
        action = node.action
        if action.objtype in ROUTINES:
            kind, right = "functions", "execute"
        elif action.objtype == postgres.OBJECT_TABLE:
            kind, right = "tables", "select"
        else:
            return
        # For one schema they can only add to those of all.
        schemas = next((o.arg.items for o in node.options if o.defname == "schemas"), [None])
        roles = granted(action, right)
        about = {(schema and schema.sval, kind, role) for schema in schemas for role in roles}
        self.defaults = self.defaults | about if action.is_grant else self.defaults - about
