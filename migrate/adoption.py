"""Adopting a database that psql has made of the files, before any run of the engine.

What the files make is seen in a throwaway PostgreSQL.  A database without a ledger is adopted
where it is equal to that, and else refused as it is.  One that the bundle made has a ledger, and is
run on as any other; where it is not what the files make, that is drift.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from migrate import catalog, ledger, plan
from migrate.apply import apply, batches
from migrate.connection import SESSION, Connection, connect, readable, send
from migrate.errors import AdoptionError, Difference, MigrateError
from migrate.files import PLATFORM, REPEATABLE, VERSIONED, File, Tree
from migrate.throwaway import throwaway


@dataclass(frozen=True)
class Adoption:
    """A database that psql has made of the files.

    Attributes:
        bundled: it has the ledger that the bundle writes.
        expected: the catalog as the files make it.
        differences: where the live catalog is something else; none where there is no ledger.
    """

    bundled: bool
    expected: Mapping[str, str]
    differences: list[Difference]

    def __str__(self) -> str:
        """What a run will do about a database without a ledger."""
        return "made by psql, and equal to what the files make: a run only records that"


@readable()
def judge(connection: Connection, tree: Tree) -> Adoption | None:
    """Compare a database that psql has made with what the files make; reads only.

    Returns:
        None if a run has made it, or if it has none of the tables.

    Raises:
        AdoptionError: it has no ledger, and is not what the files make.
        NoRehearsalError: the throwaway server does not come up.
        MigrateError: it has tables of ours, and the files cannot be applied to an empty database.
    """
    known = ledger.read(connection)
    bundled = VERSIONED in known.digests
    if bundled and (known.complete or ledger.catalog(connection) is not None):
        return None
    if not bundled and (known.digests or not known.complete):
        return None
    live = catalog.read(connection)
    if not _tables(live):  # of most databases this is all there is to ask
        return None
    given, made, failure = _make(tree)
    if not _tables(live) & _tables(made) - given:
        return None
    if failure:
        raise MigrateError(
            "psql has made this database, and what it should be cannot be told: the files cannot "
            "be applied again; nothing was done to the database itself (in a throwaway "
            f"PostgreSQL):\n{failure}"
        ) from failure
    expected = {name: text for name, text in made.items() if name not in given}
    expected |= {name: text for name, text in live.items() if name in given}
    differences = catalog.differences(expected, live)
    if differences and not bundled:
        raise AdoptionError(differences)
    return Adoption(bundled, expected, differences)


def adopt(connection: Connection, tree: Tree) -> bool:
    """Record what `judge` finds, under the lock of a run.

    Returns:
        Whether it was a database without a ledger.

    Raises:
        MigrateError: as `judge`.
    """
    try:
        found = judge(connection, tree)
    except AdoptionError:  # everything differs to a role that owns nothing: tell that instead
        with connection.transaction(force_rollback=True):
            send(connection, ledger.CREATE)
        raise
    if found is None:
        return False
    with connection.transaction():
        send(connection, ledger.CREATE + ledger.UPGRADE)
        if not found.bundled:
            files = (*tree[VERSIONED], *tree[REPEATABLE])
            send(connection, "".join(map(ledger.record, files)))
        ledger.complete_contents(connection, REPEATABLE, tree[REPEATABLE])
        ledger.end(connection, found.expected)
    return not found.bundled


def _tables(objects: Mapping[str, str]) -> set[str]:
    return {name for name in objects if name.startswith("table ")}


def _make(tree: Tree) -> tuple[set[str], Mapping[str, str], MigrateError | None]:
    """The objects of platform/ that the other files leave as they are, and all that all make.

    The files may need what only the live database has; then it is what they make before they fail.
    """
    with throwaway() as url, connect(url) as connection:
        send(connection, SESSION + ledger.CREATE)
        _apply(connection, tree, [PLATFORM])
        before = catalog.read(connection)
        failure = None
        try:
            _apply(connection, tree, [VERSIONED, REPEATABLE])
        except MigrateError as error:
            failure = error
        made = catalog.read(connection)
    return {name for name in before if before[name] == made.get(name)}, made, failure


@readable()
def _apply(connection: Connection, tree: Tree, names: Sequence[str]) -> None:
    """Apply all files of folders to a database without any."""
    applied: list[File] = []
    for folder in plan.make(connection, tree, names).folders:
        for batch in batches(folder.pending, together=not folder.versioned):
            apply(connection, batch, applied, lambda *_: None)
            applied += batch
