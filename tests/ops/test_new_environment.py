"""`make new-env`: a stack file that is complete, and what it says is left is all that is left."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from components import PROJECT, ROOT
from components import config as stack_config
from components.config import SECRETS, parse
from ops import new_environment

FILLED_IN = {
    "databasePassword": "the administrator's",
    "provisionerApiToken": "the token of the API",
}


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project directory of its own."""
    for name in ("Pulumi.yaml", f"Pulumi.{new_environment.TEMPLATE}.yaml", ".yamllint.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    for module in (stack_config, new_environment):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    return tmp_path


def written(project: Path, name: str) -> dict[str, Any]:
    config = yaml.safe_load((project / f"Pulumi.{name}.yaml").read_text())["config"]
    return {key.removeprefix(f"{PROJECT}:"): value for key, value in config.items()}


def plain(config: dict[str, Any]) -> dict[str, str]:
    """As the engine hands values over."""
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in config.items()}


def test_file_has_every_key_but_the_secrets(project: Path) -> None:
    new_environment.write("qa")
    declared = yaml.safe_load((project / "Pulumi.yaml").read_text())["config"]
    assert [key for key in declared if key not in SECRETS] == list(written(project, "qa"))
    text = (project / "Pulumi.qa.yaml").read_text()
    for key in written(project, "qa"):
        assert f"  # {declared[key]['description']}\n  {PROJECT}:{key}: " in text


@pytest.mark.usefixtures("contexts")
def test_what_is_said_to_be_left_is_all_that_is_left(project: Path) -> None:
    left = new_environment.write("qa")
    named = re.findall(rf"^{PROJECT}:(\w+) ", left, re.MULTILINE)
    assert sorted(named) == sorted([*SECRETS, *new_environment.OWN_KEYS, "databaseSslrootcert"])
    commands = re.findall(r"(?:what to do|and): (pulumi .+)", left)
    assert commands
    assert all(each.startswith("pulumi config set -s qa --secret ") for each in commands)

    # Done as it says: its YAML into the file, its secrets, the CA's certificate.
    config = written(project, "qa")
    for block in left.split("\n\n"):
        added = yaml.safe_load("".join(re.findall(r"^    (.+\n?)", block, re.MULTILINE)))
        ((key, value),) = added.items()
        key = key.removeprefix(f"{PROJECT}:")
        config[key] = FILLED_IN.get(key, value)
    config["servicePasswords"] = dict.fromkeys(config["servicePasswords"], "sixteen characters")
    certificate = project / config["databaseSslrootcert"]
    certificate.parent.mkdir()
    certificate.touch()
    made = parse(plain(config), [], "qa")
    assert made.platform == "supabase"
    assert made.protect is True


def test_nothing_that_was_encrypted_for_another_stack_is_copied(project: Path) -> None:
    template = project / f"Pulumi.{new_environment.TEMPLATE}.yaml"
    stack = yaml.safe_load(template.read_text())
    stack["encryptionsalt"] = "v1:salt"
    stack["config"] |= {f"{PROJECT}:{key}": {"secure": "v1:ciphertext"} for key in SECRETS}
    template.write_text(yaml.safe_dump(stack))
    new_environment.write("qa")
    assert "v1:" not in (project / "Pulumi.qa.yaml").read_text()


def test_file_is_as_the_checks_want_it(project: Path) -> None:
    new_environment.write("a-2")
    subprocess.run(
        [Path(sys.executable).parent / "yamllint", "--strict", "Pulumi.a-2.yaml"],
        cwd=project,
        check=True,
    )


@pytest.mark.parametrize("name", ["", "Prod", "a b", "../up", "2nd", "qa.yaml", "-s", "é", "qa\n"])
def test_bad_name_is_refused(project: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    before = sorted(project.iterdir())
    assert new_environment.main([name] if name else []) == 1
    assert capsys.readouterr().err.startswith(
        f"error: {name!r} cannot be the name of an environment\n"
    )
    assert sorted(project.iterdir()) == before


def test_file_that_is_there_is_left_alone(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = project / f"Pulumi.{new_environment.TEMPLATE}.yaml"
    before = path.read_text()
    assert new_environment.main([new_environment.TEMPLATE]) == 1
    assert capsys.readouterr().err == (
        f"error: {path.name} exists\n  what to do: edit it, or take another name\n"
    )
    assert path.read_text() == before


def test_command_says_what_comes_next(capsys: pytest.CaptureFixture[str]) -> None:
    assert new_environment.main(["qa"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("wrote Pulumi.qa.yaml; what is left to fill in:\n\nmindroom:")
    assert "`pulumi stack init qa`" in printed
