"""A rehearsal: the present state in a throwaway PostgreSQL, and then what is pending."""

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from migrate import ledger, plan, run, verify
from migrate.errors import (
    FailedChecksError,
    MigrateError,
    NoRehearsalError,
    NoThrowawayError,
)
from migrate.files import PLATFORM, REPEATABLE, VERSIONED, File, Tree, raise_if_any
from migrate.session import Connection, StatementError, send, translated_errors
from migrate.throwaway import throwaway

_NAMES = (PLATFORM, VERSIONED, REPEATABLE)

_REMEDY = "correct the pending files; or, where the check is to change, its query in verify/"

_LACKS = re.compile(
    r'extension "([^"]+)" is not available|(\w+) (?:can only|must) be loaded via "?shared_preload'
)

_ONLY_PARSED = "do $$ begin raise exception 'the rest is parsed and not run'; end $$;\n"

_BUILT_IN = """
select proname || '(' from pg_proc where pronamespace = 'pg_catalog'::regnamespace
union select relname from pg_class where relnamespace = 'pg_catalog'::regnamespace
union select collname from pg_collation where collnamespace = 'pg_catalog'::regnamespace
union select name from pg_settings
union select rolname from pg_roles where starts_with(rolname, 'pg_')"""
"""Functions, system catalogs, collations, settings and roles."""

_WORD = re.compile(r"([a-z]\w*)\s*(\(?)", re.IGNORECASE)


@dataclass(frozen=True)
class Rehearsal:
    """A rehearsal that went well.

    Attributes:
        postgres: the version of the throwaway server.
        applied: how many pending files were applied.
        checks: how many checks passed afterwards.
        seconds: how long the pending files took, in a database without rows.
        not_shown: what cannot be told, since the database is of another major version.
    """

    postgres: str
    applied: int
    checks: int
    seconds: float
    not_shown: Sequence[str] = ()

    def __str__(self) -> str:
        """The rehearsal in one line, and one for each thing that it did not show."""
        line = (
            f"rehearsed in a throwaway PostgreSQL {self.postgres}: pending files applied "
            f"{self.applied} (in {self.seconds:.2f} s), checks passed {self.checks}"
        )
        return "\n  not shown: ".join([line, *self.not_shown])


@translated_errors()
def rehearse(tree: Tree, database: Connection | None = None) -> Rehearsal:
    """Apply what is pending to a copy of the present schema, verify it, and throw it away.

    It is done in a PostgreSQL of the database's major version, where this machine has one.

    Args:
        tree: from `files.read_tree`.
        database: what is pending there; without it, everything is. Reads only.

    Raises:
        MigrateError: what is pending cannot be applied, or fails a check.
        NoRehearsalError: the throwaway server does not come up, lacks an extension, or cannot be
            brought to the present state.
    """
    try:
        with throwaway(_major(database) if database else None) as connection:
            return _rehearse(connection, tree, database)
    except NoThrowawayError as error:
        raise NoRehearsalError(f"not rehearsed: {error.problem}", error.remedy) from error


def _rehearse(connection: Connection, tree: Tree, database: Connection | None) -> Rehearsal:
    version = connection.info.parameter_status("server_version") or ""
    server = f"PostgreSQL {version}"
    if database and _major(database) != _major(connection):
        server += f", while the database's is {_major(database)}"
    try:
        run.up(connection, _applied(tree, database), _NAMES)
    except MigrateError as error:
        _refuse_lacking(error, server, database)
        raise NoRehearsalError(
            f"not rehearsed: what is applied already cannot be applied again (in a throwaway "
            f"{server}):\n{error.problem}"
        ) from error
    try:
        not_shown = _not_shown(connection, database, tree) if database else []
        started = time.monotonic()
        done = run.up(connection, tree, _NAMES)
        seconds = time.monotonic() - started
        checks = verify.check(connection, tree)
        not_shown += _extensions_of_no_use(connection, database) if database else []
    except MigrateError as error:
        _refuse_lacking(error, server, database)
        if isinstance(error, FailedChecksError):
            error = FailedChecksError(error.failed, _REMEDY)
        raise MigrateError(
            "the rehearsal failed; nothing was done to the database itself (in a "
            f"throwaway {server}):\n{error}"
        ) from error
    return Rehearsal(version, len(done), checks, seconds, not_shown)


def _major(connection: Connection) -> int:
    return connection.info.server_version // 10000


def _refuse_lacking(error: MigrateError, server: str, database: Connection | None) -> None:
    """Tell of an extension that only the throwaway server lacks.

    Raises:
        NoRehearsalError: that is why it failed.
    """
    if not (lacks := _LACKS.search(str(error.__cause__ or ""))):
        return
    name = lacks[1] or lacks[2]
    known = "select 1 from pg_available_extensions where name = %s"
    if database is None or database.execute(known, [name]).fetchone():
        raise NoRehearsalError(
            f"not rehearsed: the throwaway server ({server}) has no extension {name}, by which the "
            f"files do not apply there:\n  {error.problem.splitlines()[0]}",
            f"install {name} for it on this machine; otherwise the first run on a database shows "
            "it",
        ) from error


def _not_shown(connection: Connection, database: Connection, tree: Tree) -> list[str]:
    """What the rehearsal cannot tell of a database of another major version.

    Raises:
        FilesError: the database's own parser refuses a pending file.
    """
    theirs, ours = _major(database), _major(connection)
    if theirs == ours:
        return []
    pending = plan.check(connection, tree, _NAMES).pending
    raise_if_any([problem for file in pending for problem in _syntax_problems(database, file)])
    lacking = {name for (name,) in connection.execute(_BUILT_IN)}
    lacking -= {name for (name,) in database.execute(_BUILT_IN)}
    return [
        f"what PostgreSQL {theirs}, which the database has, does otherwise",
        *(
            f"{file.path}:{statement.position(word.start())}: PostgreSQL {theirs} has no built-in "
            f"{word[1].lower()}"
            for file in pending
            for statement in file.script.statements()
            for word in _WORD.finditer(statement.text)
            if {word[1].lower(), word[1].lower() + word[2]} & lacking
        ),
    ]


def _extensions_of_no_use(connection: Connection, database: Connection) -> list[str]:
    created = {name for (name,) in connection.execute("select extname from pg_extension")}
    known = {name for (name,) in database.execute("select name from pg_available_extensions")}
    return [
        f"the files create the extension {name}, which the database's server does not have"
        for name in sorted(created - known)
    ]


def _syntax_problems(database: Connection, file: File) -> Iterator[str]:
    """What the database's own parser, which reads a message before any of it is run, refuses."""
    for piece in file.script.pieces():
        try:
            send(database, _ONLY_PARSED + piece.text)
        except StatementError as failed:
            offset = (failed.position or 0) - len(_ONLY_PARSED)
            if failed.error.sqlstate == "42601" and offset >= 0:
                yield (
                    f"{file.path}:{piece.position(offset)}: the database's PostgreSQL "
                    f"{_major(database)}: {failed.error.diag.message_primary}\n"
                    f"{piece.frame(offset)}"
                )


def _applied(tree: Tree, database: Connection | None) -> Tree:
    """The files of the present state: repeatable ones as they were when they were applied."""
    applied = ledger.read(database).digests if database else {}
    contents = ledger.contents(database, REPEATABLE) if database and applied else {}
    return {
        PLATFORM: tree[PLATFORM],
        VERSIONED: [file for file in tree[VERSIONED] if file.name in applied.get(VERSIONED, ())],
        REPEATABLE: [
            File(Path(REPEATABLE), name, text.encode()) for name, text in contents.items()
        ],
    }
