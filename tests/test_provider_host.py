"""The dynamic providers in their real host process, `python -m pulumi.dynamic`, on real databases.

`Host` is the engine's end: it starts the process as Pulumi's `pulumi-resource-pulumi-python` does,
speaks the ResourceProvider protocol with it, and sends what `pulumi up` was seen to send (a trace
of CLI 3.260).  The process runs in a copy of the project, whose SQL files the tests change.
"""

import copy
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc  # type: ignore[import-untyped]
import psycopg
import pulumi
import pytest
from google.protobuf.json_format import MessageToDict  # type: ignore[import-untyped]
from google.protobuf.struct_pb2 import Struct  # type: ignore[import-untyped]
from platforms import cron_server
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from pulumi.runtime import mocks, rpc
from pulumi.runtime.proto import provider_pb2, provider_pb2_grpc

from components import PROJECT, ROOT, schema
from components.automation import PgCron
from components.role_settings import RoleSettings
from embedded.postgres import Server
from migrate import catalog, files
from migrate.connection import APPLICATION, connect

Properties = dict[str, Any]

NAMES = ("platform", "migrations", "repeatable", "verification")
DIFF_NONE = provider_pb2.DiffResponse.DIFF_NONE
DIFF_SOME = provider_pb2.DiffResponse.DIFF_SOME


SOUND = """\
create table private.added (id int primary key);
comment on table private.added is 'What was added.';
alter table private.added enable row level security;
"""
"""A migration that keeps every promise of sql/verify/."""


class CheckError(Exception):
    """The provider refuses the inputs; the arguments are its reasons."""


@dataclass
class State:
    """What the engine remembers of a resource."""

    id: str
    inputs: Properties
    outputs: Properties


@dataclass
class Stack:
    """A project, its database, and the engine's state, which outlives the host processes.

    Attributes:
        role: whose settings the program declares, as the resource `settings`; empty for no one's.
        jobs: what it declares of pg_cron, as the resource `pg-cron`.
    """

    project: Path
    url: str
    state: dict[str, State] = field(default_factory=dict)
    role: str = ""
    settings: dict[str, str] = field(default_factory=dict)
    jobs: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def config(self) -> dict[str, str]:
        to = {key: str(value) for key, value in conninfo_to_dict(self.url).items()}
        return {
            "platform": "postgres",
            "databaseHost": to["host"],
            "databasePort": to["port"],
            "databaseName": to["dbname"],
            "databaseUser": to["user"],
            "databasePassword": to["password"],
            "databaseSslmode": to["sslmode"],
            "databaseSslrootcert": "",
        }

    def folder(self, name: str) -> Path:
        return self.project / "sql" / name

    def names(self, folder: str) -> list[str]:
        return sorted(path.name for path in self.folder(folder).iterdir())

    def add(self, text: str, folder: str = files.VERSIONED) -> Path:
        """Write a new file behind the last one of its folder."""
        number = int(self.names(folder)[-1].split("_")[0]) + 1
        width = 4 if folder == files.VERSIONED else 2
        path = self.folder(folder) / f"{number:0{width}}_new.sql"
        path.write_text(text)
        return path

    def edit(self, folder: str, text: str = "-- edited\n") -> tuple[str, str, str]:
        """Edit the first file of a folder; its name, its digest before and after."""
        path = self.folder(folder) / self.names(folder)[0]
        before = files.digests(files.read(self.folder(folder)))[path.name]
        path.write_text(text + path.read_text())
        return path.name, before, files.digests(files.read(self.folder(folder)))[path.name]

    def declared(self) -> dict[str, Properties]:
        """The inputs of each resource, as the program declares them on the files as they are."""

        def program() -> None:
            opts = pulumi.ResourceOptions()
            schema.RepeatableSet("platform", files.PLATFORM, opts)
            schema.MigrationSet("migrations", files.VERSIONED, opts)
            schema.RepeatableSet("repeatable", files.REPEATABLE, opts)
            schema.Verification("verification", opts)
            if self.role:
                RoleSettings("settings", self.role, self.settings, opts)
            PgCron("pg-cron", self.jobs, opts)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(schema, "SQL", self.project / "sql")
            return declared(program)

    @contextmanager
    def host(self, **config: str) -> Iterator["Host"]:
        """A host process, configured with the stack's config, changed."""
        with Host.started(self, self.config | config) as host:
            yield host

    def connect(self) -> psycopg.Connection:
        """A connection of the test's own."""
        return psycopg.connect(self.url, autocommit=True, application_name="test")

    def execute(self, statement: str) -> list[tuple[Any, ...]]:
        with self.connect() as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def ledger(self, folder: str) -> list[tuple[Any, ...]]:
        """Name, digest and time of each file applied."""
        return self.execute(
            f"select name, sha256, applied_at from migrate.ledger where folder = '{folder}' "
            'order by name collate "C"'
        )

    def everything(self) -> Any:
        """The catalog, the ledger and the settings of roles."""
        with connect(self.url) as connection:
            found = catalog.read(connection)
        return (
            found,
            self.execute("select * from migrate.ledger order by 1, 2"),
            self.execute("select * from migrate.catalog"),
            self.execute("select * from pg_db_role_setting order by 1, 2"),
        )


