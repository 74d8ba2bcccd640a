"""The bundle: psql makes of it what a run makes of the files."""

from pathlib import Path

import psycopg
import pytest

from migrate import files, plan
from migrate.connection import connect
from migrate.lock import LOCK_KEY
from tests.support.migrating import (
    ROWS,
    bundled,
    checks_passed,
    dump,
    in_background,
    large,
    made,
    objects,
    psql,
    query,
    recorded,
    tables,
    up,
    wait_for,
    write,
)

TRICKY = {
    "migrations/0001_a.sql": "create table t1 (a int);\n-- comes last; without a semicolon\n"
    "create table \"q;uoted\" (b text default 'it''s $$; \\ü') -- the end; really",
    "migrations/0002_b.sql": "-- migrate: no-transaction\r\ncreate index concurrently i on t1 (a);",
    "migrations/0003_c.sql": "create schema s; set search_path = s; set role pg_monitor",
    "migrations/0004_d.sql": "create table t4 (a int[] default '{1,2}');;\n/* ; */",
    "repeatable/it's.sql": "create or replace function f() returns text language sql\n"
    "begin atomic; select 'a;b'; end;\nalter table t1 enable row level security;",
}


def test_psql_makes_of_the_bundle_what_up_makes_of_the_files(
    database: str, other_database: str, tmp_path: Path, postgres_bin: Path
) -> None:
    directory = write(tmp_path, TRICKY)
    up(other_database, directory)
    assert psql(postgres_bin, database, bundled(directory), tmp_path) == (0, "")
    assert objects(database) == objects(other_database)
    assert dump(postgres_bin, database) == dump(postgres_bin, other_database)
    rows = "select folder, name, sha256, engine_version from migrate.ledger order by applied_at, 2"
    assert query(database, rows) == query(other_database, rows)


def test_one_run_makes_what_a_run_for_each_file_makes(
    database: str, other_database: str, tmp_path: Path
) -> None:
    for name, text in TRICKY.items():
        up(other_database, write(tmp_path, {name: text}))
    up(database, tmp_path)
    assert objects(database) == objects(other_database)


def test_up_applies_nothing_to_a_database_made_from_the_bundle(
    database: str, tmp_path: Path, postgres_bin: Path
) -> None:
    directory = write(tmp_path, TRICKY)
    psql(postgres_bin, database, bundled(directory), tmp_path)
    assert up(database, directory) == []
    assert checks_passed(database, directory) == 0
    with connect(database) as session:
        planned = plan.check(session, files.read_tree(directory))
    assert (planned.has_work, planned.complete) == (False, True)
    assert up(database, write(directory, tables(5))) == ["0005_t5.sql"]


def test_the_first_run_after_the_bundle_completes_the_ledger(
    database: str, other_database: str, tmp_path: Path, postgres_bin: Path
) -> None:
    directory = write(tmp_path, {**TRICKY, "repeatable/b.sql": "select 1;"})
    up(other_database, directory)
    psql(postgres_bin, database, bundled(directory), tmp_path)
    write(directory, {"repeatable/b.sql": "select 2;"})
    assert up(other_database, directory) == up(database, directory) == ["b.sql"]
    rows = "select folder, name, sha256, content from migrate.ledger order by 1, 2"
    assert query(database, rows) == query(other_database, rows)
    assert query(database, "select in_progress is null from migrate.catalog") == [True]


@pytest.mark.parametrize("end", ["", "-- the end", "\n\n", "select 1", "select 1 -- ;"])
def test_a_large_file_is_in_the_bundle_as_it_is(
    database: str, tmp_path: Path, postgres_bin: Path, end: str
) -> None:
    write(tmp_path, {**tables(1, 3), "migrations/0002_b.sql": large("") + end})
    assert psql(postgres_bin, database, bundled(tmp_path), tmp_path) == (0, "")
    assert query(database, "select count(*) from t1") == [ROWS]
    assert recorded(database) == ["0001_t1.sql", "0002_b.sql", "0003_t3.sql"]
    assert up(database, tmp_path) == []


def test_the_bundle_is_refused_on_a_migrated_database_and_changes_nothing(
    database: str, tmp_path: Path, postgres_bin: Path
) -> None:
    up(database, write(tmp_path, {"migrations/0001_a.sql": "select 1;"}))
    before = objects(database), query(database, "table migrate.ledger")
    write(tmp_path, {**TRICKY, "migrations/0002_b.sql": "-- migrate: no-transaction\nvacuum;"})
    code, said = psql(postgres_bin, database, bundled(tmp_path), tmp_path)
    assert code == 3
    assert "this database has been migrated before" in said
    assert 'HINT:  run "python -m migrate up", which applies only what is missing' in said
    assert (objects(database), query(database, "table migrate.ledger")) == before


def test_the_bundle_waits_for_a_run_that_holds_the_lock(
    database: str, tmp_path: Path, postgres_bin: Path
) -> None:
    script = bundled(write(tmp_path, tables(1)))
    with psycopg.connect(database, autocommit=True) as holder:
        holder.execute("select pg_advisory_lock(%s)", [LOCK_KEY])
        with in_background(lambda: psql(postgres_bin, database, script, tmp_path)) as loading:
            wait_for(
                lambda: query(database, "select pid from pg_locks where not granted"), "psql waits"
            )
            holder.execute("select pg_advisory_unlock(%s)", [LOCK_KEY])
            assert loading.result() == (0, "")


def test_a_bundle_that_fails_leaves_nothing(
    database: str, tmp_path: Path, postgres_bin: Path
) -> None:
    write(tmp_path, {**tables(1, 3), "migrations/0002_b.sql": "select 1 / 0;"})
    code, said = psql(postgres_bin, database, bundled(tmp_path), tmp_path)
    assert (code, "division by zero" in said) == (3, True)
    assert made(database) == []
    assert query(database, "select nspname from pg_namespace where nspname = 'migrate'") == []
