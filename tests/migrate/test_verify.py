"""Verification of a database: drift, and the checks of verify/."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import LiteralString

import pytest

from embedded.postgres import Server
from migrate import verify
from migrate.connection import connect
from migrate.errors import DriftError, FailedChecksError
from tests.support.migrating import (
    ABSENT,
    REPOSITORY,
    checks_passed,
    drifts,
    failure,
    made,
    query,
    tables,
    up,
    up_fails,
    write,
)

# --- drift -----------------------------------------------------------------------------------

BASE = """
create schema app;
create table app.t (id int primary key, name text not null, n int default 1);
create index t_name on app.t (name);
create view app.v as select id from app.t;
create type app.mood as enum ('sad');
create function app.f() returns int language sql as 'select 1';
create function app.g() returns trigger language plpgsql as 'begin return new; end';
create trigger g before insert on app.t for each row execute function app.g();
alter table app.t enable row level security;
create policy p on app.t for select to pg_monitor using (true);
grant select, insert on app.t to pg_monitor;
grant update (name) on app.t to pg_monitor;
create table app.extra (a int);
create domain app.short as text default 'x' check (length(value) < 9);
create type app.pair as (a int, b text);
create type app.span as range (subtype = int);
create aggregate app.total (int) (sfunc = int4pl, stype = int, initcond = '0');
create sequence app.numbers;
create table app.ruled (a int, b int);
create rule r as on insert to app.ruled do also select 1;
create statistics app.st on a, b from app.ruled;
"""

DRIFTS = [
    ("create table app.new ()", "table app.new", ABSENT, "kind r, owner us, row security f"),
    ("drop table app.extra", "column app.extra.a", "integer", ABSENT),
    ("alter table app.t add x int", "column app.t.x", ABSENT, "integer"),
    ("alter table app.t alter n set default 2", "column app.t.n", "default 1", "default 2"),
    ("alter table app.t alter n type bigint", "column app.t.n", "integer", "bigint"),
    ("alter table app.t alter name drop not null", "column app.t.name", "text not null", "text"),
    ("alter table app.t add check (n > 0)", "constraint t_n_check on app.t", ABSENT, "(n > 0)"),
    ("alter table app.t drop constraint t_pkey", "constraint t_pkey on app.t", "PRIMARY", ABSENT),
    ("drop index app.t_name", "index app.t_name", "btree (name)", ABSENT),
    ("alter table app.t disable row level security", "table app.t", "security t", "security f"),
    ("alter policy p on app.t using (id = 1)", "policy p on app.t", "(true)", "((id = 1))"),
    ("alter policy p on app.t to public", "policy p on app.t", "to pg_monitor", "to public"),
    (
        "create or replace function app.f() returns int language sql as 'select 2'",
        "function app.f()",
        "select 1",
        "select 2",
    ),
    ("alter function app.f() security definer", "function app.f()", "", "SECURITY DEFINER"),
    ("alter table app.t disable trigger g", "trigger g on app.t", "enabled O", "enabled D"),
    ("create or replace view app.v as select 1 as id", "view app.v", "FROM app.t", "1 AS id"),
    ("alter type app.mood add value 'glad'", "type app.mood", "enum 'sad'", "'sad', 'glad'"),
    ("alter domain app.short set default 'y'", "type app.short", "'x'", "'y'"),
    ("alter domain app.short set not null", "type app.short", "domain of text", "not null"),
    (
        "alter domain app.short drop constraint short_check",
        "constraint short_check on app.short",
        "CHECK",
        ABSENT,
    ),
    ("alter type app.pair alter attribute b type int", "type app.pair", "b text", "b integer"),
    ("drop type app.span", "type app.span", "range of integer", ABSENT),
    ("drop aggregate app.total (int)", "aggregate app.total(integer)", "by int4pl", ABSENT),
    ("alter sequence app.numbers cycle", "sequence app.numbers", "cache 1", "cache 1 cycle"),
    ("alter sequence app.numbers minvalue 0", "sequence app.numbers", "from 1", "from 0"),
    ("drop rule r on app.ruled", "rule r on app.ruled", "SELECT 1", ABSENT),
    ("drop statistics app.st", "statistics app.st", "ON a, b", ABSENT),
    ("create sequence app.s", "sequence app.s", ABSENT, "owner us"),
    ("alter table app.t owner to pg_monitor", "table app.t", "owner us", "owner pg_monitor"),
    (
        "revoke insert on app.t from pg_monitor",
        "privileges of pg_monitor on table app.t",
        "INSERT, SELECT",
        "SELECT",
    ),
    (
        "revoke update (name) on app.t from pg_monitor",
        "privileges of pg_monitor on column app.t.name",
        "UPDATE",
        ABSENT,
    ),
    (
        "revoke execute on function app.f() from public",
        "privileges of public on function app.f()",
        "EXECUTE",
        ABSENT,
    ),
    (
        "grant usage on schema app to public",
        "privileges of public on schema app",
        ABSENT,
        "USAGE",
    ),
]


@pytest.fixture(scope="session")
def base_database(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A database with BASE applied, for changes that are rolled back."""
    query(server.url(), "create database base")
    files = {"migrations/0001_base.sql": BASE}
    up(server.url("base"), write(tmp_path_factory.mktemp("base"), files))
    yield server.url("base")
    query(server.url(), "drop database base with (force)")


