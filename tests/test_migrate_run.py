"""The migration engine on real servers: what a run applies, keeps, proves and says."""

import hashlib
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, LiteralString
from urllib.parse import urlsplit

import psycopg
import pytest

from embedded.postgres import Server
from migrate import VERSION, apply, catalog, connection, files, proof, rehearsal, run, scripts
from migrate.bundle import bundle
from migrate.connection import LOCK_KEY, TRANSACTION_POOLER_PORT, connect
from migrate.errors import (
    DriftError,
    FilesError,
    MigrateError,
    PromiseError,
    UnreachableError,
    UnsettledError,
)

REPOSITORY = Path(__file__).parent.parent
ABSENT = "(absent)"

# --- helpers ---------------------------------------------------------------------------------


def write(directory: Path, contents: Mapping[str, str]) -> Path:
    """Write files such as `migrations/0001_a.sql` below a directory."""
    for name, text in contents.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(text)
    return directory


def tables(*numbers: int) -> dict[str, str]:
    """Migrations 000N_tN.sql, each of which makes the table tN."""
    return {f"migrations/{n:04d}_t{n}.sql": f"create table t{n} (a int);\n" for n in numbers}


def query(url: str, statement: LiteralString, *values: Any) -> list[Any]:
    """Run one statement; the rows, or the values where there is one column."""
    with psycopg.connect(url, autocommit=True) as session:
        cursor = session.execute(statement, values or None)
        rows = cursor.fetchall() if cursor.description else []
        return [row[0] if len(row) == 1 else row for row in rows]


def up(url: str, directory: Path, **options: Any) -> list[str]:
    with connect(url) as session:
        return [file.name for file in run.up(session, files.read_tree(directory), **options)]


def told(steps: Sequence[run.Step]) -> list[str]:
    """The lines of steps, without the time that they took."""
    return [re.sub(r" \(\d+ ms\)$", "", str(step)) for step in steps]


def up_fails(url: str, directory: Path, **options: Any) -> str:
    return failure(lambda: up(url, directory, **options))


def verify(url: str, directory: Path) -> int:
    with connect(url) as session:
        return proof.verify(session, files.read_tree(directory))


def failure(action: Callable[[], object], kind: type[MigrateError] = MigrateError) -> str:
    """The message of the MigrateError; never with a password."""
    with pytest.raises(MigrateError) as caught:
        action()
    assert type(caught.value) is kind
    message = str(caught.value)
    print(message)
    return message


def refused(url: str) -> str:
    """What `connect` says; the URL's password is not in it."""
    message = failure(lambda: connect(url), UnreachableError)
    password = urlsplit(url).password
    assert password
    assert password not in message
    return message


def recorded(url: str) -> list[Any]:
    """The names in the ledger, in the order in which they were applied."""
    return query(url, "select name from migrate.ledger order by applied_at, name")


def made(url: str) -> list[Any]:
    """The tables in public."""
    return query(url, "select tablename from pg_tables where schemaname = 'public' order by 1")


def indexes(url: str) -> list[Any]:
    """The indexes in public, and whether each is valid."""
    return query(
        url,
        """select relname, indisvalid from pg_index join pg_class on oid = indexrelid
           where relnamespace = 'public'::regnamespace order by 1""",
    )


def wait_for(condition: Callable[[], object], what: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.02)


def wait_until_active(url: str, statement: str) -> int:
    """Wait until some session runs a statement like this; its pid."""
    found: list[Any] = []

    def look() -> bool:
        found[:] = query(
            url,
            """select pid from pg_stat_activity where state = 'active' and query like %s
               and datname = current_database() and pid <> pg_backend_pid()""",
            statement,
        )
        return bool(found)

    wait_for(look, f"{statement} runs")
    return int(found[0])


@contextmanager
def in_background(action: Callable[[], Any]) -> Iterator[Future[Any]]:
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(action)


