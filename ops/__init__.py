"""What operators run on any stack: the tunnel, a new environment, reviews of pull requests."""

from typing import Any

import yaml

from components import PROJECT, ROOT


class UserError(Exception):
    """One clear message: what is wrong, where, what to do."""


def committed_config(stack: str) -> dict[str, Any]:
    """A stack's config as committed, defaults included, keyed as in Pulumi.yaml.

    Raises:
        UserError: there is no such stack file, or it is no YAML.
    """
    path = ROOT / f"Pulumi.{stack}.yaml"
    if not path.is_file():
        there = sorted(each.name.split(".")[1] for each in ROOT.glob("Pulumi.*.yaml"))
        raise UserError(f"{path.name} does not exist: the stacks here are {', '.join(there)}")
    declared = yaml.safe_load((ROOT / "Pulumi.yaml").read_text())["config"]
    try:
        given = (yaml.safe_load(path.read_text()) or {}).get("config") or {}
    except yaml.YAMLError as error:
        raise UserError(f"{path.name} is no YAML: {error}") from error
    return {key: each["default"] for key, each in declared.items()} | {
        key.removeprefix(f"{PROJECT}:"): value for key, value in given.items()
    }
