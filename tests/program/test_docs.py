"""What the documents say is what the code does."""

import re
import subprocess
from pathlib import Path

import pytest

import migrate
from components import ROOT
from components.automation import SCHEDULES
from policies.rules import RULES
from provisioner.gateway.settings import Settings as GatewaySettings
from provisioner.settings import Settings

SOURCES = [
    path
    for folder in ("components", "dev", "embedded", "migrate", "ops", "provisioner")
    for path in sorted((ROOT / folder).rglob("*.py"))
] + [ROOT / "tests" / "conftest.py"]


def text(name: str) -> str:
    return (ROOT / name).read_text()


def test_env_example_names_every_variable_that_is_read() -> None:
    read = {
        name
        for path in SOURCES
        for name in re.findall(r"""environ(?:\.get\(|\[)"([A-Z0-9_]+)\"""", path.read_text())
    }
    read -= {"PATH"}
    read |= {name.upper() for name in Settings.model_fields}
    assert set(re.findall(r"^#([A-Z0-9_]+)=", text(".env.example"), re.MULTILINE)) == read


def test_provisioner_document_names_every_metric_and_setting() -> None:
    document = text("docs/provisioner.md")
    metrics = set(re.findall(r"`(provisioner_[a-z_]+)", document))
    assert metrics == set(re.findall(r'"(provisioner_[a-z_]+)"', text("provisioner/metrics.py")))
    settings = {name.upper() for name in Settings.model_fields}
    elsewhere = {"INSTANCE_CHART", "HELM", "HOST", "PORT"}  # as the image has them
    assert settings - elsewhere <= set(re.findall(r"`([A-Z_]+)`", document))


def test_gateway_document_names_every_metric_and_setting() -> None:
    document = text("docs/gateway.md")
    metrics = set(re.findall(r"`(gateway_[a-z_]+)", document))
    assert metrics == set(
        re.findall(r'"(gateway_[a-z_]+)"', text("provisioner/gateway/metrics.py"))
    )
    settings = {name.upper() for name in GatewaySettings.model_fields}
    assert settings <= set(re.findall(r"`([A-Z_]+)`", document))


def test_outputs_document_is_the_contract() -> None:
    exported = re.findall(r'pulumi\.export\(\s*"(\w+)"', text("__main__.py"))
    documented = re.findall(r"^\| `(\w+)` \|", text("docs/outputs.md"), re.MULTILINE)
    assert documented == exported
    (version,) = re.findall(r'"contract_version", "([^"]+)"', text("__main__.py"))
    assert f"](outputs/{version}.json)" in text("docs/outputs.md")


def test_policies_document_has_every_policy() -> None:
    documented = re.findall(r"^\| `([a-z-]+)` \|", text("docs/policies.md"), re.MULTILINE)
    assert documented == list(RULES)


def test_automation_document_has_every_job_with_its_schedule() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", text("docs/automation.md"), re.MULTILINE)
    assert rows == list(SCHEDULES.items())


def test_readme_shows_the_newest_migration() -> None:
    newest = max(path.stem for path in (ROOT / "sql" / "migrations").iterdir())
    assert f'schema_version       : "{newest}"' in text("README.md")


def test_map_in_the_readme_names_every_directory() -> None:
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    top = {name.split("/")[0] for name in tracked.stdout.splitlines() if "/" in name}
    shown = re.findall(r"^\| `([\w.]+)/` \|", text("README.md"), re.MULTILINE)
    assert sorted(shown) == sorted(name for name in top if not name.startswith("."))
    assert len(shown) <= 15


def test_tour_of_the_migration_engine_names_each_module() -> None:
    shown = re.findall(r"^    (\w+\.py|\w+/)  +\S", migrate.__doc__ or "", re.MULTILINE)
    there = {f"{path.name}{'/' * path.is_dir()}" for path in (ROOT / "migrate").iterdir()}
    assert sorted(shown) == sorted(there - {"__init__.py", "__pycache__/"})


@pytest.mark.parametrize("path", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))])
def test_links_lead_somewhere(path: Path) -> None:
    prose = re.sub("`[^`\n]+`", "", path.read_text())
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", prose):
        assert (path.parent / target).exists(), target


def test_make_targets_that_are_named_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", text("Makefile"), re.MULTILINE))
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        assert set(re.findall(r"`make ([a-z-]+)", path.read_text())) <= targets


def test_lock_has_exact_versions_with_hashes_and_no_address() -> None:
    lock = text("requirements.txt")
    assert "://" not in lock
    entries = re.split(r"\n(?=\S)", lock.strip())
    assert len(entries) > 50
    for entry in entries:
        assert re.match(r"[a-z0-9._-]+==[^ ]+ ", entry), entry
        assert "--hash=sha256:" in entry