@contextmanager
def started_up(url: str, directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A run in a process of its own, until its session has ended."""
    process = subprocess.Popen(
        [sys.executable, "-m", "migrate", "--directory", str(directory), "up"],
        cwd=REPOSITORY,
        env=os.environ | {"DATABASE_URL": url},
        stdout=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
    sessions: LiteralString = """select pid from pg_stat_activity
        where application_name = 'migrate' and datname = current_database()"""
    wait_for(lambda: not query(url, sessions), "the session of the run ends")


def cut_off(url: str, directory: Path, statement: str = "%pg_sleep%") -> str:
    """What a run says whose connection is cut while it runs a statement like this."""
    with in_background(lambda: up_fails(url, directory)) as cut:
        pid = wait_until_active(url, statement)
        query(url, "select pg_terminate_backend(%s, 10000)", pid)
    return str(cut.result())


def bundled(directory: Path) -> str:
    return "".join(bundle(files.read_tree(directory)))


def psql(bin_directory: Path, url: str, script: str, tmp_path: Path) -> tuple[int, str]:
    """Run a script by the real psql, as a user without any settings does: exit code, stderr."""
    file = tmp_path / "script.sql"
    file.write_text(script)
    done = subprocess.run(
        [bin_directory / "psql", "-X", "-q", "-f", file, url],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


def dump(bin_directory: Path, url: str) -> str:
    """The schema as pg_dump writes it, without the ledger."""
    done = subprocess.run(
        [bin_directory / "pg_dump", "--schema-only", "--exclude-schema=migrate", f"--dbname={url}"],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    return "".join(line for line in done.stdout.splitlines(True) if "restrict " not in line)


def objects(url: str) -> dict[str, str]:
    with connect(url) as session:
        return catalog.read(session)


@pytest.fixture
def other_database(server: Server) -> Iterator[str]:
    """A second empty database on the same server."""
    name = f"other_{secrets.token_hex(6)}"
    query(server.url(), f"create database {name}")
    yield server.url(name)
    query(server.url(), f"drop database {name} with (force)")


@pytest.fixture
def role(server: Server, database: str) -> Iterator[str]:
    """The URL of the database for a login role without any privilege."""
    name = f"role_{secrets.token_hex(6)}"
    query(server.url(), f"create role {name} login password '{name}secret'")
    yield database.replace(f"postgres:{server.password}", f"{name}:{name}secret")
    query(database, f"drop owned by {name}")
    query(database, f"drop role {name}")


# --- the ledger ------------------------------------------------------------------------------


def test_up_applies_all_files_in_order_versioned_before_repeatable(
    database: str, tmp_path: Path
) -> None:
    write(tmp_path, {"repeatable/a.sql": "create view v as select a from t2;", **tables(1, 2)})
    steps: list[run.Step] = []
    assert up(database, tmp_path, report=steps.append) == ["0001_t1.sql", "0002_t2.sql", "a.sql"]
    assert told(steps) == [
        "applying migrations/0001_t1.sql",
        "applied migrations/0001_t1.sql",
        "applying migrations/0002_t2.sql",
        "applied migrations/0002_t2.sql",
        "applying repeatable/a.sql",
        "applied repeatable/a.sql",
    ]
    assert recorded(database) == ["0001_t1.sql", "0002_t2.sql", "a.sql"]


def test_a_step_says_which_of_how_many_files_and_how_long(database: str, tmp_path: Path) -> None:
    slow = {"migrations/0002_s.sql": "select pg_sleep(0.2);"}
    repeatable = {"repeatable/a.sql": "select 1;", "repeatable/b.sql": "select 1;"}
    steps: list[run.Step] = []
    up(database, write(tmp_path, {**tables(1), **slow, **repeatable}), report=steps.append)
    assert [(step.event, step.subject, step.number, step.total) for step in steps] == [
        ("applying", "migrations/0001_t1.sql", 1, 4),
        ("applied", "migrations/0001_t1.sql", 1, 4),
        ("applying", "migrations/0002_s.sql", 2, 4),
        ("applied", "migrations/0002_s.sql", 2, 4),
        ("applying", "repeatable/a.sql", 3, 4),
        ("applied", "repeatable/a.sql", 3, 4),
        ("applied", "repeatable/b.sql", 4, 4),
    ]
    assert 0.2 <= steps[3].seconds < 20
    assert str(steps[3]) == f"applied migrations/0002_s.sql ({steps[3].seconds * 1000:.0f} ms)"


def test_a_second_up_applies_nothing_and_leaves_the_ledger_alone(
    database: str, tmp_path: Path
) -> None:
    write(tmp_path, {"repeatable/a.sql": "select 1;", **tables(1)})
    up(database, tmp_path)
    before = query(database, "select * from migrate.ledger, migrate.catalog")
    assert up(database, tmp_path) == []
    assert query(database, "select * from migrate.ledger, migrate.catalog") == before


def test_a_ledger_row_says_what_when_who_how_long_and_by_which_engine(
    database: str, tmp_path: Path
) -> None:
    write(tmp_path, {"migrations/0001_a.sql": "select pg_sleep(0.2);\n"})
    up(database, tmp_path)
    ((*row, recent, duration),) = query(
        database,
        """select folder, name, sha256, applied_by, engine_version,
                  now() - applied_at < interval '1 min', duration_ms from migrate.ledger""",
    )
    digest = hashlib.sha256(b"select pg_sleep(0.2);\n").hexdigest()
    assert row == ["migrations", "0001_a.sql", digest, "postgres", VERSION]
    assert recent
    assert 200 <= duration < 60_000


def test_a_new_file_is_applied_to_a_database_that_has_the_others(
    database: str, tmp_path: Path
) -> None:
    up(database, write(tmp_path, tables(1)))
    assert up(database, write(tmp_path, tables(2))) == ["0002_t2.sql"]


def test_an_empty_directory_is_nothing_to_do(database: str, tmp_path: Path) -> None:
    assert up(database, tmp_path) == []


def test_only_the_named_folders_are_applied(database: str, tmp_path: Path) -> None:
    write(tmp_path, {"platform/1.sql": "create table p ();", **tables(1)})
    assert up(database, tmp_path, names=["platform"]) == ["1.sql"]
    assert made(database) == ["p"]


def test_plan_names_what_up_would_apply_and_changes_nothing(database: str, tmp_path: Path) -> None:
    write(tmp_path, {"repeatable/a.sql": "select 1;", **tables(1, 2)})
    with connect(database) as session:
        plan = run.plan(session, files.read_tree(tmp_path))
    planned = [name for folder in plan.folders for name in folder.work]
    assert (plan.work, plan.settled, [file.name for file in plan.pending]) == (True, True, planned)
    assert planned == ["0001_t1.sql", "0002_t2.sql", "a.sql"]
    assert query(database, "select nspname from pg_namespace where nspname = 'migrate'") == []
    assert up(database, tmp_path) == planned


# --- one transaction a file ------------------------------------------------------------------


def test_a_failure_keeps_the_files_before_it_and_nothing_of_its_own(
    database: str, tmp_path: Path
) -> None:
    broken = "create table half (a int);\ninsert into missing values (1);\n"
    write(tmp_path, {**tables(1, 3), "migrations/0002_b.sql": broken})
    up_fails(database, tmp_path)
    assert made(database) == ["t1"]
    assert recorded(database) == ["0001_t1.sql"]


def test_the_run_after_a_failure_goes_on_where_it_stopped(database: str, tmp_path: Path) -> None:
    write(tmp_path, {**tables(1, 3), "migrations/0002_b.sql": "select 1 / 0;"})
    up_fails(database, tmp_path)
    write(tmp_path, {"migrations/0002_b.sql": "select 1 / 1;"})
    assert up(database, tmp_path) == ["0002_b.sql", "0003_t3.sql"]
    assert made(database) == ["t1", "t3"]


def test_a_failure_shows_place_statement_caret_code_and_what_stands(
    database: str, tmp_path: Path
) -> None:
    text = "-- für b\nselect 1;\ninsert into t1\n  select 'ü', b;\n"
    write(tmp_path, {**tables(1), "migrations/0002_b.sql": text})
    assert up_fails(database, tmp_path) == (
        f'{tmp_path}/migrations/0002_b.sql:4:15: column "b" does not exist (SQLSTATE 42703)\n'
        "  statement 2 of 2:\n"
        "    3 | insert into t1\n"
        "    4 |   select 'ü', b;\n"
        "      |               ^\n"
        "  rolled back: 0002_b.sql\n"
        "  committed in this run: 0001_t1.sql\n"
        "  what to do: correct the file and run again; it goes on where it stopped"
    )


def test_a_failure_shows_detail_hint_and_context(database: str, tmp_path: Path) -> None:
    body = "raise 'no' using detail = 'the detail', hint = 'the hint', errcode = 'MR001';"
    write(tmp_path, {"migrations/0001_a.sql": f"do $$\nbegin\n  {body}\nend $$;"})
    message = up_fails(database, tmp_path)
    assert message.splitlines()[:10] == [
        f"{tmp_path}/migrations/0001_a.sql:3:3: no (SQLSTATE MR001)",
        "  statement 1 of 1:",
        "    1 | do $$",
        "    2 | begin",
        f"    3 |   {body}",
        "      |   ^",
        "    4 | end $$;",
        "  detail: the detail",
        "  hint: the hint",
        "  context: PL/pgSQL function inline_code_block line 3 at RAISE",
    ]


def do_block(*lines: str) -> str:
    return "select 1;\ndo $x$\nbegin\n  " + "\n  ".join(lines) + "\nend\n$x$;\n"


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (do_block("perform 1;", "perform 1 / 0;"), "5:3"),
        (do_block("perform 1;", "perform 1;", "if true then", "  raise 'x';", "end if;"), "7:5"),
        (do_block("perform * from missing;"), "4:3"),
        (do_block("perform 1;", "execute 'do $$ begin\n\n perform 1 / 0; end $$';"), "5:3"),
        ("do language plpgsql $$ begin\nperform 1 / 0; end $$;", "2:1"),
        ("do $$begin perform 1 / 0; end$$ language plpgsql;", "1:6"),
        ("do 'begin\nperform 1 / 0; end';", "2:1"),
        ("do e'begin\n\n\n  execute $x$select 1 / 0$x$; end';", "4:3"),
        ("do /* $$ */ $x$ begin\n\nperform 1 / 0; end $x$;", "3:1"),
        (
            "create function f() returns int language plpgsql as\n$$begin\n return 1 / 0;\nend$$;\n"
            "select\n  f();",
            "5:1",
        ),
        ("create function f() returns int language sql as\n $$\n select b $$;", "3:9"),
        (
            "create function f() returns int language plpgsql as $$\nbegin\n  retrun 1;\nend $$;",
            "3:3",
        ),
    ],
)
def test_a_failure_in_code_shows_its_line(
    database: str, tmp_path: Path, text: str, place: str
) -> None:
    message = up_fails(database, write(tmp_path, {"migrations/0001_a.sql": text}))
    assert message.startswith(f"{tmp_path}/migrations/0001_a.sql:{place}: ")
    line, column = map(int, place.split(":"))
    shown = f"{line:>5} | {text.splitlines()[line - 1]}\n      | {' ' * (column - 1)}^\n"
    assert shown in message


def test_a_failure_in_a_query_of_a_function_shows_the_query(database: str, tmp_path: Path) -> None:
    text = do_block("perform 1,", "  b;")
    message = up_fails(database, write(tmp_path, {"migrations/0001_a.sql": text}))
    assert "  in the query:\n    1 | SELECT 1,\n    2 |     b\n      |     ^\n" in message


def test_a_failure_at_commit_is_rolled_back_and_told(database: str, tmp_path: Path) -> None:
    text = """create table t (a int primary key);
              create table u (a int references t deferrable initially deferred);
              insert into u values (1);"""
    write(tmp_path, {"migrations/0001_a.sql": text})
    message = up_fails(database, tmp_path)
    assert f"{tmp_path}/migrations/0001_a.sql: at commit: insert or update on" in message
    assert "(SQLSTATE 23503)" in message
    assert made(database) == recorded(database) == []


def test_a_trigger_that_fires_at_commit_has_the_session_s_search_path(
    database: str, tmp_path: Path
) -> None:
    text = """create table t1 (a int);
              create table told (a int);
              create function f() returns trigger language plpgsql as
                'begin insert into told values (new.a); return null; end';
              create constraint trigger g after insert on t1 deferrable initially deferred
                for each row execute function f();
              insert into t1 values (7);"""
    up(database, write(tmp_path, {"migrations/0001_a.sql": text}))
    assert query(database, "select a from told") == [7]


def test_a_file_wrong_in_itself_stops_the_run_before_anything_is_applied(
    database: str, tmp_path: Path
) -> None:
    write(tmp_path, {**tables(1, 2), "migrations/0003_c.sql": "create tabel t3 ();"})
    message = failure(lambda: up(database, tmp_path), FilesError)
    assert message.startswith(f"{tmp_path}/migrations/0003_c.sql:1:8: syntax error")
    assert made(database) == []


def test_a_wrong_name_stops_the_run_before_anything_is_applied(
    database: str, tmp_path: Path
) -> None:
    write(tmp_path, {**tables(1, 2), "migrations/0002_more.sql": "select 1;"})
    message = failure(lambda: up(database, tmp_path), FilesError)
    assert "0002_t2.sql: number 0002 is taken by 0002_more.sql" in message
    assert made(database) == []


@pytest.mark.parametrize(
    ("remove", "add", "problem"),
    [
        ("0001_t1.sql", {}, "migrations/0001_t1.sql: was applied (sha256 "),
        ("", {"migrations/0001_t1.sql": "select 2;"}, "migrations/0001_t1.sql: was edited after"),
        ("", {"migrations/0000_a.sql": "select 2;"}, "migrations/0000_a.sql: comes before 0002_t2"),
    ],
    ids=["removed", "edited", "out of order"],
)
def test_a_changed_past_stops_the_run_before_anything_is_applied(
    database: str, tmp_path: Path, remove: str, add: dict[str, str], problem: str
) -> None:
    up(database, write(tmp_path, tables(1, 2)))
    if remove:
        (tmp_path / "migrations" / remove).unlink()
    write(tmp_path, {**tables(3), **add})
    assert problem in failure(lambda: up(database, tmp_path), FilesError)
    assert made(database) == ["t1", "t2"]


def test_an_edited_file_is_told_with_the_recorded_and_the_present_digest(
    database: str, tmp_path: Path
) -> None:
    up(database, write(tmp_path, tables(1)))
    (old,) = query(database, "select left(sha256, 16) from migrate.ledger")
    write(tmp_path, {"migrations/0001_t1.sql": "select 1;\n"})
    message = failure(lambda: up(database, tmp_path), FilesError)
    assert f"recorded sha256 {old}, present 4a45092ccf992ea9" in message


def test_a_checkout_with_crlf_is_not_an_edit(database: str, tmp_path: Path) -> None:
    up(database, write(tmp_path, {"migrations/0001_a.sql": "select 1;\nselect 2;\n"}))
    (tmp_path / "migrations/0001_a.sql").write_bytes(b"\xef\xbb\xbfselect 1;\r\nselect 2;\r\n")
    assert up(database, tmp_path) == []


# --- large files, and files that change -------------------------------------------------------

ROW = "insert into t1 values ({0});\n-- 'a;\nselect '" + "b" * 180 + "';\n"
"""Two statements, three lines."""

ROWS = 1_600


def large(text: str, rows: int = 1_000) -> str:
    """A file of more than 300 kB: a text behind some of its rows."""
    before = "".join(ROW.format(number) for number in range(rows))
    after = "".join(ROW.format(number) for number in range(rows, ROWS))
    return f"{before}{text}{after}"


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
    assert 4 <= len(scripts.outline(tree["migrations"][1]).pieces) <= count < 30
    assert query(database, "select count(*), count(distinct xmin::text) from t1") == [(ROWS, 1)]
    assert query(database, "select f() = repeat(E'begin;\nend;\n', 10000), g()") == [(True, 1)]
    rows = query(database, "select sha256, xmin::text from migrate.ledger where name like '0002%'")
    (transaction,) = query(database, "select distinct xmin::text from t1")
    assert rows == [(hashlib.sha256(text.encode()).hexdigest(), transaction)]


@pytest.mark.parametrize(("rows", "piece"), [(0, 1), (600, 2), (1_000, 3), (ROWS, 4)])
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
    pieces = list(scripts.pieces(files.read_tree(tmp_path)["migrations"][1]))
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
def test_a_file_that_changes_after_it_was_checked_is_refused(
    database: str, tmp_path: Path, name: str, size: str
) -> None:
    text = "create table half ();\n" + (large("") if size == "large" else "")
    write(tmp_path, {**tables(1), "repeatable/1.sql": "select 1;", name: text})

    def change(step: run.Step) -> None:
        if step.event == "applied" and step.subject == "migrations/0001_t1.sql":
            (tmp_path / name).write_text(text.replace("half", "other"))

    message = failure(lambda: up(database, tmp_path, report=change), FilesError)
    assert message == f"{tmp_path}/{name}: has changed since this run began: run again"
    assert made(database) == ["t1"]
    assert recorded(database) == ["0001_t1.sql"]
    assert query(database, "select count(*) from t1") == [0]
    assert name.split("/")[1] in up(database, tmp_path)
    assert "other" in made(database)


def test_a_file_that_changes_while_a_run_waits_is_refused(database: str, tmp_path: Path) -> None:
    write(tmp_path, tables(1))

    def change(step: run.Step) -> None:
        if step.event == "waiting":
            write(tmp_path, {"migrations/0001_t1.sql": "create table other ();"})
            query(database, "select pg_terminate_backend(%s, 5000)", holder.info.backend_pid)

    with psycopg.connect(database, autocommit=True) as holder:
        holder.execute("select pg_advisory_lock(%s)", [LOCK_KEY])
        message = failure(lambda: up(database, tmp_path, report=change), FilesError)
    assert message.endswith("0001_t1.sql: has changed since this run began: run again")
    assert made(database) == []


def test_a_file_that_is_no_text_is_refused_only_while_it_is_pending(
    database: str, tmp_path: Path
) -> None:
    write(tmp_path, tables(1, 2))
    (tmp_path / "migrations/0002_t2.sql").write_bytes(b"select 1;\n-- \xff\n")
    message = failure(lambda: up(database, tmp_path), FilesError)
    assert message == (
        f"{tmp_path}/migrations/0002_t2.sql:2: not UTF-8 (byte 0xff): save the file as UTF-8"
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


def test_files_are_utf8_whatever_the_database_s_encoding_is(server: Server, tmp_path: Path) -> None:
    name = f"latin_{secrets.token_hex(6)}"
    query(server.url(), f"create database {name} encoding 'LATIN1' locale 'C' template template0")
    try:
        write(tmp_path, {"migrations/0001_a.sql": "create table t as select 'ü' as a;"})
        up(server.url(name), tmp_path)
        assert query(server.url(name), "select ascii(a), length(a) from t") == [(0xFC, 1)]
    finally:
        query(server.url(), f"drop database {name} with (force)")


# --- repeatable files ------------------------------------------------------------------------


def test_only_a_changed_repeatable_file_is_applied_again(database: str, tmp_path: Path) -> None:
    count = {f"repeatable/{n}.sql": f"insert into t1 values ('{n}');" for n in (1, 2)}
    up(database, write(tmp_path, {**tables(1), **count}))
    write(tmp_path, {"repeatable/2.sql": "insert into t1 values (3);"})
    assert up(database, tmp_path) == ["2.sql"]
    assert query(database, "select a from t1 order by a") == [1, 2, 3]


def test_the_ledger_row_of_a_repeatable_file_tells_its_last_time(
    database: str, tmp_path: Path
) -> None:
    up(database, write(tmp_path, {"repeatable/a.sql": "select 1;"}))
    query(database, "update migrate.ledger set applied_at = '2001-01-01', applied_by = 'x'")
    up(database, write(tmp_path, {"repeatable/a.sql": "select 2;"}))
    row = "select sha256, applied_by, now() - applied_at < interval '1 min' from migrate.ledger"
    digest = hashlib.sha256(b"select 2;").hexdigest()
    assert query(database, row) == [(digest, "postgres", True)]


def test_all_repeatable_files_are_one_transaction(database: str, tmp_path: Path) -> None:
    keep = "create table if not exists xids as select 0::bigint as x; insert into xids select "
    files = {f"repeatable/{n}.sql": keep + "txid_current();" for n in (1, 2)}
    up(database, write(tmp_path, files))
    first, second = query(database, "select x from xids where x > 0")
    assert first == second


def test_a_failing_repeatable_file_rolls_back_all_of_them_but_no_migration(
    database: str, tmp_path: Path
) -> None:
    bad = {"repeatable/1.sql": "create table r1 ();", "repeatable/2.sql": "select 1 / 0;"}
    message = up_fails(database, write(tmp_path, {**tables(1), **bad}))
    assert "rolled back: 1.sql, 2.sql\n  committed in this run: 0001_t1.sql" in message
    assert made(database) == ["t1"]
    assert recorded(database) == ["0001_t1.sql"]


def test_a_failure_in_a_later_repeatable_file_shows_its_place(
    database: str, tmp_path: Path
) -> None:
    first = {"repeatable/1.sql": "create table r1 ();\nselect 1;\n"}
    write(tmp_path, {**first, "repeatable/2.sql": "select 1;\nselect 2;\n\nselect 'ü', b;\n"})
    message = up_fails(database, tmp_path)
    assert message.startswith(f'{tmp_path}/repeatable/2.sql:4:13: column "b" does not exist')
    assert "  statement 3 of 3:\n    4 | select 'ü', b;\n      |             ^\n" in message
    assert "  rolled back: 1.sql, 2.sql\n  committed in this run: nothing\n" in message
    assert made(database) == []


def test_the_ledger_keeps_the_text_of_repeatable_files_only(database: str, tmp_path: Path) -> None:
    (tmp_path / "repeatable").mkdir()
    (tmp_path / "repeatable/a.sql").write_bytes(b"\xef\xbb\xbfselect 'it''s \\ %s {0} $1';\r\n")
    up(database, write(tmp_path, {**tables(1), "repeatable/b.sql": "select 'ü€😀';"}))
    assert query(database, "select name, content from migrate.ledger order by 1") == [
        ("0001_t1.sql", None),
        ("a.sql", "select 'it''s \\ %s {0} $1';\n"),
        ("b.sql", "select 'ü€😀';"),
    ]


def test_a_removed_repeatable_file_is_forgotten_and_applied_again_when_it_returns(
    database: str, tmp_path: Path
) -> None:
    write(tmp_path, {"repeatable/1.sql": "select 1;", "repeatable/2.sql": "select 2;"})
    up(database, tmp_path)
    (tmp_path / "repeatable/1.sql").unlink()
    steps: list[run.Step] = []
    assert up(database, tmp_path, report=steps.append) == []
    assert told(steps) == ["forgot repeatable/1.sql, which is gone; what it made stays"]
    assert recorded(database) == ["2.sql"]
    assert up(database, write(tmp_path, {"repeatable/1.sql": "select 1;"})) == ["1.sql"]


def test_a_repeatable_file_without_a_transaction_keeps_the_others_true(
    database: str, tmp_path: Path
) -> None:
    write(
        tmp_path,
        {
            "repeatable/1.sql": "create table r1 ();",
            "repeatable/2.sql": "-- migrate: no-transaction\nvacuum;",
            "repeatable/3.sql": "create table r3 (); select 1 / 0;",
        },
    )
    message = up_fails(database, tmp_path)
    assert "rolled back: 3.sql\n  committed in this run: 1.sql, 2.sql\n" in message
    assert made(database) == ["r1"]
    assert recorded(database) == ["1.sql", "2.sql"]


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
    assert verify(database, tmp_path) == 0


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


def test_a_file_that_leaves_an_invalid_index_is_not_taken_for_done(
    database: str, tmp_path: Path
) -> None:
    query(database, "create table other (a int); insert into other values (1), (1)")
    with pytest.raises(psycopg.errors.UniqueViolation):
        query(database, "create unique index concurrently other_a on other (a)")
    write(tmp_path, {**tables(1), "migrations/0002_i.sql": CONCURRENTLY})
    message = up_fails(database, tmp_path)
    assert "invalid index other_a, left by a CREATE INDEX CONCURRENTLY that failed: " in message
    assert "DROP INDEX CONCURRENTLY other_a, then run again" in message
    assert recorded(database) == ["0001_t1.sql"]
    query(database, "drop index concurrently other_a")
    assert up(database, tmp_path) == ["0002_i.sql"]
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
    assert verify(database, tmp_path) == 0


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
        f"{tmp_path}/migrations/0002_b.sql: was edited in its first 2 statements, which are done, "
        "by a run that was cut off or failed: restore them, and make the change behind them"
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
        "migrations/0002_b.sql: is gone, but its first 1 statements are done, by a run that was "
        "cut off or failed: restore it"
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
    assert not unsettled(database, tmp_path)


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
    assert not unsettled(database, tmp_path)


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
    assert verify(database, tmp_path) == 0


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


# --- waiting for locks -----------------------------------------------------------------------

IMPATIENT = {"migrations/0002_b.sql": "set local lock_timeout = '50ms'; alter table t1 add b int;"}


def test_a_lock_timeout_is_retried_until_the_lock_is_free(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    up(database, write(tmp_path, tables(1)))
    write(tmp_path, IMPATIENT)
    waits: list[float] = []
    with psycopg.connect(database) as blocker:
        blocker.execute("lock table t1")

        def wait(seconds: float) -> None:
            waits.append(seconds)
            if len(waits) == 2:
                blocker.rollback()

        monkeypatch.setattr("migrate.apply.time.sleep", wait)
        steps: list[run.Step] = []
        assert up(database, tmp_path, report=steps.append) == ["0002_b.sql"]
    assert waits == [1, 2]
    assert told(steps) == [
        "applying migrations/0002_b.sql",
        "retrying migrations/0002_b.sql in 1 s: canceling statement due to lock timeout",
        "retrying migrations/0002_b.sql in 2 s: canceling statement due to lock timeout",
        "applied migrations/0002_b.sql",
    ]


def test_a_lock_that_is_never_free_fails_after_the_last_try(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    up(database, write(tmp_path, tables(1)))
    write(tmp_path, IMPATIENT)
    waits: list[float] = []
    monkeypatch.setattr("migrate.apply.time.sleep", waits.append)
    with psycopg.connect(database) as blocker:
        blocker.execute("lock table t1")
        message = up_fails(database, tmp_path)
    assert f"{tmp_path}/migrations/0002_b.sql:1:34: canceling statement due to lock" in message
    assert "(SQLSTATE 55P03)" in message
    assert "  rolled back: 0002_b.sql\n  committed in this run: nothing\n" in message
    assert waits == [2**number for number in range(apply.RETRIES)] == [1, 2, 4, 8]


@pytest.mark.parametrize("cause", ["select 1 / 0", "set local statement_timeout = 1; table t1"])
def test_nothing_but_a_lock_timeout_is_retried(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cause: str
) -> None:
    text = cause.replace("table t1", "select pg_sleep(5)")
    write(tmp_path, {"migrations/0001_a.sql": text})
    waits: list[float] = []
    monkeypatch.setattr("migrate.apply.time.sleep", waits.append)
    up_fails(database, tmp_path)
    assert waits == []


# --- the lock of a run -----------------------------------------------------------------------


def test_of_two_runs_one_applies_and_the_other_waits_and_finds_nothing(
    database: str, tmp_path: Path
) -> None:
    write(tmp_path, {**tables(1), "migrations/0002_b.sql": "select pg_sleep(1);"})
    with in_background(lambda: up(database, tmp_path)) as first:
        wait_until_active(database, "%pg_sleep%")
        started = time.monotonic()
        assert up(database, tmp_path) == []
        assert time.monotonic() - started > 0.5
    assert first.result() == ["0001_t1.sql", "0002_b.sql"]


def test_a_run_that_waits_says_once_for_whom(database: str, tmp_path: Path) -> None:
    steps: list[run.Step] = []
    with psycopg.connect(database, application_name="deploy 7", autocommit=True) as holder:
        holder.execute("select pg_advisory_lock(%s)", [LOCK_KEY])
        pid = holder.info.backend_pid
        write(tmp_path, tables(1))
        with in_background(lambda: up(database, tmp_path, report=steps.append)) as waiting:
            wait_for(lambda: steps, "the run waits")
            time.sleep(0.5)
            holder.execute("select pg_advisory_unlock(%s)", [LOCK_KEY])
            assert waiting.result() == ["0001_t1.sql"]
    assert re.sub(r" since .*", " since", told(steps)[0]) == (
        f"waiting for another run: pid {pid} (deploy 7, user postgres), connected since"
    )
    assert told(steps)[1:] == ["applying migrations/0001_t1.sql", "applied migrations/0001_t1.sql"]


def test_with_nothing_to_do_no_run_is_waited_for(database: str, tmp_path: Path) -> None:
    up(database, write(tmp_path, tables(1)))
    with psycopg.connect(database, autocommit=True) as holder:
        holder.execute("select pg_advisory_lock(%s)", [LOCK_KEY])
        assert up(database, tmp_path, wait=0) == []


def test_a_holder_beyond_the_wait_is_named(database: str, tmp_path: Path) -> None:
    with psycopg.connect(database, application_name="deploy 7", autocommit=True) as holder:
        holder.execute("select pg_advisory_lock(%s)", [LOCK_KEY])
        started = time.monotonic()
        message = up_fails(database, write(tmp_path, tables(1)), wait=0.5)
        assert 0.5 <= time.monotonic() - started < 5
        pid = holder.info.backend_pid
        begin = "select date_trunc('second', backend_start)::text from pg_stat_activity"
        (since,) = query(database, f"{begin} where pid = %s", pid)
    assert f"lock: pid {pid} (deploy 7, user postgres), connected since {since};" in message
    assert " waited 0.5 s\n  what to do: wait for it and run again" in message
    assert made(database) == []


def test_a_holder_is_named_to_a_role_that_may_not_see_its_activity(
    database: str, role: str, tmp_path: Path
) -> None:
    with psycopg.connect(database, application_name="deploy 7", autocommit=True) as holder:
        holder.execute("select pg_advisory_lock(%s)", [LOCK_KEY])
        message = up_fails(role, write(tmp_path, tables(1)), wait=0)
        assert f"lock: pid {holder.info.backend_pid} (deploy 7, user postgres); waited" in message


def test_a_run_on_another_database_of_the_server_is_not_waited_for(
    database: str, other_database: str, tmp_path: Path
) -> None:
    with psycopg.connect(other_database, autocommit=True) as holder:
        holder.execute("select pg_advisory_lock(%s)", [LOCK_KEY])
        assert up(database, write(tmp_path, tables(1)), wait=0) == ["0001_t1.sql"]


def test_the_holder_that_is_named_is_the_one_on_this_database(
    server: Server, database: str, other_database: str, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        for url in (other_database, database, server.url()):
            holder = stack.enter_context(psycopg.connect(url, autocommit=True))
            holder.execute("select pg_advisory_lock(%s)", [LOCK_KEY])
            if url == database:
                pid = holder.info.backend_pid
        message = up_fails(database, write(tmp_path, tables(1)), wait=0)
        assert f"lock: pid {pid} (" in message


def test_the_lock_is_free_after_a_run_and_after_a_failed_one(database: str, tmp_path: Path) -> None:
    with connect(database) as session:
        for text in ("select 1;", "select 1 / 0;"):
            write(tmp_path, {"repeatable/a.sql": text})
            try:
                run.up(session, files.read_tree(tmp_path))
            except MigrateError as error:
                assert "division" in str(error)  # noqa: PT017
            held = "select count(*) from pg_locks where locktype = 'advisory' and pid = %s"
            assert query(database, held, session.info.backend_pid) == [0]


def test_a_killed_run_lets_the_lock_go_in_the_middle_of_its_statement(
    database: str, tmp_path: Path
) -> None:
    write(tmp_path, {**tables(1), "migrations/0002_b.sql": "select pg_sleep(600);"})
    command = [sys.executable, "-m", "migrate", "--directory", str(tmp_path), "up"]
    killed = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=os.environ | {"DATABASE_URL": database},
        stdout=subprocess.DEVNULL,
    )
    wait_until_active(database, "%pg_sleep%")
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    write(tmp_path, tables(3) | {"migrations/0002_b.sql": "select 2;"})
    assert up(database, tmp_path, wait=20) == ["0002_b.sql", "0003_t3.sql"]


def test_a_run_whose_connection_is_cut_keeps_what_it_committed_and_is_gone_on_with(
    database: str, tmp_path: Path
) -> None:
    up(database, write(tmp_path, tables(1)))
    write(tmp_path, {**tables(2), "migrations/0003_c.sql": "select pg_sleep(600);"})
    with in_background(lambda: up_fails(database, tmp_path)) as cut:
        pid = wait_until_active(database, "%pg_sleep%")
        query(database, "select pg_terminate_backend(%s)", pid)
    assert "0003_c.sql:1:1: terminating connection due to administrator command" in cut.result()
    assert "committed in this run: 0002_t2.sql" in cut.result()
    write(tmp_path, {"migrations/0003_c.sql": "select 3;"})
    assert up(database, tmp_path) == ["0003_c.sql"]
    assert verify(database, tmp_path) == 0, "the file that was committed is no drift"


# --- a run that was cut off ------------------------------------------------------------------

SLEEP = {"migrations/0002_b.sql": "create table half (); select pg_sleep(600);"}


def unsettled(url: str, directory: Path) -> bool:
    """Whether the engine says that a run is under way or was cut off; each part says the same."""
    with connect(url) as session:
        tree = files.read_tree(directory)
        try:
            drift: object = proof.drift(session)
        except UnsettledError as error:
            drift = str(error)
        settled = run.plan(session, tree).settled
        if settled:
            assert drift == []
            assert isinstance(proof.verify(session, tree), int)
            return False
        assert (
            drift
            == failure(lambda: proof.verify(session, tree), UnsettledError)
            == (
                "whether the schema has drifted is not known: a run is under way, or was cut off\n"
                "  what to do: wait for it; or run `up`, which finishes it"
            )
        )
        assert run.plan(session, tree).work
        return True


def test_while_a_run_is_under_way_nobody_is_told_of_drift(database: str, tmp_path: Path) -> None:
    up(database, write(tmp_path, tables(1)))
    assert not unsettled(database, tmp_path)
    write(tmp_path, {"migrations/0002_b.sql": "create table t2 (); select pg_sleep(2);"})
    with in_background(lambda: up(database, tmp_path)) as under_way:
        wait_until_active(database, "%pg_sleep%")
        assert unsettled(database, tmp_path)
    assert under_way.result() == ["0002_b.sql"]
    assert not unsettled(database, tmp_path)


def test_what_a_killed_run_left_is_not_known_until_the_next_run_has_finished_it(
    database: str, tmp_path: Path
) -> None:
    write(tmp_path, {**tables(1), **SLEEP})
    with started_up(database, tmp_path) as process:
        wait_until_active(database, "%pg_sleep%")
        process.kill()
    assert made(database) == ["t1"]
    assert unsettled(database, tmp_path)
    write(tmp_path, {"migrations/0002_b.sql": "create table t2 ();"})
    assert up(database, tmp_path) == ["0002_b.sql"]
    assert not unsettled(database, tmp_path)
    assert up(database, tmp_path) == []


def test_a_cut_off_run_that_left_nothing_to_apply_is_finished(
    database: str, tmp_path: Path
) -> None:
    write(tmp_path, {**tables(1), **SLEEP})
    cut_off(database, tmp_path)
    (tmp_path / "migrations/0002_b.sql").unlink()
    assert unsettled(database, tmp_path)
    assert up(database, tmp_path) == []
    assert not unsettled(database, tmp_path)


def test_a_failed_run_is_no_cut_off_one(database: str, tmp_path: Path) -> None:
    up_fails(database, write(tmp_path, {**tables(1), "migrations/0002_b.sql": "select 1 / 0;"}))
    write(tmp_path, {"migrations/0002_b.sql": "select 1;"})
    assert not unsettled(database, tmp_path)


def test_a_drift_before_a_cut_off_run_is_told_after_the_run_that_finishes_it(
    database: str, tmp_path: Path
) -> None:
    up(database, write(tmp_path, tables(1, 2)))
    query(database, "alter table t1 add b int; drop table t2")
    expected = {
        "column public.t1.b": (ABSENT, "integer"),
        "column public.t2.a": ("integer", ABSENT),
    }
    sleep = {"migrations/0004_d.sql": SLEEP["migrations/0002_b.sql"]}
    write(tmp_path, {**tables(3), **sleep})
    for _ in range(2):
        assert "0004_d.sql:1:23: terminating connection" in cut_off(database, tmp_path)
        assert unsettled(database, tmp_path)
    up(database, write(tmp_path, {"migrations/0004_d.sql": "select 4;"}))
    with connect(database) as session:
        found = drifts(session)
    assert found.pop("table public.t2")[1] == ABSENT
    assert found == expected


def test_accepting_the_live_catalog_ends_a_cut_off_run(database: str, tmp_path: Path) -> None:
    cut_off(database, write(tmp_path, {**tables(1), **SLEEP}))
    (tmp_path / "migrations/0002_b.sql").unlink()
    with connect(database) as session:
        proof.accept(session)
    assert not unsettled(database, tmp_path)


def test_accepting_waits_for_a_run(database: str, tmp_path: Path) -> None:
    up(database, write(tmp_path, tables(1)))
    with psycopg.connect(database, autocommit=True) as holder, connect(database) as session:
        holder.execute("select pg_advisory_lock(%s)", [LOCK_KEY])
        message = failure(lambda: proof.accept(session, wait=0))
        assert f"another run holds the migration lock: pid {holder.info.backend_pid} " in message


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


def drifts(session: connection.Connection) -> dict[str, tuple[str, str]]:
    """Object -> what was expected and what was found."""
    return {
        each.object: (each.expected or ABSENT, each.found or ABSENT)
        for each in proof.drift(session)
    }


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
        "comment on table app.t is 'hello'",
        "select nextval('app.numbers')",
        "alter default privileges in schema app grant select on tables to pg_monitor",
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
    assert failure(lambda: verify(database, tmp_path), DriftError) == (
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
    assert verify(database, tmp_path) == 0


def test_what_a_failed_file_without_a_transaction_made_is_no_drift(
    database: str, tmp_path: Path
) -> None:
    up(database, write(tmp_path, tables(1)))
    text = "-- migrate: no-transaction\ncreate table a ();\nselect 1 / 0;"
    up_fails(database, write(tmp_path, {"migrations/0002_a.sql": text}))
    assert verify(database, tmp_path) == 0


def test_accepted_drift_is_expected_from_then_on(database: str, tmp_path: Path) -> None:
    up(database, write(tmp_path, tables(1)))
    query(database, "alter table t1 add b int")
    with connect(database) as session:
        proof.accept(session)
        assert drifts(session) == {}
        session.execute("alter table t1 drop b")
        assert drifts(session) == {"column public.t1.b": ("integer", ABSENT)}


# --- verification ----------------------------------------------------------------------------


def test_verify_counts_the_promises_that_hold(database: str, tmp_path: Path) -> None:
    holds = "-- promise: it holds\nselect 1 where false;\n"
    write(tmp_path, {"verify/1.sql": holds * 2, "verify/2.sql": holds})
    assert verify(database, tmp_path) == 3


def test_every_broken_promise_is_named_with_the_rows_that_break_it(
    database: str, tmp_path: Path
) -> None:
    text = """-- About tables.

-- promise: Every table has
--   a name.
select 1 as n, 'x' as name union all select 2, null;

-- promise: This one holds.
select 1 where false;
"""
    write(tmp_path, {"verify/1.sql": text, "verify/2.sql": "-- promise: Two.\nselect true as two;"})
    assert failure(lambda: verify(database, tmp_path), PromiseError) == (
        f"{tmp_path}/verify/1.sql:5:1: broken promise: Every table has a name.\n"
        "  n=1, name=x\n"
        "  n=2, name=None\n"
        f"{tmp_path}/verify/2.sql:2:1: broken promise: Two.\n"
        "  two=True\n"
        "  what to do: what was applied stays applied; mend it with the next migration, or by "
        "editing a repeatable file"
    )


def test_of_many_rows_that_break_a_promise_twenty_are_shown(database: str, tmp_path: Path) -> None:
    text = "-- promise: none\nselect * from generate_series(1, 1000) as n;"
    write(tmp_path, {"verify/1.sql": text})
    message = failure(lambda: verify(database, tmp_path), PromiseError)
    assert message.splitlines()[-2] == "  n=20"


def test_a_row_without_columns_breaks_a_promise(database: str, tmp_path: Path) -> None:
    write(tmp_path, {"verify/1.sql": "-- promise: none\nselect from generate_series(1, 2);"})
    message = failure(lambda: verify(database, tmp_path), PromiseError)
    assert f"{tmp_path}/verify/1.sql:2:1: broken promise: none\n" in message


def test_a_promise_may_be_an_assertion(database: str, tmp_path: Path) -> None:
    write(tmp_path, {"verify/1.sql": "do $$ begin assert true; end $$;"})
    assert verify(database, tmp_path) == 1
    write(tmp_path, {"verify/1.sql": "do $$ begin assert false, 'not so'; end $$;"})
    assert "verify/1.sql:1:7: not so (SQLSTATE P0004)" in failure(
        lambda: verify(database, tmp_path)
    )


def test_a_promise_that_cannot_be_asked_is_an_error_with_its_place(
    database: str, tmp_path: Path
) -> None:
    write(tmp_path, {"verify/1.sql": "-- promise: x\nselect 1\n  from missing;"})
    message = failure(lambda: verify(database, tmp_path))
    assert f'{tmp_path}/verify/1.sql:3:8: relation "missing" does not exist' in message


def test_verify_changes_nothing(database: str, tmp_path: Path) -> None:
    write(tmp_path, {"verify/1.sql": "create table t ();"})
    assert "read-only transaction" in failure(lambda: verify(database, tmp_path))
    assert made(database) == []


# --- the bundle ------------------------------------------------------------------------------

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
    assert verify(database, directory) == 0
    with connect(database) as session:
        plan = run.plan(session, files.read_tree(directory))
    assert (plan.work, plan.settled) == (False, True)
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
    assert query(database, "select under_way is null from migrate.catalog") == [True]


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


# --- how much it asks ------------------------------------------------------------------------


def sent(session: connection.Connection, action: Callable[[], object], tmp_path: Path) -> int:
    """How many statements the client sends meanwhile, as libpq traces them."""
    with (tmp_path / "trace").open("w") as trace:
        session.pgconn.trace(trace.fileno())
        action()
        session.pgconn.untrace()
    lines = (tmp_path / "trace").read_text(errors="replace").splitlines()
    return sum(bool(re.match(r"\S+ \S+\tF\t\d+\t(Query|Execute)\t", line)) for line in lines)


def test_with_nothing_to_do_the_number_of_statements_does_not_grow_with_the_files(
    database: str, tmp_path: Path
) -> None:
    counts = []
    for total in (3, 60):
        write(tmp_path, {**tables(*range(1, total + 1)), f"repeatable/{total}.sql": "select 1;"})
        up(database, tmp_path)
        with connect(database) as session:
            tree = files.read_tree(tmp_path)
            counts.append(sent(session, partial(run.up, session, tree), tmp_path))
    assert counts == [2, 2]


# --- connecting ------------------------------------------------------------------------------


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def pooler(server: Server) -> Iterator[str]:
    """The server behind a forwarder on Supabase's transaction mode port; its host."""
    host = f"127.{os.getpid() >> 8 & 255}.{os.getpid() & 255}.2"  # another one a test process
    listener = socket.create_server((host, TRANSACTION_POOLER_PORT))

    def pump(source: socket.socket, target: socket.socket) -> None:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)

    def serve() -> None:
        client, _ = listener.accept()
        upstream = socket.create_connection(("127.0.0.1", server.port))
        with client, upstream:
            back = threading.Thread(target=pump, args=(upstream, client), daemon=True)
            back.start()
            pump(client, upstream)
            back.join()

    with listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield host
        thread.join(10)
        assert not thread.is_alive()


