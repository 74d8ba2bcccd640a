"""What operators run on any stack: the tunnel, a new environment, previews of pull requests."""

from typing import Any

import yaml

from components import PROJECT, ROOT
from embedded.errors import UserError


def committed_config(stack: str) -> dict[str, Any]:
    """A stack's config as committed, defaults included, keyed as in Pulumi.yaml.

    Raises:
        UserError: there is no such stack file, or it is not valid YAML.
    """
    path = ROOT / f"Pulumi.{stack}.yaml"
    if not path.is_file():
        stacks = sorted(file.name.split(".")[1] for file in ROOT.glob("Pulumi.*.yaml"))
        raise UserError(f"{path.name} does not exist", f"name one of {', '.join(stacks)}")
    declared = yaml.safe_load((ROOT / "Pulumi.yaml").read_text())["config"]
    try:
        given = (yaml.safe_load(path.read_text()) or {}).get("config") or {}
    except yaml.YAMLError as error:
        raise UserError(f"{path.name} is not valid YAML: {error}", "fix that line") from error
    return {key: item["default"] for key, item in declared.items()} | {
        key.removeprefix(f"{PROJECT}:"): value for key, value in given.items()
    }
