"""The dev stack: what `make up` runs, and the program without Pulumi; the way to other stacks."""

from typing import Any

import yaml

from components import PROJECT, ROOT


class DevError(Exception):
    """One clear message: what is wrong, where, what to do."""


def committed_config(stack: str) -> dict[str, Any]:
    """A stack's config as committed, defaults included, keyed as in Pulumi.yaml.

    Raises:
        DevError: there is no such stack file.
    """
    path = ROOT / f"Pulumi.{stack}.yaml"
    if not path.is_file():
        there = sorted(each.name.split(".")[1] for each in ROOT.glob("Pulumi.*.yaml"))
        raise DevError(f"{path.name} does not exist: the stacks here are {', '.join(there)}")
    declared = yaml.safe_load((ROOT / "Pulumi.yaml").read_text())["config"]
    given = yaml.safe_load(path.read_text())["config"]
    return {key: each["default"] for key, each in declared.items()} | {
        key.removeprefix(f"{PROJECT}:"): value for key, value in given.items()
    }
