"""The command line of the migration engine, as a shell sees it: output, exit codes, signals."""

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, LiteralString
from urllib.parse import urlsplit

import psycopg
import pytest

from migrate import files, run
from migrate.connection import connect
from tests.support.migrating import query, tables, write

REPOSITORY = Path(__file__).parents[2]
UP_TO_DATE, ERROR, PENDING, DRIFT = 0, 1, 2, 3
UNREACHABLE = "postgresql://u:s3cret@127.0.0.1:1/db"
SLOW = {"migrations/0002_slow.sql": "create table half ();\nselect pg_sleep(600);\n"}

# --- helpers ---------------------------------------------------------------------------------


def start(*arguments: str | Path, url: str = "", **environment: str) -> subprocess.Popen[str]:
    """Start `python -m migrate` with nothing of our own environment that libpq reads."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    for name in ("DATABASE_URL", "PYTHONUNBUFFERED"):
        clean.pop(name, None)
    if url:
        environment["DATABASE_URL"] = url
    return subprocess.Popen(
        [sys.executable, "-m", "migrate", *arguments],
        cwd=REPOSITORY,
        env=clean | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


class Result:
    """What a command printed and how it ended; never with a traceback or a password."""

    def __init__(self, process: subprocess.Popen[str], *secret: str | None) -> None:
        self.stdout, self.stderr = process.communicate(timeout=60)
        self.code = process.returncode
        print(self.code, self.stdout, self.stderr, sep="\n")
        assert "Traceback" not in self.stderr
        for password in filter(None, secret):
            assert password not in self.stdout + self.stderr


def migrate(
    directory: Path, *arguments: str | Path, url: str = "", secret: str = "", **environment: str
) -> Result:
    process = start("--directory", directory, *arguments, url=url, **environment)
    return Result(process, secret, urlsplit(url).password)


def untimed(text: str) -> str:
    """The lines of a run, without the time that each file took."""
    return re.sub(r" \(\d+ ms\)$", "", text, flags=re.MULTILINE)


def up(directory: Path, url: str) -> None:
    """What a test begins with: all files applied."""
    with connect(url) as session:
        run.up(session, files.read_tree(directory))


def wait_for(condition: Callable[[], object], what: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.02)


def sleepers(url: str) -> list[Any]:
    """Sessions that are in the middle of SLOW."""
    return query(
        url,
        """select pid from pg_stat_activity where query like '%pg_sleep(600)%'
           and state = 'active' and datname = current_database() and pid <> pg_backend_pid()""",
    )


def made(url: str) -> list[Any]:
    return query(url, "select tablename from pg_tables where schemaname = 'public' order by 1")


@contextmanager
def locked(url: str) -> Iterator[None]:
    """While another session holds the lock of a run."""
    with psycopg.connect(url, autocommit=True) as holder:
        holder.execute("select pg_advisory_lock(x'6D69677261746500'::bigint)")
        yield


# --- status and plan -------------------------------------------------------------------------


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """A directory for --directory, without a file in it."""
    (tmp_path / "migrations").mkdir()
    return tmp_path


def test_status_shows_every_file_with_its_state(database: str, tmp_path: Path) -> None:
    write(tmp_path, {**tables(1), "repeatable/a.sql": "select 1;"})
    up(tmp_path, database)
    write(tmp_path, {**tables(2), "repeatable/b.sql": "select 1;"})
    german: LiteralString = """do $$ begin
      execute format('alter database %I set datestyle = german', current_database());
      execute format('alter database %I set timezone = Japan', current_database());
    end $$"""
    query(database, german)  # in which psycopg reads no time
    result = migrate(tmp_path, "status", url=database)
    form = "select to_char(applied_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS+0000')"
    form += " from migrate.ledger order by 1"
    first, second = query(database, form)
    assert result.stdout.splitlines() == [
        f"applied  migrations/0001_t1.sql  {first} by postgres",
        "pending  migrations/0002_t2.sql",
        f"applied  repeatable/a.sql  {second} by postgres",
        "pending  repeatable/b.sql",
    ]
    assert result.code == PENDING


def test_status_is_0_when_all_is_applied(database: str, tmp_path: Path) -> None:
    up(write(tmp_path, tables(1)), database)
    assert migrate(tmp_path, "status", url=database).code == UP_TO_DATE


def test_status_shows_the_files_and_then_what_is_wrong_with_them(
    database: str, tmp_path: Path
) -> None:
    up(write(tmp_path, tables(1)), database)
    write(tmp_path, {"migrations/0001_t1.sql": "select 1;\n"})
    result = migrate(tmp_path, "status", url=database)
    assert "migrations/0001_t1.sql" in result.stdout
    assert "recorded sha256 8bbe9c87f0a31bad, present 4a45092ccf992ea9" in result.stderr
    assert result.code == ERROR


def test_a_removed_repeatable_file_is_pending_until_up_forgets_it(
    database: str, tmp_path: Path
) -> None:
    up(write(tmp_path, {"repeatable/a.sql": "select 1;"}), database)
    (tmp_path / "repeatable/a.sql").unlink()
    before = migrate(tmp_path, "status", url=database)
    assert before.code == PENDING
    assert re.fullmatch(r"removed  repeatable/a\.sql  \d.* by postgres\n", before.stdout)
    planned = migrate(tmp_path, "plan", url=database)
    assert (planned.code, planned.stdout) == (PENDING, "removed  repeatable/a.sql\n")
    assert "unrecorded repeatable/a.sql" in migrate(tmp_path, "up", url=database).stdout
    after = migrate(tmp_path, "plan", url=database)
    assert (after.code, after.stdout) == (UP_TO_DATE, "nothing to do\n")


def test_plan_lists_what_up_would_do_and_does_nothing(database: str, tmp_path: Path) -> None:
    write(tmp_path, {f"migrations/000{n}_t{n}.sql": "select 1;" for n in (1, 2)})
    write(tmp_path, {"repeatable/a.sql": "select 1;"})
    result = migrate(tmp_path, "plan", url=database)
    assert result.stdout == (
        "pending  migrations/0001_t1.sql\n"
        "pending  migrations/0002_t2.sql\n"
        "pending  repeatable/a.sql\n"
    )
    assert result.code == PENDING
    assert query(database, "select nspname from pg_namespace where nspname = 'migrate'") == []


def test_plan_is_0_with_nothing_to_do(database: str, tmp_path: Path) -> None:
    up(write(tmp_path, tables(1)), database)
    result = migrate(tmp_path, "plan", url=database)
    assert (result.code, result.stdout) == (UP_TO_DATE, "nothing to do\n")


def test_plan_shows_what_would_hurt_a_live_database(database: str, tmp_path: Path) -> None:
    up(write(tmp_path, tables(1)), database)
    write(tmp_path, {"migrations/0002_b.sql": "select 1;\ndrop table t1;\n"})
    result = migrate(tmp_path, "plan", url=database)
    assert result.code == PENDING
    pending, finding = result.stdout.splitlines()[:2]
    assert pending == "pending  migrations/0002_b.sql"
    assert finding.startswith(f"{tmp_path}/migrations/0002_b.sql:2:1: ")
    assert "0001_t1" not in result.stdout


def test_plan_is_3_when_there_is_drift_and_nothing_pending(database: str, tmp_path: Path) -> None:
    up(write(tmp_path, tables(1)), database)
    query(database, "alter table t1 add b int")
    drifted = migrate(tmp_path, "plan", url=database)
    told = "drift: column public.t1.b\n  expected: (absent)\n  found:    integer\n"
    assert (drifted.code, drifted.stdout) == (DRIFT, told)
    write(tmp_path, {"migrations/0002_b.sql": "select 1;"})
    pending = migrate(tmp_path, "plan", url=database)
    assert (pending.code, pending.stdout) == (PENDING, f"pending  migrations/0002_b.sql\n{told}")


def incomplete(directory: Path, url: str) -> bool:
    """Whether `plan` and `status` say that the record is not complete."""
    told = "the record of what is there is not complete: `up` completes it\n"
    status = migrate(directory, "status", url=url)
    plan = migrate(directory, "plan", url=url)
    assert plan.stderr == status.stderr == ""
    if plan.code == status.code == UP_TO_DATE:
        assert plan.stdout == "nothing to do\n"
        assert told not in status.stdout
        return False
    assert plan.code == status.code == PENDING
    assert plan.stdout == told
    assert status.stdout.endswith(told)
    return True


def test_a_run_that_was_cut_off_is_told_until_it_is_finished(database: str, tmp_path: Path) -> None:
    up(write(tmp_path, tables(1)), database)
    assert not incomplete(tmp_path, database)
    query(database, "update migrate.catalog set in_progress = '{}'")
    assert incomplete(tmp_path, database)
    verified = migrate(tmp_path, "verify", url=database)
    assert (verified.code, verified.stdout) == (ERROR, "")
    assert verified.stderr.startswith("error: whether the schema has drifted is not known: a run")
    assert migrate(tmp_path, "up", url=database).code == UP_TO_DATE
    assert not incomplete(tmp_path, database)


def test_a_database_made_from_the_bundle_is_finished_by_its_first_run(
    database: str, tmp_path: Path, postgres_bin: Path
) -> None:
    write(tmp_path, tables(1))
    bundled = migrate(tmp_path, "bundle").stdout
    psql = [str(postgres_bin / "psql"), "-X", "-q", "-f", "-", database]
    subprocess.run(psql, input=bundled, text=True, check=True)
    assert incomplete(tmp_path, database)
    assert migrate(tmp_path, "up", url=database).stdout == "nothing to do\n"
    assert not incomplete(tmp_path, database)


def test_plan_offline_checks_the_files_and_asks_no_database(tmp_path: Path) -> None:
    write(tmp_path, {"migrations/0001_a.sql": "select 1;", "verify/a.sql": "select 1;"})
    result = migrate(tmp_path, "plan", "--offline", url=UNREACHABLE)
    assert (result.code, result.stderr) == (UP_TO_DATE, "")
    assert "which of them are pending only a database knows" in result.stdout


@pytest.mark.parametrize(
    "name", ["platform/b.sql", "migrations/0002_b.sql", "repeatable/b.sql", "verify/b.sql"]
)
def test_plan_offline_finds_a_syntax_error_in_every_folder(tmp_path: Path, name: str) -> None:
    write(tmp_path, {**tables(1), name: "select 1;\nselect (;\n"})
    result = migrate(tmp_path, "plan", "--offline")
    assert result.stderr == (
        f'error: {tmp_path}/{name}:2:9: syntax error at or near ";"\n'
        "    1 | select 1;\n"
        "    2 | select (;\n"
        "      |         ^\n"
    )
    assert result.code == ERROR


def test_plan_refuses_what_up_would_refuse(database: str, tmp_path: Path) -> None:
    up(write(tmp_path, tables(1, 2)), database)
    (tmp_path / "migrations/0002_t2.sql").unlink()
    plan = migrate(tmp_path, "plan", url=database)
    assert (plan.code, plan.stdout) == (ERROR, "")
    assert "migrations/0002_t2.sql: was applied" in plan.stderr
    refused = migrate(tmp_path, "up", url=database).stderr
    assert refused == f"{plan.stderr}  committed in this run: nothing\n"


# --- up --------------------------------------------------------------------------------------


def test_up_tells_each_file_and_the_next_up_has_nothing_to_do(
    database: str, tmp_path: Path
) -> None:
    write(tmp_path, {**tables(1), "repeatable/a.sql": "select 1;"})
    first = migrate(tmp_path, "up", url=database)
    assert (first.code, first.stderr) == (UP_TO_DATE, "")
    assert re.fullmatch(
        r"applied migrations/0001_t1\.sql \(\d+ ms\)\n"
        r"applied repeatable/a\.sql \(\d+ ms\)\n"
        r"files applied: 2\n",
        first.stdout,
    )
    second = migrate(tmp_path, "up", url=database)
    assert (second.code, second.stdout, second.stderr) == (UP_TO_DATE, "nothing to do\n", "")


def test_a_failing_up_is_1_and_tells_what_was_applied_and_what_was_not(
    database: str, tmp_path: Path
) -> None:
    write(tmp_path, {**tables(1), "migrations/0002_b.sql": "select 1 / 0;"})
    result = migrate(tmp_path, "up", url=database)
    assert (result.code, untimed(result.stdout)) == (ERROR, "applied migrations/0001_t1.sql\n")
    assert result.stderr == (
        f"error: {tmp_path}/migrations/0002_b.sql:1:1: division by zero (SQLSTATE 22012)\n"
        "  statement 1 of 1:\n"
        "    1 | select 1 / 0;\n"
        "      | ^\n"
        "  rolled back: 0002_b.sql\n"
        "  committed in this run: 0001_t1.sql\n"
        "  what to do: correct the file and run again; it goes on where it stopped\n"
    )


def test_of_runs_started_at_once_one_applies_and_all_succeed(database: str, tmp_path: Path) -> None:
    write(tmp_path, tables(*range(1, 9)))
    started = [start("--directory", tmp_path, "up", url=database) for _ in range(3)]
    results = [Result(process) for process in started]
    assert [result.code for result in results] == [UP_TO_DATE] * 3
    assert sorted(result.stdout.splitlines()[-1] for result in results) == [
        "files applied: 8",
        "nothing to do",
        "nothing to do",
    ]


def test_platform_is_applied_before_the_rest_where_it_is_asked_for(
    database: str, tmp_path: Path
) -> None:
    write(tmp_path, {"platform/1.sql": "create table t1 ();", "repeatable/a.sql": "select 1;"})
    write(tmp_path, {"migrations/0001_a.sql": "drop table t1;"})
    assert 'table "t1" does not exist' in migrate(tmp_path, "up", url=database).stderr
    planned = migrate(tmp_path, "plan", "--platform", url=database)
    assert planned.stdout.startswith("pending  platform/1.sql\npending  migrations/0001_a.sql\n")
    assert "platform" not in migrate(tmp_path, "status", url=database).stdout
    assert (
        "pending  platform/1.sql" in migrate(tmp_path, "status", "--platform", url=database).stdout
    )
    result = migrate(tmp_path, "up", "--platform", url=database)
    assert untimed(result.stdout) == (
        "applied platform/1.sql\n"
        "applied migrations/0001_a.sql\n"
        "applied repeatable/a.sql\n"
        "files applied: 3\n"
    )
    assert migrate(tmp_path, "up", "--platform", url=database).stdout == "nothing to do\n"


def test_a_run_that_waits_says_for_whom(database: str, tmp_path: Path) -> None:
    write(tmp_path, tables(1))
    with locked(database):
        result = migrate(tmp_path, "up", "--wait", "0.5", url=database)
    assert result.code == ERROR
    assert re.match(
        r"waiting for another run: pid \d+ \(.*user postgres\), connected", result.stdout
    )
    assert "another run holds the migration lock: pid" in result.stderr
    assert "; waited 0.5 s\n" in result.stderr
    assert made(database) == []


# --- for machines ----------------------------------------------------------------------------


def document(result: Result) -> Any:
    """What a command printed with --json: one document, and nothing beside it."""
    assert result.stderr == ""
    found = json.loads(result.stdout)
    assert found.pop("exit_code") == result.code
    return found


def test_every_command_gives_one_json_document(database: str, tmp_path: Path) -> None:
    write(tmp_path, {"migrations/0001_a.sql": "create table t1 (a int);\nselect 1;"})
    write(tmp_path, {"repeatable/a.sql": "-- migrate: no-transaction\nselect 1;"})
    write(tmp_path, {"verify/a.sql": "-- check: none\nselect 1 where false;"})

    def ask(*arguments: str) -> Any:
        return document(migrate(tmp_path, *arguments, "--json", url=database))

    def files_of(planned: Any) -> list[Any]:
        return [
            (row["file"], row["statements"], row["transactional"]) for row in planned["pending"]
        ]

    planned = ask("plan")
    assert files_of(planned) == [("migrations/0001_a.sql", 2, True), ("repeatable/a.sql", 1, False)]
    assert [finding["path"] for finding in planned["findings"]] == [
        f"{tmp_path}/migrations/0001_a.sql"
    ]
    assert (planned["removed"], planned["drift"], planned["complete"]) == ([], [], True)
    applied = ask("up")["applied"]
    assert [row["file"] for row in applied] == ["migrations/0001_a.sql", "repeatable/a.sql"]
    assert all(isinstance(row["milliseconds"], int) for row in applied)
    assert ask("up") == {"applied": [], "notices": [], "not_read": []}
    status = ask("status")
    assert [(row["file"], row["state"], row["applied_by"]) for row in status["files"]] == [
        ("migrations/0001_a.sql", "applied", "postgres"),
        ("repeatable/a.sql", "applied", "postgres"),
    ]
    assert (status["complete"], status["problems"]) == (True, [])
    assert ask("verify") == {
        "accepted": [],
        "drift": [],
        "failed_checks": [],
        "checks": 1,
        "not_read": [],
    }


def test_what_goes_wrong_is_json_for_a_machine(database: str, tmp_path: Path) -> None:
    up(write(tmp_path, {**tables(1), "verify/a.sql": "-- check: none\nselect 1 as n;"}), database)

    def ask(*arguments: str) -> Any:
        return document(migrate(tmp_path, *arguments, "--json", url=database))

    (failed,) = ask("verify")["failed_checks"]
    place = f"{tmp_path}/verify/a.sql:2:1"
    assert failed == {"place": place, "check": "none", "rows": [{"n": 1}]}
    query(database, "alter table t1 add b int")
    drift = [{"object": "column public.t1.b", "expected": None, "found": "integer"}]
    assert ask("verify") == {"drift": drift, "not_read": []}
    assert ask("plan")["drift"] == drift
    write(tmp_path, {"migrations/0002_b.sql": "select 1 / 0;"})
    assert f"{tmp_path}/migrations/0002_b.sql:1:1: division by zero" in ask("up")["error"]
    write(tmp_path, {"migrations/0002_b.sql": "select 1 2;\n"})
    (problem,) = ask("plan")["problems"]
    assert problem.startswith(f"{tmp_path}/migrations/0002_b.sql:1:10: syntax error")


# --- Ctrl-C ----------------------------------------------------------------------------------


def test_ctrl_c_in_the_middle_of_a_file_rolls_it_back_and_the_next_run_works(
    database: str, tmp_path: Path
) -> None:
    write(tmp_path, {**tables(1), **SLOW})
    process = start("--directory", tmp_path, "up", url=database)
    wait_for(lambda: sleepers(database), "the slow file runs")
    process.send_signal(signal.SIGINT)
    result = Result(process)
    assert untimed(result.stdout) == "applied migrations/0001_t1.sql\n"
    assert result.stderr == (
        "error: interrupted: the file in progress was rolled back, unless it is `no-transaction`\n"
    )
    assert result.code == ERROR
    assert sleepers(database) == []
    assert made(database) == ["t1"]

    write(tmp_path, {"migrations/0002_slow.sql": "create table half ();\n"})
    again = migrate(tmp_path, "up", url=database)
    assert (again.code, again.stdout.splitlines()[-1]) == (UP_TO_DATE, "files applied: 1")
    assert migrate(tmp_path, "verify", url=database).code == UP_TO_DATE


def test_progress_is_told_at_once_even_to_a_pipe(database: str, tmp_path: Path) -> None:
    process = start("--directory", write(tmp_path, {**tables(1), **SLOW}), "up", url=database)
    wait_for(lambda: sleepers(database), "the slow file runs")
    assert process.stdout
    os.set_blocking(process.stdout.fileno(), False)
    assert untimed(process.stdout.readline()) == "applied migrations/0001_t1.sql\n"
    process.kill()
    process.communicate()


def test_ctrl_c_while_waiting_for_the_lock_ends_the_wait(database: str, tmp_path: Path) -> None:
    with locked(database):
        process = start("--directory", write(tmp_path, tables(1)), "up", url=database)
        waiting: LiteralString = """select pid from pg_stat_activity where application_name =
            'migrate' and query like '%pg_try_advisory_lock%' and datname = current_database()"""
        wait_for(lambda: query(database, waiting), "the run waits")
        process.send_signal(signal.SIGINT)
        result = Result(process)
    assert result.code == ERROR
    assert re.fullmatch(r"waiting for another run: pid \d+ .*\n", result.stdout)
    assert result.stderr.startswith("error: interrupted")
    assert made(database) == []


# --- verify ----------------------------------------------------------------------------------


def test_verify_is_0_when_all_checks_pass(database: str, tmp_path: Path) -> None:
    write(tmp_path, {**tables(1), "verify/a.sql": "select 1 from t1; select 2 from t1;"})
    up(tmp_path, database)
    result = migrate(tmp_path, "verify", url=database)
    assert (result.code, result.stdout) == (
        UP_TO_DATE,
        "verified: no drift, checks passed: 2\n",
    )


def test_verify_is_1_when_a_check_fails(database: str, tmp_path: Path) -> None:
    write(tmp_path, {"verify/a.sql": "-- check: nothing is\nselect 1 as something;"})
    result = migrate(tmp_path, "verify", url=database)
    assert (result.code, result.stdout) == (ERROR, "")
    assert result.stderr.startswith(
        f"error: {tmp_path}/verify/a.sql:2:1: failed check: nothing is\n"
        "  something=1\n"
        "  what to do: "
    )


def test_verify_is_3_on_drift_until_it_is_accepted(database: str, tmp_path: Path) -> None:
    up(write(tmp_path, tables(1)), database)
    query(database, "alter table t1 add b int")
    drifted = migrate(tmp_path, "verify", url=database)
    assert (drifted.code, drifted.stdout) == (DRIFT, "")
    assert drifted.stderr.startswith("1 object is not as the last run left them:\n")
    assert "column public.t1.b\n  expected: (absent)\n  found:    integer\n" in drifted.stderr
    accepted = migrate(tmp_path, "verify", "--accept", url=database)
    assert (accepted.code, accepted.stdout) == (
        UP_TO_DATE,
        "accepted: column public.t1.b\n  expected: (absent)\n  found:    integer\n"
        "verified: no drift, checks passed: 0\n",
    )
    assert migrate(tmp_path, "verify", url=database).stdout.startswith("verified: no drift")
    query(database, "alter table t1 drop b")
    document = json.loads(migrate(tmp_path, "verify", "--accept", "--json", url=database).stdout)
    assert document["accepted"] == [
        {"object": "column public.t1.b", "expected": "integer", "found": None}
    ]


# --- bundle and new --------------------------------------------------------------------------


def test_bundle_prints_one_script_and_asks_no_database(tmp_path: Path) -> None:
    write(tmp_path, {**tables(1), "repeatable/a.sql": "select 'ü'"})
    result = migrate(tmp_path, "bundle", url=UNREACHABLE)
    assert (result.code, result.stderr) == (UP_TO_DATE, "")
    assert result.stdout.startswith("-- Generated by `python -m migrate bundle`")
    assert result.stdout.endswith("commit;\n")
    assert "create table t1 (a int);" in result.stdout


def test_a_bundle_is_utf8_whatever_the_terminal_is(tmp_path: Path) -> None:
    write(tmp_path, {"repeatable/a.sql": "select '€😀';"})
    result = migrate(tmp_path, "bundle", PYTHONIOENCODING="latin-1")
    assert result.code == UP_TO_DATE
    assert "select '€😀';" in result.stdout


def test_plan_offline_fails_on_what_is_found_until_it_is_acknowledged(tmp_path: Path) -> None:
    index = "create index i on t1 (a);"
    secured = {"migrations/0002_b.sql": "alter table t1 enable row level security;"}
    write(tmp_path, {**tables(1), **secured, "migrations/0003_c.sql": index})
    result = migrate(tmp_path, "plan", "--offline")
    assert (result.code, "0003_c.sql:1:1: create-index" in result.stdout) == (ERROR, True)
    write(tmp_path, {"migrations/0003_c.sql": f"-- migrate: allow create-index: small\n{index}"})
    result = migrate(tmp_path, "plan", "--offline")
    assert (result.code, "acknowledged: small" in result.stdout) == (UP_TO_DATE, True)


def test_new_writes_the_next_file_with_its_title_as_a_comment(tmp_path: Path) -> None:
    write(tmp_path, tables(1, 2))
    result = migrate(tmp_path, "new", "Accounts: add e-mail!")
    path = tmp_path / "migrations/0003_accounts_add_e_mail.sql"
    assert (result.code, result.stdout) == (UP_TO_DATE, f"{path}\n")
    assert path.read_text() == "-- Accounts: add e-mail!: what this changes, and why.\n\n"


def test_new_begins_with_1_and_makes_the_folder(tmp_path: Path) -> None:
    migrate(tmp_path, "new", "first")
    assert [path.name for path in (tmp_path / "migrations").iterdir()] == ["0001_first.sql"]


def test_a_file_that_new_made_is_refused_until_it_is_filled(tmp_path: Path) -> None:
    migrate(tmp_path, "new", "first")
    result = migrate(tmp_path, "plan", "--offline")
    assert result.code == ERROR
    assert "0001_first.sql: holds no statement" in result.stderr


@pytest.mark.parametrize(
    ("present", "name", "problem"),
    [
        ({}, "!?", "'!?' has no letter or digit to name a file by"),
        (tables(1, 3), "more", "number 0002 is missing before it"),
        ({"migrations": ""}, "more", "migrations: File exists"),
    ],
    ids=["no name", "a gap", "no folder"],
)
def test_new_refuses_what_it_cannot_do(
    tmp_path: Path, present: dict[str, str], name: str, problem: str
) -> None:
    write(tmp_path, present)
    before = sorted(tmp_path.rglob("*"))
    result = migrate(tmp_path, "new", name)
    assert (result.code, result.stdout) == (ERROR, "")
    assert result.stderr.startswith("error: ")
    assert problem in result.stderr
    assert sorted(tmp_path.rglob("*")) == before


# --- which database --------------------------------------------------------------------------


def test_the_option_names_the_database_before_the_environment(
    database: str, tmp_path: Path
) -> None:
    write(tmp_path, tables(1))
    process = start("--database-url", database, "--directory", tmp_path, "up", url=UNREACHABLE)
    assert Result(process, urlsplit(database).password).code == UP_TO_DATE
    assert made(database) == ["t1"]


def libpq_settings(url: str) -> dict[str, str]:
    parts = urlsplit(url)
    return {
        "host": str(parts.hostname),
        "port": str(parts.port),
        "user": str(parts.username),
        "password": str(parts.password),
        "dbname": parts.path[1:],
    }


def test_without_a_url_libpq_s_environment_names_the_database(
    database: str, tmp_path: Path
) -> None:
    settings = libpq_settings(database)
    environment = {f"PG{name.upper()}": value for name, value in settings.items()}
    environment["PGDATABASE"] = environment.pop("PGDBNAME")
    result = migrate(write(tmp_path, tables(1)), "up", secret=settings["password"], **environment)
    assert result.code == UP_TO_DATE
    assert made(database) == ["t1"]


def test_without_a_url_a_service_file_names_the_database(database: str, tmp_path: Path) -> None:
    settings = libpq_settings(database)
    lines = "".join(f"{name}={value}\n" for name, value in settings.items())
    service = {"PGSERVICEFILE": f"{tmp_path}/services", "PGSERVICE": "platform"}
    write(tmp_path, {**tables(1), "services": f"[platform]\n{lines}"})
    result = migrate(tmp_path, "up", secret=settings["password"], **service)
    assert result.code == UP_TO_DATE
    assert made(database) == ["t1"]


# --- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["status", "plan", "up", "verify"])
def test_an_unreachable_database_is_one_clear_message(empty: Path, command: str) -> None:
    result = migrate(empty, command, url=UNREACHABLE)
    assert (result.code, result.stdout) == (ERROR, "")
    assert result.stderr.startswith("error: cannot connect to the database: ")
    assert "is the server running, and is the port right?" in result.stderr


def test_a_wrong_password_is_one_clear_message(database: str, empty: Path) -> None:
    real = str(urlsplit(database).password)
    result = migrate(empty, "up", url=database.replace(real, "wr0ng"), secret=real)
    assert (result.code, result.stdout) == (ERROR, "")
    assert "password authentication failed" in result.stderr


def test_a_url_that_cannot_be_parsed_is_not_shown(empty: Path) -> None:
    result = migrate(empty, "up", url="postgresql://u:s3@cret@127.0.0.1/db", secret="cret@")
    assert result.code == ERROR
    assert "percent-encode the password" in result.stderr


def test_a_role_without_privileges_is_one_clear_message(database: str, tmp_path: Path) -> None:
    name = f"cli_{secrets.token_hex(6)}"
    query(database, f"create role {name} login password 's3cret'")
    try:
        settings = libpq_settings(database) | {"user": name, "password": "s3cret"}
        url = "postgresql://{user}:{password}@{host}:{port}/{dbname}".format(**settings)
        result = migrate(write(tmp_path, tables(1)), "up", url=url)
    finally:
        query(database, f"drop role {name}")
    assert (result.code, result.stdout) == (ERROR, "")
    assert result.stderr.startswith("error: the database refuses: permission denied for database")


def test_a_missing_directory_is_one_clear_message(tmp_path: Path) -> None:
    result = migrate(tmp_path / "nowhere", "up", url=UNREACHABLE)
    assert result.stderr == (
        f"error: {tmp_path}/nowhere: no such directory\n  what to do: pass --directory\n"
    )
    assert result.code == ERROR


@pytest.mark.parametrize("arguments", [["plna"], [], ["new"], ["up", "--nonsense"]])
def test_wrong_usage_is_an_error_and_not_pending(tmp_path: Path, arguments: list[str]) -> None:
    result = migrate(tmp_path, *arguments, url=UNREACHABLE)
    assert (result.code, result.stdout) == (ERROR, "")
    assert result.stderr.startswith("usage: python -m migrate")
    assert "\nerror: " in result.stderr


def test_options_may_follow_the_command(empty: Path) -> None:
    result = migrate(empty, "up", "--database-url", UNREACHABLE, secret="s3cret")
    assert result.stderr.startswith("error: cannot connect to the database: ")


def test_a_directory_with_none_of_the_folders_is_refused(tmp_path: Path) -> None:
    result = migrate(tmp_path, "plan", url=UNREACHABLE)
    assert result.stderr == (
        f"error: {tmp_path}: holds none of platform, migrations, repeatable, verify\n"
        "  what to do: pass --directory, or make one by `new`\n"
    )
    assert result.code == ERROR


def test_a_url_in_the_wrong_place_is_not_shown(empty: Path) -> None:
    result = migrate(empty, "up", UNREACHABLE, secret="s3cret")
    assert result.code == ERROR
    assert "postgresql://..." in result.stderr


def test_help_says_what_each_command_does_and_what_each_exit_code_means(tmp_path: Path) -> None:
    result = migrate(tmp_path, "--help")
    assert result.code == UP_TO_DATE
    commands = ("status", "plan", "up", "verify", "bundle", "new")
    for text in (result, *(migrate(tmp_path, command, "--help") for command in commands)):
        assert text.code == UP_TO_DATE
        codes = re.findall(r"^  ([0-9])  (\w+)", text.stdout, re.MULTILINE)
        assert codes == [("0", "up"), ("1", "error"), ("2", "pending"), ("3", "drift")]
    for command in commands:
        assert re.search(rf"\n +{command}  +\w", result.stdout)
        assert f"python -m migrate {command}" in migrate(tmp_path, command, "--help").stdout
