"""What the tests of both charts share: Helm, values, schemas."""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import kubernetes_validate  # type: ignore[import-untyped]
import pytest

from components import ROOT
from dev.in_process import HELM
from embedded.cluster import ClusterAccess
from embedded.errors import UserError

Object: TypeAlias = Any  # a manifest or a part of one, as YAML gives it
Values: TypeAlias = dict[str, Any]

CHARTS = ROOT / "charts"
MAJOR, LATEST_MINOR = (int(part) for part in kubernetes_validate.latest_version().split(".")[:2])
KUBERNETES = [f"{MAJOR}.{LATEST_MINOR - age}" for age in range(3)]


def run(helm: Path, *arguments: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [helm, *arguments], input=stdin, capture_output=True, text=True, check=False
    )


@dataclass(frozen=True)
class Helm:
    """Helm and kubectl in one namespace of a cluster."""

    cluster: ClusterAccess
    namespace: str

    def __call__(self, *arguments: str | Path, stdin: str = "") -> None:
        where = (f"--kubeconfig={self.cluster.kubeconfig}", f"--namespace={self.namespace}")
        result = run(HELM, *arguments, *where, stdin=stdin)
        assert result.returncode == 0, result.stderr

    def upgrade(self, release: str, chart: Path, values: Values, *options: str) -> None:
        command = ("upgrade", "--install", release, chart, "--wait", "--values", "-")
        self(*command, *(options or ("--timeout", "60s")), stdin=json.dumps(values))

    def kubectl(self, *arguments: str, stdin: str = "") -> str:
        return self.cluster.kubectl("--namespace", self.namespace, *arguments, stdin=stdin)

    def get(self, kinds: str) -> list[Object]:
        found: list[Object] = json.loads(self.kubectl("get", kinds, "-o", "json"))["items"]
        return found

    def takes_only_restricted(self, templates: list[Object]) -> None:
        """Each pod template is accepted, and refused with a privilege."""
        assert templates
        for template in templates:
            pod = {"apiVersion": "v1", "kind": "Pod"} | template
            pod["metadata"]["name"] = "one"
            create = ("create", "--dry-run=server", "-f-")
            self.kubectl(*create, stdin=json.dumps(pod))
            pod["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
            with pytest.raises(UserError, match='violates PodSecurity "restricted'):
                self.kubectl(*create, stdin=json.dumps(pod))


def pod_templates(objects: list[Object]) -> list[Object]:
    """Of workloads and Jobs, and of what makes Jobs."""
    specs = [item.get("spec", {}) for item in objects]
    specs += [spec["jobTemplate"]["spec"] for spec in specs if "jobTemplate" in spec]
    return [spec["template"] for spec in specs if "template" in spec]


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
            and not path.endswith(("resources.requests", "resources.limits"))
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
