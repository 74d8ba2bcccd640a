"""The generated files: `python -m docs.generate` writes them, `--check` compares them."""

import argparse
import difflib
import sys
from collections.abc import Callable

from components import ROOT
from docs.generate import authorization, reference, services, verification
from migrate.bundle import bundle
from migrate.files import read_tree

GENERATED: dict[str, Callable[[], str]] = {
    "sql/verify/70_authorization.sql": verification.authorization,
    "sql/verify/80_access.sql": verification.access,
    "sql/all-migrations.sql": lambda: "".join(bundle(read_tree(ROOT / "sql"))),
    "docs/authorization.md": authorization.document,
    "docs/reference.md": reference.document,
    "docs/services.md": services.document,
}


def main() -> int:
    """Write the files, or show how they differ from what would be written."""
    parser = argparse.ArgumentParser(prog="python -m docs.generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="only compare; exit 1 on a difference")
    check = parser.parse_args().check
    stale = False
    for name, generate in GENERATED.items():
        path = ROOT / name
        old, new = path.read_text() if path.exists() else "", generate()
        if check and old != new:
            stale = True
            lines = (old.splitlines(keepends=True), new.splitlines(keepends=True))
            sys.stdout.writelines(difflib.unified_diff(*lines, name, "generated"))
        elif old != new:
            path.write_text(new)
    if stale:
        print("these files are not current: run make generate")
    return int(stale)


if __name__ == "__main__":
    sys.exit(main())
