"""Files without a transaction on real servers: what stands, and how they are gone on with."""

import hashlib
from pathlib import Path
from typing import Any, LiteralString
from urllib.parse import urlsplit

import psycopg
import pytest

from migrate.errors import FilesError
from tests.support.migrating import (
    checks_passed,
    cut_off,
    failure,
    in_background,
    incomplete,
    indexes,
    made,
    query,
    recorded,
    started_up,
    tables,
    up,
    up_fails,
    wait_for,
    wait_until_active,
    write,
)

# --- files without a transaction -------------------------------------------------------------

CONCURRENTLY = "-- migrate: no-transaction\ncreate unique index concurrently t1_a on t1 (a);\n"


def test_a_file_can_run_without_a_transaction(database: str, tmp_path: Path) -> None:
    write(tmp_path, {**tables(1), "migrations/0002_i.sql": CONCURRENTLY})
    assert up(database, tmp_path) == ["0001_t1.sql", "0002_i.sql"]
    assert query(database, "select indisvalid from pg_index where indrelid = 't1'::regclass")


def test_without_a_transaction_a_failure_says_what_stands(database: str, tmp_path: Path) -> None:
    text = "-- migrate: no-transaction\ncreate table a ();\ncreate table b ();\nselect 1 / 0;"
    write(tmp_path, {**tables(1), "migrations/0002_b.sql": text})
    message = up_fails(database, tmp_path)
    assert "0002_b.sql:4:1: division by zero" in message
    stands = "2 of the statements of 0002_b.sql, which are done and not to be edited"
    assert f"  not rolled back: {stands}\n" in message
    assert "  committed in this run: 0001_t1.sql\n" in message
    assert made(database) == ["a", "b", "t1"]
    assert recorded(database) == ["0001_t1.sql"]


def test_an_index_that_could_not_be_built_is_built_again_by_the_next_run(
    database: str, tmp_path: Path
) -> None:
    rows = {"migrations/0002_r.sql": "insert into t1 values (1), (1);"}
    write(tmp_path, {**tables(1), **rows, "migrations/0003_i.sql": CONCURRENTLY})
    message = up_fails(database, tmp_path)
    assert f"{tmp_path}/migrations/0003_i.sql:2:1: could not create unique index" in message
    assert "  not rolled back: 0 of the statements of 0003_i.sql" in message
    assert indexes(database) == [("t1_a", False)]
    assert "could not create unique index" in up_fails(database, tmp_path)
    query(database, "truncate t1")
    assert up(database, tmp_path) == ["0003_i.sql"]
    assert indexes(database) == [("t1_a", True)]
    assert checks_passed(database, tmp_path) == 0


def test_an_invalid_index_from_a_crash_is_not_taken_for_done(database: str, tmp_path: Path) -> None:
    up(database, write(tmp_path, tables(1)))
    query(database, "insert into t1 values (1), (1)")
    with pytest.raises(psycopg.errors.UniqueViolation):
        query(database, "create unique index concurrently t1_a on t1 (a)")
    again = CONCURRENTLY.replace("concurrently", "concurrently if not exists")
    write(tmp_path, {"migrations/0002_i.sql": again})
    for _ in range(2):
        message = up_fails(database, tmp_path)
        assert f"{tmp_path}/migrations/0002_i.sql:2:1: could not create unique index" in message
        assert recorded(database) == ["0001_t1.sql"]
    query(database, "truncate t1")
    assert up(database, tmp_path) == ["0002_i.sql"]
    assert indexes(database) == [("t1_a", True)]


