"""A rehearsal: the present state in a throwaway PostgreSQL, and then what is pending."""

import time
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path

from migrate import ledger, run, verify
from migrate.connection import Connection, connect
from migrate.errors import FailedChecksError, MigrateError, NoRehearsalError
from migrate.files import PLATFORM, REPEATABLE, VERSIONED, File, Tree
from migrate.throwaway import throwaway


@dataclass(frozen=True)
class State:
    """What is applied to a database.

    Attributes:
        versioned: names of the versioned files.
        repeatable: name -> text of the repeatable files as they were applied.
    """

    versioned: Set[str]
    repeatable: Mapping[str, str]


_EMPTY = State(frozenset(), {})

_NAMES = (PLATFORM, VERSIONED, REPEATABLE)

_REMEDY = "correct the pending files; or, where the check is to change, its query in verify/"


@dataclass(frozen=True)
class Rehearsal:
    """A rehearsal that went well.

    Attributes:
        postgres: the version of the throwaway server.
        applied: how many pending files were applied.
        checks: how many checks passed afterwards.
        seconds: how long the pending files took, in a database without rows.
    """

    postgres: str
    applied: int
    checks: int
    seconds: float

    def __str__(self) -> str:
        """The rehearsal in one line."""
        return (
            f"rehearsed in a throwaway PostgreSQL {self.postgres}: pending files applied "
            f"{self.applied} (in {self.seconds:.2f} s), checks passed {self.checks}"
        )


def state(connection: Connection) -> State:
    """What is applied to a database; reads only."""
    applied = ledger.read(connection).digests
    if not applied:
        return _EMPTY
    versioned = applied.get(VERSIONED, {}).keys()
    return State(versioned, ledger.contents(connection, REPEATABLE))


def rehearse(tree: Tree, applied: State = _EMPTY) -> Rehearsal:
    """Apply what is pending to a copy of the present schema, verify it, and throw it away.

    Args:
        tree: from `files.read_tree`.
        applied: from `state`.

    Raises:
        MigrateError: what is pending cannot be applied, or fails a check.
        NoRehearsalError: the throwaway server does not come up, or cannot be brought to the
            present state.
    """
    with throwaway() as url, connect(url) as connection:
        try:
            run.up(connection, _before(tree, applied), _NAMES)
        except MigrateError as error:
            raise NoRehearsalError(
                f"not rehearsed: what is applied already cannot be applied again:\n{error}"
            ) from error
        try:
            started = time.monotonic()
            done = run.up(connection, tree, _NAMES)
            seconds = time.monotonic() - started
            checks = verify.check(connection, tree)
        except MigrateError as error:
            if isinstance(error, FailedChecksError):
                error = FailedChecksError(error.failed, _REMEDY)
            raise MigrateError(
                "the rehearsal failed; nothing was done to the database itself (in a "
                f"throwaway PostgreSQL):\n{error}"
            ) from error
        version = connection.info.parameter_status("server_version") or ""
        return Rehearsal(version, len(done), checks, seconds)


def _before(tree: Tree, applied: State) -> Tree:
    """The files of the present state: repeatable ones as they were when they were applied."""
    return {
        PLATFORM: tree[PLATFORM],
        VERSIONED: [file for file in tree[VERSIONED] if file.name in applied.versioned],
        REPEATABLE: [
            File(Path(REPEATABLE), name, text.encode()) for name, text in applied.repeatable.items()
        ],
    }
