"""Files that were written for another tool, and what tells them.

Such a file is refused: run from top to bottom, the part that undoes the other would run, too.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from embedded.errors import with_remedy

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


def marker(
    text: str, comments: Callable[[str], Iterator[int]], stop: int | None = None
) -> tuple[int, str, str] | None:
    """Where in a text a comment is another tool's marker, what it is, and what to do.

    Args:
        text: SQL.
        comments: tells where comments from `--` on begin, in characters; asked only where there
            may be a marker.
        stop: no marker behind it counts.
    """
    found = [match for match in _MARKER.finditer(text) if stop is None or match.start() < stop]
    if not found:
        return None
    begins = set(comments(text))
    for match in found:
        if match.start() in begins:
            tool = list(_MARKERS.values())[(match.lastindex or 1) - 1]
            return match.start(), f"{match[0].strip()} is a marker of {tool}", _REMEDY
    return None


def placeholder(text: str, offset: int) -> tuple[str, str] | None:
    """What stands where the parser gives up, and what to do, if it is a template's placeholder."""
    if not _PLACEHOLDER.match(text, offset):
        return None
    return (
        "a placeholder, which another tool (Flyway, goose, Atlas, dbt) fills in, and nobody here",
        "write what is meant",
    )
