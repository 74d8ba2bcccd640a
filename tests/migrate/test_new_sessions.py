"""Files that change what new sessions are given: one result, in however many runs."""

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from migrate import files, run
from migrate.connection import connect
from migrate.lock import LOCK_KEY
from tests.support.migrating import (
    bundled,
    checks_passed,
    dump,
    failure,
    in_background,
    incomplete,
    psql,
    query,
    recorded,
    told,
    up,
    wait_for,
    write,
)

if TYPE_CHECKING:
    from migrate.report import Step

SCHEMA = "create schema app;\n"
IN_DATABASE = """\
do $$ begin execute format('alter database %I {0}', current_database()); end $$;
"""
TABLE = "create table t (id int primary key);\n"

CHANGES = {
    "database": IN_DATABASE.format("set search_path = app, public"),
    "role": """
do $$ begin execute format('alter role %I set search_path = app', session_user); end $$;
""",
    "role in database": """
do $$ begin execute format('alter role %I in database %I set search_path = app', session_user,
                           current_database()); end $$;
""",
    "without a transaction": "-- migrate: no-transaction\nselect 1;\n"
    + IN_DATABASE.format("set search_path = app, public"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_files_after_a_change_run_in_a_session_that_has_it(
    database: str, other_database: str, role: str, postgres_bin: Path, tmp_path: Path, change: str
) -> None:
    login, name = urlsplit(role).username, urlsplit(role).path[1:]
    other = role.replace(name, urlsplit(other_database).path[1:])
    for url in (database, other_database):
        owned = urlsplit(url).path[1:]
        query(database, f"alter database {owned} owner to {login}")
        query(url, f"grant create on schema public to {login}")
    contents = {
        "migrations/0001_s.sql": SCHEMA,
        "migrations/0002_c.sql": CHANGES[change],
        "migrations/0003_t.sql": TABLE,
        "migrations/0004_r.sql": IN_DATABASE.format("reset search_path")
        + CHANGES[change]
        .replace("-- migrate: no-transaction\nselect 1;\n", "")
        .replace("set search_path = app, public", "reset search_path")
        .replace("set search_path = app", "reset search_path"),
        "migrations/0005_u.sql": TABLE.replace("t (", "u ("),
        "repeatable/v.sql": "create or replace view v as select id from app.t;\n",
    }
    steps: list[Step] = []
    assert len(up(role, write(tmp_path / "a", contents), report=steps.append)) == 6
    assert [(step.number, step.total) for step in steps if step.event == "applied"] == [
        (number, 6) for number in range(1, 7)
    ]
    for path, text in contents.items():
        assert len(up(other, write(tmp_path / "b", {path: text}))) == 1
    look = """select nspname, relname from pg_class join pg_namespace n on n.oid = relnamespace
              where relname in ('t', 'u', 'v') order by relname"""
    assert query(database, look) == query(other_database, look)
    assert query(database, look) == [("app", "t"), ("public", "u"), ("public", "v")]
    assert dump(postgres_bin, database) == dump(postgres_bin, other_database)
    for url in (role, other):
        assert up(url, tmp_path / "a") == []
        assert not incomplete(url, tmp_path / "a")
        assert checks_passed(url, tmp_path / "a") == 0
    query(other_database, f"drop owned by {login}")
    query(database, f"alter database {urlsplit(other_database).path[1:]} owner to postgres")
    query(database, f"alter database {name} owner to postgres")


def test_statements_behind_a_change_run_in_a_session_that_has_it(
    database: str, tmp_path: Path
) -> None:
    """In a file without a transaction, as they do where a run was cut off between the two."""
    change = IN_DATABASE.format("set search_path = app, public")
    kept = "set application_name = 'kept';\n"
    text = f"-- migrate: no-transaction\n{SCHEMA}{kept}{change}{TABLE}"
    text += "create table named as select current_setting('application_name') as name;\n"
    write(tmp_path, {"migrations/0001_a.sql": text, "migrations/0002_b.sql": "select 1;\n"})
    steps: list[Step] = []
    assert up(database, tmp_path, report=steps.append) == ["0001_a.sql", "0002_b.sql"]
    applied = [step.subject for step in steps if step.event == "applied"]
    assert applied == ["migrations/0001_a.sql", "migrations/0002_b.sql"]
    assert query(database, "select name from app.named, to_regclass('app.t') as t") == ["kept"]
    assert checks_passed(database, tmp_path) == 0


def test_psql_has_to_have_begun_new_sessions_for_a_database_to_be_adopted(
    database: str, other_database: str, tmp_path: Path, postgres_bin: Path
) -> None:
    names, contents = (
        ("migrations/0001_s.sql", "migrations/0002_t.sql"),
        [SCHEMA + CHANGES["database"], TABLE],
    )
    write(tmp_path, dict(zip(names, contents, strict=True)))
    for text in contents:
        assert psql(postgres_bin, database, text, tmp_path) == (0, "")
    assert psql(postgres_bin, other_database, "".join(contents), tmp_path) == (0, "")
    steps: list[Step] = []
    assert up(database, tmp_path, report=steps.append) == []
    assert told(steps) == ["adopted what psql had made"]
    assert 'schema "app" already exists' in failure(lambda: up(other_database, tmp_path))


def test_the_bundle_is_refused_where_psql_would_need_new_sessions(
    database: str, tmp_path: Path, postgres_bin: Path
) -> None:
    contents = {"migrations/0001_s.sql": SCHEMA + CHANGES["database"]}
    write(tmp_path, contents | {"migrations/0002_t.sql": TABLE})
    code, said = psql(postgres_bin, database, bundled(tmp_path), tmp_path)
    assert code == 3
    assert "a file changes what new sessions are given, and psql has but one session" in said
    assert query(database, "select to_regclass('migrate.ledger'), to_regclass('t')") == [
        (None, None)
    ]
    (tmp_path / "migrations/0002_t.sql").write_text(SCHEMA.replace("app", "other"))
    write(tmp_path, {"migrations/0001_s.sql": "-- alter role nobody\n" + SCHEMA})
    write(tmp_path, {"migrations/0003_s.sql": CHANGES["database"]})
    assert psql(postgres_bin, database, bundled(tmp_path), tmp_path) == (0, "")
    assert up(database, tmp_path) == []


def test_the_connection_of_a_program_has_what_its_last_run_changed(
    database: str, tmp_path: Path
) -> None:
    write(tmp_path, {"migrations/0001_s.sql": SCHEMA + CHANGES["database"]})
    write(tmp_path, {"repeatable/t.sql": "create table if not exists t (id int primary key);\n"})
    tree = files.read_tree(tmp_path)
    with connect(database) as session:
        run.up(session, tree, ["migrations"])
        run.up(session, tree, ["repeatable"])
    assert query(database, "select to_regclass('app.t') is not null") == [True]


def test_a_run_that_waited_has_what_the_other_run_changed(database: str, tmp_path: Path) -> None:
    first = {"migrations/0001_s.sql": SCHEMA + CHANGES["database"] + "select pg_sleep(2);\n"}
    write(tmp_path / "a", first)
    write(tmp_path / "b", {**first, "migrations/0002_t.sql": TABLE})
    steps: list[Step] = []
    with in_background(lambda: up(database, tmp_path / "a")) as running:
        held = "select 1 from pg_locks where locktype = 'advisory' and objid = %s"
        wait_for(lambda: query(database, held, LOCK_KEY & 0xFFFFFFFF), "the first run begins")
        assert up(database, tmp_path / "b", report=steps.append) == ["0002_t.sql"]
        assert running.result() == ["0001_s.sql"]
    assert "waiting" in [step.event for step in steps]
    assert query(database, "select to_regclass('app.t') is not null") == [True]
    assert recorded(database) == ["0001_s.sql", "0002_t.sql"]