def declared(program: Callable[[], None]) -> dict[str, Properties]:
    """The inputs of the resources that a program declares, by name, serialised provider too."""
    found: dict[str, Properties] = {}

    class Engine(mocks.Mocks):
        def new_resource(self, args: mocks.MockResourceArgs) -> tuple[str, Properties]:
            found[args.name] = args.inputs
            return args.name, args.inputs

        def call(self, args: mocks.MockCallArgs) -> Any:
            raise AssertionError(args.token)

    mocks.set_mocks(Engine(), project=PROJECT, stack="test", preview=False)
    mocks.test(program)()  # type: ignore[no-untyped-call]
    return found


def untimed(told: str) -> str:
    """What was printed, without the time that each file took."""
    return re.sub(r" \(\d+ ms\)$", "", told, flags=re.MULTILINE)


def struct(properties: Mapping[str, Any]) -> Struct:
    message = Struct()
    message.update(properties)
    return message


@dataclass
class Host:
    """A host process as the engine uses it.

    Every call gives what the process printed during it.
    """

    stack: Stack
    config: Mapping[str, str]
    process: subprocess.Popen[bytes]
    stub: Any
    output: Path
    seen: int

    @classmethod
    @contextmanager
    def started(cls, stack: Stack, config: Mapping[str, str]) -> Iterator["Host"]:
        """Start the process and configure it; at its end nothing of it may show a password."""
        output = stack.project / f"host-{secrets.token_hex(4)}.log"
        with output.open("wb") as log:
            process = subprocess.Popen(
                # The argument is the engine's address, which a dynamic provider never needs.
                [sys.executable, "-u", "-m", "pulumi.dynamic", "127.0.0.1:1"],
                cwd=stack.project,
                env={"PATH": os.environ["PATH"], "PULUMI_PROJECT": PROJECT},
                stdout=log,
                stderr=log,
            )
        try:
            deadline = time.monotonic() + 30
            while not output.read_text().endswith("\n"):
                assert process.poll() is None, output.read_text()
                assert time.monotonic() < deadline, "the host does not print its port"
                time.sleep(0.01)
            port = int(output.read_text())
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                stub = provider_pb2_grpc.ResourceProviderStub(channel)
                host = cls(stack, config, process, stub, output, output.stat().st_size)
                secret = {rpc._special_sig_key: rpc._special_secret_sig}
                args = {
                    f"{PROJECT}:{key}": secret | {"value": value} if "Pass" in key else value
                    for key, value in config.items()
                }
                stub.Configure(provider_pb2.ConfigureRequest(args=struct(args), acceptSecrets=True))
                yield host
            host.clean(output.read_text())
        finally:
            process.kill()
            process.wait()

    def clean(self, text: str) -> str:
        """A text that is fit for the operator's eyes and for a log."""
        for word in (self.config["databasePassword"], conninfo_to_dict(self.stack.url)["password"]):
            assert str(word) not in text
            assert quote(str(word), safe="") not in text
        assert "Traceback" not in text
        assert 'File "' not in text
        return text

    def printed(self) -> str:
        text = self.output.read_text()[self.seen :]
        self.seen += len(text)
        return text

    def check(self, name: str) -> Properties:
        """The inputs of the resource, checked against the last ones.

        Raises:
            CheckError: they are refused.
        """
        olds = self.stack.state[name].inputs if name in self.stack.state else {}
        news = self.stack.declared()[name]
        response = self.stub.Check(
            provider_pb2.CheckRequest(olds=struct(olds), news=struct(news), name=name)
        )
        assert not any(failure.property for failure in response.failures)  # would show its value
        if response.failures:
            raise CheckError(*[self.clean(failure.reason) for failure in response.failures])
        inputs: Properties = MessageToDict(response.inputs)
        assert inputs == news
        return inputs

    def refused(self, name: str) -> list[str]:
        """Why the inputs of a resource are refused."""
        with pytest.raises(CheckError) as caught:
            self.check(name)
        return list(caught.value.args)

    def diff(self, name: str) -> tuple[int, str]:
        """Whether a resource would be updated, and what was printed, as in a preview."""
        return self.diff_inputs(name, self.check(name))

    def preview(self, folder: str, *names: str) -> list[str]:
        """The findings in files that are pending, and after them that their rehearsal went well."""
        changes, told = self.diff(folder)
        assert changes == DIFF_SOME
        pending, rehearsed = told.splitlines()[: len(names)], told.splitlines()[-1]
        assert pending == [f"pending: {folder}/{name}" for name in names]
        assert re.fullmatch(
            r"rehearsed in a throwaway PostgreSQL \d+\.\d+.*: pending files applied \d+ "
            r"\(in \d+\.\d\d s\), promises kept [1-9]\d*",
            rehearsed,
        )
        return told.splitlines()[len(names) : -1]

    def diff_inputs(self, name: str, news: Properties) -> tuple[int, str]:
        response = self.compare(name, news)
        assert list(response.replaces) == []
        return response.changes, self.printed()

    def compare(self, name: str, news: Properties) -> Any:
        state = self.stack.state[name]
        return self.stub.Diff(
            provider_pb2.DiffRequest(
                id=state.id,
                olds=struct(state.outputs),
                old_inputs=struct(state.inputs),
                news=struct(news),
            )
        )

    def create(self, name: str) -> str:
        """Create, whether or not the state knows the resource."""
        inputs = self.check(name)
        response = self.stub.Create(provider_pb2.CreateRequest(properties=struct(inputs)))
        self.stack.state[name] = State(response.id, inputs, MessageToDict(response.properties))
        return self.printed()

    def update(self, name: str) -> str:
        """Update, whether or not there is a difference."""
        inputs, state = self.check(name), self.stack.state[name]
        response = self.stub.Update(
            provider_pb2.UpdateRequest(id=state.id, olds=struct(state.outputs), news=struct(inputs))
        )
        state.inputs, state.outputs = inputs, MessageToDict(response.properties)
        return self.printed()

    def refresh(self, name: str) -> State:
        """The resource as it is; the state is left as it was."""
        state = self.stack.state[name]
        response = self.stub.Read(
            provider_pb2.ReadRequest(
                id=state.id, properties=struct(state.outputs), inputs=struct(state.inputs)
            )
        )
        return State(
            response.id, MessageToDict(response.inputs), MessageToDict(response.properties)
        )

    def delete(self, name: str) -> None:
        state = self.stack.state[name]
        self.stub.Delete(provider_pb2.DeleteRequest(id=state.id, properties=struct(state.outputs)))

    def failure(self, call: Callable[[str], object], name: str) -> str:
        """What the operator reads of a call that fails."""
        with pytest.raises(grpc.RpcError) as caught:
            call(name)
        error: Any = caught.value
        assert error.code() == grpc.StatusCode.UNKNOWN
        message = self.clean(error.details())
        assert message.startswith("migrate.errors.")  # and not with what it was caused by
        return message


