"""The dev stack's locks, config and encryption, without a database: `dev.stack`."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from components import PROJECT, ROOT
from dev.stack import NAME, Stack
from embedded.errors import UserError

HERE = socket.gethostname()
TAKE_TURN = "from dev.stack import take_turn; from pathlib import Path; import os, sys;"


def take_turn(directory: Path, then: str) -> subprocess.Popen[str]:
    command = f"{TAKE_TURN} take_turn(Path(sys.argv[1])); {then}"
    return subprocess.Popen(
        [sys.executable, "-c", command, directory],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline()


def test_runs_wait_for_one_another_whatever_they_become(tmp_path: Path) -> None:
    directory = tmp_path / "state"
    # As `make up` becomes Pulumi, which starts plugins that outlive it for a while.
    first = take_turn(directory, "os.execlp('sh', 'sh', '-c', 'sleep 60 & echo $!; wait')")
    child = int(line(first))
    remove = f"import shutil; print('has it', flush=True); input(); shutil.rmtree('{directory}')"
    second = take_turn(directory, remove)
    assert line(second) == f"waiting for another run to end: process {first.pid} on {HERE}\n"
    first.kill()
    assert line(second) == "has it\n"
    third = take_turn(directory, "print('at last')")
    assert line(third) == f"waiting for another run to end: process {second.pid} on {HERE}\n"
    second.communicate("\n", timeout=30)
    assert third.communicate(timeout=30)[0] == "at last\n"
    assert list(directory.iterdir()) == [directory / "lock"]
    os.kill(child, signal.SIGKILL)
    first.communicate()


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    """A stack with an empty state."""
    made = Stack(tmp_path)
    made.state.parent.mkdir(parents=True)
    made.state.write_text(json.dumps({"checkpoint": {"latest": None}}))
    return made


@pytest.mark.parametrize("content", ["", "[]", '{"checkpoint": {}}', '{"checkpoint": null}'])
def test_damaged_state_is_left_for_a_copy_of_it(stack: Stack, content: str) -> None:
    stack.state.write_text(content)
    with pytest.raises(UserError, match=r"dev\.json is damaged") as caught:
        stack.is_deployed_to("embedded")
    assert "dev.json.bak" in caught.value.remedy


@pytest.mark.parametrize("content", [None, "", "[]", "config: {a: [", "config: {}"])
def test_damaged_config_file_is_made_again_by_the_salt_of_the_state(
    stack: Stack, content: str | None
) -> None:
    latest = {"secrets_providers": {"type": "passphrase", "state": {"salt": "v1:salt"}}}
    stack.state.write_text(json.dumps({"checkpoint": {"latest": latest}}))
    if content is not None:
        stack.file.write_text(content)
    stack._write_config("true", {"baseDomain": "a.test"}, {"provisionerApiToken": "word"})
    written = yaml.safe_load(stack.file.read_text())
    assert written == {
        "encryptionsalt": "v1:salt",
        "config": {f"{PROJECT}:baseDomain": "a.test"},
    }


def lock(stack: Stack, content: str) -> Path:
    folder = stack.directory / "pulumi/.pulumi/locks/organization" / PROJECT / NAME
    folder.mkdir(parents=True)
    for ending in (".json", ".json.attrs"):
        (folder / f"0{ending}").write_text(content)
    return folder


def held(**changes: Any) -> str:
    ended = subprocess.Popen(["true"])
    ended.wait()
    whose = {"pid": ended.pid, "username": "ada", "hostname": HERE, "timestamp": "12:00"}
    return json.dumps(whose | changes)


@pytest.mark.parametrize(
    "content",
    [held(), held(pid=os.getpid()), "", "{", "[]", '{"pid": "x"}'],
    ids=["ended", "unrelated", "empty", "torn", "list", "no-number"],
)
def test_lock_of_a_run_that_has_ended_is_removed(
    stack: Stack, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = lock(stack, content)
    stack._unlock("pulumi")
    assert list(folder.iterdir()) == []
    assert capsys.readouterr().out == "a run was killed: its lock is removed\n"


def test_lock_of_another_machine_is_left(stack: Stack) -> None:
    folder = lock(stack, held(hostname="laptop"))
    with pytest.raises(UserError) as caught:
        stack._unlock("pulumi")
    assert "on another machine: ada@laptop (process " in caught.value.problem
    assert caught.value.remedy.endswith(f"remove {folder / '0.json'}")
    assert len(list(folder.iterdir())) == 2


def test_lock_of_a_run_in_progress_is_left(stack: Stack, tmp_path: Path) -> None:
    program = tmp_path / "pulumi-of-a-test"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "60"]) as process:
        folder = lock(stack, held(pid=process.pid))
        with pytest.raises(UserError) as caught:
            stack._unlock("pulumi")
        process.kill()
    assert f"kill -INT {process.pid}" in caught.value.remedy
    assert len(list(folder.iterdir())) == 2