@pytest.mark.parametrize("name", ["0003_i.sql", "0003_other.sql", ""])
def test_an_invalid_index_of_a_file_that_is_another_now_is_told(
    database: str, tmp_path: Path, name: str
) -> None:
    rows = {"migrations/0002_r.sql": "insert into t1 values (1), (1);"}
    write(tmp_path, {**tables(1), **rows, "migrations/0003_i.sql": CONCURRENTLY})
    up_fails(database, tmp_path)
    (tmp_path / "migrations/0003_i.sql").unlink()
    if name:
        write(tmp_path, {f"migrations/{name}": "create table other ();"})
    assert failure(lambda: up(database, tmp_path), FilesError) == (
        "migrations/0003_i.sql: was partly applied, and does not build the index any more\n"
        "  invalid index t1_a, left by a build CONCURRENTLY that did not end\n"
        "  what to do: DROP INDEX CONCURRENTLY t1_a, then run again\n"
        "  committed in this run: nothing"
    )
    query(database, "drop index concurrently t1_a")
    assert up(database, tmp_path) == [name] * bool(name)
    assert indexes(database) == []


@pytest.mark.parametrize("whose", ["another role's", "our own", "on the same table"])
def test_an_invalid_index_that_is_not_of_the_file_stops_nothing(
    database: str, role: str, tmp_path: Path, whose: str
) -> None:
    user = urlsplit(role).username
    query(database, f"grant create on database {urlsplit(role).path[1:]} to {user}")
    query(database, f"grant create on schema public to {user}")
    up(role, write(tmp_path, tables(1)))
    schema, table = "public", "t1" if whose == "on the same table" else "fact"
    if whose == "another role's":
        schema = f"theirs_{user}"
        query(database, f"create schema {schema}")
    if table == "fact":
        query(database, f"create table {schema}.fact (a int)")
    query(database, f"insert into {schema}.{table} values (1), (1)")
    with pytest.raises(psycopg.errors.UniqueViolation):
        query(database, f"create unique index concurrently other_a on {schema}.{table} (a)")
    build = "create index concurrently t1_a on t1 (a)"
    files = {"migrations/0002_i.sql": without_transaction(build), **tables(3)}
    assert up(role, write(tmp_path, files)) == ["0002_i.sql", "0003_t3.sql"]
    assert ("t1_a", True) in indexes(database)
    query(database, f"drop index {schema}.other_a")
    query(database, f"drop table if exists {schema}.fact")
    if whose == "another role's":
        query(database, f"drop schema {schema}")


def test_an_index_that_another_session_is_building_stops_nothing(
    database: str, tmp_path: Path
) -> None:
    theirs = "create index concurrently theirs on other (a)"
    query(database, "create table other (a int)")
    write(tmp_path, {**tables(1), "migrations/0002_i.sql": CONCURRENTLY, **tables(3)})
    with (
        psycopg.connect(database) as blocker,
        in_background(lambda: query(database, theirs)) as building,
    ):
        blocker.execute("insert into other values (7)")
        wait_for(lambda: ("theirs", False) in indexes(database), "the build begins")
        again = without_transaction("reindex table concurrently t1")
        write(tmp_path, {"migrations/0004_r.sql": again})
        assert len(up(database, tmp_path)) == 4
        assert not building.done()
        blocker.rollback()
    assert ("theirs", True) in indexes(database)


def test_a_file_that_builds_another_index_now_is_not_taken_for_done(
    database: str, tmp_path: Path
) -> None:
    """The invalid one would stay, and cost every write."""
    rows = {"migrations/0002_r.sql": "insert into t1 values (1), (1);"}
    write(tmp_path, {**tables(1), **rows, "migrations/0003_i.sql": CONCURRENTLY})
    up_fails(database, tmp_path)
    other = "create index concurrently other_a on t1 (a)"
    write(tmp_path, {"migrations/0003_i.sql": without_transaction(other)})
    message = failure(lambda: up(database, tmp_path), FilesError)
    assert "migrations/0003_i.sql: was partly applied" in message
    assert "\n  invalid index t1_a" in message
    assert "  what to do: DROP INDEX CONCURRENTLY t1_a, then run again" in message
    query(database, "drop index concurrently t1_a")
    assert up(database, tmp_path) == ["0003_i.sql"]
    assert indexes(database) == [("other_a", True)]


