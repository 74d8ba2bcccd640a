"""The contract of the outputs: docs/outputs/ has the JSON Schema of each released version."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from components import ROOT

SCHEMAS = ROOT / "docs" / "outputs"


def breaches(outputs: Mapping[str, Any], schemas: Path = SCHEMAS) -> list[str]:
    """How outputs differ from the schema of their version, and break others of the same major.

    A schema lets more be there than it names, so that consumers live on with what later versions
    add; in its own version there is nothing more.
    """
    version = outputs["contract_version"]
    found = []
    for path in sorted(schemas.glob(f"{version.partition('.')[0]}.*.json")):
        schema = json.loads(path.read_text())
        if path.stem == version:
            close(schema)
        for error in Draft202012Validator(schema).iter_errors(outputs):
            found.append(f"{path.name}: {error.json_path}: {error.message}")
    if not (schemas / f"{version}.json").exists():
        found.append(f"{version}.json is missing")
    return found


def close(schema: Any) -> None:
    """Have a schema refuse what it does not name."""
    if isinstance(schema, dict):
        if "properties" in schema:
            schema.setdefault("additionalProperties", False)
        for each in schema.values():
            close(each)
