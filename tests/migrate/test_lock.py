"""Locks: a statement that waits for one, the lock of a run, and runs that were cut off."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from embedded.postgres import Server
from migrate import apply, files, run, verify
from migrate.connection import connect
from migrate.errors import MigrateError
from migrate.lock import LOCK_KEY
from tests.support.migrating import (
    ABSENT,
    REPOSITORY,
    checks_passed,
    cut_off,
    drifts,
    failure,
    in_background,
    incomplete,
    made,
    query,
    recorded,
    started_up,
    tables,
    told,
    up,
    up_fails,
    wait_for,
    wait_until_active,
    write,
)

if TYPE_CHECKING:
    from migrate.report import Step

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
        steps: list[Step] = []
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
    assert waits == [2**number for number in range(apply._RETRIES)] == [1, 2, 4, 8]


def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("migrate.lock._LOOK", 0.05)
    monkeypatch.setattr("migrate.apply._RETRIES", 0)


def named(holder: psycopg.Connection) -> str:
    return (
        f"see who holds the lock (pid {holder.info.backend_pid}, user postgres, idle in "
        "transaction) and run again"
    )


def test_who_is_in_the_way_is_named_and_nobody_else(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    up(database, write(tmp_path, tables(1, 2)))
    write(
        tmp_path,
        {"migrations/0003_b.sql": "set local lock_timeout = '3s'; alter table t1 add b int;"},
    )
    look_often(monkeypatch)
    with psycopg.connect(database) as holder, psycopg.connect(database) as bystander:
        holder.execute("select from t1")
        bystander.execute("lock table t2")
        message = up_fails(database, tmp_path)
        assert named(holder) in message


def test_an_old_transaction_in_the_way_of_an_index_is_named(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = """-- migrate: no-transaction
              set lock_timeout = '3s'; create index concurrently i on t1 (a);"""
    up(database, write(tmp_path, tables(1, 2)))
    write(tmp_path, {"migrations/0003_i.sql": text})
    look_often(monkeypatch)
    with psycopg.connect(database) as holder, psycopg.connect(database) as bystander:
        holder.execute("set transaction isolation level repeatable read")
        holder.execute("select from t2")
        bystander.execute("lock table t2 in row share mode")
        message = up_fails(database, tmp_path)
        assert named(holder) in message


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
    steps: list[Step] = []
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


CHANGES_DEFAULTS = """
do $$ begin execute format('alter database %I set work_mem = 5000', current_database()); end $$;
"""


@pytest.mark.parametrize("before", ["", CHANGES_DEFAULTS], ids=["", "in a new session"])
def test_a_file_that_lets_the_lock_of_the_run_go_is_noticed(
    database: str, tmp_path: Path, before: str
) -> None:
    unlock = f"{before}select pg_advisory_unlock_all();"
    write(tmp_path, {**tables(1), "migrations/0002_a.sql": unlock})
    assert up_fails(database, tmp_path) == (
        "one of the files let the lock of this run go, as pg_advisory_unlock_all() does: another "
        "run may have worked at the same time\n"
        "  what to do: run `verify`; leave that call out of the next files"
    )
    assert recorded(database) == ["0001_t1.sql", "0002_a.sql"]
    assert up(database, tmp_path) == []
    assert checks_passed(database, tmp_path) == 0


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
    assert checks_passed(database, tmp_path) == 0, "the file that was committed is no drift"


# --- a run that was cut off ------------------------------------------------------------------

SLEEP = {"migrations/0002_b.sql": "create table half (); select pg_sleep(600);"}


def test_while_a_run_is_under_way_nobody_is_told_of_drift(database: str, tmp_path: Path) -> None:
    up(database, write(tmp_path, tables(1)))
    assert not incomplete(database, tmp_path)
    write(tmp_path, {"migrations/0002_b.sql": "create table t2 (); select pg_sleep(2);"})
    with in_background(lambda: up(database, tmp_path)) as in_progress:
        wait_until_active(database, "%pg_sleep%")
        assert incomplete(database, tmp_path)
    assert in_progress.result() == ["0002_b.sql"]
    assert not incomplete(database, tmp_path)


def test_what_a_killed_run_left_is_not_known_until_the_next_run_has_finished_it(
    database: str, tmp_path: Path
) -> None:
    write(tmp_path, {**tables(1), **SLEEP})
    with started_up(database, tmp_path) as process:
        wait_until_active(database, "%pg_sleep%")
        process.kill()
    assert made(database) == ["t1"]
    assert incomplete(database, tmp_path)
    write(tmp_path, {"migrations/0002_b.sql": "create table t2 ();"})
    assert up(database, tmp_path) == ["0002_b.sql"]
    assert not incomplete(database, tmp_path)
    assert up(database, tmp_path) == []


def test_a_cut_off_run_that_left_nothing_to_apply_is_finished(
    database: str, tmp_path: Path
) -> None:
    write(tmp_path, {**tables(1), **SLEEP})
    cut_off(database, tmp_path)
    (tmp_path / "migrations/0002_b.sql").unlink()
    assert incomplete(database, tmp_path)
    assert up(database, tmp_path) == []
    assert not incomplete(database, tmp_path)


def test_a_failed_run_is_no_cut_off_one(database: str, tmp_path: Path) -> None:
    up_fails(database, write(tmp_path, {**tables(1), "migrations/0002_b.sql": "select 1 / 0;"}))
    write(tmp_path, {"migrations/0002_b.sql": "select 1;"})
    assert not incomplete(database, tmp_path)


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
        assert incomplete(database, tmp_path)
    up(database, write(tmp_path, {"migrations/0004_d.sql": "select 4;"}))
    with connect(database) as session:
        found = drifts(session)
    assert found.pop("table public.t2")[1] == ABSENT
    assert found == expected


def test_accepting_the_live_catalog_ends_a_cut_off_run(database: str, tmp_path: Path) -> None:
    cut_off(database, write(tmp_path, {**tables(1), **SLEEP}))
    (tmp_path / "migrations/0002_b.sql").unlink()
    with connect(database) as session:
        verify.accept(session)
    assert not incomplete(database, tmp_path)


def test_accepting_waits_for_a_run(database: str, tmp_path: Path) -> None:
    up(database, write(tmp_path, tables(1)))
    with psycopg.connect(database, autocommit=True) as holder, connect(database) as session:
        holder.execute("select pg_advisory_lock(%s)", [LOCK_KEY])
        message = failure(lambda: verify.accept(session, wait=0))
        assert f"another run holds the migration lock: pid {holder.info.backend_pid} " in message
