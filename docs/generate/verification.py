"""The generated files of sql/verify/, from the authorization data."""

from collections.abc import Iterable

from components import ROOT
from components.authorization import ADMINISTRATORS, API_ROLES, GROUP, SERVICES, TABLES, policies

LETTERS = {"SELECT": "r", "INSERT": "a", "UPDATE": "w", "DELETE": "d"}
"""Command -> as pg_policy has it."""

CHECKS = ROOT / "docs" / "generate"
"""Where the checks are, with names in braces for what they compare with."""


def authorization() -> str:
    """sql/verify/70_authorization.sql."""
    return (
        (CHECKS / "authorization.sql")
        .read_text()
        .format(
            tables=_values([table] for table in TABLES),
            policies=_values(
                [table, role, "".join(LETTERS[command] for command in commands)]
                for table in TABLES
                for role, commands in policies(table).items()
            ),
            privileges=_values(
                [table, role, privilege, _array(columns)]
                for role, access in API_ROLES.items()
                for table, privileges in access.tables.items()
                for privilege, columns in privileges.items()
            ),
            roles=", ".join(f"to_regrole('{role}')" for role in API_ROLES),
        )
    )


def access() -> str:
    """sql/verify/80_access.sql."""
    schemas = {
        role: sorted({table.partition(".")[0] for table in service.tables})
        for role, service in SERVICES.items()
    }
    return (
        (CHECKS / "access.sql")
        .read_text()
        .format(
            administrators=",".join(ADMINISTRATORS),
            api_roles=",".join(API_ROLES),
            group=GROUP,
            services=",\n".join(
                f"    ('{role}', {str(service.inherit).lower()}, {service.connection_limit},"
                f" '{service.statement_timeout}', '{service.lock_timeout}')"
                for role, service in SERVICES.items()
            ),
            memberships=_values(
                [group, role] for role, service in SERVICES.items() for group in service.member_of
            ),
            privileges=_values(
                [
                    *(
                        ["schema", schema, role, "USAGE", "{}"]
                        for role, names in schemas.items()
                        for schema in names
                    ),
                    *(
                        ["routine", function, role, "EXECUTE", "{}"]
                        for role, service in SERVICES.items()
                        for function in service.functions
                    ),
                    *(
                        ["table", table, role, privilege, _array(columns)]
                        for role, service in SERVICES.items()
                        for table, privileges in service.tables.items()
                        for privilege, columns in privileges.items()
                    ),
                ]
            ),
        )
    )


def _array(columns: Iterable[str]) -> str:
    return "{" + ",".join(columns) + "}"


def _values(rows: Iterable[Iterable[str]]) -> str:
    """The rows of a VALUES list."""
    quoted = ("', '".join(row) for row in rows)
    return ",\n".join(f"    ('{row}')" for row in quoted)
