"""`make up` as a user meets it, in a directory with a space, with and without Pulumi.

When something is wrong there is one clear message and a non-zero exit, and the next run works.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import psycopg
import pytest
import yaml

from components.authorization import SERVICES
from dev import __main__ as dev
from embedded.cluster import Cluster
from embedded.errors import UserError
from embedded.postgres import Server, embedded_bin
from tests.support.platforms import copy_project

WITHOUT_PULUMI = os.pathsep.join(
    part for part in os.environ["PATH"].split(os.pathsep) if not (Path(part) / "pulumi").exists()
)
PROXIES = [f"{of}_proxy" for of in ("http", "https", "all", "grpc")]
ELSEWHERE = {
    # Nothing listens there, so that a download of Pulumi fails at once wherever the tests run.
    **dict.fromkeys([*PROXIES, *map(str.upper, PROXIES)], "http://127.0.0.1:9"),
    "no_grpc_proxy": "company.test",
    "PULUMI_ACCESS_TOKEN": "pul-production",
    "PULUMI_BACKEND_URL": "s3://production",
    "PULUMI_CONFIG_PASSPHRASE": "of production",
    "PULUMI_CONFIG_PASSPHRASE_FILE": "/production",
    "PULUMI_SELF_MANAGED_STATE_GZIP": "true",
    "PULUMI_STACK": "prod",
    "PGHOSTADDR": "127.0.0.2",
    "PGPASSWORD": "of production",
    "PGSERVICE": "production",
    "PGTARGETSESSIONATTRS": "standby",
    "DATABASE_PROXY": "socks5://127.0.0.1:9",
    "DATABASE_NO_PROXY": "none.invalid",
}
"""What an operator's shell has for production, and for a network behind a proxy."""

IMPORTED = f"{1 + len(SERVICES)} imported"
"""The database and the roles, by a run whose state does not know them."""


@dataclass
class Clone:
    """A copy of the project, and all that its commands have printed."""

    directory: Path
    environment: dict[str, str]
    printed: list[str] = field(default_factory=list)

    def start(self, *command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.directory / ".venv" / "bin" / "python", "-m", "dev", *command],
            cwd=self.directory,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def end(self, process: subprocess.Popen[str]) -> tuple[int, str]:
        text, _ = process.communicate(timeout=180)
        self.printed.append(text)
        assert "Traceback" not in text
        return process.returncode, text

    def run(self, *command: str) -> str:
        code, text = self.end(self.start(*command))
        assert code == 0, text
        return text

    def fails(self, command: str = "up") -> str:
        code, text = self.end(self.start(command))
        assert code != 0, text
        return text

    def find_pulumi(self) -> None:
        """Go on with Pulumi after a start without it."""
        self.environment["PATH"] = os.environ["PATH"]

    def migration(self, text: str, name: str = "added") -> Path:
        folder = self.directory / "sql" / "migrations"
        path = folder / f"{len(list(folder.glob('*.sql'))) + 1:04d}_{name}.sql"
        path.write_text(text)
        return path

    @property
    def server(self) -> Server:
        return Server(self.directory / ".state" / "postgres", embedded_bin())

    @property
    def cluster(self) -> Cluster:
        return Cluster(self.directory / ".state" / "cluster")

    def secrets(self) -> list[str]:
        state = self.directory / ".state"
        kept = json.loads((state / "secrets.json").read_text())
        words = [kept["databasePassword"], kept["provisionerApiToken"]]
        words += kept["servicePasswords"].values()
        if (state / "passphrase").exists():
            words.append((state / "passphrase").read_text())
        return words


def clone(directory: Path, **environment: str) -> Iterator[Clone]:
    directory = directory / "a clone with a space"
    directory.mkdir()
    copy_project(directory)
    kept = {k: v for k, v in os.environ.items() if not k.lower().startswith(("dev_", "no_proxy"))}
    made = Clone(directory, kept | ELSEWHERE | environment)
    try:
        yield made
    finally:
        for service in (dev.PROVISIONER, dev.GATEWAY):
            replace(service, directory=directory / ".state" / service.directory.name).stop()
        made.server.destroy()
        made.cluster.destroy()


