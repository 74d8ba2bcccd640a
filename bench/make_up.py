"""`make up` with nothing to do, beside a program that registers the same and does nothing else.

Needs the Pulumi CLI on PATH and makes the dev platform, unless it is there.  The other program
(bench/same_resources.py) runs on a copy of its state.  Runs are interleaved; the target is a ratio
of at most 1.25 between the medians.
"""

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from components import NAMESPACE, ROOT
from components.automation import jobs
from components.instance_provisioner import CHART
from dev.__main__ import STACK, STATE
from dev.stack import NAME, forget_other_stacks
from embedded.process import reach_loopback_directly

ROUNDS = 7
SETTINGS = {
    "PULUMI_CONFIG_PASSPHRASE_FILE": str(STATE / "passphrase"),
    "PULUMI_SKIP_UPDATE_CHECK": "true",
    # As `make up` has it where nothing is deployed.
    "KUBECONFIG": os.devnull,
}


def run(command: list[str], directory: Path, environment: dict[str, str]) -> tuple[float, str]:
    """Seconds that a command takes, and what it prints; it has to succeed."""
    started = time.perf_counter()
    done = subprocess.run(
        command, cwd=directory, env=environment, check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return time.perf_counter() - started, done.stdout


def copied(directory: Path, pulumi: str, inherited: dict[str, str]) -> dict[str, str]:
    """Make a project of the other program with a copy of the stack; returns its environment."""
    (directory / "Pulumi.yaml").write_bytes((ROOT / "Pulumi.yaml").read_bytes())
    (directory / "__main__.py").write_bytes((ROOT / "bench/same_resources.py").read_bytes())
    (directory / "charts").symlink_to(ROOT / "charts")
    (directory / ".venv").symlink_to(ROOT / ".venv")
    shutil.copy(STACK.file, directory)
    shutil.copytree(STATE / "pulumi", directory / "backend")
    environment = inherited | SETTINGS
    environment["PULUMI_BACKEND_URL"] = (directory / "backend").as_uri()
    export = [pulumi, "stack", "export", "--show-secrets", "--stack", NAME]
    resources = json.loads(run(export, directory, environment)[1])["deployment"]["resources"]
    values = yaml.safe_load((CHART / "ci" / "minimal-values.yaml").read_text())
    cluster = next(each for each in resources if each["type"] == "pulumi:providers:kubernetes")
    for resource in resources:
        if resource["type"] == "kubernetes:helm.sh/v4:Chart":  # the state has its children alone
            resource["provider"] = f"{cluster['urn']}::{cluster['id']}"
            resource["inputs"] = {
                "chart": str(CHART.relative_to(ROOT)),
                "namespace": NAMESPACE,
                "values": values | {"automation": {"jobs": jobs()}},
            }
    (directory / "resources.json").write_text(json.dumps(resources))
    return environment


def main() -> int:
    """Print each side's median and the ratio."""
    pulumi = shutil.which("pulumi")
    if pulumi is None:
        print("make_up: needs the Pulumi CLI on PATH")
        return 0
    forget_other_stacks()
    reach_loopback_directly()
    # As anywhere but on a machine that forbids it, Python may keep what it has compiled.
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    ours = (["make", "up"], ROOT, inherited)
    run(*ours)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        environment = copied(directory, pulumi, inherited)
        options = ["--stack", NAME, "--config-file", str(directory / STACK.file.name)]
        options += ["--non-interactive", "--skip-config-validation"]
        preview = run([pulumi, "preview", *options], directory, environment)[1]
        # Of what is only rendered to files, a changed value may replace some.
        if re.search(r"\d to (create|delete)|^ *\+- (?!kubernetes:)", preview, re.MULTILINE):
            raise SystemExit(f"make_up: the other program does not register the same:\n{preview}")
        up = [pulumi, "up", "--yes", "--skip-preview", *options]
        run(up, directory, environment)  # its dynamic providers and chart's values are others
        sides = {
            "pulumi up, the same resources": (up, directory, environment),
            "make up, nothing to do": ours,
        }
        times: dict[str, list[float]] = {title: [] for title in sides}
        unchanged = set()
        for _ in range(ROUNDS):
            for title, side in sides.items():
                seconds, printed = run(*side)
                times[title].append(seconds)
                unchanged.add(printed.partition("Resources:")[2].partition("Duration")[0].strip())
        if len(unchanged) != 1:
            raise SystemExit(f"make_up: not the same resources, or not unchanged: {unchanged}")
    medians = {title: statistics.median(each) for title, each in times.items()}
    print(unchanged.pop())
    for title, median in medians.items():
        spread = f"{min(times[title]):.2f} to {max(times[title]):.2f}"
        print(f"{title:<34}{median:6.2f} s  ({spread}, {ROUNDS} runs)")
    baseline, measured = medians.values()
    print(f"ratio {measured / baseline:.2f} (target: at most 1.25)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
