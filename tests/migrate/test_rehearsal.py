"""Rehearsals: the present state in a throwaway PostgreSQL, then what is pending."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import psycopg
import pytest

from embedded.errors import UserError
from migrate import files, rehearsal, run
from migrate.bundle import bundle
from migrate.connection import connect
from migrate.errors import MigrateError, NoRehearsalError

ROOT = Path(__file__).parents[2]

APPLIED = {
    "migrations/0001_t.sql": "create table t (a int, b int);\n",
    "repeatable/v.sql": "create or replace view v as select a from t;\n",
    "verify/v.sql": "-- check: there is no row\nselect * from t;\n",
}


def write(directory: Path, contents: Mapping[str, str]) -> files.Tree:
    for name, text in contents.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(text)
    return files.read_tree(directory)


def applied(url: str, directory: Path) -> rehearsal.State:
    """The state of a database on which APPLIED was run."""
    with connect(url) as connection:
        run.up(connection, write(directory, APPLIED))
        return rehearsal.state(connection)


def servers() -> set[int]:
    return {p.pid for p in psutil.process_iter() if p.name() == "postgres" and p.ppid() == 1}


def test_everything_is_rehearsed_for_an_empty_database(tmp_path: Path) -> None:
    result = rehearsal.rehearse(write(tmp_path, APPLIED))
    assert (result.applied, result.checks) == (2, 1)
    assert result.postgres.startswith("18")
    assert str(result).startswith("rehearsed in a throwaway PostgreSQL 18")


def test_the_platform_s_own_files_are_rehearsed() -> None:
    tree = files.read_tree(ROOT / "sql")
    result = rehearsal.rehearse(tree)
    assert result.applied == len(tree[files.VERSIONED]) + len(tree[files.REPEATABLE])


def test_only_what_is_pending_counts(database: str, tmp_path: Path) -> None:
    state = applied(database, tmp_path)
    tree = write(tmp_path, {"migrations/0002_u.sql": "alter table t add column c int;"})
    assert rehearsal.rehearse(tree, state).applied == 1


def test_what_is_pending_meets_what_is_applied(database: str, tmp_path: Path) -> None:
    """On an empty database it would work: the view there does not need the column any more."""
    state = applied(database, tmp_path)
    change = {
        "migrations/0002_drop.sql": "\nalter table t\n  drop column a;",
        "repeatable/v.sql": "create or replace view v as select b from t;\n",
    }
    tree = write(tmp_path, change)
    assert rehearsal.rehearse(tree).applied == 3
    with pytest.raises(MigrateError) as caught:
        rehearsal.rehearse(tree, state)
    text = str(caught.value)
    assert text.startswith("the rehearsal failed; nothing was done to the database itself")
    assert f"{tmp_path}/migrations/0002_drop.sql:2:1: cannot drop column a" in text
    assert "view v depends on column a" in text


def test_a_state_that_cannot_be_made_again_is_told(database: str, tmp_path: Path) -> None:
    applied(database, tmp_path)
    with connect(database) as connection:
        connection.execute("delete from migrate.ledger where folder = 'migrations'")
        state = rehearsal.state(connection)
    with pytest.raises(NoRehearsalError, match=r'not rehearsed(.|\n)*relation "t" does not exist'):
        rehearsal.rehearse(write(tmp_path, APPLIED), state)


def test_a_promise_that_would_break_fails_it(database: str, tmp_path: Path) -> None:
    state = applied(database, tmp_path)
    tree = write(tmp_path, {"migrations/0002_row.sql": "insert into t values (1, 2);"})
    with pytest.raises(MigrateError) as caught:
        rehearsal.rehearse(tree, state)
    assert str(caught.value) == (
        "the rehearsal failed; nothing was done to the database itself (in a throwaway "
        "PostgreSQL):\n"
        f"{tmp_path}/verify/v.sql:2:1: failed check: there is no row\n"
        "  a=1, b=2\n"
        "  what to do: correct the pending files; or, where the check is to change, its query in "
        "verify/"
    )


def test_the_database_itself_is_left_alone(database: str, tmp_path: Path) -> None:
    state = applied(database, tmp_path)
    rehearsal.rehearse(write(tmp_path, {"migrations/0002_u.sql": "create table u ();"}), state)
    with psycopg.connect(database) as connection:
        assert connection.execute("select to_regclass('u') is null").fetchone() == (True,)


def test_texts_that_the_bundle_leaves_out_are_completed(database: str, tmp_path: Path) -> None:
    tree = write(tmp_path, APPLIED)
    script = "".join(bundle(tree)).replace("\\set ON_ERROR_STOP on", "")
    with connect(database) as connection:
        connection.execute(script.encode())
        assert rehearsal.state(connection).repeatable == {}
        assert run.up(connection, tree) == []
        assert rehearsal.state(connection).repeatable == {"v.sql": APPLIED["repeatable/v.sql"]}


def test_no_server_and_no_file_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = servers()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    rehearsal.rehearse(write(tmp_path, {"migrations/0001_u.sql": "create table u ();"}))
    with pytest.raises(MigrateError, match="division by zero"):
        rehearsal.rehearse(write(tmp_path, {"migrations/0001_u.sql": "select 1/0;"}))
    assert servers() - before == set()
    assert not list(tmp_path.glob("throwaway-*"))


def test_extensions_of_postgresql_itself_are_known(tmp_path: Path) -> None:
    pending = {
        f"migrations/000{number}_{name}.sql": f"create extension {name};\n"
        for number, name in enumerate(("citext", "hstore", "pg_trgm"), 2)
    }
    assert rehearsal.rehearse(write(tmp_path, APPLIED | pending)).seconds > 0


def test_without_a_server_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Path:
        raise UserError("no server here", "install one")

    monkeypatch.setattr("migrate.throwaway.embedded_bin", missing)
    told = "not rehearsed: no server here\n  what to do: install one"
    with pytest.raises(NoRehearsalError, match=told):
        rehearsal.rehearse(write(tmp_path, APPLIED))


def plan(directory: Path, *arguments: str, url: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "migrate", "--directory", directory, "plan", *arguments],
        cwd=ROOT,
        env=os.environ | ({"DATABASE_URL": url} if url else {}),
        capture_output=True,
        text=True,
    )


def test_the_command_line_rehearses_what_is_pending(database: str, tmp_path: Path) -> None:
    applied(database, tmp_path)
    assert "rehearsed" not in plan(tmp_path, "--rehearse", url=database).stdout
    write(tmp_path, {"migrations/0002_u.sql": "comment on table t is 'a table';"})
    result = plan(tmp_path, "--rehearse", "--json", url=database)
    assert result.returncode == 2
    found = json.loads(result.stdout)["rehearsal"]
    assert (found["applied"], found["checks"]) == (1, 1)
    write(tmp_path, {"migrations/0003_bad.sql": "select nothing_such();"})
    result = plan(tmp_path, "--rehearse", url=database)
    assert result.returncode == 1
    assert "0003_bad.sql:1:8: function nothing_such() does not exist" in result.stderr


def test_without_a_database_everything_is_rehearsed(tmp_path: Path) -> None:
    write(tmp_path, APPLIED)
    assert "pending files applied 2" in plan(tmp_path, "--offline", "--rehearse").stdout
    write(tmp_path, {"repeatable/v.sql": "create view v as select c from t;"})
    result = plan(tmp_path, "--offline", "--rehearse")
    assert result.returncode == 1
    assert 'v.sql:1:25: column "c" does not exist' in result.stderr