@pytest.mark.parametrize(
    ("change", "name", "expected", "found"), DRIFTS, ids=lambda text: text[:60]
)
def test_drift_is_named_with_what_was_expected_and_what_was_found(
    base_database: str, change: LiteralString, name: str, expected: str, found: str
) -> None:
    with connect(base_database) as session, session.transaction(force_rollback=True):
        assert drifts(session) == {}
        session.execute(change)
        drifted = drifts(session)
    assert name in drifted
    assert expected in drifted[name][0]
    assert found in drifted[name][1]


@pytest.mark.parametrize(
    "change",
    [
        "insert into app.t values (1, 'x')",
        "analyze app.t",
        "select nextval('app.numbers')",
        "create schema theirs authorization pg_monitor; create table theirs.t ()",
        "create role drift_login login; grant select on app.t to drift_login",
        "create temporary table t (a int)",
    ],
)
def test_what_is_not_the_schema_s_is_no_drift(base_database: str, change: LiteralString) -> None:
    with connect(base_database) as session, session.transaction(force_rollback=True):
        session.execute(change)
        assert drifts(session) == {}


def test_verify_fails_on_drift_and_says_what_to_do(database: str, tmp_path: Path) -> None:
    up(database, write(tmp_path, tables(1)))
    query(database, "alter table t1 alter a type bigint")
    assert failure(lambda: checks_passed(database, tmp_path), DriftError) == (
        "1 object is not as the last run left them:\n"
        "column public.t1.a\n"
        "  expected: integer\n"
        "  found:    bigint\n"
        "  what to do: undo the change; or, where it is to stay, run `python -m migrate verify "
        "--accept` and write a migration that makes it where it is missing"
    )


def test_a_later_run_does_not_hide_a_drift(database: str, tmp_path: Path) -> None:
    up(database, write(tmp_path, tables(1)))
    query(database, "alter table t1 add b int")
    up(database, write(tmp_path, tables(2)))
    with connect(database) as session:
        assert drifts(session) == {"column public.t1.b": (ABSENT, "integer")}


def test_a_later_failing_run_does_not_hide_a_drift(database: str, tmp_path: Path) -> None:
    up(database, write(tmp_path, tables(1)))
    query(database, "drop table t1")
    up_fails(database, write(tmp_path, {**tables(2), "migrations/0003_c.sql": "select 1 / 0;"}))
    with connect(database) as session:
        assert drifts(session).keys() == {"table public.t1", "column public.t1.a"}


def test_a_migration_that_settles_a_drift_ends_it(database: str, tmp_path: Path) -> None:
    up(database, write(tmp_path, tables(1)))
    query(database, "alter table t1 add b int, alter a type bigint")
    settle = "alter table t1 drop b, alter a type text;"
    up(database, write(tmp_path, {"migrations/0002_b.sql": settle}))
    assert checks_passed(database, tmp_path) == 0


def test_what_a_failed_file_without_a_transaction_made_is_no_drift(
    database: str, tmp_path: Path
) -> None:
    up(database, write(tmp_path, tables(1)))
    text = "-- migrate: no-transaction\ncreate table a ();\nselect 1 / 0;"
    up_fails(database, write(tmp_path, {"migrations/0002_a.sql": text}))
    assert checks_passed(database, tmp_path) == 0


def test_accepted_drift_is_expected_from_then_on(database: str, tmp_path: Path) -> None:
    up(database, write(tmp_path, tables(1)))
    query(database, "alter table t1 add b int")
    with connect(database) as session:
        verify.accept(session)
        assert drifts(session) == {}
        session.execute("alter table t1 drop b")
        assert drifts(session) == {"column public.t1.b": ("integer", ABSENT)}


# --- verification ----------------------------------------------------------------------------


def test_verify_counts_the_checks_that_pass(database: str, tmp_path: Path) -> None:
    holds = "-- check: it holds\nselect 1 where false;\n"
    write(tmp_path, {"verify/1.sql": holds * 2, "verify/2.sql": holds})
    assert checks_passed(database, tmp_path) == 3


