"""Automation: the jobs that the database needs, and who runs them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pulumi
from pulumi.dynamic import CreateResult, DiffResult, ReadResult, Resource, UpdateResult

from components import PROJECT, ROOT
from components.providers import pg_cron
from components.session import DatabaseProvider
from migrate.errors import UnreachableError

Scheduler = Literal["pg_cron", "kubernetes", "none"]

Jobs = Mapping[str, Mapping[str, str]]
"""Job -> its `schedule` (cron syntax, UTC) and `sql`, what it runs."""

SCHEDULES: Mapping[str, str] = {
    "reset_daily_usage": "0 0 * * *",
    "calculate_storage_usage": "10 * * * *",
    "cleanup_expired_data": "30 2 * * *",
    "auto_pause_inactive_instances": "40 */6 * * *",
    "follow_subscriptions": "20 * * * *",
}
"""Job -> when it runs: cron syntax, UTC.  What it runs is in sql/jobs/, a file of that name."""


def jobs() -> Jobs:
    """Every job."""
    return {
        name: {"schedule": schedule, "sql": (ROOT / "sql" / "jobs" / f"{name}.sql").read_text()}
        for name, schedule in SCHEDULES.items()
    }


class PgCronProvider(DatabaseProvider):
    """Keeps the platform's jobs in pg_cron as declared; the only input is `jobs`."""

    def diff(self, _id: str, olds: dict[str, Any], news: dict[str, Any]) -> DiffResult:
        """Compare with the last state; jobs to come need a server that has pg_cron.

        Raises:
            MigrateError: it has no pg_cron.
        """
        changes = olds["jobs"] != news["jobs"]
        if changes and news["jobs"]:
            try:
                with self.session() as session:
                    pg_cron.require(session)
            except UnreachableError as error:
                print(f"warning: whether the server has pg_cron is not known: {error}")
        return DiffResult(changes=changes)

    def create(self, props: dict[str, Any]) -> CreateResult:
        """Make pg_cron's jobs as declared; those that exist are adopted."""
        return CreateResult("jobs", self._sync(props))

    def update(self, _id: str, _olds: dict[str, Any], news: dict[str, Any]) -> UpdateResult:
        """The same as create."""
        return UpdateResult(self._sync(news))

    def delete(self, _id: str, _props: dict[str, Any]) -> None:
        """Unschedule every job: a schedule holds nothing that could be lost."""
        self._sync({"jobs": {}})

    def _sync(self, props: dict[str, Any]) -> dict[str, Any]:
        with self.session() as session:
            pg_cron.sync(session, PROJECT, props["jobs"])
        return props

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        """The jobs as pg_cron has them, as both inputs and outputs, so that drift is a diff."""
        with self.session() as session:
            live = props | {"jobs": pg_cron.read(session, PROJECT)}
        return ReadResult(id_, live, live)


class PgCron(Resource, module="automation", name="PgCron"):
    """The platform's jobs in pg_cron."""

    def __init__(self, name: str, jobs: Jobs, opts: pulumi.ResourceOptions) -> None:
        super().__init__(PgCronProvider(), name, {"jobs": jobs}, opts)


@dataclass(frozen=True)
class AutomationArgs:
    """Arguments of Automation.

    Attributes:
        scheduler: who runs the jobs.
    """

    scheduler: Scheduler


class Automation(pulumi.ComponentResource):
    """The platform's jobs, by the scheduler that the stack names.

    pg_cron's are always declared: none where another one runs them, so that a change of the
    scheduler leaves no job behind, whatever the state knows.

    Attributes:
        kubernetes: the jobs that the provisioner's chart runs.
        description: the scheduler, and job -> schedule, for who depends on them.
    """

    kubernetes: Jobs
    description: dict[str, Any]

    def __init__(
        self, name: str, args: AutomationArgs, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("mindroom:automation:Automation", name, None, opts)
        PgCron(
            "pg-cron",
            jobs() if args.scheduler == "pg_cron" else {},
            pulumi.ResourceOptions(parent=self),
        )
        self.kubernetes = jobs() if args.scheduler == "kubernetes" else {}
        self.description = {
            "scheduler": args.scheduler,
            "jobs": {} if args.scheduler == "none" else dict(SCHEDULES),
        }
        self.register_outputs({"description": self.description})
