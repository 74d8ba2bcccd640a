"""Rehearsals: the present state in a throwaway PostgreSQL, then what is pending."""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import psutil  # type: ignore[import-untyped]
import psycopg
import pytest

from embedded.errors import UserError
from migrate import files, ledger, rehearsal, run
from migrate.__main__ import main
from migrate.bundle import bundle
from migrate.connection import connect
from migrate.errors import MigrateError, NoRehearsalError
from migrate.files import REPEATABLE
from tests.support.migrating import failure, made, query

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


def rehearse(url: str, tree: files.Tree) -> rehearsal.Rehearsal:
    """With the state of a database."""
    with connect(url) as connection:
        return rehearsal.rehearse(tree, connection)


def apply(url: str, directory: Path) -> None:
    """Run APPLIED on a database."""
    with connect(url) as connection:
        run.up(connection, write(directory, APPLIED))


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
    apply(database, tmp_path)
    tree = write(tmp_path, {"migrations/0002_u.sql": "alter table t add column c int;"})
    assert rehearse(database, tree).applied == 1


def test_what_is_pending_meets_what_is_applied(database: str, tmp_path: Path) -> None:
    """On an empty database it would work: the view there does not need the column any more."""
    apply(database, tmp_path)
    change = {
        "migrations/0002_drop.sql": "\nalter table t\n  drop column a;",
        "repeatable/v.sql": "create or replace view v as select b from t;\n",
    }
    tree = write(tmp_path, change)
    assert rehearsal.rehearse(tree).applied == 3
    with pytest.raises(MigrateError) as caught:
        rehearse(database, tree)
    text = str(caught.value)
    assert text.startswith("the rehearsal failed; nothing was done to the database itself")
    assert f"{tmp_path}/migrations/0002_drop.sql:2:1: cannot drop column a" in text
    assert "view v depends on column a" in text


def test_a_state_that_cannot_be_made_again_is_told(database: str, tmp_path: Path) -> None:
    apply(database, tmp_path)
    with connect(database) as connection:
        connection.execute("delete from migrate.ledger where folder = 'migrations'")
    with pytest.raises(NoRehearsalError, match=r'not rehearsed(.|\n)*relation "t" does not exist'):
        rehearse(database, write(tmp_path, APPLIED))


def test_a_promise_that_would_break_fails_it(database: str, tmp_path: Path) -> None:
    apply(database, tmp_path)
    tree = write(tmp_path, {"migrations/0002_row.sql": "insert into t values (1, 2);"})
    with pytest.raises(MigrateError) as caught:
        rehearse(database, tree)
    first, _, rest = str(caught.value).partition("\n")
    assert re.fullmatch(
        r"the rehearsal failed; nothing was done to the database itself \(in a throwaway "
        r"PostgreSQL [\d.]+[^,]*\):",
        first,
    )
    assert rest == (
        f"{tmp_path}/verify/v.sql:2:1: failed check: there is no row\n"
        "  a=1, b=2\n"
        "  what to do: correct the pending files; or, where the check is to change, its query in "
        "verify/"
    )


def test_the_database_itself_is_left_alone(database: str, tmp_path: Path) -> None:
    apply(database, tmp_path)
    rehearse(database, write(tmp_path, {"migrations/0002_u.sql": "create table u ();"}))
    with psycopg.connect(database) as connection:
        assert connection.execute("select to_regclass('u') is null").fetchone() == (True,)


def test_texts_that_the_bundle_leaves_out_are_completed(database: str, tmp_path: Path) -> None:
    tree = write(tmp_path, APPLIED)
    script = "".join(bundle(tree)).replace("\\set ON_ERROR_STOP on", "")
    with connect(database) as connection:
        connection.execute(script.encode())
        assert ledger.contents(connection, REPEATABLE) == {}
        assert run.up(connection, tree) == []
        assert ledger.contents(connection, REPEATABLE) == {"v.sql": APPLIED["repeatable/v.sql"]}


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
    told = "not rehearsed: no throwaway PostgreSQL: no server here\n  what to do: install one"
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
    apply(database, tmp_path)
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


