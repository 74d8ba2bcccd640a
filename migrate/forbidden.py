"""What no file may hold: what would break the run, what only psql runs, what is another tool's.

A file that was written for another tool is refused: run from top to bottom, the part that undoes
the other would run, too.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from embedded.errors import with_remedy
from migrate.parser import ParseError, Piece, Statement, postgast

_CONTROL = {
    "START": "START TRANSACTION",
    "RELEASE": "RELEASE SAVEPOINT",
    "ROLLBACK_TO": "ROLLBACK TO SAVEPOINT",
    "PREPARE": "PREPARE TRANSACTION",
}
"""Kind of a TransactionStmt -> the command, where that is not the same."""

_SUSPECT = re.compile(
    r"(begin|start|commit|end|abort|rollback|savepoint|release|prepare|copy|reindex|vacuum|cluster"
    r"|discard|set\s+(local|transaction)"
    r"|(create|drop|alter)\s+(database|tablespace|system|subscription))\b"
    r"|(create|drop|alter)\b.*\bconcurrently\b",
    re.IGNORECASE | re.DOTALL,
)
"""What `_problem` has to look at; most statements of a large file it need not."""

_COPY_BY_CLIENT = "COPY with STDIN or STDOUT, which only psql can feed", "use INSERT"

_COPY_DATA = re.compile(
    r"(?:^|;)\s*(copy\s[^;]*\sfrom\s+stdin\b[^;]*);[ \t]*\n[^;]*\Z",
    re.IGNORECASE | re.MULTILINE,
)
_LONGEST_MESSAGE = 200


def problems(
    piece: Piece, stop: int, statements: Sequence[Statement], transactional: bool
) -> list[str]:
    """What must not be in a piece, each with its place before it and what to do behind it.

    Args:
        piece: of a file.
        stop: where its last statement ends; what is behind it is another piece's.
        statements: of the piece.
        transactional: the file runs in a transaction.
    """
    found = []
    for statement in statements:
        if problem := _problem(statement, transactional):
            text, remedy = problem
            text = f"{statement.position()}: {text}\n{statement.frame()}"
            found.append(with_remedy(text, remedy))
    return found + _markers(piece, stop)


def syntax_problem(piece: Piece, error: ParseError) -> str:
    """Why the parser refuses a piece: it is another tool's, or psql's, or what the parser says."""
    message, remedy, offset = str(error), "", error.offset
    if markers := _markers(piece, len(piece.text)):  # ... or its statements lack semicolons
        return markers[0]
    if _PLACEHOLDER.match(piece.text, offset):
        tools = "Flyway, goose, Atlas, dbt"
        message = f"a placeholder, which another tool ({tools}) fills in, and nobody here"
        remedy = "write what is meant"
    if message.endswith(r'at or near "\"'):
        message = "psql meta-commands are not SQL and only psql runs them"
        remedy = "remove the line"
    if copy := _COPY_DATA.search(piece.text, 0, offset):
        (message, remedy), offset = _COPY_BY_CLIENT, copy.start(1)
    if len(message) > _LONGEST_MESSAGE:  # it quotes the rest of the file
        message = f"{message[:_LONGEST_MESSAGE]} ..."
    return with_remedy(f"{piece.position(offset)}: {message}\n{piece.frame(offset)}", remedy)


def _problem(statement: Statement, transactional: bool) -> tuple[str, str] | None:
    """Why a statement cannot be part of a migration, and what to do; None where it can."""
    if not _SUSPECT.match(statement.piece.text, statement.start, statement.stop):
        return None
    node, postgres = statement.node, postgast().pg_query_pb2
    match statement.kind:
        case "TransactionStmt":
            kind = postgres.TransactionStmtKind.Name(node.kind).removeprefix("TRANS_STMT_")
            return (
                f"{_CONTROL.get(kind, kind.replace('_', ' '))} inside a migration",
                "remove it, each file already runs in a transaction of its own",
            )
        case "CopyStmt" if not node.filename:
            return _COPY_BY_CLIENT
        case "DiscardStmt" if node.target == postgres.DISCARD_ALL:
            return (
                "DISCARD ALL lets the lock of the run go",
                "name what is to go, as DISCARD TEMP does",
            )
        case "VariableSetStmt" if node.is_local and not transactional:
            return (
                "SET LOCAL in a file without a transaction, where it holds for itself alone",
                "write SET, which holds to the end of the file",
            )
        case "VariableSetStmt" if node.name == "TRANSACTION" and not transactional:
            return (
                "SET TRANSACTION in a file without one",
                "write SET SESSION CHARACTERISTICS AS TRANSACTION, which holds to the end of the "
                "file",
            )
    if transactional and (by_itself := outside_transaction(statement)):
        return (
            f"{by_itself} cannot run inside a transaction",
            "put it into a file of its own that begins with `-- migrate: no-transaction`",
        )
    if statement.builds_concurrently and not node.idxname:
        return (
            "CREATE INDEX CONCURRENTLY without a name, by which a run that was cut off would find "
            "what it left",
            "name the index",
        )
    if statement.kind == "DropStmt" and node.concurrent and not node.missing_ok:
        return (
            "DROP INDEX CONCURRENTLY that cannot be repeated after a crash",
            "write DROP INDEX CONCURRENTLY IF EXISTS",
        )
    return None


_OUTSIDE_TRANSACTION = {
    "CreatedbStmt": "CREATE DATABASE",
    "DropdbStmt": "DROP DATABASE",
    "CreateTableSpaceStmt": "CREATE TABLESPACE",
    "DropTableSpaceStmt": "DROP TABLESPACE",
    "AlterSystemStmt": "ALTER SYSTEM",
}


def outside_transaction(statement: Statement) -> str | None:
    """The command, when it cannot run inside a transaction; else None.

    Source: the notes of each command in the documentation of PostgreSQL 18.
    """
    node, postgres = statement.node, postgast().pg_query_pb2
    match statement.kind:
        case "IndexStmt" if node.concurrent:
            return "CREATE INDEX CONCURRENTLY"
        case "DropStmt" if node.concurrent:
            return "DROP INDEX CONCURRENTLY"
        case "ReindexStmt" if has_option(node.params, "concurrently"):
            return "REINDEX CONCURRENTLY"
        case "ReindexStmt" if node.kind not in (
            postgres.REINDEX_OBJECT_INDEX,
            postgres.REINDEX_OBJECT_TABLE,
        ):
            return "REINDEX of many tables"
        case "VacuumStmt" if node.is_vacuumcmd:
            return "VACUUM"
        case "ClusterStmt" if node.relation is None:
            return "CLUSTER of all tables"
        case "AlterTableStmt" if any(
            getattr(command.def_, "concurrent", False) for command in node.cmds
        ):
            return "DETACH PARTITION CONCURRENTLY"
        case "AlterDatabaseStmt" if has_option(node.options, "tablespace"):
            return "ALTER DATABASE ... SET TABLESPACE"
        case "CreateSubscriptionStmt" if not (
            _is_off(node.options, "connect") or _is_off(node.options, "create_slot")
        ):
            return "CREATE SUBSCRIPTION that creates its slot"
        case "DropSubscriptionStmt" if not _NO_SLOT.search(
            statement.piece.text, 0, statement.start
        ):
            return "DROP SUBSCRIPTION that drops its slot"
        case "AlterSubscriptionStmt" if (
            node.kind == postgres.ALTER_SUBSCRIPTION_REFRESH
            or (node.publication and not _is_off(node.options, "refresh"))
            or any(option.defname in ("failover", "two_phase") for option in node.options)
        ):
            return "ALTER SUBSCRIPTION that asks the publisher"
    return _OUTSIDE_TRANSACTION.get(statement.kind)


_NO_SLOT = re.compile(r"\balter\s+subscription\b[^;]*\bslot_name\s*=\s*none\b", re.IGNORECASE)


def has_option(options: Any, name: str) -> bool:
    """Whether an option is there, and not off."""
    return any(option.defname == name and _said(option) not in _OFF for option in options)


_OFF = {"false", "f", "no", "n", "off", "0"}


def _said(option: Any) -> str:
    """What an option is set to; `off` is parsed as the name of a type."""
    value = option.arg
    names = getattr(value, "names", None)
    value = names[-1] if names else value
    return str(getattr(value, "sval", getattr(value, "ival", "on"))).lower()


def _is_off(options: Any, name: str) -> bool:
    return any(option.defname == name for option in options) and not has_option(options, name)


# --- other tools ---

_NAMES: Mapping[str, str] = {
    r"V[0-9][\w.]*__.*": "Flyway",
    r"U[0-9][\w.]*__.*": "Flyway, which undoes by it",
    r".*\.(down|undo)\.sql": "golang-migrate or sqlx, which undo by it",
    r".*\.up\.sql": "golang-migrate or sqlx",
    r".*\.rollback\.sql": "yoyo, which undoes by it",
    r"migration_lock\.toml": "Prisma",
}
"""The name of a file -> whose it is."""

_FOLDERS = {"migration.sql": "Prisma", "up.sql": "Diesel", "down.sql": "Diesel"}
"""What a folder holds -> whose it is."""

_MARKERS: Mapping[str, str] = {
    r"migrate:(?:up|down)\b": "dbmate",
    r"\+goose\b": "goose",
    r"\+migrate\b": "sql-migrate",
    r"\+micrate\b": "micrate",
    r"rambler (?:up|down)\b": "rambler",
    r"(?:up|down) migration\b": "node-pg-migrate",
    r"-- create above / drop below": "tern",
    r"(?://[ \t]*)?@undo\b": "MyBatis Migrations",
    r"![ \t]*(?:ups|downs)\b": "Play",
    r"![ \t]*(?:include|no-transaction|previous:)": "graphile-migrate",
    r"atlas:(?:delimiter|import|txmode)": "Atlas",
    r"liquibase formatted sql": "Liquibase",
    r"changeset \S+:\S+": "Liquibase",
    r"(?:deploy|revert|verify) \S+ (?:to|from|on) pg$": "Sqitch",
    r"no-transaction[ \t]*$": "sqlx",
    r"[-=*#+@\[ \t]*(?:up|down|undo|rollback)[-=*#:\] \t]*$": "a tool with up and down sections",
}
"""What a comment says from its begin on -> whose it is."""

_MARKER = re.compile(
    "--[ \t]*(?:" + "|".join(f"({pattern})" for pattern in _MARKERS) + ")",
    re.IGNORECASE | re.MULTILINE,
)
_PLACEHOLDER = re.compile(r"\$\{|\{\{|\{%|<%")

_REMEDY = (
    "leave what is to be run and nothing else in the file: what undoes it is a migration of its "
    "own; a file that cannot run in a transaction begins with `-- migrate: no-transaction`"
)


def name_problem(folder: Path, name: str) -> str | None:
    """Why a file or folder beside ours is another tool's, and what to do; None where it is not."""
    path = folder / name
    whose = next((tool for form, tool in _NAMES.items() if re.fullmatch(form, name)), None)
    if whose is None and path.is_dir():
        whose = next((tool for part, tool in _FOLDERS.items() if (path / part).exists()), None)
    if whose is None:
        return None
    return with_remedy(
        f"{path}: is of {whose}",
        "name what is to be run NNNN_name.sql, and take the rest out of the folder",
    )


def _markers(piece: Piece, stop: int) -> list[str]:
    """The first comment of a piece that is another tool's marker, as a problem."""
    found = [match for match in _MARKER.finditer(piece.text) if match.start() < stop]
    begins = set(_comments(piece.text)) if found else set()
    for match in found:
        if (offset := match.start()) in begins:
            tool = list(_MARKERS.values())[(match.lastindex or 1) - 1]
            text = (
                f"{piece.position(offset)}: {match[0].strip()} is a marker of {tool}\n"
                f"{piece.frame(offset)}"
            )
            return [with_remedy(text, _REMEDY)]
    return []


def _comments(text: str) -> Iterator[int]:
    """Where the comments of a text that begin with `--` begin; nothing where it has no end."""
    encoded = text.encode()
    with suppress(postgast().PgQueryError):
        for token in postgast().scan(text).tokens:
            if token.token == postgast().pg_query_pb2.SQL_COMMENT:
                yield len(encoded[: token.start].decode())
