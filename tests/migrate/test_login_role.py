"""A login that takes the role which owns the database by a setting, as hosted projects have it."""

import secrets
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from embedded.postgres import Server
from migrate.connection import connect
from tests.support.migrating import checks_passed, query, up, up_fails, write

FILES = {
    "migrations/0001_a.sql": "create table public.a (id int primary key);\n",
    "migrations/0002_b.sql": """\
set role {owner};
create table public.b (id int primary key);
reset role;
create table public.b2 (id int primary key);
set role none;
""",
    "migrations/0003_c.sql": """\
-- migrate: no-transaction
create table public.c (id int primary key);
create index concurrently c_id on public.c (id);
""",
    "migrations/0004_d.sql": """\
-- migrate: no-transaction
create table public.d (id int primary key);
set role pg_monitor;
create temporary table d2 (id int);
reset role;
create table public.d3 (id int primary key);
""",
    "repeatable/v.sql": "create or replace view public.v as select id from public.a;\n",
}


@pytest.fixture
def owner(server: Server, database: str) -> Iterator[str]:
    """A role that owns the database and cannot log in."""
    name = f"owner_{secrets.token_hex(6)}"
    query(server.url(), f"create role {name} nologin")
    query(server.url(), f"grant pg_monitor to {name}")
    query(server.url(), f"alter database {urlsplit(database).path[1:]} owner to {name}")
    yield name
    query(database, f"reassign owned by {name} to postgres")
    query(database, f"drop role {name}")


@pytest.mark.parametrize("inherit", ["noinherit", "inherit"])
@pytest.mark.parametrize("way", ["role", "role in database", "options"])
def test_everything_is_made_by_the_role_of_the_setting(
    database: str, role: str, owner: str, tmp_path: Path, way: str, inherit: str
) -> None:
    login, name = urlsplit(role).username, urlsplit(role).path[1:]
    query(database, f"alter role {login} {inherit}")
    query(database, f"grant {owner} to {login}")
    match way:
        case "role":
            query(database, f"alter role {login} set role = {owner}")
        case "role in database":
            query(database, f"alter role {login} in database {name} set role = {owner}")
        case _:
            role += f"&options=-c%20role%3D{owner}"
    files = {path: text.format(owner=owner) for path, text in FILES.items()}
    files["migrations/0005_e.sql"] = "-- migrate: no-transaction\nselect 1;\nselect 1 / 0;\n"
    assert "division by zero" in up_fails(role, write(tmp_path, files))
    write(tmp_path, {"migrations/0005_e.sql": "-- migrate: no-transaction\nselect 1;\nselect 2;\n"})
    assert up(role, tmp_path) == ["0005_e.sql", "v.sql"]
    made = "select relname::text, relowner::regrole::text from pg_class "
    found = dict(
        query(
            database,
            made + "where relnamespace in ('public'::regnamespace, "
            "'migrate'::regnamespace) and relkind in ('r', 'v')",
        )
    )
    assert found.keys() >= {"a", "b", "b2", "c", "d", "d3", "v", "ledger", "progress", "catalog"}
    assert set(found.values()) == {owner}
    assert up(role, tmp_path) == []
    assert checks_passed(role, tmp_path) == 0
    with connect(role) as session:
        assert session.execute("select current_user, session_user").fetchone() == (owner, login)