# --- what it cannot show ---------------------------------------------------------------------


def major(url: str) -> int:
    with connect(url) as connection:
        return connection.info.server_version // 10000


@pytest.fixture
def only_embedded(monkeypatch: pytest.MonkeyPatch) -> int:
    """No PostgreSQL on this machine but the embedded one, whose major version this is."""
    monkeypatch.setattr("migrate.throwaway.installed_bin", lambda _: None)
    return 18


def test_it_is_done_in_the_database_s_own_major_version(database: str, tmp_path: Path) -> None:
    apply(database, tmp_path)
    result = rehearse(database, write(tmp_path, {"migrations/0002_u.sql": "create table u ();"}))
    assert result.postgres.split(".")[0] == str(major(database))
    assert list(result.not_shown) == []


@pytest.mark.postgres("15")
def test_another_major_version_is_told_with_what_of_the_files_depends_on_it(
    database: str, tmp_path: Path, only_embedded: int
) -> None:
    apply(database, tmp_path)
    text = """create table u (id uuid);
-- uuidv4() is not asked for
create function made() returns uuid language plpgsql as $$
begin
  perform set_config('x.y', 'z', true);
  return uuidv7 ();
end $$;
set local transaction_timeout = '1h';
comment on collation pg_catalog.pg_c_utf8 is 'in 17';
"""
    tree = write(tmp_path, {"migrations/0002_u.sql": text})
    result = rehearse(database, tree)
    assert result.postgres.startswith(f"{only_embedded}.")
    path = f"{tmp_path}/migrations/0002_u.sql"
    assert list(result.not_shown) == [
        "what PostgreSQL 15, which the database has, does otherwise",
        f"{path}:6:10: PostgreSQL 15 has no built-in uuidv7",
        f"{path}:8:11: PostgreSQL 15 has no built-in transaction_timeout",
        f"{path}:9:33: PostgreSQL 15 has no built-in pg_c_utf8",
    ]
    assert str(result).endswith(
        f"\n  not shown: {path}:9:33: PostgreSQL 15 has no built-in pg_c_utf8"
    )
    with connect(database) as connection:  # what is told is so
        message = failure(lambda: run.up(connection, tree))
    assert 'unrecognized configuration parameter "transaction_timeout"' in message


@pytest.mark.postgres("15")
def test_what_the_database_s_own_parser_refuses_fails_it(
    database: str, tmp_path: Path, only_embedded: int
) -> None:
    apply(database, tmp_path)
    text = "select 1;\ncreate table u (a int, b int generated always as (a * 2) virtual);\n"
    tree = write(tmp_path, {"migrations/0002_u.sql": text})
    assert rehearsal.rehearse(tree).applied == 3
    message = failure(lambda: rehearse(database, tree))
    assert f"(in a throwaway PostgreSQL {only_embedded}." in message
    assert "while the database's is 15):\n" in message
    path = f"{tmp_path}/migrations/0002_u.sql"
    assert f"{path}:2:58: the database's PostgreSQL 15: syntax error at or near \"v" in message
    assert made(database) == ["t"]


@pytest.fixture
def extension(database: str, only_embedded: int) -> Iterator[str]:
    """An extension that the database's server has, and the throwaway server has not."""
    if major(database) != only_embedded:
        yield "pgcrypto"
        return
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        home = Path(directory, "extension")
        home.mkdir()
        (home / "only_here.control").write_text("default_version = '1'\n")
        (home / "only_here--1.sql").write_text("select 1;\n")
        name = urlsplit(database).path[1:]
        path = f"$system:{directory}"
        query(database, f"alter database {name} set extension_control_path = '{path}'")
        yield "only_here"