def copied(directory: Path) -> Path:
    """A copy of what the host needs of the project."""
    project = directory / "a project"
    for name in ("components", "embedded", "migrate", "sql"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, project / name, ignore=ignore)
    return project


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project for the test to change."""
    return copied(tmp_path)


@pytest.fixture
def stack(project: Path, database: str) -> Stack:
    """An empty database and nothing in the state."""
    return Stack(project, database)


@pytest.fixture(scope="session")
def finished(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Stack:
    """All resources created, to be copied; the database is a template."""
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("create database finished")
    stack = Stack(copied(tmp_path_factory.mktemp("finished")), server.url("finished"))
    with stack.host() as host:
        for name in NAMES:
            host.create(name)
    return stack


@pytest.fixture
def applied(finished: Stack, server: Server, project: Path) -> Iterator[Stack]:
    """All resources created, in a database of the test's own."""
    name = f"test_{secrets.token_hex(6)}"
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(f"create database {name} template finished".encode())
        yield Stack(project, server.url(name), copy.deepcopy(finished.state))
        connection.execute(f"drop database {name} with (force)".encode())


@pytest.fixture
def offline(project: Path) -> Stack:
    """No database at all; the state says that all files were applied."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    password = "p@ss/w rd of nobody"
    stack = Stack(
        project,
        make_conninfo(
            host="127.0.0.1",
            port=port,
            dbname="mindroom",
            user="nobody",
            password=password,
            sslmode="disable",
        ),
    )
    stack.state = {name: State(name, inputs, inputs) for name, inputs in stack.declared().items()}
    return stack


class TestCheck:
    """What needs no database fails the preview, each problem in one message."""

    def test_files_as_they_were_applied_pass(self, offline: Stack) -> None:
        with offline.host() as host:
            assert {name: host.check(name) for name in offline.state} == {
                name: state.inputs for name, state in offline.state.items()
            }
            assert host.printed() == ""

    def test_new_file_passes(self, offline: Stack) -> None:
        name = offline.add("create table private.added (id int);").name
        with offline.host() as host:
            assert name in host.check("migrations")["files"]

    def test_edited_migration_is_refused_with_both_digests(self, offline: Stack) -> None:
        name, before, after = offline.edit(files.VERSIONED)
        with offline.host() as host:
            (message,) = host.refused("migrations")
        assert message == (
            f"migrations/{name}: was edited after it had been applied: recorded sha256 "
            f"{before[:16]}, present {after[:16]}: restore the file and put the change into a new "
            "migration"
        )

    def test_edited_repeatable_passes(self, offline: Stack) -> None:
        edited = {folder: offline.edit(folder) for folder in ("repeatable", "platform")}
        with offline.host() as host:
            for folder, (name, _, after) in edited.items():
                assert host.check(folder)["files"][name] == after

    def test_removed_migration_is_refused(self, offline: Stack) -> None:
        name = offline.names("migrations")[-1]
        digest = offline.state["migrations"].inputs["files"][name]
        (offline.folder("migrations") / name).unlink()
        with offline.host() as host:
            message, hint = host.refused("migrations")
        assert message == (
            f"migrations/{name}: was applied (sha256 {digest[:16]}) and is gone: restore it, or "
            "update this checkout if it is older than the database"
        )
        assert hint.startswith("or, where the database was restored")

    def test_removed_repeatable_passes(self, offline: Stack) -> None:
        name = offline.names("repeatable")[-1]
        (offline.folder("repeatable") / name).unlink()
        with offline.host() as host:
            assert name not in host.check("repeatable")["files"]

    def test_syntax_error_is_refused_with_its_place(self, offline: Stack) -> None:
        text = "-- A comment.\n\nselect 1;\nselect from from t;\n"
        folders = ("migrations", "repeatable", "platform")
        added = {folder: offline.add(text, folder) for folder in folders}
        with offline.host() as host:
            for folder, path in added.items():
                (message,) = host.refused(folder)
                assert message.splitlines() == [
                    f'sql/{folder}/{path.name}:4:13: syntax error at or near "from"',
                    "    1 | -- A comment.",
                    "    2 | ",
                    "    3 | select 1;",
                    "    4 | select from from t;",
                    "      |             ^",
                ]

    def test_two_files_of_one_number_are_refused(self, offline: Stack) -> None:
        taken = offline.add("select 1;")
        other = taken.with_name(taken.name.replace("new", "other"))
        other.write_text("select 2;")
        with offline.host() as host:
            (message,) = host.refused("migrations")
        number = taken.name[:4]
        assert message.startswith(
            f"sql/migrations/{other.name}: number {number} is taken by {taken.name}"
        )

    def test_every_problem_is_told(self, offline: Stack) -> None:
        edited, _, _ = offline.edit("migrations")
        wrong = offline.add("begin;\nselect 1;\ncommit;\n").name
        with offline.host() as host:
            messages = host.refused("migrations")
        assert [message.split(": ")[0] for message in messages] == [
            f"sql/migrations/{wrong}:1:1",
            f"sql/migrations/{wrong}:3:1",
            f"migrations/{edited}",
        ]


class TestCreate:
    """Creating applies what is pending and adopts what is there."""

    def test_create_applies_every_file_in_order(self, stack: Stack) -> None:
        with stack.host() as host:
            for folder in ("platform", "migrations", "repeatable"):
                told = host.create(folder)
                assert untimed(told).splitlines() == [
                    f"applied {folder}/{name}" for name in stack.names(folder)
                ]
                state = stack.state[folder]
                assert state.id == folder
                assert state.outputs == state.inputs
                assert dict(r[:2] for r in stack.ledger(folder)) == state.inputs["files"]
        assert stack.execute("select relrowsecurity from pg_class where relname = 'accounts'") == [
            (True,)
        ]

    def test_verification_gives_the_catalogs_digests(self, applied: Stack) -> None:
        with connect(applied.url) as connection:
            found = catalog.read(connection)
        outputs = applied.state["verification"].outputs
        assert outputs["fingerprint"] == files.fingerprint(found)
        assert outputs["objects"] == catalog.object_digests(found)
        assert "table public.accounts" in outputs["objects"]

    def test_second_create_adopts(self, applied: Stack) -> None:
        before = applied.everything()
        states = dict(applied.state)
        applied.state.clear()
        with applied.host() as host:
            told = [host.create(name) for name in NAMES]
        assert told[:3] == ["", "", ""]
        assert told[3].startswith("verified: no drift, ")
        assert applied.state == states
        assert applied.everything() == before

    def test_state_that_forgot_a_file_adopts_it(self, applied: Stack) -> None:
        """The engine's state is not the truth: an update that failed half-way is not in it."""
        new = applied.add("create table private.added (id int);")
        with applied.host() as host:
            state = applied.state["migrations"]
            before = State(state.id, state.inputs, state.outputs)
            host.update("migrations")
            applied.state["migrations"] = before
            assert host.diff("migrations") == (DIFF_SOME, "")
            assert host.update("migrations") == ""
        assert new.name in applied.state["migrations"].outputs["files"]

    def test_ledger_refuses_what_the_state_does_not_know(self, applied: Stack) -> None:
        applied.state.clear()
        name, before, after = applied.edit("migrations")
        with applied.host() as host:
            message = host.failure(host.create, "migrations")
        assert f"migrations/{name}: was edited" in message
        assert before[:16] in message
        assert after[:16] in message

    def test_failing_migration_is_told_and_the_next_run_goes_on(self, applied: Stack) -> None:
        first = applied.add(SOUND)
        second = applied.add("select 1;\nselect 1 / 0;\n")
        with applied.host() as host:
            message = host.failure(host.update, "migrations")
            assert f"sql/migrations/{second.name}:2:1: division by zero (SQLSTATE 22012)" in message
            assert f"rolled back: {second.name}" in message
            assert f"committed in this run: {first.name}" in message
            assert untimed(host.printed()) == f"applied migrations/{first.name}\n"
            second.write_text("select 1;\n")
            assert host.preview("migrations", second.name) == []
            assert untimed(host.update("migrations")) == f"applied migrations/{second.name}\n"
            assert host.diff("migrations") == (DIFF_NONE, "")

    def test_missing_privilege_is_told(self, stack: Stack) -> None:
        name, password = f"powerless_{secrets.token_hex(4)}", secrets.token_hex(16)
        stack.execute(f"create role {name} login password '{password}'")
        with stack.host(databaseUser=name, databasePassword=password) as host:
            message = host.failure(host.create, "migrations")
        assert "permission denied for database" in message
        assert "what to do: " in message


