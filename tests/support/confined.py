"""Processes as in a container with a read-only root, of user 1000: in a namespace of mounts."""

import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from embedded.process import spawn

NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount", "--")
AS_USER = ("unshare", "--user", "--map-user=1000", "--map-group=1000", "--")

SCRIPT = f"""
root=$1; shift
mount --bind "$root" "$root"
while [ "$1" != -- ]; do [ -d "$1" ] && mount --bind "$1" "$1"; shift; done; shift
for each in "$root" /; do mount -o remount,bind,ro "$each"; done
cd "$root"
exec {" ".join(AS_USER)} "$@"
"""
"""Arguments: a container's root, directories that can be written, --, the command."""


@cache
def is_possible() -> bool:
    """Whether this machine lets us."""
    if not shutil.which("unshare"):
        return False
    return subprocess.run([*NAMESPACE, *AS_USER, "true"], capture_output=True).returncode == 0


def confined(command: Sequence[str], root: Path) -> list[str]:
    """The command that runs another so.

    Args:
        command: what is run.
        root: of a container, as `dev.published.Pods` lays it out.
    """
    writable = [
        *(root.parent / "volumes").glob("*"),
        root / "mounted/tmp",
        root / "mounted/sandbox",
    ]
    arguments = [*map(str, [root, *writable]), "--", *command]
    return [*NAMESPACE, "bash", "-euc", SCRIPT, "pod", *arguments]


def spawn_confined(
    command: Sequence[str], stdout: Any, stderr: Any, directory: Path, **options: Any
) -> "subprocess.Popen[str]":
    """`embedded.process.spawn`, confined."""
    return spawn(confined(command, directory), stdout, stderr, directory, **options)
