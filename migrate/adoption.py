"""Adopting a database that psql has made of the files, before any run of the engine.

A database with our tables and no ledger is compared with what the files make in a throwaway
PostgreSQL: equal, it is recorded as migrated; otherwise the run is refused and nothing is changed.
A database that the bundle made has a ledger: runs continue on it, and differences are drift.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from psycopg.sql import Identifier

from migrate import catalog, ledger, plan, progress
from migrate.apply import apply_pending
from migrate.errors import AdoptionError, Difference, MigrateError
from migrate.files import PLATFORM, REPEATABLE, VERSIONED, File, Tree
from migrate.ledger import RecordedCatalog
from migrate.session import (
    SESSION_SETTINGS,
    Connection,
    OutdatedSessionError,
    renew,
    send,
    translated_errors,
)
from migrate.throwaway import throwaway

_OUTSIDE = re.compile(
    r"^((comment|privileges of .+?|label of .+?) on )?(default privileges|extension|event trigger"
    r"|publication|subscription|language|foreign-data wrapper|server|user mapping|access method"
    r"|setting|cast|transform)\b| in publication "
)
"""Objects in no schema: the platform may have more of them than the files make."""

_SERVER = re.compile("version of extension |privileges on ")
"""What depends on the server and the rights of the role, and is not compared."""


@dataclass(frozen=True)
class Adoption:
    """A database that psql has made of the files.

    Attributes:
        bundled: it has the ledger that the bundle writes.
        expected: the catalog as the files make it.
        leave: what the files leave to others.
        differences: where the live catalog is something else; none where there is no ledger.
    """

    bundled: bool
    expected: Mapping[str, str]
    leave: Sequence[str]
    differences: list[Difference]

    def __str__(self) -> str:
        """What a run will do about a database without a ledger."""
        return "made by psql, and equal to what the files make: a run only records that"


@translated_errors()
def compare(connection: Connection, tree: Tree) -> Adoption | None:
    """Compare a database that psql has made with what the files make; reads only.

    A copy without rows, whose ledger is empty, is judged as one without a ledger.

    Returns:
        None if a run has made it, or if it has none of the tables.

    Raises:
        AdoptionError: it has no ledger, and is not what the files make.
        NoThrowawayError: the throwaway server does not come up.
        MigrateError: it has tables of ours, and the files cannot be applied to an empty database.
    """
    known, recorded = ledger.read(connection).digests, ledger.recorded_catalog(connection)
    bundled = VERSIONED in known
    if bundled and recorded:
        return None
    in_progress = recorded and recorded.in_progress
    if not bundled and (known or in_progress or progress.read(connection)):
        return None
    leave = catalog.left_to_others(tree)
    live = catalog.read(connection, leave)
    if not _tables(live):  # of most databases this is all there is to ask
        return None
    given, made, failure = _make(tree, leave, connection.info.server_version // 10000)
    ours = _tables(made) - given
    if failure:  # before it made all of them
        ours |= _named(connection, tree) - given
    if not _tables(live) & ours:
        return None
    if failure:
        raise MigrateError(
            "there are tables of the files and no ledger; whether they are as the files make them "
            "cannot be told, because a throwaway PostgreSQL cannot apply the files, and nothing "
            f"was changed:\n  {str(failure).splitlines()[0]}",
            "run where one has what the files need; or correct the files, if they need what no "
            "file makes",
        ) from failure
    others = {name for name in made.keys() | live.keys() if _SERVER.match(name)}
    others |= given | {name for name in live.keys() - made.keys() if _OUTSIDE.search(name)}
    expected = {name: text for name, text in made.items() if name not in others}
    expected |= {name: text for name, text in live.items() if name in others}
    differences = catalog.differences(expected, live)
    if differences and not bundled:
        raise AdoptionError(differences)
    return Adoption(bundled, expected, leave, differences)


def adopt(connection: Connection, tree: Tree) -> bool:
    """Record what `compare` finds, under the lock of a run.

    Returns:
        Whether it was a database without a ledger.

    Raises:
        MigrateError: as `compare`.
    """
    try:
        found = compare(connection, tree)
    except AdoptionError:  # everything differs to a role that owns nothing: tell that instead
        with connection.transaction(force_rollback=True):
            send(connection, ledger.CREATE)
        raise
    if found is None:
        return False
    with connection.transaction():
        send(connection, ledger.CREATE)
        if not found.bundled:
            files = (*tree[VERSIONED], *tree[REPEATABLE])
            send(connection, "".join(map(ledger.record_bundled, files)))
        ledger.complete_contents(connection, tree[REPEATABLE])
        ledger.record_catalog(connection, RecordedCatalog(found.expected, found.leave))
    return not found.bundled


def _tables(objects: Mapping[str, str]) -> set[str]:
    return {name for name in objects if name.startswith("table ")}


def _named(connection: Connection, tree: Tree) -> set[str]:
    """The tables of a database that a file says to create, whatever it does if they are there."""
    created = [
        statement.node.relation
        for file in (*tree[VERSIONED], *tree[REPEATABLE])
        for statement in file.script.statements()
        if statement.kind == "CreateStmt"
    ]
    names = [
        Identifier(*filter(None, (table.schemaname, table.relname))).as_string()
        for table in created
    ]
    rows = connection.execute(
        """select format('table %%I.%%I', nspname, relname)
           from pg_class c join pg_namespace n on n.oid = relnamespace
           where c.oid in (select to_regclass(name) from unnest(%s::text[]) as name)""",
        [names],
    )
    return {name for (name,) in rows}


def _make(
    tree: Tree, leave: Sequence[str], major: int
) -> tuple[set[str], Mapping[str, str], MigrateError | None]:
    """The objects of platform/ that the other files leave as they are, and all that all make.

    The files may need what only the live database has; then it is what they make before they fail.
    """
    with throwaway(major) as connection:
        send(connection, SESSION_SETTINGS + ledger.CREATE)
        _apply(connection, tree, [PLATFORM])
        before = catalog.read(connection, leave)
        failure = None
        try:
            _apply(connection, tree, [VERSIONED, REPEATABLE])
        except MigrateError as error:
            failure = error
        made = catalog.read(connection, leave)
    return {name for name in before if before[name] == made.get(name)}, made, failure


@translated_errors()
def _apply(connection: Connection, tree: Tree, names: Sequence[str]) -> None:
    """Apply all files of folders to a database without any, as a run would."""
    applied: list[File] = []
    while True:
        try:
            apply_pending(connection, plan.check(connection, tree, names), applied)
            return
        except OutdatedSessionError:
            renew(connection)
            send(connection, SESSION_SETTINGS)