class TestDiff:
    """A preview says what an update would do, and changes nothing."""

    def test_nothing_pending_is_no_diff(self, applied: Stack) -> None:
        with applied.host() as host:
            assert [host.diff(name) for name in NAMES] == [(DIFF_NONE, "")] * len(NAMES)

    def test_new_migration_is_pending_until_it_is_applied(self, applied: Stack) -> None:
        name = applied.add(SOUND).name
        before = applied.everything()
        with applied.host() as host:
            assert host.preview("migrations", name) == []
            changes, _ = host.diff("verification")
            assert changes == DIFF_SOME
            assert applied.everything() == before
            assert untimed(host.update("migrations")) == f"applied migrations/{name}\n"
            assert host.diff("migrations") == (DIFF_NONE, "")

    def test_edited_repeatable_is_pending_until_it_is_applied(self, applied: Stack) -> None:
        name, _, _ = applied.edit("repeatable")
        with applied.host() as host:
            assert host.preview("repeatable", name) == []
            assert untimed(host.update("repeatable")) == f"applied repeatable/{name}\n"
            assert host.diff("repeatable") == (DIFF_NONE, "")

    def test_removed_repeatable_is_forgotten(self, applied: Stack) -> None:
        name = applied.names("repeatable")[-1]
        (applied.folder("repeatable") / name).unlink()
        with applied.host() as host:
            assert host.preview("repeatable", name) == []
            host.update("repeatable")
            assert host.diff("repeatable") == (DIFF_NONE, "")
        assert name not in [row[0] for row in applied.ledger("repeatable")]

    def test_migration_that_only_the_state_knows_is_pending_after_a_refresh(
        self, applied: Stack
    ) -> None:
        name = applied.names("migrations")[-1]
        applied.execute(f"delete from migrate.ledger where name = '{name}'")
        with applied.host() as host:
            told = host.failure(host.diff, "migrations")
            assert f"the stack's state has {name}, and the database has not" in told
            assert "run `python -m migrate up` and then `pulumi up --refresh`" in told
            applied.state["migrations"] = host.refresh("migrations")
            changes, told = host.diff("migrations")
        assert changes == DIFF_SOME
        assert told.splitlines()[0] == f"pending: migrations/{name}"

    def test_migration_that_would_hurt_is_told_with_its_place(self, applied: Stack) -> None:
        name = applied.add("create index added on public.accounts (created_at);").name
        with applied.host() as host:
            (finding, *_) = host.preview("migrations", name)
        assert finding.startswith(f"finding: sql/migrations/{name}:1:1: ")

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("select 1;\nselect 1 / 0;\n", "sql/migrations/NAME:2:1: division by zero"),
            ("create table private.added ();", "broken promise: Every table in public and private"),
        ],
    )
    def test_migration_that_would_fail_fails_the_preview(
        self, applied: Stack, text: str, told: str
    ) -> None:
        name = applied.add(text).name
        before = applied.everything()
        with applied.host() as host:
            message = host.failure(host.diff, "migrations")
        assert "nothing was done to the database itself" in message
        assert told.replace("NAME", name) in message
        assert applied.everything() == before

    def test_cut_off_run_is_pending_until_it_is_finished(self, applied: Stack) -> None:
        applied.execute("update migrate.catalog set under_way = '{}'")
        with applied.host() as host:
            for name in ("migrations", "repeatable"):
                told = "the record of what is there is not complete: this completes it\n"
                assert host.diff(name) == (DIFF_SOME, told)
            changes, said = host.diff("verification")
            assert changes == DIFF_SOME
            assert said.startswith(
                "whether the schema has drifted is not known: a run is under way"
            )
            assert "is not known" in host.failure(host.update, "verification")
            assert host.update("migrations") == ""
            assert [host.diff(name) for name in NAMES] == [(DIFF_NONE, "")] * len(NAMES)

    def test_edited_verification_is_a_diff(self, applied: Stack) -> None:
        applied.edit("verify")
        with applied.host() as host:
            assert host.diff("verification") == (DIFF_SOME, "")


