"""The database's jobs: by pg_cron, really firing, and as the CronJobs' pods run them.

pg_cron has no interval below a minute on Debian 12, so all servers that wait for it wait for the
same minute.  Each is another way in which pg_cron comes: in the platform's own database, in another
one, and on a stand-in of Supabase, whose administrator is no superuser.
"""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from components import PROJECT, ROOT
from components.automation import SCHEDULES, PgCronProvider, jobs
from components.database_target import DatabaseTarget
from components.providers import pg_cron
from dev.in_process import InProcessError
from embedded.postgres import Server
from migrate import catalog
from migrate.connection import connect
from migrate.errors import MigrateError
from tests.support.customers import ANN, BOB, TODAY, Db, add_instance
from tests.support.platforms import Platform, cron_server, emulate_supabase, run, stack_config

FLAGGED_DAYS = 300
EXPIRED = 12_000
GIGABYTES = 3

UNDONE = (FLAGGED_DAYS, 0, EXPIRED, "running")
DONE = (0, GIGABYTES, 0, "stopped")


@contextmanager
def work_to_do(url: str) -> Iterator[Db]:
    """Something to do for every job, as after months of absence; removed afterwards."""
    with psycopg.connect(url, autocommit=True) as connection:
        db = Db(connection)
        for each, tier in ((ANN, "enterprise"), (BOB, "free")):
            db.sign_up(each, each.email)
            db.insert("subscriptions", id=each.subscription, account_id=each.account, tier=tier)
        add_instance(db, ANN, "ann", id=ANN.instance, status="running", storage_used_gb=GIGABYTES)
        add_instance(db, BOB, "bob", id=BOB.instance, status="running", created_at="2026-01-01")
        db.run(
            f"""insert into usage_metrics (account_id, instance_id, usage_date, limit_exceeded)
                select %s, %s, {TODAY} - n, true from generate_series(1, {FLAGGED_DAYS}) n""",
            ANN.account,
            ANN.instance,
        )
        db.run(
            f"""insert into audit_logs (action, category, created_at)
                select 'thing.done', 'test', '2020-01-01' from generate_series(1, {EXPIRED})"""
        )
        assert found(db) == UNDONE
        try:
            yield db
        finally:
            for status in ("deprovisioning", "deprovisioned"):
                db.run("update instances set status = %s", status)
            db.run("delete from auth.users")
            db.run("delete from audit_logs")


def found(db: Db) -> tuple[Any, ...]:
    """What is left to do for each job."""
    [row] = db.run(
        """select (select count(*) from usage_metrics where limit_exceeded),
                  (select storage_used_gb from subscriptions where id = %s),
                  (select count(*) from audit_logs where action = 'thing.done'),
                  (select status from instances where id = %s)""",
        ANN.subscription,
        BOB.instance,
    )
    return row


# ---- by pg_cron


@dataclass(frozen=True)
class Scheduled:
    """A platform whose jobs pg_cron runs.

    Attributes:
        home: the administrator's URL of the database in which pg_cron has its jobs.
    """

    platform: Platform
    home: str

    @property
    def database(self) -> str:
        return str(self.platform.config["databaseName"])

    def execute(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """In pg_cron's database."""
        with psycopg.connect(self.home, autocommit=True) as connection:
            cursor = connection.execute(query.encode(), values or None)
            return cursor.fetchall() if cursor.description else []

    def jobs(self) -> set[tuple[Any, ...]]:
        return set(
            self.execute(
                "select jobname, schedule, command, database, username, active from cron.job"
            )
        )

    def declared(self) -> set[tuple[Any, ...]]:
        user = self.platform.config["databaseUser"]
        return {
            (f"{PROJECT}.{self.database}.{name}", *job.values(), self.database, user, True)
            for name, job in jobs().items()
        }

    def provider(self) -> PgCronProvider:
        """The provider, on this platform's database."""
        provider = PgCronProvider()
        provider.target = DatabaseTarget.read(self.platform.config.get)
        return provider


def bring_up(url: str, home: str, manifests: Path, **changes: str) -> Scheduled:
    config = stack_config(url, manifests, automation="pg_cron", **changes)
    return Scheduled(Platform(url, config, run(config)), home)


@pytest.fixture(scope="module")
def platforms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Scheduled]]:
    with ExitStack() as stack:

        def new(name: str, home: str, superuser: str = "postgres") -> tuple[Server, Path]:
            directory = tmp_path_factory.mktemp(name)
            return stack.enter_context(cron_server(directory, home, superuser)), directory

        made = {}
        server, directory = new("own", "mindroom")
        url = server.url("mindroom")
        made["own database"] = bring_up(url, url, directory)
        server, directory = new("another", "postgres")
        url = server.url("mindroom")
        made["another database"] = bring_up(url, server.url(), directory)
        server, directory = new("supabase", "postgres", "supabase_admin")
        url = emulate_supabase(server, grants_all=False)
        with psycopg.connect(server.url(), autocommit=True) as connection:
            for statement in (  # as its image's script for this extension says
                "create extension pg_cron with schema pg_catalog",
                "grant usage on schema cron to postgres with grant option",
                "grant all on all functions in schema cron to postgres with grant option",
                "grant all on all tables in schema cron to postgres with grant option",
                "revoke all on table cron.job from postgres",
                "grant select on table cron.job to postgres with grant option",
            ):
                connection.execute(statement.encode())
        made["supabase"] = bring_up(url, url, directory, platform="supabase")
        yield made


