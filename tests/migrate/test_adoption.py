"""Adoption: a database that psql has made of the files, before any run of the engine."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import LiteralString

import pytest

from migrate import files, run
from migrate.connection import connect
from migrate.errors import AdoptionError, DriftError
from tests.support.migrating import (
    REPOSITORY,
    bundled,
    checks_passed,
    drifts,
    failure,
    objects,
    psql,
    query,
    told,
    up,
    write,
)

FILES = {
    "platform/a.sql": "create schema if not exists auth;\n"
    "create table if not exists auth.users (a int primary key);\n",
    "migrations/0001_t.sql": "create table t (a int primary key references auth.users, b int);\n"
    "alter table t enable row level security;\n",
    "migrations/0002_i.sql": "-- migrate: no-transaction\ncreate index concurrently i on t (b);\n",
    "repeatable/f.sql": "create or replace function f() returns int language sql\n"
    "as 'select 1';\ndrop policy if exists p on t;\n"
    "create policy p on t for select to pg_monitor using (true);\n",
    "verify/a.sql": "-- check: t is there\nselect 1 where to_regclass('t') is null;\n",
}
LEDGER: LiteralString = "select folder, name, sha256, content from migrate.ledger order by 1, 2"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write(tmp_path, FILES)


@pytest.fixture
def combined(database: str, directory: Path, postgres_bin: Path) -> str:
    """A database that psql has made of the files in one script, which knows of no ledger."""
    script = "".join(text for name, text in FILES.items() if not name.startswith("verify/"))
    assert psql(postgres_bin, database, script, directory)[0] == 0
    return database


@pytest.fixture
def from_bundle(database: str, directory: Path, postgres_bin: Path) -> str:
    """A database that psql has made of the bundle."""
    script = FILES["platform/a.sql"] + bundled(directory)
    assert psql(postgres_bin, database, script, directory)[0] == 0
    return database


def migrate(directory: Path, url: str, *arguments: str) -> tuple[int, str]:
    """Exit code, and all that is said."""
    done = subprocess.run(
        [sys.executable, "-m", "migrate", "--directory", directory, *arguments],
        cwd=REPOSITORY,
        env=os.environ | {"DATABASE_URL": url},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_an_equal_database_gets_the_ledger_of_a_run_and_nothing_else(
    combined: str, other_database: str, directory: Path
) -> None:
    up(other_database, directory, names=files.FOLDERS[:3])
    before = objects(combined)
    assert migrate(directory, combined, "plan") == (
        2,
        "made by psql, and equal to what the files make: a run only records that\n"
        "the record of what is there is not complete: `up` completes it\n",
    )
    steps: list[run.Step] = []
    assert up(combined, directory, report=steps.append) == []
    assert told(steps) == ["adopted what psql had made"]
    assert objects(combined) == before
    of_a_run = [row for row in query(other_database, LEDGER) if row[0] != "platform"]
    assert query(combined, LEDGER) == of_a_run
    assert checks_passed(combined, directory) == 1
    assert migrate(directory, combined, "plan") == (0, "nothing to do\n")
    assert up(combined, write(directory, {"migrations/0003_u.sql": "create table u ();"})) == [
        "0003_u.sql"
    ]


def test_the_platform_s_files_are_applied_to_what_is_adopted(
    combined: str, directory: Path
) -> None:
    """As on a plain server, where they come first."""
    assert up(combined, directory, names=[files.PLATFORM]) == ["a.sql"]
    assert up(combined, directory) == []
    assert checks_passed(combined, directory) == 1


CHANGES: dict[LiteralString, dict[str, tuple[str | None, str | None]]] = {
    "alter table t add column c text": {"column public.t.c": (None, "text")},
    "alter table t drop column b": {
        "column public.t.b": ("integer", None),
        "index public.i": ("valid t: CREATE INDEX i ON public.t USING btree (b)", None),
    },
    "alter policy p on t to public": {
        "policy p on public.t": (
            "permissive for r to pg_monitor using (true) with check ()",
            "permissive for r to public using (true) with check ()",
        )
    },
    "grant select on t to pg_monitor": {
        "privileges of pg_monitor on table public.t": (None, "SELECT")
    },
    "alter table t owner to pg_monitor": {
        "table public.t": (
            "kind r, owner us, row security t, forced f, options ",
            "kind r, owner pg_monitor, row security t, forced f, options ",
        )
    },
    "create view v as select 1 as a": {
        "view public.v": (None, "owner us, options :  SELECT 1 AS a;")
    },
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda text: text[:32])
def test_another_database_is_refused_with_each_difference_and_stays_as_it_is(
    combined: str, directory: Path, change: LiteralString
) -> None:
    query(combined, change)
    before = objects(combined)
    for names in ([files.PLATFORM], [files.VERSIONED, files.REPEATABLE]):
        with pytest.raises(AdoptionError) as caught:
            up(combined, directory, names=names)
        found = {each.object: (each.expected, each.found) for each in caught.value.differences}
        assert found == CHANGES[change]
    assert objects(combined) == before
    assert query(combined, "select nspname from pg_namespace where nspname = 'migrate'") == []
    code, said = migrate(directory, combined, "plan")
    assert code == 3
    count = "1 object is" if len(found) == 1 else "2 objects are"
    assert said.startswith(f"{count} not as the files make them, and there is no ledger")
    assert all(f"\n{name}\n  expected: " in said for name in found if name != min(found))
    assert migrate(directory, combined, "up") == (code, said)


def test_what_was_changed_behind_the_bundle_is_drift(from_bundle: str, directory: Path) -> None:
    query(from_bundle, "alter table t add column c text")
    drift = {"column public.t.c": ("(absent)", "text")}
    assert "drift: column public.t.c\n" in migrate(directory, from_bundle, "plan")[1]
    write(directory, {"migrations/0003_u.sql": "create table u ();"})
    assert up(from_bundle, directory) == ["0003_u.sql"]
    with connect(from_bundle) as session:
        assert drifts(session) == drift
    assert "column public.t.c" in failure(lambda: checks_passed(from_bundle, directory), DriftError)
    assert up(from_bundle, directory) == []
    query(from_bundle, "alter table t drop column c")
    assert checks_passed(from_bundle, directory) == 1


def test_a_bundle_of_an_older_release_is_run_on(from_bundle: str, directory: Path) -> None:
    new = FILES["repeatable/f.sql"].replace("select 1", "select 2")
    write(directory, {"repeatable/f.sql": new, "migrations/0003_u.sql": "create table u ();"})
    assert up(from_bundle, directory, names=[files.VERSIONED]) == ["0003_u.sql"]
    assert up(from_bundle, directory, names=[files.REPEATABLE]) == ["f.sql"]
    assert checks_passed(from_bundle, directory) == 1


@pytest.mark.parametrize("lost", ["drop schema migrate cascade", "truncate migrate.ledger"])
def test_a_database_that_lost_its_ledger_gets_it_back(
    database: str, directory: Path, lost: LiteralString
) -> None:
    up(database, directory, names=files.FOLDERS[:3])
    ledger = query(database, LEDGER)
    query(database, lost)
    assert up(database, directory, names=files.FOLDERS[:3]) == ["a.sql"]
    assert query(database, LEDGER) == ledger
    assert checks_passed(database, directory) == 1


def test_tables_of_others_are_no_reason(database: str, directory: Path) -> None:
    query(database, "create table somebody_s (a int)")
    assert up(database, directory, names=files.FOLDERS[:3]) == [
        "a.sql",
        "0001_t.sql",
        "0002_i.sql",
        "f.sql",
    ]


NEEDS_MORE = {"migrations/0003_v.sql": "create view v as select a from somebody_s;\n"}


def test_files_may_need_a_table_that_was_there_before(database: str, directory: Path) -> None:
    query(database, "create table somebody_s (a int)")
    write(directory, NEEDS_MORE)
    assert "0003_v.sql" in up(database, directory, names=files.FOLDERS[:3])


def test_tables_of_ours_under_files_that_fail_anew_are_refused(
    combined: str, directory: Path
) -> None:
    write(directory, NEEDS_MORE)
    message = failure(lambda: up(combined, directory))
    assert message.startswith("psql has made this database, and what it should be cannot be told: ")
    assert "nothing was done to the database itself" in message
    assert 'relation "somebody_s" does not exist' in message
    assert query(combined, "select to_regclass('migrate.ledger')") == [None]


def test_of_two_runs_at_once_one_adopts(combined: str, directory: Path) -> None:
    steps: list[run.Step] = []
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(up, combined, directory, report=steps.append) for _ in range(2)]
    assert [each.result() for each in runs] == [[], []]
    assert told(steps).count("adopted what psql had made") == 1
