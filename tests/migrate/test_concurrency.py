"""Runs at the same time: one applies, the others wait or go on, and nothing is done twice."""

import os
import random
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest

from migrate import __main__ as cli
from migrate import files, verify
from migrate.connection import connect
from tests.support.migrating import query, write
from tests.support.platforms import own_server

REPOSITORY = Path(__file__).parents[2]

# --- runs ------------------------------------------------------------------------------------


@dataclass
class Run:
    """A run in a process of its own."""

    pid: int
    output: Path

    @property
    def text(self) -> str:
        return self.output.read_text()

    def ended(self) -> int:
        """Wait for its end; its exit code, negative when a signal ended it."""
        _, status = os.waitpid(self.pid, 0)
        print(self.text)
        assert "Traceback" not in self.text
        return os.waitstatus_to_exitcode(status)


def start(url: str, directory: Path, output: Path, *options: str, at: float = 0.0) -> Run:
    """Start `python -m migrate up` at a time as a fork of this process."""
    output.touch()
    if pid := os.fork():
        return Run(pid, output)
    code = 70
    try:
        with output.open("w", buffering=1) as sys.stdout:
            sys.stderr = sys.stdout
            try:
                time.sleep(max(at - time.monotonic(), 0))
                code = cli.main(
                    ["up", "--directory", str(directory), "--database-url", url, *options]
                )
            except BaseException:
                traceback.print_exc()
    finally:
        os._exit(code)


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# --- files -----------------------------------------------------------------------------------

GATE = """
do $$
begin
  while not exists (select from gate) loop
    perform pg_sleep(0.02);
  end loop;
end
$$;
"""
"""A file that lasts until the test opens the gate."""

DATA = {
    "migrations/0001_accounts.sql": "create table accounts (owner text, balance int);\n",
    "migrations/0002_money.sql": "insert into accounts values ('Ada', 100), ('Bob', 50);\n",
    "migrations/0003_interest.sql": "-- migrate: no-transaction\n"
    "update accounts set balance = balance + 1;\n"
    "create unique index concurrently accounts_by_owner on accounts (owner);\n"
    "update accounts set balance = balance + 1;\n",
    "repeatable/bonus.sql": "update accounts set balance = balance + 10;\n",
}
BALANCES = [("Ada", 112), ("Bob", 62)]
RESET = "drop schema public cascade; create schema public; drop schema if exists migrate cascade"


def gated(contents: Mapping[str, str]) -> dict[str, str]:
    """The same files, the second of which waits at the gate."""
    name = "migrations/0002_money.sql"
    return {**contents, name: GATE + contents[name]}


HOLDERS: LiteralString = """
    select pid, date_trunc('second', backend_start)::text
    from pg_locks join pg_stat_activity using (pid)
    where locktype = 'advisory' and granted and datname = current_database()
"""


@contextmanager
def at_the_gate(url: str, run: Run) -> Iterator[tuple[int, str]]:
    """While a run is in the middle of its second file; its session's pid, and since when it is."""
    wait_until(lambda: "applied migrations/0001" in run.text)
    ((pid, since),) = query(url, HOLDERS)
    yield pid, since
    open_gate(url)


def open_gate(url: str) -> None:
    query(url, "insert into gate default values")


def assert_applied_once(url: str, directory: Path) -> None:
    assert query(url, "select owner, balance from accounts order by owner") == BALANCES
    assert query(url, "select name from migrate.ledger order by folder, name") == [
        "0001_accounts.sql",
        "0002_money.sql",
        "0003_interest.sql",
        "bonus.sql",
    ]
    assert query(url, "select name from migrate.progress") == []
    with connect(url) as session:
        verify.check(session, files.read_tree(directory))


# --- tests -----------------------------------------------------------------------------------


