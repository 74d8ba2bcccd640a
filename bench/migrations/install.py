"""The other tools, installed below `.state/bench/` in the versions that `pinned/` names."""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from bench.migrations import STATE

PINNED = Path(__file__).parent / "pinned"
PATIENCE = 1800
"""Seconds that a package client may take: it compiles goose, and downloads the others."""

# goose's drivers for databases other than PostgreSQL, which triple the build.
WITHOUT = ("clickhouse", "libsql", "mssql", "mysql", "spanner", "sqlite3", "vertica", "ydb")


class MissingError(Exception):
    """A tool cannot be had here; the message is one line that says why."""


def go() -> Path:
    """The directory that holds `goose`.

    Raises:
        MissingError: it cannot be built here.
    """

    def build(target: Path) -> None:
        _run(
            "go",
            *("build", "-C", str(PINNED), "-trimpath", "-ldflags", "-s -w"),
            *("-tags", " ".join(f"no_{each}" for each in WITHOUT), "-o", f"{target}/", "tool"),
        )

    return _installed("go", ["go.mod", "go.sum"], build)


def maven() -> Path:
    """The directory that holds Flyway's jars.

    Raises:
        MissingError: Maven or Java is missing, or a jar.
    """

    def copy(target: Path) -> None:
        _run(
            "mvn",
            *("--quiet", "--batch-mode", "--file", str(PINNED / "pom.xml")),
            *("dependency:copy-dependencies", f"-DoutputDirectory={target}"),
        )

    if not shutil.which("java"):
        raise MissingError("not installed (Debian package default-jre-headless)")
    return _installed("maven", ["pom.xml"], copy)


def npm() -> Path:
    """The `node_modules` that hold dbmate and graphile-migrate.

    Raises:
        MissingError: npm is missing, or a package.
    """
    names = ["package.json", "package-lock.json", ".npmrc"]

    def install(target: Path) -> None:
        for name in names:
            shutil.copy(PINNED / name, target)
        _run("npm", "ci", "--prefix", str(target), "--ignore-scripts", "--no-audit", "--no-fund")

    return _installed("npm", names, install) / "node_modules"


def python() -> Path:
    """The `bin` of the virtual environment that holds Alembic and yoyo.

    Raises:
        MissingError: a package cannot be had.
    """

    def install(target: Path) -> None:
        _run(sys.executable, "-m", "venv", str(target))
        _run(
            f"{target}/bin/python",
            *("-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
            *("--require-hashes", "--requirement", str(PINNED / "requirements.txt")),
        )

    return _installed("python", ["requirements.txt"], install) / "bin"


def debian(program: str, package: str) -> Path:
    """A program of the operating system.

    Raises:
        MissingError: it is not on PATH.
    """
    found = shutil.which(program)
    if found is None:
        raise MissingError(f"not installed (Debian package {package})")
    return Path(found)


def _installed(name: str, pinned: list[str], install: Callable[[Path], None]) -> Path:
    """The directory of a package client's tools, made again when what is pinned has changed."""
    target = STATE / name
    digest = hashlib.sha256(b"".join((PINNED / each).read_bytes() for each in pinned)).hexdigest()
    stamp = target / ".installed"
    if not stamp.exists() or stamp.read_text() != digest:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        print(f"installing {', '.join(pinned)} to {target.name}/ ...", file=sys.stderr, flush=True)
        install(target)
        stamp.write_text(digest)
    return target


def _run(*command: str) -> None:
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=PATIENCE
        )
    except FileNotFoundError:
        raise MissingError(f"not installable: {command[0]} is not on PATH") from None
    except subprocess.TimeoutExpired:
        raise MissingError(f"not installable: {command[0]} took over {PATIENCE} s") from None
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
        said = next((line for line in lines if "rror" in line), lines[-1] if lines else "")
        raise MissingError(f"not installable: {command[0]} failed: {said[:200]}")
