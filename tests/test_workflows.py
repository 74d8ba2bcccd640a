"""What the workflows may do, and to whom they show a secret; actionlint judges their syntax."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from components import ROOT

FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
WORKFLOWS = {path.stem: yaml.load(path.read_text(), yaml.BaseLoader) for path in FILES}

PERMISSIONS = {
    ("deploy", "test"): {},
    ("deploy", "deploy"): {"id-token": "write"},
    ("drift", "drift"): {"id-token": "write", "issues": "write"},
    ("preview", "check-and-test"): {},
    ("preview", "preview-dev"): {"pull-requests": "write"},
    ("preview", "preview"): {"id-token": "write", "pull-requests": "write"},
}


def jobs() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for name, workflow in WORKFLOWS.items():
        for job, content in workflow["jobs"].items():
            yield name, job, content


def steps(name: str) -> list[dict[str, Any]]:
    return [step for job in WORKFLOWS[name]["jobs"].values() for step in job["steps"]]


def test_each_runs_when_it_should_and_never_with_a_fork_s_code_and_our_secrets() -> None:
    assert {name: workflow["on"] for name, workflow in WORKFLOWS.items()} == {
        "deploy": {"push": {"branches": ["main"]}},
        "drift": {"schedule": [{"cron": "37 3 * * *"}]},
        "preview": {"pull_request": ""},
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_actions_are_pinned_by_commit(path: Path) -> None:
    used = re.findall(r"uses: (.+)", path.read_text())
    assert used
    for each in used:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", each), each


def test_permissions_are_the_least() -> None:
    assert all(workflow["permissions"] == {} for workflow in WORKFLOWS.values())
    given = {(name, job): content["permissions"] for name, job, content in jobs()}
    assert given == {key: {"contents": "read"} | more for key, more in PERMISSIONS.items()}


def test_token_is_given_to_the_step_that_writes_alone() -> None:
    for name in WORKFLOWS:
        for step in steps(name):
            writes = re.search(r"-m reviews (comment|issue) ", step.get("run", ""))
            assert ("github.token" in str(step)) == bool(writes), step
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] == "false"


def test_pull_request_of_a_fork_sees_no_secret() -> None:
    trusted = WORKFLOWS["preview"]["env"]["TRUSTED"]
    assert "github.event.pull_request.head.repo.full_name == github.repository" in trusted
    guarded = [
        step
        for step in steps("preview")
        if re.search(r"secrets\.|github\.token|auth-actions", str(step))
    ]
    assert len(guarded) == 4
    for step in guarded:
        assert "env.TRUSTED == 'true'" in step["if"], step
        assert "||" not in step["if"], step
    (preview,) = (step for step in steps("preview") if "-m reviews preview" in step.get("run", ""))
    assert preview["env"]["OFFLINE"] == "${{ env.TRUSTED == 'false' && '--offline' || '' }}"


def test_hosted_environments_are_in_every_workflow_one_after_the_other() -> None:
    matrices = {
        (name, job): content["strategy"]["matrix"]["environment"]
        for name, job, content in jobs()
        if "environment" in content.get("strategy", {}).get("matrix", {})
    }
    assert list(matrices) == [("deploy", "deploy"), ("drift", "drift"), ("preview", "preview")]
    first, *others = matrices.values()
    assert all(environments == first for environments in others)
    assert first[-1] == "prod"
    assert all((ROOT / f"Pulumi.{environment}.yaml").is_file() for environment in first)
    deploy = WORKFLOWS["deploy"]["jobs"]["deploy"]
    assert deploy["environment"] == "${{ matrix.environment }}"  # it has the approval
    assert deploy["strategy"]["max-parallel"] == "1"
    assert "fail-fast" not in deploy["strategy"]  # one's failure ends it, by default
    assert deploy["needs"] == "test"


@pytest.mark.parametrize(("code", "fails"), [(0, False), (3, False), (1, True)])
def test_drift_is_no_failure_and_an_error_is(tmp_path: Path, code: int, fails: bool) -> None:
    (step,) = (step for step in steps("drift") if step.get("id") == "drift")
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho "$@"\nexit {code}\n')
    python.chmod(0o755)
    output = tmp_path / "output"
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", step["run"]],
        cwd=tmp_path,
        env=os.environ
        | {"GITHUB_OUTPUT": str(output), "RUNNER_TEMP": str(tmp_path), "STACK": "mindroom/prod"},
        check=False,
    )
    assert (done.returncode != 0) == fails
    assert output.read_text() == f"code={code}\n"
    assert (tmp_path / "drift.md").read_text() == "-m reviews drift mindroom/prod\n"