RUNS = f"""
    select jobname, status, return_message from cron.job_run_details join cron.job using (jobid)
     where starts_with(jobname::text, '{PROJECT}.') and runid > 0
       and status in ('succeeded', 'failed')"""

LOGGED, KEPT = 1500, 1000
LOG = """
    select count(*) filter (where jobname <> 'another'), count(*) filter (where jobname = 'another')
      from cron.job_run_details join cron.job using (jobid)"""


@dataclass(frozen=True)
class Fired:
    """What came of a platform's jobs when they had been due.

    Attributes:
        db: the platform's database.
        runs: name, status and message of each run.
        log: how many runs of the platform's jobs are logged, and how many of another's.
    """

    db: Db
    runs: list[tuple[Any, ...]]
    log: tuple[int, int]


@pytest.fixture(scope="module")
def all_fired(platforms: dict[str, Scheduled]) -> Iterator[dict[str, Fired]]:
    """Every platform's jobs, declared by the very same code but for their schedules."""
    every_minute = {name: {**job, "schedule": "* * * * *"} for name, job in jobs().items()}
    done = {}
    if time.time() % 60 > 45:  # nothing is to fire before all is prepared
        time.sleep(60 - time.time() % 60)
    with ExitStack() as stack:
        for name, each in platforms.items():
            db = stack.enter_context(work_to_do(each.platform.url))
            each.provider().update("jobs", {"jobs": jobs()}, {"jobs": every_minute})
            each.execute("select cron.schedule('another', '0 0 1 1 *', 'select 1')")
            each.execute(
                f"""insert into cron.job_run_details (jobid, runid)
                    select min(jobid), -n from cron.job, generate_series(1, {LOGGED}) n
                     where jobname <> 'another' group by n
                    union all
                    select jobid, -100000 from cron.job where jobname = 'another'"""
            )
            done[name] = db
        deadline = time.monotonic() + 90
        for name, each in platforms.items():
            while len({job for job, _, _ in each.execute(RUNS)}) < len(SCHEDULES):
                assert time.monotonic() < deadline, (name, each.execute(RUNS))
                time.sleep(0.2)
        yield {
            name: Fired(done[name], each.execute(RUNS), each.execute(LOG)[0])
            for name, each in platforms.items()
        }