@pytest.fixture(scope="module")
def in_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    """A clone with a platform that `up` has made without Pulumi."""
    for made in clone(tmp_path_factory.mktemp("up"), PATH=WITHOUT_PULUMI):
        made.run("up")
        yield made


@pytest.fixture(scope="module")
def with_pulumi(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    """A clone with a platform that `up` has made without Pulumi, and then the real engine."""
    for made in clone(tmp_path_factory.mktemp("up"), PATH=WITHOUT_PULUMI):
        made.run("up")
        made.find_pulumi()
        made.run("up")
        yield made


@pytest.fixture(
    params=[
        "in_process",
        pytest.param(
            "with_pulumi",
            marks=[
                pytest.mark.engine,
                pytest.mark.skipif(
                    not shutil.which("pulumi"), reason="needs the Pulumi CLI on PATH"
                ),
            ],
        ),
    ]
)
def platform_clone(request: pytest.FixtureRequest) -> Clone:
    """Either of them."""
    made: Clone = request.getfixturevalue(request.param)
    return made


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Clone]:
    """A clone in which nothing was run yet, without Pulumi."""
    yield from clone(tmp_path, PATH=WITHOUT_PULUMI)


def test_second_up_changes_nothing_and_says_so(
    platform_clone: Clone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever cluster the operator's shell has."""
    away = tmp_path / "kubeconfig"
    away.write_text(
        """{apiVersion: v1, kind: Config, current-context: away,
            clusters: [{name: away, cluster: {server: "https://127.0.0.1:1"}}],
            contexts: [{name: away, context: {cluster: away, user: ""}}]}"""
    )
    monkeypatch.setitem(platform_clone.environment, "KUBECONFIG", str(away))
    text = platform_clone.run("up")
    assert "nothing changed" in text or " unchanged\n\nDuration" in text
    for word in ("created", "updated", "replaced", "deleted"):
        assert word not in text
    assert "service_database_urls: '[secret]'" in text or "service_database_urls: [secret]" in text


def test_committed_stack_file_is_not_touched(platform_clone: Clone) -> None:
    ours = Path(__file__).parents[2] / "Pulumi.dev.yaml"
    assert (platform_clone.directory / "Pulumi.dev.yaml").read_text() == ours.read_text()


def test_down_keeps_the_data_and_the_port_for_the_next_up(platform_clone: Clone) -> None:
    port = platform_clone.server.port
    with psycopg.connect(platform_clone.server.url("mindroom"), autocommit=True) as connection:
        connection.execute("insert into auth.users (id, email) values (default, 'kept@x.test')")
    assert "stopped PostgreSQL" in platform_clone.run("down")
    assert "was not running" in platform_clone.run("down")
    with socket.create_server(("127.0.0.1", port)):
        text = platform_clone.fails()
    assert str(port) in text
    assert "python" in text
    assert "started PostgreSQL" in platform_clone.run("up")
    with psycopg.connect(platform_clone.server.url("mindroom")) as connection:
        row = connection.execute("select email from public.accounts").fetchone()
    assert row == ("kept@x.test",)


BROKEN = {
    "select 1;\nselec 2;\n": "_added.sql:2:1: syntax error at or near",
    "select 1;\n\nselect 1/0;\n": "_added.sql:3:1: division by zero (SQLSTATE 22012)",
    "begin;\nselect 1;\ncommit;\n": "_added.sql:1:1: BEGIN inside a migration",
    "-- nothing yet\n": "_added.sql: holds no statement",
}


def test_broken_migrations(in_process: Clone) -> None:
    for text, message in BROKEN.items():
        path = in_process.migration(text)
        try:
            assert message in in_process.fails()
        finally:
            path.unlink()
    in_process.run("up")


def test_edited_removed_and_doubled_migrations(in_process: Clone) -> None:
    folder = in_process.directory / "sql" / "migrations"
    first, *_, last = sorted(folder.glob("*.sql"))
    before = first.read_text()
    first.write_text(before + "-- edited\n")
    assert f"{first.name}: was edited after it had been applied" in in_process.fails()
    first.write_text(before)
    last.rename(folder / "gone")
    assert f"{last.name}: was applied" in in_process.fails()
    (folder / "gone").rename(last)
    doubled = folder / "0001_doubled.sql"
    doubled.write_text("select 1;\n")
    assert "number 0001 is taken by 0001_doubled.sql" in in_process.fails()
    doubled.unlink()
    in_process.run("up")


def test_config_typo(in_process: Clone) -> None:
    path = in_process.directory / "Pulumi.dev.yaml"
    before = path.read_text()
    path.write_text(before.replace("mindroom:protect", "mindroom:protekt"))
    text = in_process.fails()
    assert "mindroom:protekt is an unknown key; did you mean protect?" in text
    path.write_text(before)
    in_process.run("up")


def test_interrupted_in_a_migration(platform_clone: Clone) -> None:
    path = platform_clone.migration(
        "comment on table public.accounts is 'half-done';\nselect pg_sleep(10);\n"
    )
    state = """select obj_description('public.accounts'::regclass) = 'half-done',
               exists (select from migrate.ledger where name = %s)"""
    sleeping = """select 1 from pg_stat_activity
                  where query like '%pg_sleep(10)%' and pid <> pg_backend_pid()"""
    process = platform_clone.start("up")
    with psycopg.connect(platform_clone.server.url("mindroom"), autocommit=True) as connection:
        deadline = time.monotonic() + 60
        while not connection.execute(sleeping.encode()).fetchone():
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        code, _ = platform_clone.end(process)
        assert code != 0
        while connection.execute(sleeping.encode()).fetchone():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        done, recorded = connection.execute(state, [path.name]).fetchone() or (None, None)
        assert done == recorded
        if platform_clone.environment["PATH"] == WITHOUT_PULUMI:
            assert not done  # whereas Pulumi lets a resource that is under way come to its end
    platform_clone.run("up")


@pytest.mark.engine
@pytest.mark.skipif(not shutil.which("pulumi"), reason="needs the Pulumi CLI on PATH")
def test_comment_that_a_pull_request_gets(with_pulumi: Clone) -> None:
    text = with_pulumi.run("preview-comment")
    assert "<!-- mindroom: preview of dev -->\n## Preview of `dev`\n\n**Changes:** none." in text
    assert "\n**Migrations:** none pending." in text


def test_no_secret_in_any_output_or_state(platform_clone: Clone) -> None:
    state = platform_clone.directory / ".state"
    words = platform_clone.secrets()
    for text in platform_clone.printed:
        assert not [word for word in words if word in text]
    kept = {state / "secrets.json", state / "passphrase", state / "postgres" / "password"}
    for path in state.rglob("*"):
        private = path in kept or path.name.startswith("v1-secret-mindroom-instance-")
        if path.is_file() and not private and state / "postgres" / "data" not in path.parents:
            assert not [word for word in words if word.encode() in path.read_bytes()], path
        if path.is_file() and private:
            assert path.stat().st_mode & 0o077 == 0, path


READY = ("get", "deployments", "-n", "mindroom", "-o", "jsonpath={..readyReplicas}")


def deploys_to_a_cluster(fresh: Clone, nothing_changed: str) -> None:
    assert "started a Kubernetes cluster" in fresh.run("up", "--cluster")
    assert fresh.cluster.kubectl(*READY) == "2 2"
    assert nothing_changed in fresh.run("up", "--cluster")
    assert not (fresh.directory / ".state" / "manifests").exists()
    words = fresh.secrets()
    for text in fresh.printed:
        assert not [word for word in words if word in text]


def test_up_on_a_cluster(fresh: Clone) -> None:
    deploys_to_a_cluster(fresh, "nothing changed")
    fresh.run("services")
    stopped = fresh.run("cluster-down")
    assert "stopped the provisioner\nstopped the gateway\nstopped the cluster" in stopped
    assert "the cluster was not running\nstopped PostgreSQL" in fresh.run("down")
    assert str(fresh.cluster.kubeconfig) in fresh.run("cluster")
    assert fresh.cluster.kubectl(*READY) == "2 2"
    fresh.run("clean")
    assert fresh.cluster.stop() is False


@pytest.mark.engine
@pytest.mark.skipif(not shutil.which("pulumi"), reason="needs the Pulumi CLI on PATH")
def test_up_on_a_cluster_with_pulumi(fresh: Clone) -> None:
    fresh.find_pulumi()
    deploys_to_a_cluster(fresh, " unchanged\n\nDuration")
    fresh.run("down")
    assert "started the cluster" in fresh.run("up")
    assert "mindroom" not in fresh.cluster.kubectl("get", "namespaces")
    assert (fresh.directory / ".state" / "manifests").exists()
    fresh.run("down")
    assert "the cluster" not in fresh.run("up")
    fresh.run("up", "--cluster")
    assert "mindroom" in fresh.cluster.kubectl("get", "namespaces")


@pytest.mark.engine
@pytest.mark.skipif(not shutil.which("pulumi"), reason="needs the Pulumi CLI on PATH")
def test_pulumi_takes_over_what_a_run_without_it_made(with_pulumi: Clone) -> None:
    without, with_it, *_ = with_pulumi.printed
    assert "running in-process" in without
    assert IMPORTED in with_it
    assert re.search(r"Policies:\n +\S+ mindroom@", with_pulumi.run("preview"))


@pytest.mark.engine
@pytest.mark.skipif(not shutil.which("pulumi"), reason="needs the Pulumi CLI on PATH")
@pytest.mark.parametrize("lost", ["pulumi", "passphrase", "Pulumi.dev.yaml"])
def test_what_is_lost_is_made_again(with_pulumi: Clone, lost: str) -> None:
    path = with_pulumi.directory / ".state" / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    text = with_pulumi.run("up")
    if lost == "Pulumi.dev.yaml":  # which the state can replace: nothing is left of the others
        assert " unchanged\n\nDuration" in text
    else:
        assert IMPORTED in text
        assert ("dev.json.unreadable: another is made" in text) == (lost == "passphrase")


@pytest.mark.engine
@pytest.mark.skipif(not shutil.which("pulumi"), reason="needs the Pulumi CLI on PATH")
def test_killed_run_leaves_no_lock_for_the_next_one(with_pulumi: Clone) -> None:
    path = with_pulumi.migration("select pg_sleep(3);\n", "slow")
    process = with_pulumi.start("up")
    with psycopg.connect(with_pulumi.server.url("mindroom"), autocommit=True) as connection:
        sleeping = """select from pg_stat_activity
                      where query like '%pg_sleep(3)%' and pid <> pg_backend_pid()"""
        deadline = time.monotonic() + 60
        while not connection.execute(sleeping.encode()).fetchall():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        plugins = psutil.Process(process.pid).children(recursive=True)
        process.kill()  # Pulumi itself, which took the place of `python -m dev`
        assert process.wait() == -signal.SIGKILL
        text = with_pulumi.run("up")
        for each in plugins:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        assert text.startswith("a run was killed: its lock is removed\na run was killed: its unfin")
        assert "pending operations" not in text
        applied = "select name from migrate.ledger where name = %s"
        assert connection.execute(applied, [path.name]).fetchall() == [(path.name,)]
    others = with_pulumi.directory / ".state/pulumi/.pulumi/locks/organization/another/dev/0.json"
    others.parent.mkdir(parents=True)
    others.write_text(json.dumps({"pid": process.pid}))
    text = with_pulumi.run("up")
    assert " unchanged\n\nDuration" in text
    assert "a run was killed" not in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"password": "not-the-password"}, "password authentication failed"),
        ({"port": "9"}, "Connection refused"),
        ({"host": "no-such-host.invalid"}, "no-such-host.invalid"),
    ],
    ids=["password", "port", "host"],
)
def test_server_of_a_url_that_cannot_be_reached(
    fresh: Clone, server: Server, change: dict[str, str], message: str
) -> None:
    parts = {"password": server.password, "host": "127.0.0.1", "port": str(server.port)} | change
    # The test server has no TLS: for what is said of a remote host it need not come so far.
    mode = "require" if "host" in change else "disable"
    url = "postgresql://postgres:{password}@{host}:{port}?sslmode=".format(**parts) + mode
    fresh.environment["DEV_DATABASE_URL"] = url
    text = fresh.fails()
    assert message in text
    assert parts["password"] not in text


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ("%zzword@127.0.0.1", "cannot be parsed"),
        ("@127.0.0.1,127.0.0.2", "names several servers"),
        ("@127.0.0.1:5432,127.0.0.2:5433/", "names several servers"),
        ("@/mindroom?host=/tmp", "names a socket"),
        ("@127.0.0.1:99999", "the port in DEV_DATABASE_URL, '99999', is none"),
        ("@away.test?sslmode=prefer", "in the clear to away.test"),
        ("@127.0.0.1?hostaddr=127.0.0.2&options=-cx%3Dy", "hostaddr, options, which is not passed"),
    ],
)
def test_url_that_cannot_be_used_is_not_shown(rest: str, message: str) -> None:
    with pytest.raises(UserError, match="DEV_DATABASE_URL") as caught:
        dev._parse(f"postgresql://postgres:password{rest}")
    assert message in caught.value.problem
    assert "password@" not in str(caught.value).replace("PASSWORD", "")
    assert "zzword" not in str(caught.value)


