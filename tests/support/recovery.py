"""A platform that accidents happen to, and whether it is whole again afterwards."""

import os
import shutil
import subprocess

import psycopg
from pulumi import automation

from tests.support.engines import Project, changes

RENDERED = ["**kubernetes**"]
"""What a refresh leaves out: there is no cluster to ask."""


def whole(project: Project) -> automation.UpResult:
    """The platform is as declared, its customer is there, and every service can log in."""
    result = project.up()
    assert set(changes(result)) == {"same"}
    with psycopg.connect(project.url) as connection:
        assert connection.execute("select email from public.accounts").fetchall() == [
            ("kept@x.test",)
        ]
    for url in project.stack.outputs()["service_database_urls"].value.values():
        psycopg.connect(url).close()
    return result


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