def test_of_eight_runs_one_applies_and_seven_wait_and_find_nothing_to_do(
    database: str, tmp_path: Path
) -> None:
    query(database, "create table gate ()")
    sql = write(tmp_path / "sql", gated(DATA))
    outputs = [tmp_path / f"output{n}" for n in range(8)]
    started = []
    for output in outputs:
        command = [sys.executable, "-m", "migrate", "up", "--directory", str(sql)]
        with output.open("w") as to:
            started.append(
                subprocess.Popen(
                    [*command, "--database-url", database],
                    cwd=REPOSITORY,
                    stdout=to,
                    stderr=subprocess.STDOUT,
                )
            )
    waiting = "waiting for another run: "
    wait_until(lambda: sum(waiting in output.read_text() for output in outputs) == 7)
    open_gate(database)
    assert [process.wait(60) for process in started] == [cli.UP_TO_DATE] * 8
    texts = sorted(output.read_text() for output in outputs)
    applied, *others = sorted(texts, key=lambda text: waiting in text)
    assert re.sub(r"\d+ ms", "N ms", applied) == (
        "applied migrations/0001_accounts.sql (N ms)\n"
        "applied migrations/0002_money.sql (N ms)\n"
        "applied migrations/0003_interest.sql (N ms)\n"
        "applied repeatable/bonus.sql (N ms)\n"
        "files applied: 4\n"
    )
    told = r"waiting for another run: pid \d+ \(migrate, user postgres\), connected since .*\n"
    for other in others:
        assert re.fullmatch(rf"{told}nothing to do\n", other)
    assert_applied_once(database, sql)


def test_a_holder_that_dies_lets_a_waiter_go_on(database: str, tmp_path: Path) -> None:
    query(database, "create table gate ()")
    sql = write(tmp_path / "sql", gated(DATA))
    holder = start(database, sql, tmp_path / "holder")
    with at_the_gate(database, holder) as (session, _):
        waiter = start(database, sql, tmp_path / "waiter")
        wait_until(lambda: f"waiting for another run: pid {session} (" in waiter.text)
        os.kill(holder.pid, signal.SIGKILL)
        assert holder.ended() == -signal.SIGKILL
        killed = time.monotonic()
        wait_until(lambda: session not in dict(query(database, HOLDERS)))
        assert time.monotonic() - killed < 20
    assert waiter.ended() == cli.UP_TO_DATE
    assert "applied migrations/0001" not in waiter.text
    assert waiter.text.endswith("files applied: 3\n")
    assert_applied_once(database, sql)


@pytest.mark.parametrize("wait", ["0", "0.5"])
def test_a_wait_that_is_over_names_the_holder(wait: str, database: str, tmp_path: Path) -> None:
    query(database, "create table gate ()")
    sql = write(tmp_path / "sql", gated(DATA))
    holder = start(database, sql, tmp_path / "holder")
    with at_the_gate(database, holder) as (session, since):
        waiter = start(database, sql, tmp_path / "waiter", "--wait", wait)
        assert waiter.ended() == cli.ERROR
        named = f"pid {session} (migrate, user postgres), connected since {since}"
        assert waiter.text.removeprefix(f"waiting for another run: {named}\n") == (
            f"error: another run holds the migration lock: {named}; waited {wait} s\n"
            "  what to do: wait for it and run again; nothing was changed by this run\n"
        )
    assert holder.ended() == cli.UP_TO_DATE
    assert_applied_once(database, sql)


def test_an_older_checkout_that_waited_refuses(database: str, tmp_path: Path) -> None:
    query(database, "create table gate ()")
    newer = write(tmp_path / "newer", gated(DATA))
    first = "migrations/0001_accounts.sql"
    older = write(
        tmp_path / "older", {first: DATA[first], "repeatable/bonus.sql": "drop table accounts;"}
    )
    holder = start(database, newer, tmp_path / "holder")
    with at_the_gate(database, holder):
        waiter = start(database, older, tmp_path / "waiter")
        wait_until(lambda: "waiting for another run: " in waiter.text)
    assert holder.ended() == cli.UP_TO_DATE
    assert waiter.ended() == cli.ERROR
    assert "0002_money.sql: was applied (sha256 " in waiter.text
    assert_applied_once(database, newer)