def test_a_connection_is_named_migrate(database: str) -> None:
    with connect(database) as session:
        assert session.info.get_parameters()["application_name"] == "migrate"


def test_a_wrong_password_is_told_without_the_password(server: Server) -> None:
    message = refused(server.url().replace(server.password, "wr0ng"))
    assert 'password authentication failed for user "postgres"' in message
    assert "what to do: check user and password" in message


def test_a_closed_port_is_told(server: Server) -> None:
    message = refused(server.url().replace(str(server.port), str(closed_port())))
    assert "Connection refused" in message
    assert "what to do: is the server running, and is the port right?" in message


def test_an_unknown_host_is_told() -> None:
    message = refused("postgresql://u:s3cret@no-such-host.invalid/db")
    assert "no-such-host.invalid" in message
    assert "what to do: check the host name" in message


def test_a_host_name_that_cannot_be_one_is_told() -> None:
    assert "cannot connect to the database" in refused("postgresql://u:s3cret@a..b/db")


def test_a_server_that_does_not_answer_is_told_after_the_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        message = refused(f"postgresql://u:s3cret@127.0.0.1:{port}/db?connect_timeout=2")
    assert "what to do: check host, port and firewall" in message


def test_a_missing_database_is_told(server: Server) -> None:
    message = refused(server.url("no_such_database"))
    assert 'database "no_such_database" does not exist\n  what to do: create it first' in message


