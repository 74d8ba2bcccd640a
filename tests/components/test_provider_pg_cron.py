"""The jobs of pg_cron in the providers' host."""

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from embedded.postgres import Server
from tests.support.platforms import cron_server
from tests.support.provider_host import DIFF_NONE, DIFF_SOME, Stack, State

JOB = {"schedule": "0 0 * * *", "sql": "select 1"}


@pytest.fixture(scope="module")
def cron(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with pg_cron."""
    with cron_server(tmp_path_factory.mktemp("cron"), "postgres") as server:
        yield server


class TestPgCron:
    """The jobs of pg_cron, which on this server are in another database than ours."""

    @pytest.fixture
    def stack(self, project: Path, cron: Server) -> Iterator[Stack]:
        """A database on a server with pg_cron, and one job."""
        name = f"test_{secrets.token_hex(6)}"
        with psycopg.connect(cron.url(), autocommit=True) as connection:
            connection.execute(f"create database {name}".encode())
            yield Stack(project, cron.url(name), jobs={"one": JOB})
            connection.execute(f"drop database {name} with (force)".encode())

    def live(self, cron: Server, stack: Stack) -> set[tuple[Any, ...]]:
        database = conninfo_to_dict(stack.url)["dbname"]
        with psycopg.connect(cron.url()) as connection:
            return set(
                connection.execute(
                    "select jobname, schedule, command from cron.job where database = %s",
                    [database],
                )
            )

    def test_jobs_are_scheduled_changed_and_unscheduled(self, stack: Stack, cron: Server) -> None:
        group = f"mindroom.{conninfo_to_dict(stack.url)['dbname']}"
        with stack.host() as host:
            host.create("pg-cron")
            assert self.live(cron, stack) == {(f"{group}.one", "0 0 * * *", "select 1")}
            assert host.diff("pg-cron") == (DIFF_NONE, "")
            stack.jobs = {"two": JOB | {"schedule": "5 * * * *"}}
            assert host.diff("pg-cron") == (DIFF_SOME, "")
            host.update("pg-cron")
            assert self.live(cron, stack) == {(f"{group}.two", "5 * * * *", "select 1")}
            host.delete("pg-cron")
            assert self.live(cron, stack) == set()

    def test_refresh_shows_drift_by_name(self, stack: Stack, cron: Server) -> None:
        with stack.host() as host:
            host.create("pg-cron")
            assert host.refresh("pg-cron") == stack.state["pg-cron"]
            with psycopg.connect(cron.url(), autocommit=True) as connection:
                connection.execute(
                    "select cron.alter_job(jobid, command => 'select 2') from cron.job"
                )
            stack.state["pg-cron"] = host.refresh("pg-cron")
            found = {"one": JOB | {"sql": "select 2"}}
            assert stack.state["pg-cron"].inputs["jobs"] == found
            assert stack.state["pg-cron"].outputs["jobs"] == found
            assert host.diff("pg-cron") == (DIFF_SOME, "")
            host.update("pg-cron")
            assert host.refresh("pg-cron") == stack.state["pg-cron"]

    def test_schedule_that_is_none_is_told_and_changes_nothing(
        self, stack: Stack, cron: Server
    ) -> None:
        with stack.host() as host:
            host.create("pg-cron")
            before = self.live(cron, stack)
            stack.jobs = {"one": JOB | {"schedule": "now and then"}}
            assert "invalid schedule: now and then" in host.failure(host.update, "pg-cron")
        assert self.live(cron, stack) == before

    def test_no_jobs_need_no_pg_cron(self, applied: Stack) -> None:
        with applied.host() as host:
            host.create("pg-cron")
            assert host.diff("pg-cron") == (DIFF_NONE, "")
            assert host.refresh("pg-cron") == applied.state["pg-cron"]
            host.delete("pg-cron")

    def test_preview_tells_that_the_server_has_no_pg_cron(self, applied: Stack) -> None:
        with applied.host() as host:
            host.create("pg-cron")
            applied.jobs = {"one": JOB}
            for call in (host.diff, host.create, host.update):
                told = host.failure(call, "pg-cron")
                assert "the server has no pg_cron\n  what to do: install it" in told

    def test_preview_without_the_database_warns(self, offline: Stack) -> None:
        offline.jobs = {"one": JOB}
        with offline.host() as host:
            offline.state["pg-cron"] = State("jobs", {"jobs": {}}, {"jobs": {}})
            changes, told = host.diff("pg-cron")
        assert changes == DIFF_SOME
        assert told.startswith("warning: whether the server has pg_cron is not known: cannot conn")
