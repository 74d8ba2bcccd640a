"""Copies of the project on the real engine, through the Automation API."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psycopg
from pulumi import automation

from components import PROJECT
from migrate import catalog
from migrate.connection import connect
from tests.support.platforms import SECRETS, copy_project


class Outputs(Mapping[str, automation.OutputValue]):
    """A stack's outputs, for which the CLI is started twice: when they are looked at."""

    def __init__(self, read: Callable[[], Mapping[str, automation.OutputValue]]) -> None:
        self._read = cache(read)

    def __getitem__(self, name: str) -> automation.OutputValue:
        return self._read()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())


class Workspace(automation.LocalWorkspace):
    """One whose `up` does not read outputs that nobody looks at."""

    def stack_outputs(self, stack_name: str) -> Outputs:  # type: ignore[override]
        return Outputs(lambda: super(Workspace, self).stack_outputs(stack_name))


@dataclass(frozen=True)
class Project:
    """A copy of the project with a stack of its own."""

    directory: Path
    stack: automation.Stack
    config: dict[str, Any]
    url: str

    def up(self, **options: Any) -> automation.UpResult:
        return self.stack.up(color="never", **options)

    def preview(self, **options: Any) -> automation.PreviewResult:
        return self.stack.preview(color="never", diff=True, **options)

    def shown(self, **options: Any) -> str:
        """All that a preview prints; what a provider says goes to stderr."""
        result = self.preview(**options)
        return result.stdout + result.stderr

    def resources(self) -> list[dict[str, Any]]:
        """What the state holds."""
        deployment = self.stack.export_stack().deployment
        assert deployment is not None
        return list(deployment["resources"])

    def migration(self, name: str, text: str) -> Path:
        path = self.directory / "sql" / "migrations" / name
        path.write_text(text)
        return path


def make_project(directory: Path, config: dict[str, Any], url: str, **environment: str) -> Project:
    copy_project(directory)
    backend = directory / "backend"
    backend.mkdir()
    workspace = Workspace(
        work_dir=str(directory),
        env_vars={
            "PULUMI_BACKEND_URL": backend.as_uri(),
            "PULUMI_CONFIG_PASSPHRASE": "for this test only",
            "PULUMI_SKIP_UPDATE_CHECK": "true",
            **environment,
        },
    )
    stack = automation.Stack.create("test", workspace)
    values = {
        path: automation.ConfigValue(text, secret=key in SECRETS)
        for key, value in config.items()
        for path, text in paths(f"{PROJECT}:{key}", value)
    }
    stack.set_all_config(values, path=True)
    return Project(directory, stack, config, url)


def paths(path: str, value: Any) -> Iterator[tuple[str, str]]:
    """Each value in a value of config, by the path to it."""
    if isinstance(value, dict):
        for name, each in value.items():
            yield from paths(f"{path}.{name}", each)
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from paths(f"{path}[{index}]", each)
    else:
        yield path, value if isinstance(value, str) else json.dumps(value)


def live_catalog(url: str) -> dict[str, str]:
    with connect(url) as connection:
        return catalog.read(connection)


def execute(url: str, statement: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement.encode())


def changes(
    result: automation.UpResult | automation.RefreshResult | automation.PreviewResult,
) -> dict[str, int]:
    summary = (
        result.change_summary
        if isinstance(result, automation.PreviewResult)
        else result.summary.resource_changes
    )
    return {str(getattr(op, "value", op)): count for op, count in (summary or {}).items()}


def verification(project: Project) -> str:
    (urn,) = (r["urn"] for r in project.resources() if r["type"].endswith(":Verification"))
    return str(urn)
