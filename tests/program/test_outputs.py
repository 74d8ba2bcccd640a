"""The outputs are the contract that their version names, and a version never changes.

Real outputs, of the engine and of an in-process run, are held to it in test_engine.py and
test_program.py.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from tests.support.outputs import SCHEMAS, breaches

RELEASED = {
    "1.0.0": "05a01cd33d033328b8b22e2f8021d2d4624e5bb60e81dfdfe628ea3a08154f4c",
    "1.1.0": "41c4a18b429adf1a45fe76b111f2751b7e715a3cf52cae34cd53fa2b3cc26f46",
}
"""Version -> sha256 of its schema.  What changes the outputs adds a version, and edits none."""

OUTPUTS: dict[str, Any] = {
    "contract_version": "1.1.0",
    "schema_version": "0002_tiers",
    "schema_fingerprint": "0a" * 32,
    "applied_migrations": ["0001_foundation.sql", "0002_tiers.sql"],
    "database": {
        "host": "db.example",
        "port": 5432,
        "name": "mindroom",
        "sslmode": "verify-full",
        "platform": "supabase",
    },
    "service_database_urls": dict.fromkeys(
        (
            "stripe_handler",
            "instance_provisioner",
            "instance_gateway",
            "customer_portal",
            "admin_dashboard",
        ),
        "postgresql://role:word@db.example:5432/mindroom?sslmode=verify-full",
    ),
    "api_roles": ["anon", "authenticated", "service_role"],
    "instance_provisioner": {
        "namespace": "mindroom",
        "service_url": "http://instance-provisioner.mindroom.svc:8080",
        "service_account": "instance-provisioner",
        "chart_version": "0.2.0",
    },
    "instance_gateway": {
        "namespace": "mindroom",
        "service_url": "http://instance-gateway.mindroom.svc:8081",
    },
    "automation": {"scheduler": "pg_cron", "jobs": {"reset_daily_usage": "0 0 * * *"}},
}


def test_released_versions_are_as_they_were() -> None:
    found = {path.stem: hashlib.sha256(path.read_bytes()).hexdigest() for path in SCHEMAS.iterdir()}
    assert found == RELEASED


@pytest.mark.parametrize("version", RELEASED)
def test_schemas_are_schemas_of_their_version(version: str) -> None:
    schema = json.loads((SCHEMAS / f"{version}.json").read_text())
    Draft202012Validator.check_schema(schema)
    assert schema["title"].endswith(f"contract version {version}")


def test_the_contract_is_kept() -> None:
    assert breaches(OUTPUTS) == []


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in OUTPUTS.items() if key != name}


@pytest.mark.parametrize("name", [name for name in OUTPUTS if name != "contract_version"])
def test_what_is_removed_renamed_or_of_another_type_breaks_it(name: str) -> None:
    assert breaches(without(name))
    assert breaches(without(name) | {f"{name}s": OUTPUTS[name]})
    assert breaches(OUTPUTS | {name: 7})


@pytest.mark.parametrize(
    "name", ["", "database", "instance_provisioner", "service_database_urls", "automation"]
)
def test_what_is_added_breaks_its_own_version(name: str) -> None:
    more: dict[str, Any] = {name: OUTPUTS[name] | {"more": "x"}} if name else {"more": "x"}
    (breach,) = breaches(OUTPUTS | more)
    assert breach.startswith("1.1.0.json: $")
    assert "'more' was unexpected" in breach


def test_a_version_without_a_schema_breaks_it() -> None:
    assert breaches(OUTPUTS | {"contract_version": "1.1.1"}) == ["1.1.1.json is missing"]


@pytest.mark.parametrize(
    ("version", "renamed", "right"),
    [("1.2.0", False, True), ("1.10.0", True, False), ("2.0.0", True, True)],
)
def test_only_a_major_version_breaks_those_before(
    tmp_path: Path, version: str, *, renamed: bool, right: bool
) -> None:
    text = (SCHEMAS / "1.1.0.json").read_text()
    (tmp_path / "1.1.0.json").write_text(text)
    schema = json.loads(text.replace("^1", f"^{version[0]}"))
    outputs = OUTPUTS | {"contract_version": version, "roles": OUTPUTS["api_roles"]}
    schema["properties"]["roles"] = schema["properties"]["api_roles"]
    if renamed:
        schema["required"].remove("api_roles")
        del schema["properties"]["api_roles"], outputs["api_roles"]
    (tmp_path / f"{version}.json").write_text(json.dumps(schema))
    assert (breaches(outputs, tmp_path) == []) == right
