"""The dynamic providers in their real host process, `python -m pulumi.dynamic`, on real databases.

`Host` is the engine's end: it starts the process as Pulumi's `pulumi-resource-pulumi-python` does,
speaks the ResourceProvider protocol with it, and sends what `pulumi up` was seen to send (a trace
of CLI 3.260).  The process runs in a copy of the project, whose SQL files the tests change.
"""

import hashlib
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
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
from psycopg.conninfo import conninfo_to_dict
from pulumi.runtime import mocks, rpc
from pulumi.runtime.proto import provider_pb2, provider_pb2_grpc

from components import PROJECT, ROOT, schema
from components.automation import PgCron
from components.by_hand import GivenByHand
from components.role_settings import RoleSettings
from migrate import catalog, files
from migrate.connection import connect
from tests.support.platforms import HALF_WRITTEN

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
        before = hashlib.sha256(path.read_bytes()).hexdigest()
        path.write_text(text + path.read_text())
        return path.name, before, hashlib.sha256(path.read_bytes()).hexdigest()

    def declared(self) -> dict[str, Properties]:
        """The inputs of each resource, as the program declares them on the files as they are."""

        def program() -> None:
            opts = pulumi.ResourceOptions()
            schema.RepeatableSet("platform", files.PLATFORM, opts)
            schema.MigrationSet("migrations", files.VERSIONED, opts)
            schema.RepeatableSet("repeatable", files.REPEATABLE, opts)
            schema.Verification("verification", opts)
            GivenByHand("given-by-hand", opts)
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
            r"\(in \d+\.\d\d s\), checks passed [1-9]\d*",
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
        shutil.copytree(ROOT / name, project / name, ignore=HALF_WRITTEN)
    return project
