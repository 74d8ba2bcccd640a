"""`platform: supabase` on a stand-in of a hosted project, by its session pooler."""

import ctypes
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest

from components import ROOT
from dev.in_process import InProcessError
from tests.support.migrating import objects, psql, query
from tests.support.migrating import refused as refused_login
from tests.support.platforms import (
    PASSWORDS,
    Hosted,
    Platform,
    run,
    sql_files,
    stack_config,
    supabase,
)
from tests.support.pooler import TENANT

SERVICES = list(PASSWORDS)


@pytest.fixture(scope="module")
def grants_all(postgres_bin: Path) -> bool:
    """Of an old project, which is on PostgreSQL 15; a new one hands out nothing."""
    return "15" in postgres_bin.parts


@pytest.fixture(scope="module")
def hosted(
    postgres_bin: Path, grants_all: bool, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Hosted]:
    """An empty project."""
    directory = tmp_path_factory.mktemp("hosted")
    with supabase(postgres_bin, directory, grants_all=grants_all) as hosted:
        yield hosted


@dataclass(frozen=True)
class Life(Platform):
    """A hosted platform, and what was Supabase's before it was brought up."""

    hosted: Hosted
    theirs: dict[str, list[Any]]


@pytest.fixture(scope="module")
def life(hosted: Hosted, tmp_path_factory: pytest.TempPathFactory) -> Life:
    """The empty project after the first run."""
    config = stack_config(hosted.url, tmp_path_factory.mktemp("manifests"), platform="supabase")
    theirs = hosted.theirs()
    return Life(hosted.url, config, run(config), hosted, theirs)


class TestStandIn:
    """It refuses what a hosted project refuses, and lets through what one lets through."""

    def test_connections_take_nothing_for_ever(self, hosted: Hosted) -> None:
        def next_key() -> int:
            key = ctypes.c_uint()
            assert ctypes.CDLL(None).pthread_key_create(ctypes.byref(key), None) == 0
            assert ctypes.CDLL(None).pthread_key_delete(key) == 0
            return key.value

        query(hosted.url, "select 1")
        before = next_key()
        for _ in range(5):
            query(hosted.url, "select 1")
        assert next_key() == before

    @pytest.mark.parametrize(
        "statement",
        [
            "alter role anon nologin",
            "alter role authenticated set statement_timeout = '1h'",
            "alter role authenticator rename to another",
            "drop role if exists service_role",
            "create role another in role authenticator",
            "grant pg_monitor to authenticator",
            "grant authenticator to postgres",
            "revoke anon from authenticator",
        ],
    )
    def test_reserved_role_is_refused(self, hosted: Hosted, statement: LiteralString) -> None:
        before = hosted.theirs()
        with (
            psycopg.connect(hosted.url) as connection,
            pytest.raises(psycopg.errors.InsufficientPrivilege, match="only superusers can"),
        ):
            connection.execute(statement)
        assert hosted.theirs() == before

    @pytest.mark.parametrize(
        "statement",
        [
            "create table auth.another ()",
            "alter table auth.users add column another text",
            "drop table auth.users",
            "create or replace function auth.uid() returns uuid language sql return null::uuid",
            "alter schema auth owner to postgres",
            "create role another superuser",
        ],
    )
    def test_what_is_supabase_s_is_refused(self, hosted: Hosted, statement: LiteralString) -> None:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            query(hosted.url, statement)

    def test_service_role_may_become_a_member_of_api_roles(self, hosted: Hosted) -> None:
        query(hosted.url, "create role one_more in role anon")
        query(hosted.url, "grant authenticated to one_more")
        query(hosted.url, "alter role one_more set lock_timeout = '1s'")
        query(hosted.url, "drop role one_more")

    def test_login_without_the_tenant_is_refused(self, hosted: Hosted) -> None:
        told = refused_login(hosted.url.replace(f".{TENANT}", ""))
        assert "what to do: behind Supabase's pooler a user is ROLE.PROJECT" in told

    def test_change_that_changes_nothing_is_seen(self, hosted: Hosted) -> None:
        before = hosted.theirs()
        query(hosted.superuser, "alter role anon nologin")
        assert hosted.theirs() != before

    def test_default_privileges_are_those_of_the_project(
        self, hosted: Hosted, grants_all: bool
    ) -> None:
        query(hosted.url, "create table public.fresh ()")
        held = query(
            hosted.url,
            """select privilege_type from information_schema.role_table_grants
               where table_name = 'fresh' and grantee = 'anon' order by 1""",
        )
        query(hosted.url, "drop table public.fresh")
        left = ["REFERENCES", "TRIGGER", "TRUNCATE"]
        all_ = sorted([*left, "DELETE", "INSERT", "SELECT", "UPDATE"])
        assert held == (all_ if grants_all else left)


def test_up_makes_the_same_schema_and_touches_nothing_of_supabase_s(
    life: Life, platform: Platform
) -> None:
    assert "database" not in life.result.changed
    assert life.result.outputs["database"]["platform"] == "supabase"
    assert life.hosted.theirs() == life.theirs
    plain, hosted = objects(platform.url), objects(life.url)
    ours = {name for name in plain | hosted if "public." in name or "private." in name}
    ours = {name for name in ours if "publication" not in name}  # which is Supabase's
    assert {name: hosted.get(name) for name in ours} == {name: plain.get(name) for name in ours}