@pytest.fixture(params=["own database", "another database", "supabase"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def scheduled(platforms: dict[str, Scheduled], name: str) -> Scheduled:
    return platforms[name]


def test_pg_cron_has_the_jobs_that_the_outputs_name(scheduled: Scheduled) -> None:
    assert scheduled.jobs() == scheduled.declared()
    automation = scheduled.platform.result.outputs["automation"]
    assert automation == {"scheduler": "pg_cron", "jobs": SCHEDULES}


def test_second_run_changes_nothing_and_sees_no_drift(scheduled: Scheduled) -> None:
    # The verification is among what it runs: pg_cron's own objects are none of the catalog's.
    again = run(scheduled.platform.config)
    assert again.changed == []
    assert again.outputs == scheduled.platform.result.outputs


def test_pg_crons_objects_are_not_in_the_catalog(scheduled: Scheduled, platform: Platform) -> None:
    with connect(scheduled.platform.url) as connection:
        objects = catalog.read(connection)
    with connect(platform.url) as connection:
        plain = catalog.read(connection)
    assert [name for name in objects if "cron" in name] == []
    ours = {name for name in objects | plain if "public." in name or "private." in name}
    ours = {name for name in ours if "publication" not in name}  # which is Supabase's
    assert {name: objects.get(name) for name in ours} == {name: plain.get(name) for name in ours}


@pytest.mark.parametrize(
    "change",
    [
        "select cron.unschedule(jobid) from cron.job where jobname like '%reset%'",
        "select cron.alter_job(jobid, schedule => '1 1 1 1 1') from cron.job where jobid % 2 = 0",
        "select cron.alter_job(jobid, command => 'select 1') from cron.job",
        "select cron.alter_job(jobid, active => false) from cron.job",
        """select cron.schedule_in_database(
             replace(jobname, 'reset', 'added'), schedule, command, database) from cron.job""",
    ],
    ids=["unscheduled", "at another time", "another command", "inactive", "added"],
)
def test_what_was_changed_by_hand_is_shown_and_repaired(scheduled: Scheduled, change: str) -> None:
    provider, inputs = scheduled.provider(), {"jobs": jobs()}
    assert provider.read("jobs", inputs).inputs == inputs
    scheduled.execute(change)
    live = provider.read("jobs", inputs)
    assert live.outs is not None
    assert live.inputs == live.outs != inputs
    assert provider.diff("jobs", live.outs, inputs).changes
    provider.update("jobs", live.outs, inputs)
    assert provider.read("jobs", inputs).inputs == inputs
    assert scheduled.jobs() == scheduled.declared()


def test_in_process_run_repairs_it_too(platforms: dict[str, Scheduled]) -> None:
    scheduled = platforms["own database"]
    scheduled.execute("select cron.unschedule(jobid) from cron.job")
    assert run(scheduled.platform.config).changed == ["pg-cron"]
    assert scheduled.jobs() == scheduled.declared()


@pytest.mark.parametrize("scheduler", ["kubernetes", "none"])
def test_another_scheduler_leaves_no_job_of_ours(
    platforms: dict[str, Scheduled], scheduler: str
) -> None:
    scheduled = platforms["another database"]
    others = [
        ("another", "postgres"),  # nobody's
        (f"{PROJECT}.staging.reset_daily_usage", "postgres"),  # of another platform
        (f"{PROJECT}.{scheduled.database}.eu.reset_daily_usage", "postgres"),
    ]
    for job, database in others:
        scheduled.execute(
            "select cron.schedule_in_database(%s, '0 0 1 1 *', 'select 1', %s)", job, database
        )
    result = run(scheduled.platform.config | {"automation": scheduler})
    assert "pg-cron" in result.changed
    assert result.outputs["automation"]["scheduler"] == scheduler
    assert {(job, database) for job, _, _, database, _, _ in scheduled.jobs()} == set(others)
    assert "pg-cron" in run(scheduled.platform.config).changed
    for job, _ in others:
        scheduled.execute("select cron.unschedule(%s)", job)
    assert scheduled.jobs() == scheduled.declared()


def test_destroy_unschedules_and_leaves_no_log(scheduled: Scheduled) -> None:
    [[number]] = scheduled.execute("select min(jobid) from cron.job")
    scheduled.execute("insert into cron.job_run_details (jobid, runid) values (%s, -1)", number)
    provider = scheduled.provider()
    provider.delete("jobs", {"jobs": jobs()})
    assert scheduled.jobs() == set()
    assert scheduled.execute("select from cron.job_run_details where jobid = %s", number) == []
    provider.delete("jobs", {"jobs": jobs()})
    provider.create({"jobs": jobs()})
    assert scheduled.jobs() == scheduled.declared()


def test_server_without_pg_cron_is_told_with_what_to_do(platform: Platform) -> None:
    with pytest.raises(InProcessError) as caught:
        run(platform.config | {"automation": "pg_cron"})
    assert str(caught.value) == (
        "pg-cron: the server has no pg_cron\n  what to do: install it (on Debian the package "
        "postgresql-NN-cron), add it to shared_preload_libraries and restart the server; or choose "
        "another scheduler than pg_cron"
    )


def test_name_that_pg_cron_would_cut_off_is_refused(platforms: dict[str, Scheduled]) -> None:
    scheduled = platforms["own database"]
    job = {
        "x" * (pg_cron.LONGEST_NAME - len(f"{PROJECT}.mindroom.") + 1): jobs()["reset_daily_usage"]
    }
    with (
        connect(scheduled.platform.url) as connection,
        pytest.raises(MigrateError, match="give the database a shorter name"),
    ):
        pg_cron.sync(connection, PROJECT, job)
    assert scheduled.jobs() == scheduled.declared()


def test_every_job_fires_and_does_its_work(all_fired: dict[str, Fired], name: str) -> None:
    fired = all_fired[name]
    assert {status for _, status, _ in fired.runs} == {"succeeded"}, fired.runs
    assert {job.rpartition(".")[2] for job, _, _ in fired.runs} == set(SCHEDULES)
    assert found(fired.db) == DONE


def test_log_of_runs_does_not_grow_for_ever(all_fired: dict[str, Fired], name: str) -> None:
    ours, others = all_fired[name].log
    assert others == 1
    if name == "another database":
        assert ours >= LOGGED  # the server's, not ours to clean
    else:
        assert KEPT <= ours <= KEPT + 2 * len(SCHEDULES)


# ---- as the CronJobs' pods run them


@dataclass(frozen=True)
class Pod:
    """What a CronJob starts, on this machine.

    Attributes:
        command: with the ConfigMap's files where the manifest mounts them.
    """

    command: list[str]

    def run(self, url: str) -> tuple[int, dict[str, Any]]:
        """The exit code, and the one line that it logs."""
        done = subprocess.run(
            self.command,
            cwd=ROOT,
            env={"DATABASE_URL": url},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.stderr == ""
        (line,) = done.stdout.splitlines()
        return done.returncode, json.loads(line)


@pytest.fixture(scope="module")
def pods(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pod]:
    """Job -> its pod, out of the manifests that the stack rendered."""
    mounted = tmp_path_factory.mktemp("jobs")
    found = {}
    for path in sorted(Path(platform.config["renderDirectory"]).rglob("*.yaml")):
        manifest = yaml.safe_load(path.read_text())
        if manifest["metadata"]["name"] == "instance-provisioner-jobs" and "data" in manifest:
            for name, text in manifest["data"].items():
                (mounted / name).write_text(text)
        if manifest["kind"] == "CronJob":
            pod = manifest["spec"]["jobTemplate"]["spec"]["template"]["spec"]
            program, *arguments, file = pod["containers"][0]["command"]
            assert program == "python"
            command = [sys.executable, *arguments, str(mounted / Path(file).name)]
            found[Path(file).stem] = Pod(command)
            assert manifest["spec"]["schedule"] == SCHEDULES[Path(file).stem]
    assert found.keys() == SCHEDULES.keys()
    return found


@pytest.fixture
def db(platform: Platform) -> Iterator[Db]:
    with work_to_do(platform.url) as db:
        yield db


def at_once(pod: Pod, url: str, times: int = 4) -> list[dict[str, Any]]:
    """What several pods of a job log that begin at the same time; none may fail."""
    with ThreadPoolExecutor(times) as pool:
        outcomes = list(pool.map(lambda _: pod.run(url), range(times)))
    assert [code for code, _ in outcomes] == [0] * times, outcomes
    return [line for _, line in outcomes]


def test_every_pod_does_its_work_as_the_provisioners_role(
    platform: Platform, pods: dict[str, Pod], db: Db
) -> None:
    url = platform.service_url("instance_provisioner")
    for job, pod in pods.items():
        code, line = pod.run(url)
        assert (code, line["event"], line["job"], line["level"]) == (0, "job done", job, "info")
    assert found(db) == DONE


def test_pods_of_one_job_at_once_do_each_thing_once(
    platform: Platform, pods: dict[str, Pod], db: Db
) -> None:
    url = platform.service_url("instance_provisioner")
    closed = [line["rows"] for line in at_once(pods["reset_daily_usage"], url)]
    assert sum(count for [[count]] in closed) == FLAGGED_DAYS
    paused = [line["rows"] for line in at_once(pods["auto_pause_inactive_instances"], url)]
    assert [*chain(*paused)] == [[str(BOB.instance)]]
    at_once(pods["cleanup_expired_data"], url)
    at_once(pods["calculate_storage_usage"], url)
    assert found(db) == DONE
    query = "select count(*) from audit_logs where resource_id = %s and details ? 'reason'"
    assert db.one(query, BOB.instance) == 1
    for pod in pods.values():  # and again, with nothing to do
        at_once(pod, url, 2)
    assert found(db) == DONE
    assert db.one(query, BOB.instance) == 1


def test_jobs_run_while_others_work_on_the_same_rows(
    platform: Platform, pods: dict[str, Pod], db: Db
) -> None:
    url, stop = platform.service_url("instance_provisioner"), threading.Event()
    counted = []

    def track() -> None:
        with psycopg.connect(platform.url, autocommit=True) as connection:
            while not stop.is_set():
                connection.execute("select track_usage(%s)", [ANN.instance])
                counted.append(1)

    with ThreadPoolExecutor(8) as pool:
        trackers = [pool.submit(track) for _ in range(2)]
        try:
            for outcome in pool.map(lambda pod: pod.run(url), [*pods.values()] * 2):
                assert outcome[0] == 0, outcome
        finally:
            stop.set()
        for each in trackers:
            each.result()
    assert found(db) == DONE
    query = (
        f"select messages_sent from usage_metrics where instance_id = %s and usage_date = {TODAY}"
    )
    assert db.one(query, ANN.instance) == len(counted)


def test_a_customer_whose_rows_are_held_keeps_no_other_waiting_and_is_told(
    platform: Platform, pods: dict[str, Pod], db: Db
) -> None:
    url = platform.service_url("instance_provisioner") + "&options=-clock_timeout%3D200"
    db.run("update instances set storage_used_gb = 2 where id = %s", BOB.instance)
    with psycopg.connect(platform.url) as other:
        other.execute("select from subscriptions where id = %s for update", [BOB.subscription])
        code, line = pods["calculate_storage_usage"].run(url)
    assert code == 1
    assert (line["level"], line["event"]) == ("error", "job failed")
    assert line["error"].startswith("the storage of 1 instances is not known")
    assert line["error"].endswith("(SQLSTATE 22000)")
    assert line["messages"] == [f"instance {BOB.instance}: canceling statement due to lock timeout"]
    storage = "select storage_used_gb from subscriptions where id = %s"
    assert db.one(storage, ANN.subscription) == GIGABYTES
    assert db.one(storage, BOB.subscription) == 0
    assert pods["calculate_storage_usage"].run(url)[0] == 0
    assert db.one(storage, BOB.subscription) == 2


def test_an_instance_that_is_removed_meanwhile_is_no_failure(
    platform: Platform, pods: dict[str, Pod], db: Db
) -> None:
    first, last = sorted((ANN, BOB), key=lambda each: each.instance)
    with ThreadPoolExecutor(1) as pool, psycopg.connect(platform.url) as other:
        other.execute("select from subscriptions where id = %s for update", [first.subscription])
        url = platform.service_url("instance_provisioner")
        run = pool.submit(pods["calculate_storage_usage"].run, url)
        waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'"
        while db.one(waiting) == 0:
            time.sleep(0.01)
        for status in ("deprovisioning", "deprovisioned"):
            db.update("instances", last.instance, status=status)
        db.run("delete from usage_metrics where instance_id = %s", last.instance)
        db.run("delete from instances where id = %s", last.instance)
        other.rollback()
        code, line = run.result()
    assert (code, line["messages"]) == (0, [])


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("postgresql://nobody:a-secret-word@127.0.0.1:1/x", "connection failed"),
        ("postgresql://nobody:a-secret-word@[::1/x", "DATABASE_URL cannot be parsed"),
    ],
)
def test_pod_that_reaches_no_database_fails_and_shows_no_password(
    pods: dict[str, Pod], url: str, told: str
) -> None:
    code, line = pods["reset_daily_usage"].run(url)
    assert code == 1
    assert told in line["error"]
    assert "a-secret-word" not in json.dumps(line)


def test_job_that_cannot_be_read_or_is_not_named_is_told(platform: Platform) -> None:
    url = platform.service_url("instance_provisioner")
    code, line = Pod([sys.executable, "-m", "provisioner.job", "absent.sql"]).run(url)
    assert (code, line["error"]) == (1, "[Errno 2] No such file or directory: 'absent.sql'")
    for arguments, variables in (([], {"DATABASE_URL": url}), (["sql/jobs/x.sql"], {})):
        command = [sys.executable, "-m", "provisioner.job", *arguments]
        done = subprocess.run(
            command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("usage: DATABASE_URL=postgresql://... python -m")
