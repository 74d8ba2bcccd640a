"""The migration engine as its tests call it, and what they look at afterwards."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, LiteralString
from urllib.parse import urlsplit

import psycopg
import pytest

from migrate import catalog, files, plan, run, verify
from migrate.bundle import bundle
from migrate.connection import connect
from migrate.errors import IncompleteRunError, MigrateError, UnreachableError
from migrate.report import Step
from migrate.session import Connection

REPOSITORY = Path(__file__).parents[2]
ABSENT = "(absent)"

ROW = "insert into t1 values ({0});\n-- 'a;\nselect '" + "b" * 180 + "';\n"
"""Two statements, three lines."""

ROWS = 1_600


def large(text: str, rows: int = 1_000) -> str:
    """A file of more than 300 kB: a text behind some of its rows."""
    before = "".join(ROW.format(number) for number in range(rows))
    after = "".join(ROW.format(number) for number in range(rows, ROWS))
    return f"{before}{text}{after}"


def incomplete(url: str, directory: Path) -> bool:
    """Whether a run is in progress or was interrupted, on which all commands agree."""
    with connect(url) as session:
        tree = files.read_tree(directory)
        try:
            drift: object = verify.drift(session)
        except IncompleteRunError as error:
            drift = str(error)
        complete = plan.check(session, tree).complete
        if complete:
            assert drift == []
            assert isinstance(verify.check(session, tree), int)
            return False
        assert (
            drift
            == failure(lambda: verify.check(session, tree), IncompleteRunError)
            == (
                "whether the schema has drifted is not known: a run is in progress or was "
                "interrupted\n"
                "  what to do: wait for it; or run `up`, which finishes it"
            )
        )
        assert plan.check(session, tree).has_work
        return True


def drifts(session: Connection) -> dict[str, tuple[str, str]]:
    """Object -> what was expected and what was found."""
    return {
        each.object: (each.expected or ABSENT, each.found or ABSENT)
        for each in verify.drift(session)
    }


def sent(session: Connection, action: Callable[[], object], tmp_path: Path) -> int:
    """How many statements the client sends meanwhile, as libpq traces them."""
    with (tmp_path / "trace").open("w") as trace:
        session.pgconn.trace(trace.fileno())
        action()
        session.pgconn.untrace()
    lines = (tmp_path / "trace").read_text(errors="replace").splitlines()
    return sum(bool(re.match(r"\S+ \S+\tF\t\d+\t(Query|Execute)\t", line)) for line in lines)


def write(directory: Path, contents: Mapping[str, str]) -> Path:
    """Write files such as `migrations/0001_a.sql` below a directory."""
    for name, text in contents.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
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


def told(steps: Sequence[Step]) -> list[str]:
    """The lines of steps, without the time that they took."""
    return [re.sub(r" \(\d+ ms\)$", "", str(step)) for step in steps]


def up_fails(url: str, directory: Path, **options: Any) -> str:
    return failure(lambda: up(url, directory, **options))


def checks_passed(url: str, directory: Path) -> int:
    with connect(url) as session:
        return verify.check(session, files.read_tree(directory))


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


def dump(bin_directory: Path, url: str, *options: str) -> str:
    """A dump of a database; by default of its schema, without the ledger."""
    options = options or ("--schema-only", "--exclude-schema=migrate")
    done = subprocess.run(
        [bin_directory / "pg_dump", *options, f"--dbname={url}"],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    return "".join(line for line in done.stdout.splitlines(True) if "restrict " not in line)


def objects(url: str) -> dict[str, str]:
    with connect(url) as session:
        return catalog.read(session)
