"""docs/authorization.md from the authorization data."""

from components.authorization import (
    API_ROLES,
    AUTHORIZATION,
    FUNCTIONS,
    SERVICES,
    TABLES,
    Privileges,
)
from docs.generate.markdown import grid

COMMANDS = ("SELECT", "INSERT", "UPDATE", "DELETE")

INTRO = f"""\
# Who may do what

Generated from `components/authorization.py` by `make generate`: edit that, not this.
`tests/database/test_authorization.py` tries every cell on a real server.

- A privilege that is not listed is not granted. Only the owner of the tables has TRUNCATE,
  REFERENCES or TRIGGER, and no role may grant its privileges to others.
- Rows: `authenticated`, a user, reaches the rows of the own account only; all others reach every
  customer's. Row-level security enforces that, with policies of their own for the services.
- API roles ({", ".join(f"`{role}`" for role in API_ROLES)}) are taken by requests through
  Supabase's API; services ({", ".join(f"`{role}`" for role in SERVICES)}) log in.
- What any role has beyond that on what is ours (a privilege, an option, a membership, an attribute,
  a setting) is named by `python -m migrate verify` and by previews. `up` takes it back from a
  service; of another role it names it, with the statement that takes it back, and stops. A
  superuser, or who reads everything by a predefined role, is named unless it is the owner of the
  tables, the one that made the server, or in `ADMINISTRATORS`.
"""


def document() -> str:
    """docs/authorization.md."""
    parts = [
        INTRO,
        "## Overview\n",
        "S = SELECT, I = INSERT, U = UPDATE, D = DELETE; * = some columns only, listed below.\n",
        grid(["table", *AUTHORIZATION], [[f"`{table}`", *_letters(table)] for table in TABLES]),
        _memberships(),
        "## Functions\n",
        "X = EXECUTE. Users get results of their own account only; PUBLIC may execute none.\n",
        grid(["function", *AUTHORIZATION], [[f"`{name}`", *_executes(name)] for name in FUNCTIONS]),
    ]
    for table in TABLES:
        rows = [
            [
                f"`{role}`",
                access.rows,
                *(_columns(access.tables[table], command) for command in COMMANDS),
            ]
            for role, access in AUTHORIZATION.items()
            if table in access.tables
        ]
        parts += [f"## {table}\n", grid(["role", "rows", *COMMANDS], rows) if rows else "Nobody.\n"]
    return "".join(f"{part}\n" for part in parts)


def _letters(table: str) -> list[str]:
    return [
        " ".join(
            command[0] + ("*" if columns else "")
            for command, columns in access.tables.get(table, {}).items()
        )
        for access in AUTHORIZATION.values()
    ]


def _executes(function: str) -> list[str]:
    return ["X" if function in access.functions else "" for access in AUTHORIZATION.values()]


def _columns(privileges: Privileges, command: str) -> str:
    if command not in privileges:
        return ""
    return ", ".join(f"`{column}`" for column in privileges[command]) or "all"


def _memberships() -> str:
    return "".join(
        f"`{role}` has nothing of its own; it only takes the role "
        f"{' or '.join(f'`{role}`' for role in service.member_of)} (`SET ROLE`).\n"
        for role, service in SERVICES.items()
        if not service.inherit
    )