def test_half_an_index_that_a_reindex_left_is_told(database: str, tmp_path: Path) -> None:
    again = "reindex table concurrently t1"
    write(tmp_path, {**tables(1), "migrations/0002_i.sql": "create index t1_a on t1 (a);"})
    up(database, tmp_path)
    write(tmp_path, {"migrations/0003_r.sql": without_transaction(again)})
    with psycopg.connect(database) as blocker:
        blocker.execute("insert into t1 values (7)")
        assert "terminating connection" in cut_off(database, tmp_path, f"{again}%")
        blocker.rollback()
    assert ("t1_a_ccnew", False) in indexes(database)
    message = up_fails(database, tmp_path)
    assert f"{tmp_path}/migrations/0003_r.sql: is not done\n  invalid index t1_a_ccnew" in message
    query(database, "drop index concurrently t1_a_ccnew")
    assert up(database, tmp_path) == ["0003_r.sql"]
    assert indexes(database) == [("t1_a", True)]


def test_an_index_of_another_statement_is_not_taken_for_built(
    database: str, tmp_path: Path
) -> None:
    """However often a run is tried again."""
    write(tmp_path, {"migrations/0001_t1.sql": "create table t1 (a int, b int);"})
    write(tmp_path, {"migrations/0002_i.sql": "create index t1_a on t1 (b);"})
    write(tmp_path, {"migrations/0003_i.sql": CONCURRENTLY})
    for _ in range(2):
        message = up_fails(database, tmp_path)
        assert '0003_i.sql:2:1: relation "t1_a" already exists (SQLSTATE 42P07)' in message
    assert recorded(database) == ["0001_t1.sql", "0002_i.sql"]


