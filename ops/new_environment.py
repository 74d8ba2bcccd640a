"""A new environment's stack file: `python -m ops.new_environment NAME`.

Its keys are those of Pulumi.yaml, its values those of staging.
"""

import json
import re
import sys
from typing import Any

import pulumi
import yaml

from components import PROJECT, ROOT
from components.config import SECRETS, parse
from embedded.errors import UserError

TEMPLATE = "staging"
OWN_KEYS = ("databaseHost", "databaseUser", "kubernetesContext", "provisionerImage", "baseDomain")
"""What no two environments share, left empty for whoever makes one."""


def main(arguments: list[str]) -> int:
    """Write the file and print what is left to do; returns the exit code."""
    name = arguments[0] if arguments else ""
    try:
        left = write(name)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote Pulumi.{name}.yaml; what is left to fill in:\n\n{left}\n")
    print(
        f"After `pulumi stack init {name}`, `pulumi preview -s {name}` says what is still missing;"
    )
    print("what else an environment needs is in docs/environments.md, A new environment.")
    return 0


def write(name: str) -> str:
    """Write an environment's stack file; returns what components/config.py says of it.

    Raises:
        UserError: the name is not allowed, or there is such a file.
    """
    if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
        raise UserError(
            f"{name!r} cannot be the name of an environment",
            "make new-env NAME=..., of small letters, digits and hyphens, a letter first",
        )
    declared = _config("Pulumi.yaml")
    template = _config(f"Pulumi.{TEMPLATE}.yaml")
    values: dict[str, Any] = {
        key: "" if key in OWN_KEYS else template.get(f"{PROJECT}:{key}", item["default"])
        for key, item in declared.items()
        if key not in SECRETS
    }
    lines = [f"# {name}: see docs/environments.md.", "config:"]
    for key, value in values.items():
        line = yaml.safe_dump({f"{PROJECT}:{key}": value}, width=1000).rstrip()
        lines += [f"  # {declared[key]['description']}", f"  {line}"]
    path = ROOT / f"Pulumi.{name}.yaml"
    try:
        with path.open("x") as file:
            file.write("\n".join(lines) + "\n")
    except FileExistsError:
        raise UserError(f"{path.name} exists", "edit it, or take another name") from None
    try:
        parse({k: v if isinstance(v, str) else json.dumps(v) for k, v in values.items()}, [], name)
    except pulumi.RunError as error:
        return str(error).partition("\n\n")[2]
    return "nothing"


def _config(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / name).read_text())["config"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
