"""Adoption: a database that psql has made of the files, before any run of the engine."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, LiteralString

import psycopg
import pytest

from migrate import files
from migrate.connection import connect
from migrate.errors import AdoptionError, DriftError
from tests.migrate.test_catalog import VIEWS, WRITTEN
from tests.support.migrating import (
    ABSENT,
    REPOSITORY,
    bundled,
    checks_passed,
    drifts,
    dump,
    failure,
    objects,
    psql,
    query,
    told,
    up,
    write,
)

if TYPE_CHECKING:
    from migrate.report import Step

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
    steps: list[Step] = []
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
def test_a_database_that_differs_in_one_thing_is_refused_with_it(
    combined: str, directory: Path, change: LiteralString
) -> None:
    query(combined, change)
    with pytest.raises(AdoptionError) as caught:
        up(combined, directory)
    found = {each.object: (each.expected, each.found) for each in caught.value.differences}
    assert found == CHANGES[change]
    count = "1 object is" if len(found) == 1 else "2 objects are"
    assert str(caught.value).startswith(f"{count} not as the files make them, and there is no led")


def test_a_database_that_differs_is_refused_by_every_command_and_stays_as_it_is(
    combined: str, directory: Path
) -> None:
    query(combined, "alter table t drop column b")
    before = objects(combined)
    for names in ([files.PLATFORM], [files.VERSIONED, files.REPEATABLE]):
        with pytest.raises(AdoptionError) as caught:
            up(combined, directory, names=names)
        found = [each.object for each in caught.value.differences]
        assert found == ["column public.t.b", "index public.i"]
    assert objects(combined) == before
    assert query(combined, "select nspname from pg_namespace where nspname = 'migrate'") == []
    code, said = migrate(directory, combined, "plan")
    assert code == 3
    assert said.startswith("2 objects are not as the files make them, and there is no ledger")
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
    assert message.startswith("there are tables of the files and no ledger; whether they are as ")
    assert "nothing was changed" in message
    assert 'relation "somebody_s" does not exist' in message
    assert query(combined, "select to_regclass('migrate.ledger')") == [None]


def test_of_two_runs_at_once_one_adopts(combined: str, directory: Path) -> None:
    steps: list[Step] = []
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(up, combined, directory, report=steps.append) for _ in range(2)]
    assert [each.result() for each in runs] == [[], []]
    assert told(steps).count("adopted what psql had made") == 1


# --- what else can make a database that seems to be ours ----------------------------------------

MADE: dict[str, str] = {
    "migrations/0001_base.sql": """
create table public.event (id bigint primary key, name text not null collate "C");
alter table public.event replica identity full;
create table public.log (day date not null, msg text) partition by range (day);
create table public.log_2026 partition of public.log
  for values from ('2026-01-01') to ('2027-01-01');
create publication changes for table public.event;
comment on table public.event is 'What happened.';
"""
}


def test_no_kind_of_difference_is_missed(database: str, tmp_path: Path, postgres_bin: Path) -> None:
    script = """
create table public.event (id bigint primary key, name text not null);
create table public.log (day date not null, msg text) partition by range (day);
create table public.log_2026 (day date not null, msg text);
alter table public.event set unlogged;
"""
    assert psql(postgres_bin, database, script, tmp_path)[0] == 0
    with pytest.raises(AdoptionError) as caught:
        up(database, write(tmp_path, MADE))
    assert [each.object for each in caught.value.differences] == [
        "column public.event.name",
        "comment on table public.event",
        "publication changes",
        "table public.event",
        "table public.event in publication changes",
        "table public.log_2026",
    ]


def test_what_the_platform_has_besides_is_not_compared(
    database: str, tmp_path: Path, postgres_bin: Path
) -> None:
    script = (
        MADE["migrations/0001_base.sql"]
        + """
create publication theirs;
alter default privileges in schema public grant select on tables to pg_monitor;
"""
    )
    assert psql(postgres_bin, database, script, tmp_path)[0] == 0
    assert up(database, write(tmp_path, MADE)) == []
    assert checks_passed(database, tmp_path) == 0
    query(database, "drop publication theirs")
    with connect(database) as session:
        assert drifts(session) == {
            "publication theirs": ("owner us, insert, update, delete, truncate", ABSENT)
        }


@pytest.mark.parametrize("text", [VIEWS, WRITTEN], ids=["views", "values"])
def test_neither_version_nor_settings_are_a_difference(
    database: str, tmp_path: Path, postgres_bin: Path, text: str
) -> None:
    name = psycopg.conninfo.conninfo_to_dict(database)["dbname"]
    for setting in ("timezone = 'Europe/Berlin'", "intervalstyle = iso_8601", "datestyle = german"):
        query(database, f"alter database {name} set {setting}")
    assert psql(postgres_bin, database, text, tmp_path)[0] == 0
    assert up(database, write(tmp_path, {"migrations/0001_a.sql": text})) == []
    assert checks_passed(database, tmp_path) == 0


def test_tables_under_files_that_fail_at_once_are_refused(database: str, tmp_path: Path) -> None:
    """They would be passed over by IF NOT EXISTS, whatever they are."""
    text = "create extension nowhere;\ncreate table if not exists account (email text);\n"
    query(database, "create table account (email int)")
    message = failure(lambda: up(database, write(tmp_path, {"migrations/0001_a.sql": text})))
    assert message.startswith("there are tables of the files and no ledger")
    assert 'extension "nowhere" is not available' in message
    assert "correct the file and run again" not in message
    assert query(database, "select to_regclass('migrate.ledger')") == [None]


def test_a_copy_without_rows_is_adopted(
    database: str, other_database: str, directory: Path, postgres_bin: Path
) -> None:
    up(database, directory, names=files.FOLDERS[:3])
    text = dump(postgres_bin, database, "--schema-only")
    assert psql(postgres_bin, other_database, text, directory) == (0, "")
    code, said = migrate(directory, other_database, "plan")
    assert (code, said.splitlines()[0]) == (
        2,
        "made by psql, and equal to what the files make: a run only records that",
    )
    steps: list[Step] = []
    assert up(other_database, directory, report=steps.append) == []
    assert told(steps) == ["adopted what psql had made"]
    assert checks_passed(other_database, directory) == 1


def test_a_copy_without_rows_that_is_something_else_is_refused(
    database: str, other_database: str, directory: Path, postgres_bin: Path
) -> None:
    up(database, directory, names=files.FOLDERS[:3])
    query(database, "alter table t add c text")
    text = dump(postgres_bin, database, "--schema-only")
    assert psql(postgres_bin, other_database, text, directory) == (0, "")
    with pytest.raises(AdoptionError) as caught:
        up(other_database, directory)
    assert [each.object for each in caught.value.differences] == ["column public.t.c"]