def test_without_a_transaction_a_lock_timeout_is_not_retried(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = """-- migrate: no-transaction
              create table a (); set lock_timeout = '50ms'; alter table t1 add b int;"""
    up(database, write(tmp_path, tables(1)))
    write(tmp_path, {"migrations/0002_b.sql": text})
    waits: list[float] = []
    monkeypatch.setattr("migrate.apply.time.sleep", waits.append)
    with psycopg.connect(database) as blocker:
        blocker.execute("lock table t1")
        message = up_fails(database, tmp_path)
    assert "canceling statement due to lock timeout (SQLSTATE 55P03)" in message
    assert waits == []


# --- a file without a transaction that was cut off -------------------------------------------


def without_transaction(*statements: str) -> str:
    return "-- migrate: no-transaction\n" + "".join(f"{each};\n" for each in statements)


def inserts(*numbers: int) -> list[str]:
    return [f"insert into t1 values ({number})" for number in numbers]


def progress(url: str) -> list[Any]:
    """Files without a transaction that are not finished, and how many statements are done."""
    return query(url, "select name, statements from migrate.progress")


def test_a_file_without_a_transaction_is_gone_on_with_behind_what_is_done(
    database: str, tmp_path: Path
) -> None:
    failing = without_transaction(*inserts(1, 2), "select 1 / 0", *inserts(3))
    write(tmp_path, {**tables(1), "migrations/0002_b.sql": failing})
    assert "0002_b.sql:4:1: division by zero" in up_fails(database, tmp_path)
    assert progress(database) == [("0002_b.sql", 2)]
    assert "  not rolled back: 2 of the statements" in up_fails(database, tmp_path)
    mended = without_transaction(*inserts(1, 2), "select 1 / 1", *inserts(3))
    assert up(database, write(tmp_path, {"migrations/0002_b.sql": mended})) == ["0002_b.sql"]
    assert query(database, "select a from t1 order by 1") == [1, 2, 3]
    assert progress(database) == []
    assert query(database, "select sha256 from migrate.ledger where name = '0002_b.sql'") == [
        hashlib.sha256(mended.encode()).hexdigest()
    ]


@pytest.mark.parametrize("how", ["cut off", "killed"])
def test_a_cut_off_file_without_a_transaction_is_gone_on_with(
    database: str, tmp_path: Path, how: str
) -> None:
    slow = without_transaction(*inserts(1, 2), "select pg_sleep(600)", *inserts(3))
    write(tmp_path, {**tables(1), "migrations/0002_b.sql": slow})
    if how == "killed":
        with started_up(database, tmp_path) as process:
            wait_until_active(database, "%pg_sleep%")
            process.kill()
    else:
        assert "0002_b.sql:4:1: terminating connection" in cut_off(database, tmp_path)
    assert progress(database) == [("0002_b.sql", 2)]
    write(tmp_path, {"migrations/0002_b.sql": slow.replace("600", "0")})
    assert up(database, tmp_path) == ["0002_b.sql"]
    assert query(database, "select a from t1 order by 1") == [1, 2, 3]
    assert checks_passed(database, tmp_path) == 0


def test_comments_and_what_is_not_done_may_be_edited(database: str, tmp_path: Path) -> None:
    failing = without_transaction(*inserts(1, 2), "select 1 / 0", *inserts(3))
    up_fails(database, write(tmp_path, {**tables(1), "migrations/0002_b.sql": failing}))
    edited = without_transaction("-- one", "\n  /* two */ ".join(inserts(1)), *inserts(2, 4, 5))
    assert up(database, write(tmp_path, {"migrations/0002_b.sql": edited})) == ["0002_b.sql"]
    assert query(database, "select a from t1 order by 1") == [1, 2, 4, 5]


@pytest.mark.parametrize(
    "done",
    [inserts(7, 2), inserts(1, 7), inserts(0, 1, 2), inserts(2, 1), inserts(1), inserts(2)],
    ids=["first", "last", "one more", "order", "last removed", "first removed"],
)
@pytest.mark.parametrize("rest", [inserts(3), []], ids=["with the rest", "without the rest"])
def test_statements_that_are_done_may_not_be_edited(
    database: str, tmp_path: Path, done: list[str], rest: list[str]
) -> None:
    failing = without_transaction(*inserts(1, 2), "select 1 / 0")
    up_fails(database, write(tmp_path, {**tables(1), "migrations/0002_b.sql": failing}))
    edited = without_transaction(*done, *rest)
    write(tmp_path, {"migrations/0002_b.sql": edited})
    assert failure(lambda: up(database, tmp_path), FilesError) == (
        f"{tmp_path}/migrations/0002_b.sql: was edited in statements that are done (the first 2), "
        "by a run that was cut off or failed\n"
        "  what to do: restore them, and make the change behind them\n"
        "  committed in this run: nothing"
    )
    assert query(database, "select a from t1 order by 1") == [1, 2]
    restored = without_transaction(*inserts(1, 2, 3))
    assert up(database, write(tmp_path, {"migrations/0002_b.sql": restored})) == ["0002_b.sql"]
    assert query(database, "select a from t1 order by 1") == [1, 2, 3]


def test_a_file_that_is_half_done_may_not_be_removed(database: str, tmp_path: Path) -> None:
    failing = without_transaction(*inserts(1), "select 1 / 0")
    up_fails(database, write(tmp_path, {**tables(1), "migrations/0002_b.sql": failing}))
    path = tmp_path / "migrations/0002_b.sql"
    path.rename(path.with_name("0002_other.sql"))
    assert failure(lambda: up(database, tmp_path), FilesError) == (
        "migrations/0002_b.sql: was removed, but statements of it are done (the first 1), by a run "
        "that was cut off or failed\n"
        "  what to do: restore it\n"
        "  committed in this run: nothing"
    )
    assert query(database, "select a from t1") == [1]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("0002_b.sql", "insert into t1 values (1);\n"),
        ("0002_b.sql", without_transaction(*inserts(1))),
        ("0002_other.sql", "insert into t1 values (1);\n"),
    ],
    ids=["with a transaction", "without one", "renamed"],
)
def test_a_file_of_which_nothing_is_done_may_become_another(
    database: str, tmp_path: Path, name: str, text: str
) -> None:
    failing = without_transaction("select 1 / 0", *inserts(2))
    up_fails(database, write(tmp_path, {**tables(1), "migrations/0002_b.sql": failing}))
    (tmp_path / "migrations/0002_b.sql").unlink()
    assert up(database, write(tmp_path, {f"migrations/{name}": text})) == [name]
    assert query(database, "select a from t1") == [1]
    assert up(database, tmp_path) == []
    assert not incomplete(database, tmp_path)