def test_an_extension_that_only_the_database_has_is_told(
    database: str,
    tmp_path: Path,
    extension: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DATABASE_URL", database)
    arguments = ["--directory", str(tmp_path), "plan", "--rehearse"]
    files_ = {
        "migrations/0001_e.sql": f"create extension if not exists {extension};\n",
        "migrations/0002_t.sql": "create table t (a int);\n",
    }
    write(tmp_path, files_)
    for number in (1, 3):  # before `up`, and after it
        assert main(arguments) == 2
        shown, errors = capsys.readouterr()
        assert errors == ""
        assert "\nnot rehearsed: the throwaway server (PostgreSQL 18" in shown
        assert f") has no extension {extension}, by which the files do not apply" in shown
        assert f"\n  {tmp_path}/migrations/0001_e.sql:1:1: extension " in shown
        assert "correct the file" not in shown
        assert f"pending  migrations/000{number}" in shown
        assert "/0002_t.sql:1:1: " in shown or number == 3
        with connect(database) as connection:
            run.up(connection, files.read_tree(tmp_path))
        write(tmp_path, {"migrations/0003_c.sql": "comment on table t is 'a';\n"})
    assert main([*arguments, "--offline", "--json"]) in (0, 1)
    document = json.loads(capsys.readouterr().out)
    assert document["rehearsal"] is None
    assert f"has no extension {extension}" in document["not_rehearsed"]


@pytest.mark.postgres("15")
@pytest.mark.usefixtures("only_embedded")
def test_an_extension_that_only_the_throwaway_server_has_is_told(
    database: str, tmp_path: Path
) -> None:
    tree = write(tmp_path, {"migrations/0001_e.sql": "create extension vector;\n"})
    assert rehearse(database, tree).not_shown[-1] == (
        "the files create the extension vector, which the database's server does not have"
    )
    with connect(database) as connection:  # what is told is so
        assert 'extension "vector" is not available' in failure(lambda: run.up(connection, tree))


def test_an_extension_that_the_database_lacks_too_is_a_failure(
    database: str, tmp_path: Path
) -> None:
    tree = write(tmp_path, {"migrations/0001_e.sql": "create extension no_such;\n"})
    message = failure(lambda: rehearse(database, tree))
    assert message.startswith("the rehearsal failed")
    assert f'{tmp_path}/migrations/0001_e.sql:1:1: extension "no_such" is not' in message
    with pytest.raises(NoRehearsalError, match="has no extension no_such"):
        rehearsal.rehearse(tree)


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("where", ["database", "offline"])
def test_the_findings_are_shown_where_the_rehearsal_fails(
    database: str, tmp_path: Path, form: str, where: str
) -> None:
    write(tmp_path, APPLIED)
    broken = "-- migrate: allow create-index: it is new\ncreate index on t (a);\nselect 1 / 0;\n"
    write(tmp_path, {"migrations/0002_u.sql": broken, "repeatable/z.sql": "drop view v;\n"})
    arguments = (
        ["--rehearse"] + ["--offline"] * (where == "offline") + ["--json"] * (form == "json")
    )
    done = plan(tmp_path, *arguments, url="" if where == "offline" else database)
    assert done.returncode == 1
    if form == "json":
        document = json.loads(done.stdout)
        assert done.stderr == ""
        assert "0002_u.sql:3:1: division by zero" in document["error"]
        assert document["rehearsal"] is None
        assert [finding["path"].rpartition("/")[2] for finding in document["findings"]] != []
        assert where == "offline" or len(document["pending"]) == 4
    else:
        assert done.stderr.startswith("error: the rehearsal failed; nothing was done to the")
        assert done.stderr.count("division by zero") == 1
        assert "division by zero" not in done.stdout
        assert "0001_t.sql:1:1: " in done.stdout
        assert done.stdout.count("drop view") <= 1
        assert where == "offline" or "pending  repeatable/z.sql" in done.stdout
