"""The real Pulumi engine on a stand-in of a hosted project that the combined file has made.

The tests are one life, from the first `up` to the `destroy`, on an old project (PostgreSQL 15,
which hands every new object to the API roles) and on a new one (18, which hands out none).
"""

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pulumi import automation

from components import PROJECT
from tests.support.engines import Project, changes, make_project, verification
from tests.support.migrating import objects, psql, query
from tests.support.platforms import PASSWORDS, Hosted, sql_files, stack_config, supabase
from tests.support.recovery import RENDERED, lose_state

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not shutil.which("pulumi"), reason="needs the Pulumi CLI on PATH"),
]

ROLES = list(PASSWORDS)
CONNECTIONS = 11
"""As a small session pooler would let in."""


@dataclass(frozen=True)
class Life:
    """A stack on a hosted project, and what was Supabase's before the first `up`."""

    project: Project
    hosted: Hosted
    theirs: dict[str, list[Any]]

    def set(self, key: str, value: str, **options: Any) -> None:
        self.project.stack.set_config(
            f"{PROJECT}:{key}", automation.ConfigValue(value, **options), path=True
        )


@pytest.fixture(scope="module")
def life(postgres_bin: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Life]:
    directory = tmp_path_factory.mktemp("engine")
    with supabase(postgres_bin, directory / "hosted", grants_all="15" in postgres_bin.parts) as it:
        files = [*sql_files("migrations"), *sql_files("repeatable")]
        script = "".join(path.read_text() for path in files)
        assert psql(postgres_bin, it.url, script, directory)[0] == 0
        query(it.superuser, f"alter role postgres connection limit {CONNECTIONS}")
        theirs = it.theirs()
        config = stack_config(
            it.url,
            directory / "manifests",
            platform="supabase",
            databaseConnections=CONNECTIONS,
            protect=True,
        )
        (directory / "project").mkdir()
        parallel = {"PULUMI_PARALLEL": "16"}  # as on four cores
        yield Life(make_project(directory / "project", config, it.url, **parallel), it, theirs)


def refusal(life: Life) -> str:
    """What an `up` says that fails."""
    with pytest.raises(automation.CommandError) as caught:
        life.project.up()
    assert "Traceback" not in str(caught.value)
    return str(caught.value)


def test_transaction_pooler_is_refused(life: Life) -> None:
    life.set("databasePort", "6543")
    try:
        told = refusal(life)
    finally:
        life.set("databasePort", str(life.project.config["databasePort"]))
    assert "mindroom:databasePort 6543 is Supabase's transaction pooler" in told
    assert "use the session mode port 5432" in told


def test_role_without_the_privilege_is_told_what_to_run_as(life: Life) -> None:
    query(life.hosted.superuser, "create role nobody login password 'nobody-s-password'")
    right = life.project.config["databaseUser"]
    life.set("databaseUser", right.replace("postgres", "nobody"))
    life.set("databasePassword", "nobody-s-password", secret=True)
    try:
        told = refusal(life)
    finally:
        life.set("databaseUser", right)
        life.set("databasePassword", life.project.config["databasePassword"], secret=True)
        query(life.hosted.superuser, "drop role nobody")
    print(told)
    assert "what to do: run as the role that owns the database" in told


def test_database_that_differs_is_refused_by_name_and_stays_as_it_is(life: Life) -> None:
    url = life.hosted.url
    query(url, "alter table public.accounts add column fax text")
    query(url, "drop index public.accounts_email_key")
    before = objects(url)
    told = refusal(life)
    assert "2 objects are not as the files make them, and there is no ledger" in told
    named = re.findall(r"^ *(\S.*)\n +expected: ", told, re.MULTILINE)
    assert set(named) == {"column public.accounts.fax", "index public.accounts_email_key"}
    assert (objects(url), life.hosted.theirs()) == (before, life.theirs)
    assert query(url, "select rolname from pg_roles where rolname = any(%s)", ROLES) == []
    query(url, "alter table public.accounts drop column fax")
    query(url, "create unique index accounts_email_key on public.accounts (lower(email))")