@pytest.mark.parametrize("option", ["connect_timeout=soon", "sslmode=maybe", "port=many"])
def test_a_wrong_option_is_told(option: str) -> None:
    assert "cannot connect to the database: " in refused(
        f"postgresql://u:s3cret@127.0.0.1/db?{option}"
    )


@pytest.mark.parametrize(
    "url",
    [
        "s3cret",
        "postgresql://u:s3cret%zz@127.0.0.1/db",
        "postgresql://u:s3@cret@127.0.0.1/db",
        "postgresql://u:s3/cret@127.0.0.1/db",
        "postgresql://u:5432/s3cret@127.0.0.1/db",
        "postgresql://u:s3cret@[::1/db",
        "postgresql://u:s3cret@127.0.0.1/db?no_such_option=1",
        "host=127.0.0.1 password=pass s3cret",
    ],
)
def test_a_url_that_cannot_be_parsed_is_refused_and_not_shown(url: str) -> None:
    message = failure(lambda: connect(url))
    assert message == (
        "the database URL cannot be parsed (it is not shown, since it may hold a password): "
        "write postgresql://USER:PASSWORD@HOST:PORT/DATABASE and percent-encode the password"
    )


@pytest.mark.parametrize(
    "form",
    [
        "postgresql://{user}:{password}@{hostname}:{port}{path}?sslmode=disable",
        "postgres://{user}:{password}@{hostname}:{port}{path}",
        "postgresql://{hostname}:{port}{path}?user={user}&password={password}",
        "host={hostname} port={port} user={user} password={password} dbname={path}",
    ],
)
def test_every_form_that_libpq_takes_is_taken(database: str, form: str) -> None:
    parts = urlsplit(database)
    assert parts.password
    path = parts.path if "://" in form else parts.path[1:]
    url = form.format(
        user=parts.username,
        password=parts.password,
        hostname=parts.hostname,
        port=parts.port,
        path=path,
    )
    with connect(url) as session:
        assert session.info.dbname == parts.path[1:]