def test_every_failed_check_is_named_with_its_rows(database: str, tmp_path: Path) -> None:
    text = """-- About tables.

-- check: Every table has
--   a name.
select 1 as n, 'x' as name union all select 2, null;

-- check: This one holds.
select 1 where false;
"""
    write(tmp_path, {"verify/1.sql": text, "verify/2.sql": "-- check: Two.\nselect true as two;"})
    assert failure(lambda: checks_passed(database, tmp_path), FailedChecksError) == (
        f"{tmp_path}/verify/1.sql:5:1: failed check: Every table has a name.\n"
        "  n=1, name=x\n"
        "  n=2, name=None\n"
        f"{tmp_path}/verify/2.sql:2:1: failed check: Two.\n"
        "  two=True\n"
        "  what to do: what was applied stays applied; fix it with the next migration, or by "
        "editing a repeatable file"
    )


def test_of_many_rows_of_a_failed_check_twenty_are_shown(database: str, tmp_path: Path) -> None:
    text = "-- check: none\nselect * from generate_series(1, 1000) as n;"
    write(tmp_path, {"verify/1.sql": text})
    message = failure(lambda: checks_passed(database, tmp_path), FailedChecksError)
    assert message.splitlines()[-2] == "  n=20"


def test_of_two_million_rows_of_a_failed_check_only_those_are_fetched(
    database: str, tmp_path: Path
) -> None:
    text = """-- check: none
select n, repeat('x', 100) from generate_series(1, 2000000) as n;
-- check: a check after it is asked, too
select 1 as one;
"""
    write(tmp_path, {"verify/1.sql": text})
    program = """
import sys
from pathlib import Path
from migrate.__main__ import main
code = main(sys.argv[1:])
print(Path("/proc/self/status").read_text())
sys.exit(code)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, "--directory", str(tmp_path), "verify"],
        cwd=REPOSITORY,
        env=os.environ | {"DATABASE_URL": database},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "  n=20, repeat=" in done.stderr
    assert "  n=21, repeat=" not in done.stderr
    assert "  one=1\n" in done.stderr
    most = re.search(r"VmHWM:\s+(\d+) kB", done.stdout)
    assert most
    assert int(most[1]) < 150_000  # fetched as a whole, they are 600 MB


@pytest.mark.parametrize(
    ("row", "shown"),
    [
        ("select 'infinity'::timestamptz as at", "at=infinity"),
        ("select '0044-03-15 BC'::date as day", "day=0044-03-15 BC"),
        ("select interval '1 mon' as i, array['-infinity'::date] as a", "i=1 mon, a={-infinity}"),
        ("select tstzrange('-infinity', 'infinity') as r", "r=[-infinity,infinity)"),
    ],
)
def test_a_row_that_python_has_no_values_for_fails_a_check(
    database: str, tmp_path: Path, row: str, shown: str
) -> None:
    text = f"-- check: none\nset intervalstyle = postgres;\n{row};"
    write(tmp_path, {"verify/a.sql": text})
    message = failure(lambda: checks_passed(database, tmp_path), FailedChecksError)
    assert f"\n  {shown}\n" in message


def test_a_row_without_columns_fails_a_check(database: str, tmp_path: Path) -> None:
    write(tmp_path, {"verify/1.sql": "-- check: none\nselect from generate_series(1, 2);"})
    message = failure(lambda: checks_passed(database, tmp_path), FailedChecksError)
    assert f"{tmp_path}/verify/1.sql:2:1: failed check: none\n" in message


def test_a_check_may_be_an_assertion(database: str, tmp_path: Path) -> None:
    write(tmp_path, {"verify/1.sql": "do $$ begin assert true; end $$;"})
    assert checks_passed(database, tmp_path) == 1
    write(tmp_path, {"verify/1.sql": "do $$ begin assert false, 'not so'; end $$;"})
    assert "verify/1.sql:1:7: not so (SQLSTATE P0004)" in failure(
        lambda: checks_passed(database, tmp_path)
    )


def test_a_check_that_cannot_be_run_is_an_error_with_its_place(
    database: str, tmp_path: Path
) -> None:
    write(tmp_path, {"verify/1.sql": "-- check: x\nselect 1\n  from missing;"})
    message = failure(lambda: checks_passed(database, tmp_path))
    assert f'{tmp_path}/verify/1.sql:3:8: relation "missing" does not exist' in message


def test_verify_changes_nothing(database: str, tmp_path: Path) -> None:
    write(tmp_path, {"verify/1.sql": "create table t ();"})
    assert "read-only transaction" in failure(lambda: checks_passed(database, tmp_path))
    assert made(database) == []