class TestUnreachable:
    """A preview goes on without the database and says so; an update does not."""

    def test_diff_warns_and_create_fails(self, offline: Stack) -> None:
        unknown = {
            "platform": "what is pending in platform/ is not known",
            "migrations": "what is pending in migrations/ is not known",
            "repeatable": "what is pending in repeatable/ is not known",
            "verification": "whether the schema has drifted is not known",
        }
        with offline.host() as host:
            for name in NAMES:
                changes, told = host.diff(name)
                assert changes == DIFF_NONE
                assert told.startswith(
                    f"warning: {unknown[name]}: cannot connect to the database: "
                )
                assert "Connection refused" in told
                message = host.failure(host.create, name)
                assert "cannot connect to the database" in message
                assert "what to do: is the server running, and is the port right?" in message

    def test_diff_still_sees_what_the_files_say(self, offline: Stack) -> None:
        offline.add("select 1;")
        with offline.host() as host:
            assert host.diff("migrations")[0] == DIFF_SOME

    def test_wrong_password_is_told(self, applied: Stack) -> None:
        with applied.host(databasePassword="not the p@ssword") as host:
            changes, told = host.diff("migrations")
            assert changes == DIFF_NONE
            assert "password authentication failed" in told
            message = host.failure(host.update, "migrations")
        assert "password authentication failed" in message
        assert "what to do: check user and password" in message

    def test_missing_database_is_told(self, applied: Stack) -> None:
        with applied.host(databaseName="absent") as host:
            assert host.diff("migrations")[0] == DIFF_SOME
            message = host.failure(host.update, "migrations")
        assert 'database "absent" does not exist' in message


