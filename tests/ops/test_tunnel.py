"""bin/tunnel, through a real sshd to a real PostgreSQL with TLS."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest
import yaml

from components import PROJECT, ROOT
from embedded.postgres import Server
from ops import tunnel
from tests.support.bastions import NAME, OTHER_NAME, Bastion, make_certificates, require_packages
from tests.support.engines import make_project
from tests.support.migrating import objects, query, wait_for
from tests.support.platforms import PASSWORDS, SECRETS, copy_project, own_server, run, stack_config

pytestmark = pytest.mark.postgres("15")  # the embedded one has no TLS

ASK = """\
import os, signal, sys, time, psycopg

def ask(url=os.environ.get("DATABASE_URL", "")):
    with psycopg.connect(url, connect_timeout=5) as session:
        rows = session.execute("select ssl from pg_stat_ssl where pid = pg_backend_pid()")
        return f"reached, TLS {rows.fetchone()[0]}"

"""
"""What a program that uses libpq begins with."""

SHOW = (
    ASK
    + """\
try:
    print(ask())
except psycopg.Error as error:
    sys.exit(str(error))
"""
)

FINISH = (
    ASK
    + """\
def finish(*_):
    print(ask(), "at the end")
    sys.exit(7)

for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, finish)
print("waits", flush=True)
time.sleep(60)
"""
)
"""A program that still needs the database when it is told to end."""

GO_ON = (
    ASK
    + """\
for _ in range(600):
    try:
        print(ask(), flush=True)
    except psycopg.Error:
        print("not reached", flush=True)
    time.sleep(0.2)
"""
)

PULUMI = ("--", "pulumi", "-s", "test", "--non-interactive")


@dataclass
class Site:
    """A project whose stacks' database is behind a bastion."""

    directory: Path
    bastion: Bastion
    server: Server
    variables: dict[str, str]

    def write_stack(self, stack: str, **config: object) -> None:
        values = {
            "platform": "postgres",
            "databaseHost": NAME,
            "databasePort": str(self.server.port),  # as `pulumi config set` writes it
            "databaseName": "postgres",
            "databaseUser": "postgres",
            "databasePassword": {"secure": "v1:encrypted"},
            "databaseSslmode": "verify-full",
            "databaseSslrootcert": "ca.crt",
            "databaseBastion": self.bastion.url,
        } | config
        text = yaml.safe_dump({"config": {f"{PROJECT}:{k}": v for k, v in values.items()}})
        (self.directory / f"Pulumi.{stack}.yaml").write_text(text)

    @property
    def environment(self) -> dict[str, str]:
        path = f"{self.bastion.directory / 'bin'}{os.pathsep}{os.environ['PATH']}"
        # ssh is not to rely on the user's shell.
        return os.environ | {"PATH": path, "SHELL": "/bin/false"} | self.variables

    def start(self, *command: str | Path, program: str = "bin/tunnel") -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.directory / program, *command],
            cwd="/",
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *command: str | Path, program: str = "bin/tunnel") -> tuple[int, str]:
        """The exit code and all that is printed; the tunnel is closed behind it."""
        process = self.start(*command, program=program)
        text, _ = process.communicate(timeout=120)
        assert "Traceback" not in text
        self.is_closed()
        return process.returncode, text

    def python(self, text: str, *, stack: str = "test") -> tuple[int, str]:
        return self.run("-s", stack, "--", sys.executable, "-c", text)

    def pulumi(self, *command: str) -> str:
        """Run a command of Pulumi, which has to succeed, on the stack `test`."""
        code, text = self.run(*PULUMI, *command)
        assert code == 0, text
        return text

    def is_closed(self) -> None:
        wait_for(lambda: not self.bastion.connections(), "the end of the tunnel")


@contextmanager
def new_site(postgres_bin: Path, directory: Path) -> Iterator[Site]:
    """A site whose project has the CA's certificate and nothing else."""
    require_packages()
    for name in ("certificates", "bastion", "a project"):
        (directory / name).mkdir()
    certificates = make_certificates(directory / "certificates")
    shutil.copy(directory / "certificates" / "ca.crt", directory / "a project")
    with own_server(directory, postgres_bin, **certificates) as server:
        bastion = Bastion(directory / "bastion", server.port)
        try:
            yield Site(directory / "a project", bastion, server, {})
        finally:
            bastion.stop()