def test_a_password_of_special_characters_is_taken_percent_encoded(
    database: str, role: str
) -> None:
    name = urlsplit(role).username
    query(database, f"alter role {name} password 'p@ss/w:rd?%#'")
    url = role.replace(f"{name}secret", "p%40ss%2Fw%3Ard%3F%25%23")
    with connect(url) as session:
        assert session.info.user == name


def test_a_server_that_is_too_old_is_refused_with_its_version(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "OLDEST_SERVER", 99)
    major = int(query(database, "show server_version_num")[0]) // 10000
    assert failure(lambda: connect(database)).endswith(
        f"is PostgreSQL {major}; 99 or newer is needed: upgrade the server"
    )


def test_a_pooler_in_transaction_mode_is_refused_with_the_port_to_use(server: Server) -> None:
    with pooler(server) as host:
        url = server.url().replace(f"127.0.0.1:{server.port}", f"{host}:6543")
        assert failure(lambda: connect(url)) == (
            f"{host}:6543 is a pooler in transaction mode, where the lock of a run does not hold: "
            "use the session mode port 5432"
        )


# --- what the server refuses -----------------------------------------------------------------


def test_a_role_that_may_not_make_the_ledger_is_told_so(role: str, tmp_path: Path) -> None:
    message = up_fails(role, write(tmp_path, tables(1)))
    assert message.startswith("the database refuses: permission denied for database test_")
    assert "(SQLSTATE 42501)\n  what to do: run as the role that owns the database" in message


