"""Files on real servers: large ones, ones that change, and the session in which each runs."""

import hashlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from embedded.postgres import Server
from migrate import files, run
from migrate.connection import connect
from migrate.errors import FilesError, MigrateError
from migrate.lock import LOCK_KEY
from migrate.report import Step
from tests.support.migrating import (
    ROWS,
    checks_passed,
    failure,
    large,
    made,
    query,
    recorded,
    sent,
    tables,
    up,
    up_fails,
    write,
)

# --- large files, and files that change -------------------------------------------------------


def test_a_large_file_is_one_transaction_in_several_messages(database: str, tmp_path: Path) -> None:
    body = "begin;\nend;\n" * 10_000
    text = large(
        f"create function f() returns text language sql as $f$ select $x${body}$x$;\n$f$;\n"
        "create function g() returns int language sql\nbegin atomic\n"
        + "  select 1;\n" * 10_000
        + "end;\n"
    )
    write(tmp_path, {**tables(1), "migrations/0002_b.sql": text})
    tree = files.read_tree(tmp_path)
    with connect(database) as session:
        count = sent(session, partial(run.up, session, tree), tmp_path)
    assert 4 <= len(tree["migrations"][1].script.spans) <= count < 100  # of 3,200 statements
    assert query(database, "select count(*), count(distinct xmin::text) from t1") == [(ROWS, 1)]
    assert query(database, "select f() = repeat(E'begin;\nend;\n', 10000), g()") == [(True, 1)]
    rows = query(database, "select sha256, xmin::text from migrate.ledger where name like '0002%'")
    (transaction,) = query(database, "select distinct xmin::text from t1")
    assert rows == [(hashlib.sha256(text.encode()).hexdigest(), transaction)]


@pytest.mark.parametrize(("rows", "piece"), [(0, 1), (600, 3), (1_000, 4), (ROWS, 6)])
def test_a_failure_in_a_large_file_has_its_place_and_leaves_nothing(
    database: str, tmp_path: Path, rows: int, piece: int
) -> None:
    broken = "-- ü\ninsert into t1\n  select 'ü', b;\n"
    write(tmp_path, {**tables(1), "migrations/0002_b.sql": large(broken, rows)})
    line = 3 * rows + 3
    assert up_fails(database, tmp_path) == (
        f'{tmp_path}/migrations/0002_b.sql:{line}:15: column "b" does not exist '
        "(SQLSTATE 42703)\n"
        f"  statement {2 * rows + 1} of {2 * ROWS + 1}:\n"
        f"{line - 1:>5} | insert into t1\n"
        f"{line:>5} |   select 'ü', b;\n"
        "      |               ^\n"
        "  rolled back: 0002_b.sql\n"
        "  committed in this run: 0001_t1.sql\n"
        "  what to do: correct the file and run again; it goes on where it stopped"
    )
    assert query(database, "select count(*) from t1") == [0]
    assert recorded(database) == ["0001_t1.sql"]
    pieces = list(files.read_tree(tmp_path)["migrations"][1].script.pieces())
    assert [number for number, each in enumerate(pieces, 1) if broken in each.text] == [piece]


def test_a_large_file_that_fails_at_commit_is_told_so(database: str, tmp_path: Path) -> None:
    deferred = (
        "create table u (a int unique deferrable initially deferred);insert into u values (1), (1);"
    )
    write(tmp_path, {**tables(1), "migrations/0002_b.sql": large(deferred, 100)})
    assert f"{tmp_path}/migrations/0002_b.sql: at commit: duplicate key" in up_fails(
        database, tmp_path
    )
    assert query(database, "select count(*) from t1") == [0]