def test_two_runs_at_the_same_moment_apply_data_once(database: str, tmp_path: Path) -> None:
    chance = random.Random(4)
    sql = write(tmp_path / "sql", DATA)
    for _ in range(15):
        query(database, RESET)
        soon = time.monotonic() + 0.05
        runs = [
            start(
                database, sql, tmp_path / f"output{n}", at=soon + chance.choice([0, 0, 0.02, 0.1])
            )
            for n in range(2)
        ]
        assert [run.ended() for run in runs] == [cli.UP_TO_DATE] * 2
        assert sorted(run.text.splitlines()[-1] for run in runs) == [
            "files applied: 4",
            "nothing to do",
        ]
        assert_applied_once(database, sql)


def test_of_two_runs_one_of_which_is_killed_the_other_completes(
    database: str, tmp_path: Path
) -> None:
    chance = random.Random(4)
    sql = write(tmp_path / "sql", DATA)
    for _ in range(15):
        query(database, RESET)
        soon = time.monotonic() + 0.05
        killed, other = (start(database, sql, tmp_path / f"output{n}", at=soon) for n in range(2))
        time.sleep(0.05 + chance.uniform(0, 0.2))
        with suppress(ProcessLookupError):
            os.kill(killed.pid, signal.SIGKILL)
        assert killed.ended() in (-signal.SIGKILL, cli.UP_TO_DATE)
        assert other.ended() == cli.UP_TO_DATE
        assert_applied_once(database, sql)


# --- an index that is half built -------------------------------------------------------------

WAITING: LiteralString = """
    select pid from pg_stat_activity
    where query like 'create unique%' and wait_event = 'virtualxid' and datname = current_database()
"""
INVALID: LiteralString = "select indexrelid::regclass::text from pg_index where not indisvalid"


@contextmanager
def building(url: str, tmp_path: Path) -> Iterator[tuple[Run, Path]]:
    """While a run waits in the middle of its CREATE INDEX CONCURRENTLY."""
    first = dict(list(DATA.items())[:2])
    start(url, write(tmp_path / "first", first), tmp_path / "output").ended()
    writer = psycopg.connect(url)
    try:
        writer.execute("insert into accounts values ('Nobody', 0)")
        sql = write(tmp_path / "sql", DATA)
        run = start(url, sql, tmp_path / "output")
        wait_until(lambda: query(url, WAITING))
        yield run, sql
    finally:
        writer.close()


def test_an_index_that_a_killed_run_was_building_is_built_by_the_next(
    database: str, tmp_path: Path
) -> None:
    with building(database, tmp_path) as (run, sql):
        os.kill(run.pid, signal.SIGKILL)
        assert run.ended() == -signal.SIGKILL
        wait_until(lambda: not query(database, WAITING))  # the server gives it up
    assert query(database, INVALID) == ["accounts_by_owner"]
    assert start(database, sql, tmp_path / "output").ended() == cli.UP_TO_DATE
    assert query(database, INVALID) == []
    assert_applied_once(database, sql)


def test_an_index_that_a_killed_server_was_building_is_built_by_the_next_run(
    postgres_bin: Path, tmp_path: Path
) -> None:
    with own_server(tmp_path, postgres_bin) as server:
        with building(server.url(), tmp_path) as (run, sql):
            postmaster = (server.data / "postmaster.pid").read_text().split()[0]
            os.kill(int(postmaster), signal.SIGQUIT)
            assert run.ended() == cli.ERROR
        assert "the connection broke: " in run.text
        assert "not rolled back: 1 of the statements" in run.text
        assert "what to do: run again" in run.text
        server.start()
        assert query(server.url(), INVALID) == ["accounts_by_owner"]
        assert start(server.url(), sql, tmp_path / "output").ended() == cli.UP_TO_DATE
        assert query(server.url(), INVALID) == []
        assert_applied_once(server.url(), sql)