def test_password_is_that_of_the_url_or_of_pgpass_or_none_that_is_needed(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(dev, "STATE", tmp_path)
    without = f"postgresql://postgres@127.0.0.1:{server.port}?sslmode=disable"
    assert dev._parse(without.replace("@", ":word@"))["password"] == "word"
    with pytest.raises(UserError, match="no password supplied") as caught:
        dev._parse(without)
    assert "~/.pgpass" in caught.value.remedy
    pgpass = tmp_path / ".pgpass"
    pgpass.write_text(f"127.0.0.1:{server.port}:*:postgres:{server.password}\n")
    pgpass.chmod(0o600)
    assert dev._parse(without)["password"] == server.password
    generated = dev._generated("")["databasePassword"]
    assert generated
    assert dev._generated("")["databasePassword"] == generated


def test_demo_needs_a_provisioner_that_answers(tmp_path: Path) -> None:
    provisioner = replace(dev.PROVISIONER, directory=tmp_path)
    with pytest.raises(UserError, match="was not started"):
        _ = provisioner.ready_url
    (tmp_path / "port").write_text("9")
    with pytest.raises(UserError, match=r"not ready at http://127\.0\.0\.1:9") as caught:
        _ = provisioner.ready_url
    assert caught.value.remedy.startswith("make up CLUSTER=1")


def test_role_without_the_needed_privileges(fresh: Clone, server: Server) -> None:
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("drop role if exists humble")
        connection.execute("create role humble login password 'humble-password'")
    fresh.environment["DEV_DATABASE_URL"] = (
        f"postgresql://humble:humble-password@127.0.0.1:{server.port}?sslmode=disable"
    )
    assert "permission denied to create database" in fresh.fails()


def test_server_of_a_url(fresh: Clone, server: Server) -> None:
    fresh.environment["DEV_DATABASE_URL"] = server.url()
    committed = fresh.directory / "Pulumi.dev.yaml"
    stack = yaml.safe_load(committed.read_text())
    stack["config"]["mindroom:databaseName"] = "by_url"
    committed.write_text(yaml.safe_dump(stack))
    fresh.run("up")
    assert "nothing changed" in fresh.run("up")
    assert not (fresh.directory / ".state" / "postgres").exists()
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("drop database by_url with (force)")


def test_without_pulumi_it_says_so_in_one_line_and_can_clean(in_process: Clone) -> None:
    (line,) = [line for line in in_process.printed[0].splitlines() if "Pulumi CLI" in line]
    assert "running in-process" in line
    for command in ("preview", "preview-comment"):
        assert "needs the Pulumi CLI" in in_process.fails(command)
    assert "removed .state/" in in_process.run("clean")
    state = in_process.directory / ".state"
    assert not state.exists()
    state.write_text("in the way")
    assert ".state: " in in_process.fails()
    state.unlink()
