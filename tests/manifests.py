"""What the tests of both charts share: Helm, schemas, and the restricted Pod Security Standard."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import kubernetes_validate  # type: ignore[import-untyped]

from components import ROOT

Object: TypeAlias = Any  # a manifest or a part of one, as YAML gives it
Values: TypeAlias = dict[str, Any]
Render: TypeAlias = Callable[[Values], list[Object]]

CHARTS = ROOT / "charts"
MAJOR, LATEST_MINOR = (int(part) for part in kubernetes_validate.latest_version().split(".")[:2])
KUBERNETES = [f"{MAJOR}.{LATEST_MINOR - age}" for age in range(3)]


def run(helm: Path, *arguments: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [helm, *arguments], input=stdin, capture_output=True, text=True, check=False
    )


def only(objects: list[Object], kind: str) -> Object:
    (found,) = (item for item in objects if item["kind"] == kind)
    return found


def put(target: Any, path: str, value: object) -> None:
    """Sets what a dotted path leads to, through mappings and lists."""
    *above, last = (int(key) if key.isdigit() else key for key in path.split("."))
    for key in above:
        target = target.setdefault(key, {}) if isinstance(target, dict) else target[key]
    target[last] = value


def leaves(values: Values, above: str = "") -> Iterator[str]:
    """Dotted paths of the values; requests and limits count as one value each."""
    for name, value in values.items():
        path = above + name
        if (
            isinstance(value, dict)
            and value
            and path not in {"resources.requests", "resources.limits"}
        ):
            yield from leaves(value, f"{path}.")
        else:
            yield path


def object_schemas(schema: object) -> Iterator[Object]:
    if isinstance(schema, dict):
        if schema.get("type") == "object":
            yield schema
        for value in schema.values():
            yield from object_schemas(value)


POD_FIELDS = {"runAsNonRoot", "runAsUser", "runAsGroup", "fsGroup", "seccompProfile"}
CONTAINER_FIELDS = {"allowPrivilegeEscalation", "readOnlyRootFilesystem", "capabilities"}
VOLUME_TYPES = {"configMap", "downwardAPI", "emptyDir", "persistentVolumeClaim", "projected"}


def restricted_violations(pod: Object) -> Iterator[str]:
    """Where a pod spec breaks the restricted Pod Security Standard.

    Shorter and a little stricter than the standard: a security context may hold only the fields
    that are known here (so no sysctls, SELinux, AppArmor or Windows options), and volumes of
    type secret, csi and ephemeral are not expected either.
    """
    yield from (field for field in ("hostNetwork", "hostPID", "hostIPC") if pod.get(field))
    for volume in pod.get("volumes", []):
        yield from (f"volume {kind}" for kind in volume.keys() - {"name"} - VOLUME_TYPES)
    above = pod.get("securityContext", {})
    yield from (f"pod: {field}" for field in above.keys() - POD_FIELDS)
    for kind in ("initContainers", "containers", "ephemeralContainers"):
        for item in pod.get(kind, []):
            yield from (f"{item['name']}: {what}" for what in _container_violations(item, above))


def _container_violations(item: Object, above: Object) -> Iterator[str]:
    own = item.get("securityContext", {})
    context = above | own
    yield from own.keys() - POD_FIELDS - CONTAINER_FIELDS
    if context.get("runAsNonRoot") is not True:
        yield "runAsNonRoot"
    if context.get("runAsUser") == 0:
        yield "runAsUser"
    if context.get("seccompProfile", {}).get("type") not in {"RuntimeDefault", "Localhost"}:
        yield "seccompProfile"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation"
    if own.get("capabilities") != {"drop": ["ALL"]}:
        yield "capabilities"
    if any("hostPort" in port for port in item.get("ports", [])):
        yield "hostPort"
    handlers = [item.get(f"{name}Probe", {}) for name in ("startup", "liveness", "readiness")]
    handlers += item.get("lifecycle", {}).values()
    if any("host" in handler.get("httpGet", {}) for handler in handlers):
        yield "host of a handler"
