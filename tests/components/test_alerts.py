"""The alerts fire when they should, on metrics that exist, and each is in the runbook."""

import json
import re
import subprocess
from pathlib import Path

import yaml

from components import ROOT

PROMTOOL = ROOT / ".tools" / "bin" / "promtool"
CHART = ROOT / "charts" / "instance-provisioner"
RULES = CHART / "files" / "alerts.yaml"
TESTS = Path(__file__).parent / "alerts.yaml"
RUNBOOK = ROOT / "docs" / "alerts.md"

METRIC = re.compile(r"\b((?:provisioner|gateway)_\w+?)(?:_bucket|_sum|_count)?\b(?=[{\[)\s]|$)")


def alerts() -> dict[str, str]:
    """Name -> expression."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["alert"]: rule["expr"] for group in groups for rule in group["rules"]}


def metrics() -> set[str]:
    """What the provisioner and the gateway tell Prometheus."""
    sources = ("provisioner/metrics.py", "provisioner/gateway/metrics.py")
    text = "".join((ROOT / source).read_text() for source in sources)
    return set(re.findall(r'"((?:provisioner|gateway)_\w+)"', text))


def test_every_alert_is_shown_to_fire_and_not_to_fire() -> None:
    cases = [
        case
        for test in yaml.safe_load(TESTS.read_text())["tests"]
        for case in test["alert_rule_test"]
    ]
    assert {case["alertname"] for case in cases if case.get("exp_alerts")} == set(alerts())
    assert {case["alertname"] for case in cases if not case.get("exp_alerts")} == set(alerts())


def test_prometheus_evaluates_them_so() -> None:
    assert PROMTOOL.is_file(), "run make tools"
    for arguments in (("check", "rules", RULES), ("test", "rules", TESTS)):
        done = subprocess.run([PROMTOOL, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_metric_of_an_alert_and_of_a_dashboard_exists() -> None:
    expressions = list(alerts().values())
    for path in (CHART / "files" / "dashboards").iterdir():
        for panel in json.loads(path.read_text())["panels"]:
            expressions += [target["expr"] for target in panel["targets"]]
    named = {name for text in expressions for name in METRIC.findall(text)}
    assert len(named) > 10
    assert named <= metrics()


def test_every_alert_has_its_page() -> None:
    assert re.findall(r"^## (\w+)$", RUNBOOK.read_text(), re.MULTILINE) == list(alerts())
