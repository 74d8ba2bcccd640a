"""Poolers: one in transaction mode is refused on any port, one in session mode serves."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from tests.support.migrating import (
    checks_passed,
    failure,
    made,
    query,
    tables,
    up,
    wait_for,
    write,
)
from tests.support.pooler import SmallPooler


@contextmanager
def pooled(pooler: SmallPooler, database: str) -> Iterator[str]:
    """The URL of the database behind it."""
    parts = urlsplit(database)
    try:
        yield f"postgresql://{parts.username}@127.0.0.1:{pooler.port}{parts.path}?sslmode=disable"
    finally:
        pooler.close()


@contextmanager
def busy(url: str, clients: int) -> Iterator[None]:
    """Other clients at work."""
    done, answers = threading.Event(), [0] * clients

    def work(number: int) -> None:
        with psycopg.connect(url, autocommit=True, prepare_threshold=None) as session:
            while not done.is_set():
                session.execute("select pg_sleep(random() * 0.01)")
                answers[number] += 1

    threads = [threading.Thread(target=work, args=[number]) for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        wait_for(lambda: all(answers), "every client has had an answer")
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("clients", [0, 3])
@pytest.mark.parametrize("idle", ["last used first", "in turn"])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_transaction_mode_is_refused_before_anything_is_done(
    database: str, tmp_path: Path, size: int, idle: str, clients: int
) -> None:
    write(tmp_path, tables(1, 2))
    pooler = SmallPooler(database, size, idle=idle)  # type: ignore[arg-type]
    with pooled(pooler, database) as url, busy(url, clients):
        for _ in range(3):
            assert failure(lambda: up(url, tmp_path)) == (
                f"127.0.0.1:{pooler.port} is a pooler in transaction mode, where the lock of a run "
                "does not hold\n"
                "  what to do: use its session mode (Supabase: port 5432), or the database itself"
            )
        assert made(database) == []
        assert query(database, "select nspname from pg_namespace where nspname = 'migrate'") == []
        locks = "select * from pg_locks where locktype = 'advisory' and database is not null"
        assert query(database, locks) == []


def test_statement_mode_is_refused(database: str, tmp_path: Path) -> None:
    pooler = SmallPooler(database, 2, "statement")
    with pooled(pooler, database) as url:
        message = failure(lambda: up(url, write(tmp_path, tables(1))))
    assert message.startswith(f"127.0.0.1:{pooler.port} is a pooler in statement mode, where the")
    assert made(database) == []


def test_transaction_mode_leaves_no_setting_in_the_sessions_of_others(
    database: str, tmp_path: Path
) -> None:
    look = """select name, setting from pg_settings where name in ('statement_timeout',
              'lock_timeout', 'search_path', 'client_connection_check_interval') order by name"""
    pooler = SmallPooler(database, 3)
    with pooled(pooler, database) as url:
        before = query(url, look)
        failure(lambda: up(url, write(tmp_path, tables(1))))
        assert {tuple(query(url, look)) for _ in range(5)} == {tuple(before)}
        with psycopg.connect(url) as first, psycopg.connect(url) as second:
            found = [session.execute(look).fetchall() for session in (first, second)]
        assert found == [before, before]


@pytest.mark.parametrize("size", [1, 3])
def test_session_mode_serves(database: str, tmp_path: Path, size: int) -> None:
    write(tmp_path, tables(1, 2))
    with pooled(SmallPooler(database, size, "session"), database) as url:
        assert up(url, tmp_path) == ["0001_t1.sql", "0002_t2.sql"]
        assert up(url, tmp_path) == []
        assert checks_passed(url, tmp_path) == 0
    assert made(database) == ["t1", "t2"]
