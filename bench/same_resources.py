"""The baseline of bench/make_up.py: a program that registers resources and does nothing else.

resources.json has them as `pulumi stack export --show-secrets` does.  The dynamic ones get a
provider that does nothing.
"""

import json
import re
from pathlib import Path
from typing import Any, cast

import pulumi
import pulumi_postgresql as postgresql
from pulumi.dynamic import Resource, ResourceProvider
from pulumi_kubernetes.core.v1 import Namespace, Secret
from pulumi_kubernetes.helm.v4 import Chart

TYPED: dict[str, Any] = {
    "postgresql:index/database:Database": postgresql.Database,
    "postgresql:index/role:Role": postgresql.Role,
    "postgresql:index/grant:Grant": postgresql.Grant,
    "kubernetes:core/v1:Namespace": Namespace,
    "kubernetes:core/v1:Secret": Secret,
    "kubernetes:helm.sh/v4:Chart": Chart,
}
DYNAMIC = "pulumi-python:dynamic/"
PROVIDER = "pulumi:providers:"

MADE_BY_THE_SDK = {"apiVersion", "kind", "version"}
"""Inputs that the typed classes give themselves."""

SIGNATURE = "4dabf18193072939515e22adb298388d"
"""The key of a secret in the state."""


def main() -> None:
    """Register what the stack has."""
    stack, *resources = json.loads(Path("resources.json").read_text())
    registered: dict[str, Any] = {stack["urn"]: None}
    for each in resources:
        if each.get("parent") in registered and "::default" not in each["urn"]:
            resource = register(each, registered)
            if not isinstance(resource, Chart):  # which registers its children itself
                registered[each["urn"]] = resource


def register(each: dict[str, Any], registered: dict[str, Any]) -> pulumi.Resource:
    """Register a resource whose parent and dependencies are registered."""
    type_, name = each["type"], each["urn"].rpartition("::")[2]
    given = each.get("inputs", {})
    inputs = {
        key: value(given[key])
        for key in given
        if not key.startswith("__") and key not in MADE_BY_THE_SDK
    }
    opts = pulumi.ResourceOptions(
        parent=registered[each["parent"]],
        depends_on=[registered[urn] for urn in each.get("dependencies", [])],
        protect=each.get("protect"),
        retain_on_delete=each.get("retainOnDelete"),
    )
    if type_.startswith(PROVIDER):
        opts.version = given["version"]
        opts.env_var_mappings = given.get("__internal", {}).get("envVarMappings")
        return pulumi.ProviderResource(type_.removeprefix(PROVIDER), name, inputs, opts)
    if type_.startswith(DYNAMIC):
        module, _, class_ = type_.removeprefix(DYNAMIC).partition(":")
        dynamic: Any = type(class_, (Resource,), {}, module=module, name=class_)
        return cast("pulumi.Resource", dynamic(ResourceProvider(), name, inputs, opts))
    if type_ not in TYPED:
        return pulumi.ComponentResource(type_, name, None, opts)
    opts.provider = registered.get(each.get("provider", "").rpartition("::")[0])
    snake = {re.sub("[A-Z]", lambda m: f"_{m[0].lower()}", key): inputs[key] for key in inputs}
    return cast("pulumi.Resource", TYPED[type_](name, opts=opts, **snake))


def value(given: Any) -> Any:
    """An input, as the program declares it."""
    if isinstance(given, list):
        return [value(each) for each in given]
    if isinstance(given, dict):
        if SIGNATURE in given:
            return pulumi.Output.secret(json.loads(given["plaintext"]))
        return {key: value(given[key]) for key in given}
    return given


main()
