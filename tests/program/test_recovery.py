"""What `pulumi up` does after an accident, by the real engine: docs/recovery.md has each.

The state is lost, a run is killed, the database or the cluster is not the one that the state knows.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import psycopg
import pytest
from pulumi import automation

from components import PROJECT
from components.authorization import SERVICES
from embedded.cluster import Cluster
from embedded.postgres import Server
from tests.support.engines import Project, changes, execute, live_catalog, make_project
from tests.support.platforms import emulate_supabase, own_server, stack_config

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not shutil.which("pulumi"), reason="needs the Pulumi CLI on PATH"),
]

RENDERED = ["**kubernetes**"]
"""What a refresh leaves out: there is no cluster to ask."""


@pytest.fixture(scope="module")
def server(postgres_bin: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with own_server(tmp_path_factory.mktemp("recovery"), postgres_bin) as started:
        yield started


@pytest.fixture(scope="module")
def project(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A platform with a customer; each test leaves it whole."""
    directory = tmp_path_factory.mktemp("project")
    url = server.url("mindroom")
    made = make_project(directory, stack_config(url, directory / "manifests"), url)
    made.up()
    execute(url, "insert into auth.users (id, email) values (default, 'kept@x.test')")
    return made


def whole(project: Project) -> None:
    """The platform is as declared, its customer is there, and every service can log in."""
    assert set(changes(project.up())) == {"same"}
    with psycopg.connect(project.url) as connection:
        assert connection.execute("select email from public.accounts").fetchall() == [
            ("kept@x.test",)
        ]
    for url in project.stack.outputs()["service_database_urls"].value.values():
        psycopg.connect(url).close()