@pytest.mark.parametrize("action", [run.plan, run.up, proof.verify])
def test_a_role_that_may_not_read_the_ledger_is_told_so(
    database: str, role: str, tmp_path: Path, action: Callable[..., object]
) -> None:
    up(database, write(tmp_path, tables(1)))
    with connect(role) as session:
        message = failure(lambda: action(session, files.read_tree(tmp_path)))
    assert message.startswith("the database refuses: permission denied for schema migrate")


def test_a_role_that_may_not_accept_a_drift_is_told_so(role: str) -> None:
    with connect(role) as session:
        message = failure(lambda: proof.accept(session))
    assert message.startswith("the database refuses: permission denied for database test_")


def test_a_server_that_only_reads_is_told(database: str, tmp_path: Path) -> None:
    url = database + "&options=-c%20default_transaction_read_only%3Don"
    message = up_fails(url, write(tmp_path, tables(1)))
    assert message.startswith(
        "the database refuses: cannot execute CREATE SCHEMA in a read-only transaction"
    )
    assert made(database) == []


def test_the_ledger_of_an_older_engine_is_brought_up_to_date(database: str, tmp_path: Path) -> None:
    write(tmp_path, tables(1) | {"repeatable/v.sql": "create or replace view v as select 1 as a;"})
    up(database, tmp_path)
    query(database, "alter table migrate.ledger drop column content")
    query(database, "alter table migrate.catalog drop column under_way")
    query(database, "drop table migrate.progress")
    with connect(database) as session:
        assert run.compare(session, files.read_tree(tmp_path)).settled is False
        assert rehearsal.state(session).repeatable == {}
    assert up(database, tmp_path) == []
    with connect(database) as session:
        assert run.compare(session, files.read_tree(tmp_path)).settled is True
        assert list(rehearsal.state(session).repeatable) == ["v.sql"]
        assert proof.drift(session) == []