def test_a_lock_timeout_late_in_a_large_file_begins_it_again(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    up(database, write(tmp_path, tables(1, 2)))
    impatient = "set local lock_timeout = '50ms'; alter table t2 add b int;\n"
    write(tmp_path, {"migrations/0003_c.sql": large(impatient)})
    with psycopg.connect(database) as blocker:
        blocker.execute("lock table t2")
        monkeypatch.setattr("migrate.apply.time.sleep", lambda _: blocker.rollback())
        assert up(database, tmp_path) == ["0003_c.sql"]
    assert query(database, "select count(*) from t1") == [ROWS]


def test_a_large_file_without_a_transaction_is_gone_on_with(database: str, tmp_path: Path) -> None:
    opening = "-- migrate: no-transaction\n"
    failing = "-- ü\nselect 1\n/ 0;\n"
    write(tmp_path, {**tables(1), "migrations/0002_b.sql": opening + large(failing)})
    message = up_fails(database, tmp_path)
    assert f"0002_b.sql:{1 + 3 * 1_000 + 2}:1: division by zero" in message
    assert "  not rolled back: 2000 of the statements of 0002_b.sql" in message
    assert query(database, "select count(*) from t1") == [1_000]
    write(tmp_path, {"migrations/0002_b.sql": opening + large(failing.replace("0", "1"))})
    assert up(database, tmp_path) == ["0002_b.sql"]
    assert query(database, "select count(*), count(distinct a) from t1") == [(ROWS, ROWS)]


def test_a_large_repeatable_file_takes_the_time_of_all_its_pieces(
    database: str, tmp_path: Path
) -> None:
    slow = large("select pg_sleep(0.5);\n", rows=0)
    write(tmp_path, {**tables(1), "repeatable/1.sql": "select 1;", "repeatable/2.sql": slow})
    up(database, tmp_path)
    times = (
        "select duration_ms >= 500 from migrate.ledger where folder = 'repeatable' order by name"
    )
    assert query(database, times) == [False, True]


def test_a_file_with_a_byte_order_mark_and_crlf_is_applied(database: str, tmp_path: Path) -> None:
    (tmp_path / "migrations").mkdir()
    data = b"\xef\xbb\xbfcreate table t1 (a text);\r\ninsert into t1 values ('x\r\ny');\r\n"
    (tmp_path / "migrations/0001_a.sql").write_bytes(data)
    assert up(database, tmp_path) == ["0001_a.sql"]
    assert query(database, "select a from t1") == ["x\ny"]


@pytest.mark.parametrize("name", ["migrations/0002_b.sql", "repeatable/1.sql", "repeatable/2.sql"])
@pytest.mark.parametrize("size", ["small", "large"])
def test_a_file_that_changes_after_it_was_read_is_applied_as_it_was(
    database: str, tmp_path: Path, name: str, size: str
) -> None:
    text = "create table half ();\n" + (large("") if size == "large" else "")
    write(tmp_path, {**tables(1), "repeatable/1.sql": "select 1;", name: text})

    def change(step: Step) -> None:
        if step.event == "applied" and step.subject == "migrations/0001_t1.sql":
            (tmp_path / name).write_text(text.replace("half", "other"))

    assert name.split("/")[1] in up(database, tmp_path, report=change)
    assert made(database) == ["half", "t1"]
    assert query(
        database, "select sha256 from migrate.ledger where folder || '/' || name = %s", name
    ) == [hashlib.sha256(text.encode()).hexdigest()]
    if name.startswith("migrations/"):
        message = failure(lambda: up(database, tmp_path), FilesError)
        assert "was edited after it had been applied" in message
        assert made(database) == ["half", "t1"]
    else:
        assert up(database, tmp_path) == [name.split("/")[1]]
        assert made(database) == ["half", "other", "t1"]


def test_a_file_that_changes_while_a_run_waits_is_applied_as_it_was(
    database: str, tmp_path: Path
) -> None:
    write(tmp_path, tables(1))

    def change(step: Step) -> None:
        if step.event == "waiting":
            write(tmp_path, {"migrations/0001_t1.sql": "create table other ();"})
            query(database, "select pg_terminate_backend(%s, 5000)", holder.info.backend_pid)

    with psycopg.connect(database, autocommit=True) as holder:
        holder.execute("select pg_advisory_lock(%s)", [LOCK_KEY])
        assert up(database, tmp_path, report=change) == ["0001_t1.sql"]
    assert made(database) == ["t1"]


def test_a_file_that_is_no_text_is_refused_only_while_it_is_pending(
    database: str, tmp_path: Path
) -> None:
    write(tmp_path, tables(1, 2))
    (tmp_path / "migrations/0002_t2.sql").write_bytes(b"select 1;\n-- \xff\n")
    message = failure(lambda: up(database, tmp_path), FilesError)
    assert message == (
        f"{tmp_path}/migrations/0002_t2.sql:2: not UTF-8 (byte 0xff)\n"
        "  what to do: save the file as UTF-8\n"
        "  committed in this run: nothing"
    )
    assert made(database) == []


# --- the session of a file -------------------------------------------------------------------


def test_every_statement_has_a_lock_timeout_and_a_statement_timeout(
    database: str, tmp_path: Path
) -> None:
    look = "select current_setting('lock_timeout') as l, current_setting('statement_timeout') as s"
    longer = "set local statement_timeout = '1h';"
    write(
        tmp_path,
        {
            "migrations/0001_a.sql": f"{longer} create table a as {look};",
            "migrations/0002_b.sql": f"create table b as {look};",
        },
    )
    up(database, tmp_path)
    assert query(database, "table a union all table b") == [("5s", "1h"), ("5s", "15min")]


def test_a_timeout_is_for_each_statement_and_not_for_the_file(
    database: str, tmp_path: Path
) -> None:
    text = "set local statement_timeout = '1s';\n" + "select pg_sleep(0.4);\n" * 4
    assert up(database, write(tmp_path, {"migrations/0001_a.sql": text})) == ["0001_a.sql"]


def test_what_a_file_sets_ends_with_the_file(database: str, tmp_path: Path) -> None:
    text = """create schema elsewhere;
              select set_config('search_path', 'elsewhere', false);
              set session authorization pg_monitor;
              set role pg_monitor;"""
    write(tmp_path, {"migrations/0001_a.sql": text, **tables(2)})
    up(database, tmp_path)
    assert query(database, "select schemaname, tableowner from pg_tables where tablename = 't2'")[
        0
    ] == ("public", "postgres")


def test_a_file_may_act_as_another_role(database: str, tmp_path: Path) -> None:
    text = """create schema theirs authorization pg_monitor;
              set local role pg_monitor;
              create table theirs.t ();"""
    write(tmp_path, {"migrations/0001_a.sql": text})
    up(database, tmp_path)
    assert query(database, "select tableowner from pg_tables where tablename = 't'") == [
        "pg_monitor"
    ]


def test_a_role_that_the_server_gives_a_login_is_kept(database: str, role: str) -> None:
    query(database, f"grant pg_monitor to {urlsplit(role).username}")
    query(database, f"alter role {urlsplit(role).username} set role = pg_monitor")
    with connect(role) as session:
        assert session.execute("select current_user").fetchone() == ("pg_monitor",)


def test_files_are_utf8_whatever_the_environment_says(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    write(tmp_path, {"migrations/0001_a.sql": "create table t as select 'ü€😀' as a;"})
    up(database, tmp_path)
    monkeypatch.delenv("PGCLIENTENCODING")
    assert query(database, "select a from t") == ["ü€😀"]


@contextmanager
def encoded(server: Server, encoding: str) -> Iterator[str]:
    """An empty database with another encoding."""
    name = f"encoded_{secrets.token_hex(6)}"
    create = "create database {} encoding {} locale 'C' template template0"
    query(server.url(), create.format(name, encoding))
    try:
        yield server.url(name)
    finally:
        query(server.url(), f"drop database {name} with (force)")


@pytest.mark.parametrize("encoding", ["LATIN1", "WIN1252", "EUC_JIS_2004"])
def test_files_are_utf8_whatever_the_database_s_encoding_is(
    server: Server, tmp_path: Path, encoding: str
) -> None:
    files = {
        "migrations/0001_a.sql": "create table t as select 'ü' as \"ö\", 'x'::text as a;",
        "repeatable/v.sql": "create or replace view v as select 'ö' as a;",
        "verify/v.sql": "select * from v where a <> 'ö' or length(a) <> 1;",
    }
    with encoded(server, encoding) as url:
        up(url, write(tmp_path, files))
        assert query(url, 'select length("ö") from t') == [1]
        assert up(url, tmp_path) == []
        assert checks_passed(url, tmp_path) == 1


@pytest.mark.parametrize("encoding", ["LATIN1", "KOI8R", "EUC_CN"])
def test_a_character_that_the_database_has_not_is_found_before_anything_is_applied(
    server: Server, tmp_path: Path, encoding: str
) -> None:
    write(tmp_path, tables(1))
    write(tmp_path, {"migrations/0002_a.sql": "create table a (\n  t text default '😀');"})
    write(tmp_path, {"repeatable/v.sql": "select 1;  -- 𝄞"})
    with encoded(server, encoding) as url:
        message = failure(lambda: up(url, tmp_path), FilesError)
        assert (
            f"{tmp_path}/migrations/0002_a.sql:2:19: 😀 is not in the database's encoding "
            f"{encoding}\n"
            "    1 | create table a (\n"
            "    2 |   t text default '😀');\n"
            "      |                   ^\n"
            "  what to do: leave it out; or create a database with `encoding 'UTF8'`"
        ) in message
        assert f"{tmp_path}/repeatable/v.sql:1:15: 𝄞 is not in the database's" in message
        assert message.endswith("committed in this run: nothing")
        assert made(url) == []


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "MULE_INTERNAL"])
def test_an_encoding_without_letters_is_refused(
    server: Server, tmp_path: Path, encoding: str
) -> None:
    write(tmp_path, {"migrations/0001_a.sql": "create table t (a text default 'Straße');"})
    with encoded(server, encoding) as url:
        with pytest.raises(MigrateError) as caught:
            up(url, tmp_path)
        assert encoding in str(caught.value)
        assert "what to do: create a database with `encoding 'UTF8'` and move" in str(caught.value)
        with psycopg.connect(url, client_encoding="SQL_ASCII") as session:
            found = session.execute(
                "select count(*) from pg_namespace where nspname = 'migrate' or nspname = 'app'"
            )
            assert found.fetchone() == (0,)
