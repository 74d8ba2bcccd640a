"""A run is killed: what the next `pulumi up` does (docs/recovery.md)."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import psycopg
import pytest
from pulumi import automation

from components import PROJECT
from embedded.postgres import Server
from tests.support.engines import Project, changes, execute, make_project
from tests.support.platforms import own_server, stack_config
from tests.support.recovery import RENDERED, pulumi, whole

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not shutil.which("pulumi"), reason="needs the Pulumi CLI on PATH"),
]


LEFT: list[psutil.Process] = []
"""What killed runs had started: some of it waits for ever for who started it."""


@pytest.fixture(autouse=True, scope="module")
def _end_what_is_left() -> Iterator[None]:
    yield
    for process in LEFT:
        with suppress(psutil.NoSuchProcess):
            process.kill()


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
            LEFT.extend(everybody)
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
    assert "pending operations" not in whole(project).stdout


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


def test_killed_while_it_creates_a_role(project: Project, server: Server) -> None:
    execute(project.url, "drop owned by stripe_handler")
    execute(project.url, "drop role stripe_handler")
    kill(project, server, "CREATE ROLE", PULUMI, "--refresh", "--exclude", *RENDERED)
    result = goes_on_after_cancel(project)
    assert changes(result)["import"] == 1
    forgets_what_was_under_way(project)


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