@pytest.mark.parametrize("role", SERVICES)
def test_service_logs_in_by_the_pooler(life: Life, role: str) -> None:
    assert query(life.service_url(role), "select current_user") == [role]


def test_second_run_changes_nothing(life: Life) -> None:
    assert run(life.config).changed == []
    assert life.hosted.theirs() == life.theirs


def test_drift_is_refused_by_name(life: Life) -> None:
    query(life.url, "alter table public.api_keys disable row level security")
    try:
        with pytest.raises(InProcessError, match=r"\ntable public\.api_keys\n  expected: "):
            run(life.config)
    finally:
        query(life.url, "alter table public.api_keys enable row level security")
    assert run(life.config).changed == []


def test_rotated_password_is_the_only_change(life: Life) -> None:
    changed = PASSWORDS | {"stripe_handler": "another-password-for-it"}
    result = run(life.config | {"servicePasswords": changed})
    try:
        assert result.changed == ["stripe_handler"]
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(life.service_url("stripe_handler"))
        psycopg.connect(result.outputs["service_database_urls"]["stripe_handler"]).close()
    finally:
        run(life.config)
    assert life.hosted.theirs() == life.theirs


@pytest.fixture
def project(postgres_bin: Path, grants_all: bool, tmp_path: Path) -> Iterator[Hosted]:
    """An empty project of the test's own."""
    with supabase(postgres_bin, tmp_path / "hosted", grants_all=grants_all) as hosted:
        yield hosted


def combined() -> str:
    """The combined file as it was before it wrote a ledger."""
    return "".join(
        path.read_text() for name in ("migrations", "repeatable") for path in sql_files(name)
    )


def oids(url: str) -> list[Any]:
    """Of all that a migration or repeatable file makes anew when it is applied again."""
    return query(
        url,
        """select 'policy', oid::int from pg_policy union all select 'trigger', oid::int
           from pg_trigger union all select 'table', oid::int from pg_class order by 1, 2""",
    )


CHANGES: dict[LiteralString, str] = {
    "alter table public.accounts add column fax text": "column public.accounts.fax",
    'drop policy "users read their own keys" on public.api_keys': (
        'policy "users read their own keys" on public.api_keys'
    ),
    "alter function public.has_active_subscription(uuid) security definer": (
        "function public.has_active_subscription(user_id uuid)"
    ),
    "grant delete on public.api_keys to anon": "privileges of anon on table public.api_keys",
    "alter table public.instances disable row level security": "table public.instances",
    "create view public.everything as select * from public.accounts": "view public.everything",
}
"""What somebody did to a database -> the object that is not as the files make it."""


def refused(project: Hosted, tmp_path: Path) -> str:
    """What is told of a database that was changed; each object of CHANGES, and no other."""
    for change in CHANGES:
        query(project.url, change)
    before = project.theirs(), objects(project.url)
    config = stack_config(project.url, tmp_path / "manifests", platform="supabase")
    with pytest.raises(InProcessError) as caught:
        run(config)
    told = str(caught.value)
    named = re.findall(r"^(\S.*)\n  expected: ", told, re.MULTILINE)
    assert named == sorted(CHANGES.values())
    assert (project.theirs(), objects(project.url)) == before
    assert (
        query(project.url, "select rolname from pg_roles where rolname = any(%s)", SERVICES) == []
    )
    return told


def test_what_the_combined_file_made_is_adopted(
    project: Hosted, postgres_bin: Path, tmp_path: Path
) -> None:
    assert psql(postgres_bin, project.url, combined(), tmp_path)[0] == 0
    theirs, made, catalog = project.theirs(), oids(project.url), objects(project.url)
    config = stack_config(project.url, tmp_path / "manifests", platform="supabase")
    result = run(config)
    assert [row for row in made if row not in oids(project.url)] == []
    assert objects(project.url) == catalog
    assert project.theirs() == theirs
    assert query(
        project.url, "select folder, count(*) from migrate.ledger group by 1 order by 1"
    ) == [
        ("migrations", len(sql_files("migrations"))),
        ("repeatable", len(sql_files("repeatable"))),
    ]
    psycopg.connect(result.outputs["service_database_urls"]["stripe_handler"]).close()
    assert run(config).changed == []


def test_what_is_not_what_the_files_make_is_refused_as_it_is(
    project: Hosted, postgres_bin: Path, tmp_path: Path
) -> None:
    assert psql(postgres_bin, project.url, combined(), tmp_path)[0] == 0
    told = refused(project, tmp_path)
    assert "objects are not as the files make them, and there is no ledger" in told
    assert "what to do: if an older release made the database" in told
    assert query(project.url, "select nspname from pg_namespace where nspname = 'migrate'") == []


def test_what_was_changed_behind_the_bundle_is_refused(
    project: Hosted, postgres_bin: Path, tmp_path: Path
) -> None:
    bundle = (ROOT / "sql" / "all-migrations.sql").read_text()
    assert psql(postgres_bin, project.url, bundle, tmp_path)[0] == 0
    assert "objects are not as the last run left them" in refused(project, tmp_path)