@pytest.mark.parametrize("mended", ["removed", "in a transaction", "renamed"])
def test_a_half_done_repeatable_file_may_become_another(
    database: str, tmp_path: Path, mended: str
) -> None:
    failing = without_transaction(*inserts(1), "select 1 / 0")
    up_fails(database, write(tmp_path, {**tables(1), "repeatable/a.sql": failing}))
    path = tmp_path / "repeatable/a.sql"
    path.unlink()
    if mended != "removed":
        name = "b.sql" if mended == "renamed" else "a.sql"
        write(tmp_path, {f"repeatable/{name}": "insert into t1 values (2);"})
        assert up(database, tmp_path) == [name]
    up(database, tmp_path)
    assert progress(database) == []
    assert not incomplete(database, tmp_path)


def test_what_the_done_statements_set_is_set_again(database: str, tmp_path: Path) -> None:
    setting = ["create schema s", "set search_path = s", "set work_mem = '5MB'", "reset work_mem"]
    show = "create table shown as select current_setting('work_mem') = '5MB' as other"
    failing = without_transaction(*setting, "select 1 / 0", show)
    up_fails(database, write(tmp_path, {"migrations/0001_a.sql": failing}))
    mended = without_transaction(*setting, "select 1", show)
    assert up(database, write(tmp_path, {"migrations/0001_a.sql": mended})) == ["0001_a.sql"]
    assert query(database, "select other from s.shown") == [False]


def test_a_file_without_a_transaction_may_act_as_another_role(
    database: str, tmp_path: Path
) -> None:
    text = without_transaction(
        "create schema theirs authorization pg_monitor",
        "set role pg_monitor",
        "create table theirs.t (a int)",
        "create index concurrently t_a on theirs.t (a)",
    )
    assert up(database, write(tmp_path, {"migrations/0001_a.sql": text})) == ["0001_a.sql"]
    assert query(database, "select tableowner from pg_tables where tablename = 't'") == [
        "pg_monitor"
    ]


PARTED = """create table p (a int) partition by list (a);
            create table p1 partition of p for values in (1);
            create index p_a on p (a);"""


@pytest.mark.parametrize(
    "command",
    [
        "vacuum (analyze) p1",
        "reindex table concurrently p1",
        "reindex schema public",
        "reindex table p",
        "reindex index p_a",
        "cluster p using p_a",
        "alter table p detach partition p1 concurrently",
        "drop index concurrently if exists nothing",
        "alter system reset work_mem",
        "create type e as enum ('x'); alter type e add value 'y'; select 'y'::e",
        "create procedure c() language plpgsql as 'begin commit; end'; call c()",
        "do 'begin commit; end'",
    ],
)
def test_what_refuses_a_transaction_runs_in_a_file_without_one(
    database: str, tmp_path: Path, command: str
) -> None:
    write(tmp_path, {"migrations/0001_p.sql": PARTED})
    write(tmp_path, {"migrations/0002_b.sql": without_transaction(command)})
    assert up(database, tmp_path) == ["0001_p.sql", "0002_b.sql"]


def test_without_a_transaction_a_constraint_fails_with_its_statement(
    database: str, tmp_path: Path
) -> None:
    text = without_transaction(
        "create table u (a int unique deferrable initially deferred)",
        "insert into u values (1)",
        "insert into u values (1)",
    )
    message = up_fails(database, write(tmp_path, {"migrations/0001_a.sql": text}))
    assert f"{tmp_path}/migrations/0001_a.sql" in message
    assert "duplicate key value violates unique constraint" in message
    assert "not rolled back: 2 of the statements of 0001_a.sql" in message
    assert query(database, "select a from u") == [1]