class TestDrift:
    """What was changed behind Pulumi's back is named, by diff, by update and by refresh."""

    def test_row_security_switched_off_is_named_until_it_is_on_again(self, applied: Stack) -> None:
        applied.execute("alter table public.accounts disable row level security")
        with applied.host() as host:
            changes, told = host.diff("verification")
            assert changes == DIFF_SOME
            assert told.splitlines()[0] == "drift: table public.accounts"
            assert "row security t" in told.splitlines()[1]
            assert "row security f" in told.splitlines()[2]
            assert len(told.splitlines()) == 3
            message = host.failure(host.update, "verification")
            assert "1 object is not as the last run left them:\ntable public.accounts" in message
            assert "what to do: undo the change" in message
            assert host.failure(host.create, "verification") == message
            applied.execute("alter table public.accounts enable row level security")
            assert host.diff("verification") == (DIFF_NONE, "")
            assert host.update("verification").startswith("verified: no drift, ")

    def test_refresh_shows_the_drifted_object_by_name(self, applied: Stack) -> None:
        before = applied.state["verification"]
        with applied.host() as host:
            assert host.refresh("verification") == before
            applied.execute("alter table public.accounts disable row level security")
            found = host.refresh("verification")
        objects, live = before.outputs["objects"], found.outputs["objects"]
        assert {name for name in objects if objects[name] != live[name]} == {
            "table public.accounts"
        }
        assert found.outputs["fingerprint"] != before.outputs["fingerprint"]
        assert found.inputs == before.inputs

    def test_another_run_hides_no_drift(self, applied: Stack) -> None:
        applied.execute("alter table public.accounts disable row level security")
        applied.add("create table private.added (id int);")
        with applied.host() as host:
            host.update("migrations")
            assert "table public.accounts" in host.failure(host.update, "verification")

    def test_broken_promise_fails_with_its_words(self, applied: Stack) -> None:
        path = applied.add("-- promise: there is no one\nselect 1 as one;\n", "verify")
        with applied.host() as host:
            message = host.failure(host.update, "verification")
        assert f"sql/verify/{path.name}:2:1: broken promise: there is no one\n  one=1" in message


