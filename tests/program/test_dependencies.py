"""pyproject.toml declares what is imported, by the program, the provisioner and the tests."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions

import pytest

from components import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
GROUPS = PROJECT["dependency-groups"] | {"program": PROJECT["project"]["dependencies"]}
FOLDERS = {path.name for path in ROOT.iterdir()}
TESTS = {"tests", "bench"}
ELSEWHERE = {"provisioner", "charts"}
"""What runs in an image: the provisioner's, and that of MindRoom, which has what it needs."""


def imported(folders: set[str]) -> set[str]:
    """The modules of others, at the top level, that Python files in these folders import."""
    listed = subprocess.run(
        ["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    modules = set()
    for path in listed.stdout.split():
        if path.split("/")[0] in folders:
            for node in ast.walk(ast.parse((ROOT / path).read_text())):
                if isinstance(node, ast.Import):
                    modules |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    modules.add(node.module.partition(".")[0])
    return modules - FOLDERS - sys.stdlib_module_names


@pytest.mark.parametrize(
    ("folders", "groups"),
    [
        (FOLDERS - TESTS - ELSEWHERE, ["program"]),
        ({"provisioner"}, ["provisioner"]),
        (TESTS, ["program", "provisioner", "dev"]),
    ],
    ids=["program", "provisioner", "tests"],
)
def test_what_is_imported_is_declared(folders: set[str], groups: list[str]) -> None:
    declared = {re.split(r"[=\[]", text)[0] for group in groups for text in GROUPS[group]}
    distributions = packages_distributions()
    found = imported(folders)
    assert found
    assert {
        module
        for module in found
        if not {name.replace("_", "-").lower() for name in distributions[module]} & declared
    } == set()
