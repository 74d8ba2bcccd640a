"""`make up` with nothing to do, beside `pulumi up` of a program with one dynamic resource.

Needs the Pulumi CLI on PATH and a platform that `make up` has made.  Runs are interleaved; the
target is a ratio of at most 1.5 between the medians.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROUNDS = 7

PROJECT = """\
name: minimal
runtime: {name: python, options: {virtualenv: .venv}}
"""

PROGRAM = """\
from pulumi.dynamic import CreateResult, Resource, ResourceProvider


class Provider(ResourceProvider):
    def create(self, props):
        return CreateResult("one", props)


class One(Resource, name="One"):
    pass


One(Provider(), "one", {"value": 1})
"""


def run(command: list[str], directory: Path, environment: dict[str, str]) -> float:
    """Seconds that a command takes; it has to succeed."""
    started = time.perf_counter()
    done = subprocess.run(
        command, cwd=directory, env=environment, check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return time.perf_counter() - started


def main() -> int:
    """Print each side's median and the ratio."""
    pulumi = shutil.which("pulumi")
    if pulumi is None:
        print("make_up: needs the Pulumi CLI on PATH")
        return 0
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "Pulumi.yaml").write_text(PROJECT)
        (directory / "__main__.py").write_text(PROGRAM)
        (directory / ".venv").symlink_to(ROOT / ".venv")
        (directory / "backend").mkdir()
        # As anywhere but on a machine that forbids it, Python may keep what it has compiled.
        inherited = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        environment = inherited | {
            "PULUMI_BACKEND_URL": (directory / "backend").as_uri(),
            "PULUMI_CONFIG_PASSPHRASE": "bench",
            "PULUMI_SKIP_UPDATE_CHECK": "true",
        }
        minimal = [pulumi, "up", "--yes", "--skip-preview", "--non-interactive", "--stack", "dev"]
        run([pulumi, "stack", "init", "dev", "--non-interactive"], directory, environment)
        sides = {
            "pulumi up, one dynamic resource": (minimal, directory, environment),
            "make up, nothing to do": (["make", "up"], ROOT, inherited),
        }
        for side in sides.values():
            run(*side)
        times: dict[str, list[float]] = {title: [] for title in sides}
        for _ in range(ROUNDS):
            for title, side in sides.items():
                times[title].append(run(*side))
    medians = {title: statistics.median(each) for title, each in times.items()}
    for title, median in medians.items():
        spread = f"{min(times[title]):.2f} to {max(times[title]):.2f}"
        print(f"{title:<34}{median:6.2f} s  ({spread}, {ROUNDS} runs)")
    baseline, ours = medians.values()
    print(f"ratio {ours / baseline:.2f} (target: at most 1.5)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