class TestRefresh:
    """Reading gives what the database says, not what the state remembers."""

    def test_nothing_changed_is_read_back(self, applied: Stack) -> None:
        with applied.host() as host:
            assert {name: host.refresh(name) for name in NAMES} == applied.state

    def test_ledger_row_deleted_shows_as_removed_and_comes_back(self, applied: Stack) -> None:
        state = applied.state["repeatable"]
        name = applied.names("repeatable")[-1]
        applied.execute(f"delete from migrate.ledger where name = '{name}'")
        with applied.host() as host:
            found = host.refresh("repeatable")
            assert found.inputs["files"] == {
                n: digest for n, digest in state.inputs["files"].items() if n != name
            }
            assert found.inputs["head"] == applied.names("repeatable")[-2]
            assert found.outputs == found.inputs
            applied.state["repeatable"] = found
            assert host.preview("repeatable", name) == []
            assert untimed(host.update("repeatable")) == f"applied repeatable/{name}\n"
            assert host.refresh("repeatable") == state


class TestConnection:
    """One process, one connection."""

    def pids(self, stack: Stack) -> set[int]:
        return {
            pid
            for (pid,) in stack.execute(
                "select pid from pg_stat_activity where datname = current_database() "
                f"and application_name = '{APPLICATION}'"
            )
        }

    def test_whole_sequence_uses_one_connection(self, stack: Stack) -> None:
        seen = []
        with stack.host() as host:
            for name in NAMES:
                host.create(name)
                seen.append(self.pids(stack))
            inputs = {name: state.inputs for name, state in stack.state.items()}
            with ThreadPoolExecutor(len(NAMES)) as threads:  # as many as the host serves at once
                diffs = threads.map(lambda name: host.diff_inputs(name, inputs[name])[0], NAMES)
                assert list(diffs) == [DIFF_NONE] * len(NAMES)
                seen.append(self.pids(stack))
                assert list(threads.map(host.refresh, NAMES)) == list(stack.state.values())
                seen.append(self.pids(stack))
            for name in NAMES:
                host.update(name)
                host.delete(name)
            seen.append(self.pids(stack))
        assert len(seen[0]) == 1
        assert all(pids == seen[0] for pids in seen)

    def test_threads_take_turns_from_the_first_call_on(self, applied: Stack) -> None:
        inputs = applied.state["verification"].inputs
        with applied.host() as host, ThreadPoolExecutor(8) as threads:
            found = threads.map(lambda _: host.compare("verification", inputs).changes, range(24))
            assert list(found) == [DIFF_NONE] * 24
            assert len(self.pids(applied)) == 1

    def test_threads_import_one_at_a_time(self, applied: Stack) -> None:
        """A package that two threads import at the same time can be seen half-made."""
        applied.add("select 1;")
        applied.edit("repeatable")
        inputs = applied.declared()

        def check(name: str) -> list[Any]:
            news = struct(inputs[name])
            return list(host.stub.Check(provider_pb2.CheckRequest(news=news, name=name)).failures)

        for _ in range(2):
            with applied.host() as host, ThreadPoolExecutor(8) as threads:
                checks = [threads.submit(check, name) for name in NAMES[:3] * 2]
                diffs = [threads.submit(host.compare, name, inputs[name]) for name in NAMES]
                live = threads.submit(host.refresh, "verification")
                assert [future.result() for future in checks] == [[]] * 6
                changes = [future.result().changes for future in diffs]
                assert changes == [DIFF_NONE, DIFF_SOME, DIFF_SOME, DIFF_SOME]
                assert live.result() == applied.state["verification"]

    def test_lost_connection_is_told_once_and_replaced(self, applied: Stack) -> None:
        with applied.host() as host:
            assert host.diff("migrations") == (DIFF_NONE, "")
            (pid,) = self.pids(applied)
            applied.execute(f"select pg_terminate_backend({pid}, 5000)")
            assert "terminating connection" in host.failure(host.diff, "migrations")
            assert host.diff("migrations") == (DIFF_NONE, "")