def test_equal_database_is_adopted(life: Life) -> None:
    before = objects(life.hosted.url)
    result = life.project.up()
    assert "adopted what psql had made" in result.stdout
    assert "applied " not in result.stdout
    assert objects(life.hosted.url) == before
    assert life.hosted.theirs() == life.theirs
    assert result.outputs["database"].value["platform"] == "supabase"
    types = {each["type"] for each in life.project.resources()}
    assert "postgresql:index/database:Database" not in types


def test_second_preview_and_up_change_nothing(life: Life) -> None:
    refreshed: Any = {"refresh": True, "exclude": RENDERED}  # asks for all grants at once
    assert set(changes(life.project.preview(expect_no_changes=True, **refreshed))) == {"same"}
    assert set(changes(life.project.up(expect_no_changes=True))) == {"same"}


def test_drift_is_named_and_refused(life: Life) -> None:
    query(life.hosted.url, "alter table public.api_keys disable row level security")
    try:
        assert "drift: table public.api_keys" in life.project.shown()
        shown = life.project.shown(refresh=True, target=[verification(life.project)])
        assert re.search(r"~ +table public\.api_keys *:", shown)
        assert re.search(r"table public\.api_keys\n +expected: .*row security t", refusal(life))
    finally:
        query(life.hosted.url, "alter table public.api_keys enable row level security")


def test_revoked_grant_is_shown_and_repaired(life: Life) -> None:
    query(life.hosted.url, "revoke update on public.subscriptions from stripe_handler")
    query(life.hosted.url, "grant platform_service to stripe_handler with admin option")
    (grant,) = (
        each["urn"]
        for each in life.project.resources()
        if each["urn"].endswith("::stripe_handler-public.subscriptions")
    )
    assert "UPDATE" in life.project.shown(refresh=True, target=[grant])
    (by_hand,) = (r["urn"] for r in life.project.resources() if r["type"].endswith("GivenByHand"))
    told = life.project.up(refresh=True, target=[grant, by_hand]).stdout
    assert "taken back from stripe_handler: membership in platform_service with admin" in told
    held = "select has_table_privilege('stripe_handler', 'public.subscriptions', 'UPDATE')"
    assert query(life.hosted.url, held) == [True]


def test_rotated_password_changes_its_role_only(life: Life) -> None:
    old = life.project.stack.outputs()["service_database_urls"].value["stripe_handler"]
    life.set("servicePasswords.stripe_handler", "another-password-for-it", secret=True)
    result = life.project.up()
    assert changes(result)["update"] == 1
    assert "another-password-for-it" not in result.stdout
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(old)
    psycopg.connect(result.outputs["service_database_urls"].value["stripe_handler"]).close()
    assert life.hosted.theirs() == life.theirs


def test_lost_state_is_made_again_from_what_is_there(life: Life) -> None:
    before = objects(life.hosted.url)
    query(life.hosted.url, "insert into auth.users (id, email) values (default, 'kept@x.test')")
    lose_state(life.project)
    query(life.hosted.url, "alter role stripe_handler password 'forgotten'")
    result = life.project.up()
    assert changes(result)["import"] == len(ROLES)
    assert set(changes(life.project.up())) == {"same"}
    for url in result.outputs["service_database_urls"].value.values():
        psycopg.connect(url).close()
    assert query(life.hosted.url, "select email from public.accounts") == ["kept@x.test"]
    assert objects(life.hosted.url) == before
    assert life.hosted.theirs() == life.theirs


def test_protected_stack_refuses_destroy(life: Life) -> None:
    with pytest.raises(automation.CommandError, match="protected"):
        life.project.stack.destroy(color="never")
    assert query(
        life.hosted.url, "select count(*) from pg_roles where rolname = any(%s)", ROLES
    ) == [len(ROLES)]


def test_destroy_leaves_the_data_and_all_that_is_supabase_s(life: Life) -> None:
    before = objects(life.hosted.url)
    life.set("protect", "false")
    life.project.up()
    life.project.stack.destroy(color="never")
    assert (
        query(life.hosted.url, "select rolname from pg_roles where rolname = any(%s)", ROLES) == []
    )
    assert life.hosted.theirs() == life.theirs
    assert objects(life.hosted.url) == before
    life.project.up()
    assert set(changes(life.project.preview(expect_no_changes=True))) == {"same"}
    assert life.hosted.theirs() == life.theirs
