"""sql/verify/70_authorization.sql from the authorization data."""

from collections.abc import Iterable

from components import ROOT
from components.authorization import API_ROLES, TABLES, policies

LETTERS = {"SELECT": "r", "INSERT": "a", "UPDATE": "w", "DELETE": "d"}
"""Command -> as pg_policy has it."""

CHECKS = ROOT / "docs" / "generate" / "verification.sql"
"""The checks, with names in braces for what they compare with."""


def document() -> str:
    """sql/verify/70_authorization.sql."""
    return CHECKS.read_text().format(
        tables=_values([table] for table in TABLES),
        policies=_values(
            [table, role, "".join(LETTERS[command] for command in commands)]
            for table in TABLES
            for role, commands in policies(table).items()
        ),
        privileges=_values(
            [table, role, privilege, "{" + ",".join(columns) + "}"]
            for role, access in API_ROLES.items()
            for table, privileges in access.tables.items()
            for privilege, columns in privileges.items()
        ),
        roles=", ".join(f"to_regrole('{role}')" for role in API_ROLES),
    )


def _values(rows: Iterable[Iterable[str]]) -> str:
    """The rows of a VALUES list."""
    quoted = ("', '".join(row) for row in rows)
    return ",\n".join(f"    ('{row}')" for row in quoted)