class TestRoleSettings:
    """The settings of a role, which belong to the server."""

    @pytest.fixture
    def stack(self, stack: Stack) -> Stack:
        """With a new role."""
        stack.role, stack.settings = f"role_{secrets.token_hex(4)}", {"lock_timeout": "5000"}
        stack.execute(f"create role {stack.role}")
        stack.execute(f"alter role {stack.role} set statement_timeout to 1000")
        return stack

    def live(self, stack: Stack) -> set[str]:
        (row,) = stack.execute(
            f"select setconfig from pg_db_role_setting where setrole = '{stack.role}'::regrole"
        )
        return set(row[0])

    def test_settings_are_set_and_others_left_alone(self, stack: Stack) -> None:
        with stack.host() as host:
            host.create("settings")
            assert stack.state["settings"].id == stack.role
            assert self.live(stack) == {"statement_timeout=1000", "lock_timeout=5000"}
            assert host.diff("settings") == (DIFF_NONE, "")
            stack.settings = {"lock_timeout": "7000"}
            assert host.diff("settings") == (DIFF_SOME, "")
            host.update("settings")
            assert self.live(stack) == {"statement_timeout=1000", "lock_timeout=7000"}
            host.delete("settings")
            assert self.live(stack) == {"statement_timeout=1000", "lock_timeout=7000"}

    def test_refresh_shows_what_is_set(self, stack: Stack) -> None:
        with stack.host() as host:
            host.create("settings")
            assert host.refresh("settings") == stack.state["settings"]
            stack.execute(f"alter role {stack.role} set lock_timeout to 1")
            found = host.refresh("settings")
            assert found.inputs["settings"] == found.outputs["settings"] == {"lock_timeout": "1"}
            stack.execute(f"alter role {stack.role} reset lock_timeout")
            stack.state["settings"] = host.refresh("settings")
            assert stack.state["settings"].outputs["settings"] == {}
            assert host.diff("settings") == (DIFF_SOME, "")

    def test_a_setting_that_is_lost_is_set_again(self, stack: Stack) -> None:
        with stack.host() as host:
            host.create("settings")
            stack.execute(f"alter role {stack.role} reset lock_timeout")
            assert host.diff("settings") == (DIFF_SOME, "")
            host.update("settings")
            assert self.live(stack) == {"statement_timeout=1000", "lock_timeout=5000"}
        with stack.host(databasePort="1") as host:
            assert host.diff("settings") == (DIFF_NONE, "")

    def test_another_role_is_another_resource(self, stack: Stack) -> None:
        with stack.host() as host:
            host.create("settings")
            stack.role = "another"
            response = host.compare("settings", host.check("settings"))
        assert response.changes == DIFF_SOME
        assert list(response.replaces) == ["role"]

    def test_missing_role_is_told_with_what_to_do(self, stack: Stack) -> None:
        with stack.host() as host:
            host.create("settings")
            stack.execute(f"drop role {stack.role}")
            assert host.diff("settings") == (DIFF_SOME, "")
            told = host.failure(host.update, "settings")
        assert f"has the role {stack.role}, and the server has not" in told
        assert "run `pulumi up --refresh`" in told


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


def test_delete_touches_nothing(applied: Stack) -> None:
    before = applied.everything()
    with applied.host() as host:
        for name in NAMES:
            host.delete(name)
    assert applied.everything() == before


def test_rotated_password_is_no_diff(stack: Stack) -> None:
    user, old, new = f"admin_{secrets.token_hex(4)}", secrets.token_hex(16), secrets.token_hex(16)
    stack.execute(f"create role {user} superuser login password '{old}'")
    with stack.host(databaseUser=user, databasePassword=old) as host:
        for name in NAMES:
            host.create(name)
    stack.execute(f"alter role {user} password '{new}'")
    with stack.host(databaseUser=user, databasePassword=new) as host:
        assert [host.diff(name) for name in NAMES] == [(DIFF_NONE, "")] * len(NAMES)
        assert [host.refresh(name) for name in NAMES] == [stack.state[name] for name in NAMES]
    assert old not in json.dumps([vars(state) for state in stack.state.values()])


def test_nothing_is_imported_before_it_is_needed(database: str) -> None:
    # Every `up` waits for these imports, a fifth of a second for psycopg alone.
    code = """
import sys
from pulumi.dynamic import Config, ConfigureRequest
import components.automation
import components.role_settings
from components.schema import VerificationProvider

provider, values = VerificationProvider(), eval(sys.argv[1])
provider.configure(ConfigureRequest(Config(values, "mindroom")))
for name in ("psycopg", "migrate.run"):
    assert name not in sys.modules, name
proof = {"files": "", "promises": ""}
provider.diff("verification", proof, proof)
for name in ("psycopg", "migrate.catalog"):
    assert name in sys.modules, name
for name in ("pglast", "migrate.lint", "migrate.rehearsal", "pulumi_postgresql"):
    assert name not in sys.modules, name
import components.access
import components.database
import components.instance_provisioner
assert "pglast" not in sys.modules
"""
    config = {f"{PROJECT}:{key}": value for key, value in Stack(ROOT, database).config.items()}
    command = [sys.executable, "-c", code, repr(config)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
