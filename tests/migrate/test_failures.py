"""What a failure says: broken migrations beside the exact text that a person gets to read.

`failures/NAME.sql` is applied as `migrations/0002_NAME.sql` behind `failures/shop.sql`;
`failures/NAME/` is a directory of its own, and its `before/` is applied before it, whether it works
or not.  Files whose very bytes matter are made by `MADE`.

`failures/NAME.txt` is the approved text, `NAME.15.txt` and `NAME.18.txt` where the servers' own
words differ.  `APPROVE=1 pytest tests/migrate/test_failures.py`, without -n, writes them again:
read each of them as the person who has to fix it.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import psycopg
import pytest

from embedded.postgres import Server
from migrate import __main__ as cli
from migrate import ledger, verify
from migrate.connection import connect

FAILURES = Path(__file__).parent / "failures"
REPOSITORY = FAILURES.parents[2]
APPROVE = os.environ.get("APPROVE") == "1"
MAJORS = (15, 18)

# --- files whose bytes matter ----------------------------------------------------------------

SOUND = "".join(
    f"insert into orders (id, customer, amount) values ({n}, 1, 1);\n" for n in range(100, 5098)
)

MADE: dict[str, bytes] = {
    "not_utf8": "-- Grüße\n".encode() + "update orders set note = 'fünf';\n".encode("latin-1"),
    "not_utf8_at_the_end": b"select 1;\n-- \xe2\x82",
    "utf16": "select 1;\n".encode("utf-16"),
    "zero_byte": b"select 1;\nselect 2;\0\nselect 3;\n",
    "crlf_and_byte_order_mark": (
        b"\xef\xbb\xbf-- From Windows.\r\nalter table orders\r\n  add column weight numeric;\r\n"
        b"\r\nupdate orders\r\n\tset weihgt = 1;\r\n"
    ),
    "line_5000": f"{SOUND}select 1;\nselect amuont\nfrom orders;\n{SOUND}".encode(),
    "syntax_error_in_line_5000": f"{SOUND}select 1;\nselect amount form orders;\n{SOUND}".encode(),
    "no_end_of_line": b"select amuont from orders",
    "nothing": b"",
}

# --- what has to happen beside a run ---------------------------------------------------------


@contextmanager
def locked(url: str) -> Iterator[None]:
    """While another session lets nobody change the orders."""
    with psycopg.connect(url) as session:
        session.execute("lock table orders in share mode")
        yield


BESIDE: dict[str, Callable[[str], AbstractContextManager[None]]] = {
    "lock_timeout": locked,
    "lock_timeout_without_transaction": locked,
}

# --- running ---------------------------------------------------------------------------------

DIRECTORIES = sorted(path.name for path in FAILURES.iterdir() if path.is_dir())
SCRIPTS = sorted(path.stem for path in FAILURES.glob("*.sql") if path.stem != "shop")
NAMES = sorted([*DIRECTORIES, *SCRIPTS, *MADE])

# Bugs: the approved text is what should be said.


def lay_out(name: str, directory: Path) -> None:
    """Put the files of a case into a directory."""
    if name in DIRECTORIES:
        shutil.copytree(FAILURES / name, directory, ignore=shutil.ignore_patterns("before"))
        (directory / "migrations").mkdir(exist_ok=True)
        if not any((directory / "migrations").iterdir()):
            shutil.copy(FAILURES / "shop.sql", directory / "migrations" / "0001_shop.sql")
        return
    (directory / "migrations").mkdir(parents=True)
    shutil.copy(FAILURES / "shop.sql", directory / "migrations" / "0001_shop.sql")
    made = MADE[name] if name in MADE else (FAILURES / f"{name}.sql").read_bytes()
    (directory / "migrations" / f"0002_{name}.sql").write_bytes(made)


def neutral(text: str) -> str:
    """Without what differs from run to run."""
    text = re.sub(r"\b\d+ ms\b", "N ms", text)
    text = re.sub(r"\bpid \d+", "pid N", text)
    return re.sub(r'"/[^"]*/extension/', '"EXTENSIONS/', text)


def written(name: str, major: int) -> Path:
    """The approved text of a case, for a server."""
    own = FAILURES / f"{name}.{major}.txt"
    return own if own.exists() else FAILURES / f"{name}.txt"


def approve(name: str, major: int, text: str) -> None:
    """Keep a text, for both servers where they agree."""
    texts = {each: written(name, each) for each in MAJORS}
    kept = {each: path.read_text() for each, path in texts.items() if path.exists()} | {major: text}
    for path in FAILURES.glob(f"{name}*.txt"):
        if path.name.split(".")[0] == name:
            path.unlink()
    if len(set(kept.values())) == 1:
        (FAILURES / f"{name}.txt").write_text(text)
    else:
        for each, one in kept.items():
            (FAILURES / f"{name}.{each}.txt").write_text(one)


def major_of(url: str) -> int:
    with psycopg.connect(url) as session:
        return session.info.server_version // 10000


def claims(label: str, text: str) -> list[str]:
    """The names behind a label such as `rolled back`."""
    found = re.findall(rf"(?m)^ +{label}[^:\n]*: (.*)$", text)
    return [name for names in found for name in names.split(", ") if name != "nothing"]


def up(url: str, directory: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """What `python -m migrate up` does, but in this process: its exit code and what it prints."""
    code = cli.main(["up", "--directory", str(directory), "--database-url", url])
    printed = capsys.readouterr()
    return code, printed.out + printed.err


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run as in a project, whose files are in sql/, and wait for nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.sleep", lambda _: None)


@pytest.mark.parametrize("name", NAMES)
def test_a_failure_says_what_was_approved(
    name: str, database: str, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sql = Path("sql")
    if (FAILURES / name / "before").is_dir():
        shutil.copytree(FAILURES / name / "before", "before/sql")
        up(database, Path("before/sql"), capsys)
    lay_out(name, sql)
    if name in BESIDE:
        (sql / "migrations" / f"0002_{name}.sql").rename("broken.sql")
        up(database, sql, capsys)
        Path("broken.sql").rename(sql / "migrations" / f"0002_{name}.sql")
    with BESIDE[name](database) if name in BESIDE else nullcontext():
        code, text = up(database, sql, capsys)
    told = neutral(text) + f"exit code {code}\n"
    assert server.password not in told
    assert str(tmp_path) not in told
    major = major_of(database)
    if APPROVE:
        approve(name, major, told)
    assert told == written(name, major).read_text()
    assert code == cli.ERROR

    with connect(database) as session:
        applied = {file for names in ledger.read(session).digests.values() for file in names}
        assert "connection" in name or verify.drift(session) == []
    assert applied.issuperset(claims("committed in this run", told))
    assert applied.isdisjoint(claims("rolled back", told))
    assert applied.isdisjoint(claims("not rolled back", told))


def test_every_approved_text_belongs_to_a_case() -> None:
    assert sorted({path.name.split(".")[0] for path in FAILURES.glob("*.txt")}) == NAMES


@pytest.mark.parametrize("name", ["many_problems", "missing_column", "without_transaction"])
def test_the_command_line_says_the_same(name: str, database: str) -> None:
    lay_out(name, Path("sql"))
    done = subprocess.run(
        [sys.executable, "-m", "migrate", "up"],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY), "DATABASE_URL": database},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    told = neutral(done.stdout) + f"exit code {done.returncode}\n"
    assert told == written(name, major_of(database)).read_text()


HUGE = {
    "a long line": f"select {', '.join(f'{n} as c{n}' for n in range(5000))}, wrong from orders;",
    "a quote that is not closed": f"select 'open;\n{SOUND}",
    "a long value": f"select 1 / length(repeat('x', 0)), '{'y' * 100_000}' from orders;",
}


@pytest.mark.parametrize("text", HUGE.values(), ids=HUGE)
def test_a_failure_in_a_huge_text_can_still_be_read(
    text: str, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lay_out("nothing", Path("sql"))
    Path("sql/migrations/0002_nothing.sql").write_text(text)
    code, told = up(database, Path("sql"), capsys)
    assert code == cli.ERROR
    assert len(told) < 5000


REFUSE_A_TRANSACTION = {
    "reindex of partitions": """
        create table parts (id int primary key) partition by range (id);
        create table part_1 partition of parts for values from (0) to (100);
        reindex table parts;""",
    "cluster of partitions": """
        create table parts (id int primary key) partition by range (id);
        cluster parts using parts_pkey;""",
    "create subscription": """
        create subscription s connection 'host=127.0.0.1 port=1' publication p;""",
}


@pytest.mark.parametrize("text", REFUSE_A_TRANSACTION.values(), ids=REFUSE_A_TRANSACTION)
def test_what_refuses_a_transaction_is_run_without_one(
    text: str, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lay_out("nothing", Path("sql"))
    Path("sql/migrations/0002_nothing.sql").write_text(f"-- migrate: no-transaction\n{text}")
    _, told = up(database, Path("sql"), capsys)
    assert "cannot run inside a transaction block" not in told


# --- half a file is done, and it is another file now -----------------------------------------

MARK = "-- migrate: no-transaction\n"
DONE = "insert into customers values (3, 'Cleo');\nupdate customers set name = name || '!';\n"
HALF = f"{MARK}{DONE}select 1 / 0;\n"
OTHER = {
    "shortened": ("nothing.sql", f"{MARK}delete from customers;"),
    "in a transaction now": ("nothing.sql", "update customers set name = name || '!';"),
    "renamed": ("other.sql", f"{MARK}update customers set name = name || '!';"),
    "removed": ("", ""),
}


@pytest.mark.parametrize("change", OTHER)
def test_a_file_that_is_half_done_has_to_stay_the_same_file(
    change: str, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lay_out("nothing", Path("sql"))
    Path("sql/migrations/0002_nothing.sql").write_text(HALF)
    _, told = up(database, Path("sql"), capsys)
    assert "division by zero" in told
    Path("sql/migrations/0002_nothing.sql").unlink()
    name, text = OTHER[change]
    if name:
        Path(f"sql/migrations/0002_{name}").write_text(text)
    code, told = up(database, Path("sql"), capsys)
    assert "0002_nothing.sql" in told
    assert code == cli.ERROR


@pytest.mark.parametrize("change", ["in a transaction now", "renamed", "removed"])
def test_a_file_of_which_nothing_is_done_may_change(
    change: str, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lay_out("nothing", Path("sql"))
    Path("sql/migrations/0002_nothing.sql").write_text(f"{MARK}select 1 / 0;")
    up(database, Path("sql"), capsys)
    Path("sql/migrations/0002_nothing.sql").unlink()
    name, text = OTHER[change]
    if name:
        Path(f"sql/migrations/0002_{name}").write_text(text)
    code, _ = up(database, Path("sql"), capsys)
    assert code == cli.UP_TO_DATE
    with connect(database) as session:
        assert session.execute("select name from migrate.progress").fetchall() == []


def test_a_file_that_is_half_done_may_change_behind_what_is_done(
    database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lay_out("nothing", Path("sql"))
    Path("sql/migrations/0002_nothing.sql").write_text(HALF)
    up(database, Path("sql"), capsys)
    mended = HALF.replace("select 1 / 0", "insert into customers values (4, 'Dan')")
    Path("sql/migrations/0002_nothing.sql").write_text(f"-- Mended.\n{mended}")
    code, told = up(database, Path("sql"), capsys)
    assert (code, told.splitlines()[-1]) == (cli.UP_TO_DATE, "files applied: 1")
    with connect(database) as session:
        names = session.execute("select name from customers order by id").fetchall()
    assert names == [("Ada!",), ("Bob!",), ("Cleo!",), ("Dan",)]


SETTINGS = {
    "set": "set search_path = other, public",
    "function": "select set_config('search_path', 'other, public', false)",
}


@pytest.mark.parametrize("how", SETTINGS)
def test_what_is_set_by_what_is_done_holds_for_the_rest(
    how: str, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lay_out("nothing", Path("sql"))
    begin = f"{MARK}create schema other;\n{SETTINGS[how]};\n"
    for rest in ("select 1 / 0", "create table made (a int)"):
        Path("sql/migrations/0002_nothing.sql").write_text(f"{begin}{rest};\n")
        _, told = up(database, Path("sql"), capsys)
    assert "files applied: 1" in told
    with connect(database) as session:
        assert session.execute("select to_regclass('other.made')").fetchone() == ("other.made",)


def test_an_index_that_was_there_before_is_not_taken_for_the_one_to_be_built(
    database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lay_out("nothing", Path("sql"))
    Path("sql/migrations/0002_nothing.sql").write_text(
        "create index orders_amount on orders (customer);"
    )
    Path("sql/migrations/0003_index.sql").write_text(
        f"{MARK}create unique index concurrently orders_amount on orders (id, amount);"
    )
    for _ in range(2):
        code, told = up(database, Path("sql"), capsys)
        assert "already exists" in told
        assert code == cli.ERROR
