"""How large and how tangled each package is: `python -m bench.structure [PACKAGE ...]`.

Lines are those of its Python files.  Public names are what its modules define at their top level
without an underscore in front; a module with one is its package's own, and so are its names.  The
longest function is measured in lines, docstring included.  A cycle is a set of modules of which
each imports all others, directly or not; imports in functions and for type checkers count, too.
"""

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path


def public_names(tree: ast.Module) -> set[str]:
    """What a module defines at its top level for others to use."""
    names = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {
                n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)
            }
    return {name for name in names if not name.startswith("_")}


def imported(tree: ast.Module) -> Iterator[str]:
    """The full name of whatever may be a module that is imported."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))


def cycles(imports: Mapping[str, set[str]]) -> list[list[str]]:
    """The largest sets of modules of which each reaches all others."""
    reached = {module: set(found) for module, found in imports.items()}
    for via in imports:
        for module in imports:
            if via in reached[module]:
                reached[module] |= reached[via]
    groups = {
        tuple(sorted(other for other in reached[module] if module in reached[other]))
        for module in imports
    }
    return sorted(list(group) for group in groups if len(group) > 1)


def main(packages: list[str]) -> None:
    """Print a line for each package, and the cycles."""
    listed = subprocess.run(["git", "ls-files", "*.py"], capture_output=True, text=True, check=True)
    trees: dict[str, dict[str, ast.Module]] = defaultdict(dict)
    lines: dict[str, int] = defaultdict(int)
    for path in filter(Path.exists, map(Path, listed.stdout.split())):
        text, package = path.read_text(encoding="utf-8"), path.parts[0]
        module = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
        trees[package][module] = ast.parse(text)
        lines[package] += text.count("\n")
    modules = {module for found in trees.values() for module in found}
    print(f"{'package':<14}{'lines':>7}{'public names':>14}  longest function")
    for package in packages or sorted(trees):
        names = sum(
            len(public_names(tree))
            for module, tree in trees[package].items()
            if not re.search(r"\._(?!_)", module)
        )
        length, longest = max(
            ((node.end_lineno or 0) - node.lineno + 1, f"{module}:{node.name}")
            for module, tree in trees[package].items()
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        )
        print(f"{package:<14}{lines[package]:>7}{names:>14}  {length} {longest}")
    graph = {m: set(imported(t)) & modules for found in trees.values() for m, t in found.items()}
    for group in cycles(graph):
        print("cycle:", ", ".join(group))


if __name__ == "__main__":
    main(sys.argv[1:])