@pytest.fixture(scope="module")
def site(postgres_bin: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with new_site(postgres_bin, tmp_path_factory.mktemp("site")) as site:
        copy_project(site.directory)
        site.variables["PGPASSWORD"] = site.server.password
        site.write_stack("test")
        yield site


@pytest.fixture(autouse=True)
def client(site: Site) -> None:
    """The bastion's client is well before each test."""
    site.bastion.client()


def test_a_program_reaches_the_database_under_its_real_name(site: Site) -> None:
    assert site.python(SHOW) == (0, "reached, TLS True\n")


def test_without_a_tunnel_nobody_knows_that_name(site: Site) -> None:
    code, text = site.python(SHOW.replace("ask()", f"ask('host={NAME}')", 1))
    assert code == 1
    assert f"failed to resolve host '{NAME}'" in text


def test_a_certificate_for_another_name_is_refused(site: Site) -> None:
    site.write_stack("other", databaseHost=OTHER_NAME)
    code, text = site.python(SHOW, stack="other")
    assert code == 1
    assert f'server certificate for "{NAME}" does not match host name "{OTHER_NAME}"' in text


def test_the_password_is_in_no_variable_of_the_tunnel(site: Site) -> None:
    code, text = site.run("-s", "test", "--", "env")
    assert code == 0
    told = dict(line.split("=", 1) for line in text.splitlines() if line.startswith("DATABASE_"))
    assert set(told) == {f"DATABASE_{name}" for name in ("URL", "TUNNEL", "PROXY", "NO_PROXY")}
    near, host, port = told["DATABASE_TUNNEL"].split(":")
    assert (host, port) == (NAME, str(site.server.port))
    assert told["DATABASE_URL"] == (
        f"postgresql://postgres@{NAME}:{near}/postgres?sslmode=verify-full"
        "&hostaddr=127.0.0.1&sslrootcert=ca.crt"
    )


def refused(site: Site, *command: str) -> str:
    """What is said where there is no tunnel; the command is not run."""
    code, text = site.run(*(command or ("-s", "test", "--", "echo", "it ran")))
    assert code == 255
    assert "it ran\n" not in text
    return text


def no_tunnel(site: Site, meaning: str, remedy: str) -> None:
    text = refused(site)
    assert re.fullmatch(
        rf"error: no tunnel through the bastion {site.bastion.url}: {meaning}\n"
        rf"  what to do: {remedy}\n",
        text,
    ), text


def test_an_unknown_host_key_is_refused_and_not_recorded(site: Site) -> None:
    site.bastion.client(host="")
    no_tunnel(
        site,
        rf"its host key is not recorded \(No ED25519 host key is known for "
        rf"\[127.0.0.1\]:{site.bastion.port} and you have requested strict checking.\)",
        "docs/tunnel.md says how to record it",
    )
    assert (site.bastion.directory / "known_hosts").read_text() == ""


def test_a_changed_host_key_is_refused(site: Site) -> None:
    site.bastion.client(host="other_host_key")
    no_tunnel(
        site,
        r"its host key is not the recorded one \(Offending ED25519 key in .*/known_hosts:1\)",
        "somebody may be in between: ask whoever runs it; docs/tunnel.md says how to record a new "
        "key",
    )


def test_a_key_that_the_bastion_does_not_know_is_refused(site: Site) -> None:
    site.bastion.client(key="other_key")
    no_tunnel(
        site,
        r"it accepts none of our keys \(.*: Permission denied \(publickey\)\.\)",
        "`ssh-add -l` lists those of the agent; the bastion has to know one of them",
    )


def test_a_bastion_that_is_down_is_told(site: Site) -> None:
    site.bastion.stop()
    try:
        no_tunnel(
            site,
            rf"it refuses the connection \(ssh: connect to host 127.0.0.1 port "
            rf"{site.bastion.port}: Connection refused\)",
            "check that it is up, and its port",
        )
    finally:
        site.bastion.start()


def test_a_bastion_without_a_name_is_told(site: Site) -> None:
    site.write_stack("nowhere", databaseBastion="ssh://no-such-host.invalid")
    text = refused(site, "-s", "nowhere", "--", "echo", "it ran")
    assert "ssh://no-such-host.invalid: no host has that name (ssh: Could not" in text
    assert "\n  what to do: check databaseBastion in the stack file\n" in text


def test_a_port_that_somebody_takes_first_is_left_to_them(site: Site) -> None:
    once, pid = site.bastion.directory / "once", site.bastion.directory / "pid"
    listen = (
        "import socket, sys, time; s = socket.create_server(('127.0.0.1', int(sys.argv[1]))); "
        "print(flush=True); time.sleep(60)"
    )
    site.bastion.client(
        before=f"""\
if mkdir {once} 2> /dev/null; then
  port=$(sed -E 's/.* -L 127.0.0.1:([0-9]+):.*/\\1/' <<< "$*")
  coproc {sys.executable} -c "{listen}" "$port" 2> /dev/null
  echo $! > {pid}
  read -r <&"${{COPROC[0]}}"
fi
"""
    )
    try:
        assert site.python(SHOW) == (0, "reached, TLS True\n")
        assert once.exists()
    finally:
        psutil.Process(int(pid.read_text())).kill()


def test_a_database_that_the_bastion_may_not_reach_is_told(site: Site) -> None:
    site.write_stack("closed", databasePort="1")
    code, text = site.python(SHOW, stack="closed")
    assert code == 1
    assert (
        f"tunnel: {site.bastion.url} does not reach the database: "
        "administratively prohibited: open failed\n"
    ) in text


@pytest.mark.parametrize("code", [0, 3, 130])
def test_the_exit_code_is_the_commands(site: Site, code: int) -> None:
    assert site.run("-s", "test", "--", "bash", "-c", f"exit {code}") == (code, "")


def test_make_runs_a_command_or_opens_a_shell(site: Site) -> None:
    def make(*arguments: str, **variables: str) -> str:
        done = subprocess.run(
            ["make", "--old-file", ".venv/.installed", "tunnel", "STACK=test", *arguments],
            cwd=site.directory,
            env=site.environment | variables,
            capture_output=True,
            text=True,
            check=False,
        )
        site.is_closed()
        return done.stdout

    shutil.copy(ROOT / "Makefile", site.directory)
    assert f":{NAME}:" in make("""CMD=echo "$$DATABASE_TUNNEL" 'it ran' """)
    assert f":{NAME}:" in make(SHELL="/usr/bin/env")


def test_a_command_that_does_not_exist_is_told(site: Site) -> None:
    assert site.run("-s", "test", "--", "no-such-command") == (
        127,
        "error: no-such-command: No such file or directory\n",
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_tunnel_waits_for_a_command_that_was_told_to_end(
    site: Site, number: signal.Signals
) -> None:
    process = site.start("-s", "test", "--", sys.executable, "-c", FINISH)
    assert process.stdout
    assert process.stdout.readline() == "waits\n"
    os.killpg(process.pid, number)
    text, _ = process.communicate(timeout=60)
    assert (process.returncode, text) == (7, "reached, TLS True at the end\n")
    site.is_closed()


def test_ctrl_c_before_the_tunnel_is_up_ends_it(site: Site) -> None:
    started = site.bastion.directory / "started"
    site.bastion.client(before=f"touch {started}; sleep 60")
    process = site.start("-s", "test", "--", "echo", "it ran")
    wait_for(started.exists, "ssh")
    os.killpg(process.pid, signal.SIGINT)
    text, _ = process.communicate(timeout=10)
    assert (process.returncode, text) == (130, "")


def test_a_killed_command_leaves_no_tunnel(site: Site) -> None:
    process = site.start("-s", "test", "--", sys.executable, "-c", FINISH)
    assert process.stdout
    assert process.stdout.readline() == "waits\n"
    processes = psutil.Process(process.pid).children(recursive=True)
    assert [each.name() for each in processes] == ["python", "ssh"]
    process.kill()
    process.communicate(timeout=10)
    assert process.returncode == -signal.SIGKILL
    site.is_closed()
    assert psutil.wait_procs(processes, 5)[1] == []


def test_a_lost_connection_is_told_and_made_again(site: Site) -> None:
    process = site.start("-s", "test", "--", sys.executable, "-c", GO_ON)
    assert process.stdout
    seen: list[str] = []

    def until(text: str) -> None:
        for line in iter(process.stdout.readline, ""):  # type: ignore[union-attr]
            seen.append(line)
            if text in line:
                return
        pytest.fail(f"{text!r} is not in {seen}")

    until("reached, TLS True")
    site.bastion.stop()
    until(f"tunnel: lost {site.bastion.url} and the connections through it: ")
    until(f"tunnel: cannot connect to {site.bastion.url} again: it refuses the connection")
    until("not reached")
    time.sleep(5)
    site.bastion.start()
    until(f"tunnel: connected to {site.bastion.url} again")
    until("reached, TLS True")
    process.kill()
    process.communicate(timeout=10)
    assert "".join(seen).count("tunnel: ") == 3
    site.is_closed()


def test_several_tunnels_at_once(site: Site) -> None:
    site.write_stack("second")
    processes = [
        site.start("-s", stack, "--", sys.executable, "-c", FINISH)
        for stack in ("test", "second", "test")
    ]
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "waits\n"
    for process in processes:
        process.terminate()
        assert process.communicate(timeout=60)[0] == "reached, TLS True at the end\n"
    site.is_closed()


def test_without_ssh_it_says_what_to_install(site: Site, tmp_path: Path) -> None:
    for name in ("bash", "dirname"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    done = subprocess.run(
        [site.directory / "bin" / "tunnel", "-s", "test", "--", "bash", "-c", "echo it ran"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (255, "")
    assert done.stderr == (
        "error: ssh is missing\n  what to do: install OpenSSH's client (Debian: openssh-client)\n"
    )


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ((), "no command follows `--`\n"),
        (("-s", "test"), "no command follows `--`\n"),
        (("-s", "test", "--"), "no command follows `--`\n"),
        (("-s", "test", "pulumi", "up"), "no command follows `--`\n"),
        (("--", "pulumi", "up"), "no stack is named, whose database the tunnel leads to\n"),
        (("-s", "prdo", "--", "true"), "Pulumi.prdo.yaml does not exist\n"),
        (("-s", "dev", "--", "true"), "Pulumi.dev.yaml names no bastion\n"),
        (("-s", "fresh", "--", "true"), "Pulumi.fresh.yaml names no bastion\n"),
        (("-s", "no-yaml", "--", "true"), "Pulumi.no-yaml.yaml is not valid YAML: "),
        (("-s", "no-host", "--", "true"), "Pulumi.no-host.yaml has no databaseHost "),
        (("-s", "pooler", "--", "true"), "databasePort 6543 of Pulumi.pooler.yaml is a "),
    ],
)
def test_what_cannot_be_done_is_told(site: Site, command: tuple[str, ...], message: str) -> None:
    (site.directory / "Pulumi.fresh.yaml").write_text("encryptionsalt: v1:salt\n")
    (site.directory / "Pulumi.no-yaml.yaml").write_text("config: {\n")
    site.write_stack("no-host", databaseHost="")
    site.write_stack("pooler", databasePort="6543")
    text = refused(site, *command or ("--",))
    assert text.startswith(f"error: {message}")
    assert "\n  what to do: " in text


@pytest.mark.parametrize(
    "command",
    [
        "-s test -- true",
        "-s organization/project/test -- pulumi up -s prod",
        "-- pulumi up -s test --yes",
        "-- pulumi up --stack test",
        "-- /usr/local/bin/pulumi --stack=organization/test up",
    ],
)
def test_the_stack_is_found(command: str) -> None:
    stack, rest = tunnel.parse(command.split())
    assert stack == "test"
    assert rest == command.partition("-- ")[2].split()


def test_the_program_and_the_migrations_run_through_it(site: Site, tmp_path: Path) -> None:
    config = stack_config(site.server.url("mindroom"), tmp_path / "manifests") | {
        "databaseHost": NAME,
        "databaseSslmode": "verify-full",
        "databaseSslrootcert": "ca.crt",
    }
    site.write_stack("whole", databaseName="mindroom")
    given = tmp_path / "config.json"
    given.write_text(
        json.dumps({k: v if isinstance(v, str) else json.dumps(v) for k, v in config.items()})
    )
    code, text = site.python(
        f"""\
import json, pathlib
from dev import in_process
config = json.loads(pathlib.Path({str(given)!r}).read_text())
result = in_process.run(config, {SECRETS!r}, "whole")
print(json.dumps(result.outputs["database"]))
""",
        stack="whole",
    )
    assert code == 0, text
    assert json.loads(text.splitlines()[-1]) == {
        "host": NAME,
        "port": site.server.port,
        "name": "mindroom",
        "sslmode": "verify-full",
        "platform": "postgres",
    }
    folder = site.directory / "sql" / "migrations"
    name = f"{len(list(folder.glob('*.sql'))) + 1:04d}_added.sql"
    (folder / name).write_text("comment on table public.accounts is 'Customers';\n")
    code, text = site.run("whole", program="bin/run-migrations")
    assert code == 0, text
    assert f"applied migrations/{name}" in text
    assert "no drift" in text
    recorded = "select name from migrate.ledger where name = %s"
    assert query(site.server.url("mindroom"), recorded, name) == [name]


@pytest.fixture(scope="module")
def deployed(postgres_bin: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site whose stack the real engine brought up through a tunnel."""
    with new_site(postgres_bin, tmp_path_factory.mktemp("deployed")) as site:
        url = site.server.url("deployed")
        config = stack_config(url, site.directory / "manifests") | {
            "databaseHost": NAME,
            "databaseSslmode": "verify-full",
            "databaseSslrootcert": "ca.crt",
            "databaseBastion": site.bastion.url,
        }
        made = make_project(site.directory, config, url)
        # Whatever this says, the database's host is not to be reached without the tunnel.
        site.variables |= {**made.stack.workspace.env_vars, "NO_PROXY": NAME}
        # While the engine, on loopback, is reached without a proxy.
        site.variables |= dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
        site.pulumi("up", "--yes", "--skip-preview")
        yield site


@pytest.mark.engine
@pytest.mark.skipif(not shutil.which("pulumi"), reason="needs the Pulumi CLI on PATH")
class TestPulumi:
    """The real engine, with pulumi-postgresql, behind the bastion: on 15, elsewhere on 18."""

    def test_another_tunnel_on_another_port_changes_nothing(self, deployed: Site) -> None:
        deployed.pulumi("preview", "--diff", "--expect-no-changes")
        deployed.pulumi("up", "--yes", "--skip-preview", "--expect-no-changes")

    def test_no_drift_is_found_by_a_refresh(self, deployed: Site) -> None:
        rendered = ("--exclude", "**kubernetes**")
        deployed.pulumi("refresh", "--yes", "--skip-preview", "--expect-no-changes", *rendered)

    def test_engine_and_in_process_run_leave_the_same_catalog(
        self, deployed: Site, tmp_path: Path
    ) -> None:
        url = deployed.server.url("made_in_process")
        run(stack_config(url, tmp_path))
        assert objects(url) == objects(deployed.server.url("deployed"))
        query(deployed.server.url(), "drop database made_in_process with (force)")

    def test_state_and_outputs_know_the_real_server_only(self, deployed: Site) -> None:
        text = deployed.pulumi("stack", "export")
        (provider,) = (
            each
            for each in json.loads(text)["deployment"]["resources"]
            if each["type"] == "pulumi:providers:postgresql"
        )
        port = str(deployed.server.port)
        assert (provider["inputs"]["host"], provider["inputs"]["port"]) == (NAME, port)
        assert "127.0.0.1" not in text.replace(deployed.bastion.url, "")

    def test_migrations_take_the_password_from_the_stack(self, deployed: Site) -> None:
        code, text = deployed.run("test", program="bin/run-migrations")
        assert code == 0, text
        assert "no drift" in text

    def test_without_the_tunnel_a_preview_says_which_command_to_use(self, deployed: Site) -> None:
        shown = subprocess.run(
            ["pulumi", "preview", "-s", "test", "--non-interactive"],
            cwd=deployed.directory,
            env=deployed.environment,
            capture_output=True,
            text=True,
            check=False,
        ).stdout
        assert "run bin/tunnel -- pulumi ... -s test" in shown

    def test_destroy_leaves_nothing(self, deployed: Site) -> None:
        deployed.pulumi("destroy", "--yes", "--skip-preview")
        databases = query(deployed.server.url(), "select datname::text from pg_database")
        assert "deployed" not in databases
        roles = query(deployed.server.url(), "select rolname::text from pg_roles")
        assert not set(roles) & set(PASSWORDS)

    def test_another_name_than_the_certificates_is_refused(self, deployed: Site) -> None:
        deployed.pulumi("config", "set", "databaseHost", OTHER_NAME)
        code, text = deployed.run(*PULUMI, "up", "--yes", "--skip-preview")
        assert code != 0
        assert f'certificate for "{NAME}" does not match host name "{OTHER_NAME}"' in text
