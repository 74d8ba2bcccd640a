"""The migration engine on real servers: what a run applies, keeps and says."""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from migrate import VERSION, files, plan, run, verify
from migrate.connection import connect
from migrate.errors import FilesError
from tests.support.migrating import (
    failure,
    made,
    query,
    recorded,
    sent,
    tables,
    told,
    up,
    up_fails,
    write,
)

if TYPE_CHECKING:
    from migrate.report import Step

# --- the ledger ------------------------------------------------------------------------------


def test_up_applies_all_files_in_order_versioned_before_repeatable(
    database: str, tmp_path: Path
) -> None:
    write(tmp_path, {"repeatable/a.sql": "create view v as select a from t2;", **tables(1, 2)})
    steps: list[Step] = []
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
    steps: list[Step] = []
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
        planned = plan.check(session, files.read_tree(tmp_path))
    names = [name for folder in planned.folders for name in folder.changes]
    assert (planned.has_work, planned.complete) == (True, True)
    assert [file.name for file in planned.pending] == names
    assert names == ["0001_t1.sql", "0002_t2.sql", "a.sql"]
    assert query(database, "select nspname from pg_namespace where nspname = 'migrate'") == []
    assert up(database, tmp_path) == names


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
    steps: list[Step] = []
    assert up(database, tmp_path, report=steps.append) == []
    assert told(steps) == ["unrecorded repeatable/1.sql, which was removed; what it made stays"]
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


# --- how much it asks ------------------------------------------------------------------------


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


# --- what the server refuses -----------------------------------------------------------------


def test_a_role_that_may_not_make_the_ledger_is_told_so(role: str, tmp_path: Path) -> None:
    message = up_fails(role, write(tmp_path, tables(1)))
    assert message.startswith("the database refuses: permission denied for database test_")
    assert "(SQLSTATE 42501)\n  what to do: run as the role that owns the database" in message


@pytest.mark.parametrize("action", [plan.check, run.up, verify.check])
def test_a_role_that_may_not_read_the_ledger_is_told_so(
    database: str, role: str, tmp_path: Path, action: Callable[..., object]
) -> None:
    up(database, write(tmp_path, tables(1)))
    with connect(role) as session:
        message = failure(lambda: action(session, files.read_tree(tmp_path)))
    assert message.startswith("the database refuses: permission denied for schema migrate")


def test_a_role_that_may_not_accept_a_drift_is_told_so(role: str) -> None:
    with connect(role) as session:
        message = failure(lambda: verify.accept(session))
    assert message.startswith("the database refuses: permission denied for database test_")


def test_a_server_that_only_reads_is_told(database: str, tmp_path: Path) -> None:
    url = database + "&options=-c%20default_transaction_read_only%3Don"
    message = up_fails(url, write(tmp_path, tables(1)))
    assert message.startswith(
        "the database refuses: cannot execute CREATE SCHEMA in a read-only transaction"
    )
    assert made(database) == []