def pulumi(project: Project, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line, as an operator has it."""
    return subprocess.run(
        ["pulumi", *arguments, "--stack", "test", "--non-interactive"],
        cwd=project.directory,
        env=os.environ | dict(project.stack.workspace.env_vars),
        capture_output=True,
        text=True,
        check=False,
    )


def lose_state(project: Project) -> None:
    shutil.rmtree(project.directory / "backend" / ".pulumi")
    pulumi(project, "stack", "init").check_returncode()


# --- the state is lost ------------------------------------------------------------------------


def test_lost_state_is_made_again_from_what_is_there(project: Project) -> None:
    before = live_catalog(project.url)
    lose_state(project)
    execute(project.url, "alter role stripe_handler connection limit 3 password 'forgotten'")
    execute(project.url, "revoke update on public.subscriptions from stripe_handler")
    assert changes(project.preview())["import"] == 1 + len(SERVICES)
    assert changes(project.up())["import"] == 1 + len(SERVICES)
    assert live_catalog(project.url) == before
    with psycopg.connect(project.url) as connection:
        found = connection.execute(
            """select rolconnlimit, has_table_privilege(oid, 'public.subscriptions', 'update')
               from pg_roles where rolname = 'stripe_handler'"""
        ).fetchone()
    assert found == (SERVICES["stripe_handler"].connection_limit, True)
    whole(project)


def test_a_database_that_would_have_to_be_made_anew_is_left_alone(
    project: Project, server: Server
) -> None:
    lose_state(project)
    for statement in (
        "alter database mindroom rename to kept",
        "create database mindroom encoding 'LATIN1' locale 'C' template template0",
    ):
        execute(server.url(), statement)
    with pytest.raises(automation.CommandError, match=r"may not be replaced(.|\n)*LATIN1"):
        project.up()
    for statement in ("drop database mindroom", "alter database kept rename to mindroom"):
        execute(server.url(), statement)
    lose_state(project)
    project.up()
    whole(project)


def test_lost_state_of_a_hosted_project(postgres_bin: Path, tmp_path: Path) -> None:
    directory = tmp_path / "project"
    directory.mkdir()
    with own_server(tmp_path, postgres_bin, "supabase_admin") as server:
        url = emulate_supabase(server, grants_all=True)
        config = stack_config(url, directory / "manifests", platform="supabase", protect=True)
        hosted = make_project(directory, config, url)
        hosted.up()
        execute(url, "insert into auth.users (id, email) values (default, 'kept@x.test')")
        lose_state(hosted)
        execute(url, "alter role stripe_handler password 'forgotten'")
        assert changes(hosted.up())["import"] == len(SERVICES)
        whole(hosted)


# --- a run is killed --------------------------------------------------------------------------


def kill(project: Project, server: Server, query: str, victim: str, *options: str) -> None:
    """Run `up`, and kill a process of it while the server is busy with a query.

    Args:
        project: whose `up`.
        server: its server.
        query: the begin of the query, which by itself would take a moment only.
        victim: in the command line of who is killed.
        options: of `up`.
    """
    up = psutil.Popen(
        ["pulumi", "up", "--yes", "--skip-preview", "--stack", "test", *options],
        cwd=project.directory,
        env=os.environ | dict(project.stack.workspace.env_vars),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 180
    shared = {
        "CREATE DATABASE": "pg_database",
        "CREATE ROLE": "pg_authid",
        "ALTER ROLE": "pg_authid",
    }
    with psycopg.connect(server.url(), autocommit=True) as watcher:

        def busy() -> bool:
            found = watcher.execute(
                "select from pg_stat_activity where query like %s and state = 'active'",
                [f"%{query}%"],
            )
            return bool(found.fetchall())

        def wait(wanted: bool) -> None:
            while busy() != wanted:
                assert time.monotonic() < deadline
                assert not wanted or up.poll() is None
                time.sleep(0.05)

        with psycopg.connect(server.url()) as other:
            if query in shared:  # nobody writes to this table, which all databases share
                other.execute(f"lock table pg_catalog.{shared[query]} in share mode".encode())
            wait(True)
            everybody = (up, *up.children(recursive=True))
            (found,) = (each for each in everybody if victim in " ".join(each.cmdline()[:4]))
            found.kill()
        up.wait(timeout=120)
        wait(False)


def goes_on_after_cancel(project: Project) -> automation.UpResult:
    """What the next `up` says of the lock that is left, and the one after it does."""
    with pytest.raises(automation.CommandError, match="delete the lock file with `pulumi cancel`"):
        project.up()
    pulumi(project, "cancel", "--yes").check_returncode()
    return project.up()


def forgets_what_was_under_way(project: Project) -> None:
    assert "pending operations" in project.up().stdout
    options = ("--yes", "--clear-pending-creates", "--target", "**pulumi:pulumi:Stack**")
    pulumi(project, "refresh", *options).check_returncode()
    assert "pending operations" not in project.up().stdout


PULUMI = "pulumi up"
POSTGRES_PLUGIN = "pulumi-resource-postgresql"
PYTHON_PROVIDER = "pulumi.dynamic"


def test_killed_while_it_creates_the_database(postgres_bin: Path, tmp_path: Path) -> None:
    directory = tmp_path / "project"
    directory.mkdir()
    with own_server(tmp_path, postgres_bin) as server:
        url = server.url("mindroom")
        started = make_project(directory, stack_config(url, directory / "manifests"), url)
        kill(started, server, "CREATE DATABASE", PULUMI)
        assert changes(goes_on_after_cancel(started))["import"] == 1
        forgets_what_was_under_way(started)


def test_killed_while_it_creates_a_role(project: Project, server: Server) -> None:
    execute(project.url, "drop owned by stripe_handler")
    execute(project.url, "drop role stripe_handler")
    kill(project, server, "CREATE ROLE", PULUMI, "--refresh", "--exclude", *RENDERED)
    result = goes_on_after_cancel(project)
    assert changes(result)["import"] == 1
    forgets_what_was_under_way(project)
    whole(project)


def rotate(project: Project, word: str) -> None:
    path = f"{PROJECT}:servicePasswords.stripe_handler"
    project.stack.set_config(path, automation.ConfigValue(word, secret=True), path=True)


def test_killed_while_it_alters_a_role(project: Project, server: Server) -> None:
    rotate(project, "the first of two passwords")
    kill(project, server, "ALTER ROLE", PULUMI)
    assert changes(goes_on_after_cancel(project))["update"] == 1
    whole(project)


def test_killed_plugin_of_a_role(project: Project, server: Server) -> None:
    rotate(project, "the second of two passwords")
    kill(project, server, "ALTER ROLE", POSTGRES_PLUGIN)
    assert changes(project.up())["update"] == 1
    whole(project)


@pytest.mark.parametrize("victim", [PULUMI, PYTHON_PROVIDER])
def test_killed_in_a_migration(project: Project, server: Server, victim: str) -> None:
    folder = project.directory / "sql" / "migrations"
    name = f"{len(list(folder.glob('*.sql'))) + 1:04d}_slow.sql"
    project.migration(name, "select pg_sleep(3);\n")
    kill(project, server, "pg_sleep(3)", victim)
    if victim == PULUMI:
        goes_on_after_cancel(project)
    else:
        project.up()
    with psycopg.connect(project.url) as connection:
        rows = connection.execute("select name from migrate.ledger where name = %s", [name])
        assert rows.fetchall() == [(name,)]
    whole(project)


# --- the database is another one than the state knows -----------------------------------------


def restore(server: Server, postgres_bin: Path, backup: Path) -> None:
    execute(server.url(), "drop database if exists mindroom with (force)")
    command = [f"{postgres_bin}/pg_restore", "--create", f"--dbname={server.url()}", str(backup)]
    subprocess.run(command, check=True)


def back_up(url: str, postgres_bin: Path, backup: Path) -> None:
    command = [f"{postgres_bin}/pg_dump", "--format=custom", f"--file={backup}", url]
    subprocess.run(command, check=True)


def todays_release(project: Project) -> Path:
    """A table that stripe_handler may read; returns its migration."""
    count = len(list((project.directory / "sql" / "migrations").glob("*.sql")))
    path = project.migration(
        f"{count + 1:04d}_today.sql",
        "create table public.today (id int primary key);\n"
        "comment on table public.today is 'Of today''s release.';\n"
        "alter table public.today enable row level security;\n"
        "revoke all on public.today from public, anon, authenticated, service_role;\n",
    )
    authorization = project.directory / "components" / "authorization.py"
    before = authorization.read_text()
    first = '"public.accounts": {'
    row = '"public.today": {"stripe_handler": READ},'
    authorization.write_text(before.replace(first, f"{row} {first}", 1))
    assert authorization.read_text() != before
    return path


def refreshed(project: Project) -> automation.UpResult:
    return project.up(refresh=True, exclude=RENDERED)


def test_restored_from_yesterdays_backup(
    project: Project, server: Server, postgres_bin: Path, tmp_path: Path
) -> None:
    backup, authorization = (
        tmp_path / "backup",
        project.directory / "components" / "authorization.py",
    )
    yesterday = authorization.read_text()
    back_up(project.url, postgres_bin, backup)
    path = todays_release(project)
    project.up()
    execute(server.url(), "drop database mindroom with (force)")
    with pytest.raises(automation.CommandError, match='database "mindroom" does not exist'):
        project.up()
    restore(server, postgres_bin, backup)
    for run in (project.preview, project.up):
        with pytest.raises(automation.CommandError, match="up --refresh") as caught:
            run()
        assert f"the stack's state has {path.name}, and the database has not" in str(caught.value)
    engine = ("-m", "migrate", "--database-url", project.url, "up")
    subprocess.run([sys.executable, *engine], cwd=project.directory, check=True)
    refreshed(project)
    with psycopg.connect(
        project.stack.outputs()["service_database_urls"].value["stripe_handler"]
    ) as c:
        c.execute("select from public.today")
    whole(project)

    # Today's release was the reason, and is taken back.
    restore(server, postgres_bin, backup)
    path.unlink()
    authorization.write_text(yesterday)
    with pytest.raises(automation.CommandError, match="up --refresh") as caught:
        project.up()
    assert f"{path.name}: was applied" in str(caught.value)
    refreshed(project)
    with pytest.raises(automation.CommandError, match=r'relation "public.today" does not exist'):
        project.up()
    (grant,) = (r["urn"] for r in project.resources() if r["urn"].endswith("-public.today"))
    pulumi(project, "state", "delete", grant, "--yes").check_returncode()
    project.up()
    whole(project)


def test_moved_to_another_server(
    project: Project, server: Server, postgres_bin: Path, tmp_path: Path
) -> None:
    key = f"{PROJECT}:databasePort"
    with own_server(tmp_path, postgres_bin) as other:
        try:
            command = [f"{postgres_bin}/pg_dumpall", "--globals-only", f"--dbname={server.url()}"]
            everyone = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            with psycopg.connect(other.url(), autocommit=True) as connection:
                for line in everyone.splitlines():
                    if line.startswith(
                        ("CREATE ROLE", "ALTER ROLE", "GRANT")
                    ) and not line.startswith("CREATE ROLE postgres"):
                        connection.execute(line.encode())
            back_up(project.url, postgres_bin, tmp_path / "backup")
            restore(other, postgres_bin, tmp_path / "backup")
            project.stack.set_config(key, automation.ConfigValue(str(other.port)))
            told = project.up().stdout
            assert not re.findall(r"postgresql:.* (?:replac|delet|creat)", told)
            for each in project.stack.outputs()["service_database_urls"].value.values():
                assert f":{other.port}/" in each
                psycopg.connect(each).close()
        finally:
            project.stack.set_config(key, automation.ConfigValue(str(server.port)))
            project.up()
    whole(project)


def test_a_role_that_is_gone_is_told_and_made_again(project: Project) -> None:
    execute(project.url, "drop owned by stripe_handler")
    execute(project.url, "drop role stripe_handler")
    with pytest.raises(automation.CommandError, match="up --refresh") as caught:
        project.up()
    assert "the role stripe_handler, and the server has not" in str(caught.value)
    refreshed(project)
    whole(project)


# --- the ledger is deleted --------------------------------------------------------------------


def test_a_deleted_ledger_is_written_again(project: Project) -> None:
    execute(project.url, "drop schema migrate cascade")
    result = project.up()
    assert "equal to what the files make: a run only records that" in result.stdout
    assert "applied migrations/" not in result.stdout
    whole(project)


def test_a_deleted_ledger_of_what_was_changed_is_refused(project: Project) -> None:
    execute(project.url, "drop schema migrate cascade")
    execute(project.url, "alter table public.api_keys add column extra text")
    with pytest.raises(automation.CommandError) as caught:
        project.up()
    assert re.search(
        r"column public\.api_keys\.extra\s+expected: \(absent\)\s+found: +text", str(caught.value)
    )
    execute(project.url, "alter table public.api_keys drop column extra")
    project.up()
    whole(project)


@pytest.mark.parametrize("which", ["min", "max"])
def test_deleted_rows_of_the_ledger_are_told(project: Project, which: str) -> None:
    row = f"(select {which}(name) from migrate.ledger where folder = 'migrations')"
    execute(project.url, f"delete from migrate.ledger where name = {row}")
    with pytest.raises(
        automation.CommandError, match=r"state has \d+_\w+\.sql, and the database has"
    ):
        project.up()
    execute(project.url, "drop schema migrate cascade")
    project.up()
    whole(project)


# --- the cluster is built anew ----------------------------------------------------------------


def test_rebuilt_cluster(
    postgres_bin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "project"
    directory.mkdir()
    cluster = Cluster(tmp_path / "cluster")
    ready = ("get", "deployments", "-n", "mindroom", "-o", "jsonpath={..readyReplicas}")
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    with own_server(tmp_path, postgres_bin) as server, ExitStack() as stack:
        stack.callback(cluster.destroy)
        cluster.start()
        url = server.url("mindroom")
        to = {"kubernetesContext": cluster.context, "renderDirectory": ""}
        project = make_project(directory, stack_config(url, directory, **to), url)
        project.up()
        assert set(changes(project.up())) == {"same", "read"}
        cluster.destroy()
        cluster.start()
        for run in (project.preview, project.up):
            with pytest.raises(automation.CommandError) as caught:
                run()
            assert "namespace-on-the-cluster" in str(caught.value)
            assert "'mindroom-instances' does not exist" in str(caught.value)
        project.up(refresh=True)
        assert cluster.kubectl(*ready) == "2"
        assert set(changes(project.preview(expect_no_changes=True, refresh=True))) == {
            "same",
            "read",
        }

        # What is on a cluster is taken over where the operator says so, and else left alone.
        lose_state(project)
        with pytest.raises(automation.CommandError) as caught:
            project.up()
        assert '"mindroom-instances" already exists' in str(caught.value)
        assert "upsertExistingObjects" in str(caught.value)
        monkeypatch.setenv("PULUMI_K8S_UPSERT_EXISTING_OBJECTS", "true")
        project.up()
        monkeypatch.delenv("PULUMI_K8S_UPSERT_EXISTING_OBJECTS")
        assert set(changes(project.preview(expect_no_changes=True, refresh=True))) == {
            "same",
            "read",
        }
        assert cluster.kubectl(*ready) == "2"