TWO_TABLES = 'create table t1 (a int); create schema s; create table s."T 1" (a int);'


@pytest.mark.parametrize(
    ("setting", "build", "table", "index"),
    [
        ("", "create unique index concurrently t1_a on t1 (a)", "t1", "t1_a"),
        ("", "create index concurrently if not exists t1_a on public.t1 (a)", "t1", "t1_a"),
        ("", 'create index concurrently "i;1" on s."T 1" (a)', 's."T 1"', 's."i;1"'),
        (
            "set search_path = s",
            'create index concurrently "i;1" on "T 1" (a)',
            's."T 1"',
            's."i;1"',
        ),
    ],
)
@pytest.mark.parametrize("built", [False, True], ids=["invalid", "valid"])
def test_an_index_whose_build_was_cut_off_is_there_once_and_valid(
    database: str,
    tmp_path: Path,
    setting: str,
    build: LiteralString,
    table: LiteralString,
    index: LiteralString,
    built: bool,
) -> None:
    """Built again where the cut left half of it, and kept where only the note of it is missing."""
    insert = f"insert into {table} values "
    again = build.replace("concurrently", "")
    statements = [setting or "select 0", f"{insert} (1)", build, f"{insert} (2)"]
    up(database, write(tmp_path, {"migrations/0001_t1.sql": TWO_TABLES}))
    write(tmp_path, {"migrations/0002_i.sql": without_transaction(*statements)})
    with psycopg.connect(database) as blocker:
        blocker.execute(f"{insert} (7)")
        assert "terminating connection" in cut_off(database, tmp_path, f"{build}%")
        blocker.rollback()
    state: LiteralString = (
        f"select indexrelid, indisvalid from pg_index where indexrelid = '{index}'::regclass"
    )
    ((cut, valid),) = query(database, state)
    assert not valid
    if built:
        query(database, f"drop index {index}; set search_path = s, public; {again}")
        ((cut, _),) = query(database, state)
    assert up(database, tmp_path) == ["0002_i.sql"]
    ((found, valid),) = query(database, state)
    assert valid
    assert (found == cut) == built
    assert query(database, f"select a from {table} order by 1") == [1, 2]
    assert progress(database) == []
    assert checks_passed(database, tmp_path) == 0


def test_an_invalid_index_that_cannot_be_dropped_is_told(database: str, tmp_path: Path) -> None:
    build = "create index concurrently t1_a on t1 (a)"
    up(database, write(tmp_path, tables(1)))
    impatient = without_transaction("set lock_timeout = '100ms'", build)
    write(tmp_path, {"migrations/0002_i.sql": impatient})
    with psycopg.connect(database) as blocker:
        blocker.execute("insert into t1 values (7)")
        assert f"{tmp_path}/migrations/0002_i.sql:3:1: canceling statement due to lock" in up_fails(
            database, tmp_path
        )
        message = up_fails(database, tmp_path)
        assert f"{tmp_path}/migrations/0002_i.sql:3:1: " in message
        assert "lock timeout" in message
        assert "connection broke" not in message
        blocker.rollback()
    assert up(database, tmp_path) == ["0002_i.sql"]
    assert indexes(database) == [("t1_a", True)]


def test_a_repeatable_file_without_a_transaction_runs_as_a_whole_when_edited(
    database: str, tmp_path: Path
) -> None:
    write(tmp_path, {**tables(1), "repeatable/a.sql": without_transaction(*inserts(1, 2))})
    up(database, tmp_path)
    write(tmp_path, {"repeatable/a.sql": without_transaction(*inserts(3), "select 1 / 0")})
    assert "not rolled back: 1 of the statements of a.sql" in up_fails(database, tmp_path)
    write(tmp_path, {"repeatable/a.sql": without_transaction(*inserts(3, 4))})
    assert up(database, tmp_path) == ["a.sql"]
    assert query(database, "select a from t1 order by 1") == [1, 2, 3, 4]
    assert up(database, tmp_path) == []
