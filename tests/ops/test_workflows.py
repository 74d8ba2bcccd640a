"""What the workflows may do, and to whom they show a secret; actionlint judges their syntax."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
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
    ("published", "published"): {},
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
        "published": {"schedule": [{"cron": "17 4 * * *"}]},
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
            writes = re.search(r"-m ops.reviews (comment|issue) ", step.get("run", ""))
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
    assert len(guarded) == 5
    for step in guarded:
        assert "env.TRUSTED == 'true'" in step["if"], step
        assert "||" not in step["if"], step
    (offline,) = (step for step in steps("preview") if "--offline" in step.get("run", ""))
    assert offline["if"] == "env.TRUSTED == 'false'"


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


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A directory with what a step runs, by another Python, which only says how it was called."""
    for name in (".ci", ".venv/bin", "bin"):
        (tmp_path / name).mkdir(parents=True)
    shutil.copy(ROOT / ".ci" / "reach", tmp_path / ".ci")
    (tmp_path / "Pulumi.prod.yaml").write_text("config:\n  mindroom:protect: true\n")
    return tmp_path


def script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(("code", "fails"), [(0, False), (3, False), (1, True)])
def test_drift_is_no_failure_and_an_error_is(checkout: Path, code: int, fails: bool) -> None:
    (step,) = (step for step in steps("drift") if step.get("id") == "drift")
    script(checkout / ".venv" / "bin" / "python", f'echo "$@"\nexit {code}')
    output = checkout / "output"
    done = subprocess.run(
        ["bash", "-e", "-c", step["run"].replace("${{ matrix.environment }}", "prod")],
        cwd=checkout,
        env=os.environ
        | {"GITHUB_OUTPUT": str(output), "RUNNER_TEMP": str(checkout), "STACK": "mindroom/prod"},
        check=False,
    )
    assert (done.returncode != 0) == fails
    assert output.read_text() == f"code={code}\n"
    assert (checkout / "drift.md").read_text() == "-m ops.reviews drift mindroom/prod\n"


@pytest.mark.parametrize("written", ["", "  mindroom:databaseBastion: ''\n"])
def test_without_a_bastion_a_command_runs_as_it_is(checkout: Path, written: str) -> None:
    with (checkout / "Pulumi.prod.yaml").open("a") as file:
        file.write(written)
    done = subprocess.run(
        [checkout / ".ci" / "reach", "prod", "echo", "a b"],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "a b\n", "")


def private_key(path: Path, passphrase: str = "", *options: str) -> str:
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-C", "ci", *options, "-N", passphrase]
    subprocess.run([*command, "-f", path], check=True)
    return path.read_text()


def reach(checkout: Path, key: str) -> subprocess.CompletedProcess[str]:
    """What `.ci/reach` does with a key; the tunnel says what it finds and ends with code 7."""
    with (checkout / "Pulumi.prod.yaml").open("a") as file:
        file.write("  mindroom:databaseBastion: deploy@bastion.example\n")
    script(
        checkout / "bin" / "tunnel",
        'echo "$@"\nssh-add -l\necho "agent $SSH_AUTH_SOCK key ${BASTION_KEY-none}"\nexit 7',
    )
    return subprocess.run(
        [checkout / ".ci" / "reach", "prod", "pulumi", "up", "a b"],
        cwd=checkout,
        env=os.environ
        | {
            "HOME": str(checkout),
            "BASTION_KEY": key,
            "BASTION_KNOWN_HOSTS": "bastion.example ssh-ed25519 AAAA",
        },
        capture_output=True,
        text=True,
        check=False,
    )


def test_bastion_is_reached_by_a_key_that_only_its_agent_has(checkout: Path) -> None:
    done = reach(checkout, private_key(checkout / "key"))
    assert done.returncode == 7
    command, known, agent = done.stdout.splitlines()
    assert command == "-s prod -- pulumi up a b"
    assert " ci (ED25519)" in known
    match = re.fullmatch(r"agent (/.+) key none", agent)
    assert match
    deadline = time.monotonic() + 10
    while Path(match[1]).exists():  # the agent ends a moment later
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert (checkout / ".ssh" / "known_hosts").read_text() == "bastion.example ssh-ed25519 AAAA\n"
    assert not [path for path in (checkout / ".ssh").iterdir() if path.name != "known_hosts"]


@pytest.mark.parametrize(
    "paste",
    [
        lambda key: key.replace("\n", "\r\n"),
        lambda key: key.replace("\n", "\\n"),
        lambda key: key.replace("\n", " "),
        lambda key: key.replace("\n", ""),
        lambda key: key.replace("\n", "\n    "),
    ],
    ids=["crlf", "written-out", "one-line", "joined", "indented"],
)
def test_bastion_s_key_is_taken_however_it_was_pasted(
    checkout: Path, paste: Callable[[str], str]
) -> None:
    done = reach(checkout, paste(private_key(checkout / "key")))
    assert done.returncode == 7, done.stderr
    assert " ci (ED25519)" in done.stdout


RSA = ("-t", "rsa", "-b", "2048", "-m", "PEM")


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda _: "", "it is empty"),
        (lambda path: private_key(path, "a passphrase"), "it has a passphrase"),
        (lambda path: private_key(path, "a passphrase", *RSA), "it has a passphrase"),
        (lambda path: private_key(path)[:200], "Error loading key"),
        (lambda path: private_key(path) and Path(f"{path}.pub").read_text(), "Error loading key"),
    ],
    ids=["empty", "passphrase", "rsa-passphrase", "half", "public"],
)
def test_bastion_s_key_that_cannot_be_used_is_told(
    checkout: Path, make: Callable[[Path], str], problem: str
) -> None:
    done = reach(checkout, make(checkout / "key"))
    assert (done.returncode, done.stdout) == (1, "")
    start = f"error: BASTION_KEY holds no key for the bastion of prod: {problem}"
    assert done.stderr.startswith(start)
