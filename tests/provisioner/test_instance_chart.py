"""The chart of one customer's instance: rendered by the real Helm, and on a real Kubernetes API."""

import copy
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dev.in_process import HELM
from embedded.cluster import ClusterAccess
from tests.support.manifests import (
    CHARTS,
    KUBERNETES,
    Helm,
    Object,
    Values,
    leaves,
    object_schemas,
    pod_templates,
    put,
    run,
)

CHART = CHARTS / "instance"
MINIMAL: Values = yaml.safe_load((CHART / "ci" / "minimal-values.yaml").read_text())
EVERYTHING: Values = MINIMAL | {
    "secretChecksum": "0a" * 32,
    "images": {"backend": "example:5000/backend@sha256:" + "0a" * 32},
    "matrix": {"enabled": True, "serverName": "matrix.example"},
    "ingress": {"className": "nginx", "tlsSecret": "wildcard"},
}
RELEASE = "ada"
LONGEST = "a" * 53


def template(values: Values, release: str = RELEASE) -> subprocess.CompletedProcess[str]:
    target = ("--namespace", "mindroom-instances", "--values", "-")
    return run(HELM, "template", release, CHART, *target, stdin=json.dumps(values))


def render(values: Values, release: str = RELEASE) -> list[Object]:
    result = template(values, release)
    assert result.returncode == 0, result.stderr
    return [item for item in yaml.safe_load_all(result.stdout) if item]


def changed(path: str, value: object) -> Values:
    values = copy.deepcopy(MINIMAL)
    put(values, path, value)
    return values


def find(objects: list[Object], kind: str, name: str) -> Object:
    (found,) = (
        item for item in objects if (item["kind"], item["metadata"]["name"]) == (kind, name)
    )
    return found


def workloads(objects: list[Object]) -> dict[str, Object]:
    """What keeps pods, by component; not the test."""
    return {
        item["metadata"]["labels"]["app.kubernetes.io/component"]: item
        for item in objects
        if item["kind"] in ("Deployment", "StatefulSet")
    }


def mebibytes(quantity: str) -> int:
    """A quantity as the chart writes it, or as the API server does."""
    units = {"Mi": 1, "Gi": 1024, "Ti": 1024 * 1024}
    return int(quantity[:-2]) * units[quantity[-2:]]


class TestRenderedManifests:
    """What holds for the objects whatever the values are."""

    def test_lint_is_clean(self) -> None:
        values = CHART / "ci" / "minimal-values.yaml"
        result = run(HELM, "lint", "--strict", CHART, "--values", values)
        assert result.returncode == 0, result.stdout + result.stderr

    @pytest.mark.parametrize("minor", KUBERNETES)
    @pytest.mark.parametrize("values", [MINIMAL, EVERYTHING], ids=["minimal", "everything"])
    def test_valid_for_kubernetes(self, values: Values, minor: str) -> None:
        objects = render(values)
        assert len(objects) == (12 if values is EVERYTHING else 8)
        for item in objects:
            assert kubernetes_validate.validate(item, minor, strict=True) == minor

    def test_labels(self) -> None:
        objects = render(EVERYTHING)
        for item in objects:
            assert item["metadata"]["namespace"] == "mindroom-instances"
            labels = item["metadata"]["labels"]
            assert labels["mindroom.chat/instance"] == MINIMAL["instanceId"]
            assert labels["mindroom.chat/account"] == MINIMAL["accountId"]
            assert labels["app.kubernetes.io/managed-by"] == "Helm"
        for pod in pod_templates(objects):
            labels = pod["metadata"]["labels"]
            assert labels["mindroom.chat/instance"] == MINIMAL["instanceId"]
            # A new version of the chart alone restarts nobody's pods.
            assert not {"helm.sh/chart", "app.kubernetes.io/version"} & labels.keys()

    def test_selectors_find_their_own_pods_only(self) -> None:
        objects = render(EVERYTHING)
        found = workloads(objects)
        assert found.keys() == {"backend", "frontend", "matrix"}
        pods = {
            item["metadata"]["name"]: item["spec"]["template"]["metadata"]["labels"].items()
            for item in objects
            if "template" in item.get("spec", {})
        }
        assert len(pods) == 4
        for component, workload in found.items():
            name = f"{RELEASE}-{component}"
            for selector in (
                workload["spec"]["selector"]["matchLabels"],
                find(objects, "Service", name)["spec"]["selector"],
            ):
                assert [each for each, labels in pods.items() if selector.items() <= labels] == [
                    name
                ]

    def test_longest_release_name(self) -> None:
        for item in render(EVERYTHING, LONGEST):
            assert len(item["metadata"]["name"]) <= 63

    def test_ingress_leads_to_ports_that_exist(self) -> None:
        objects = render(EVERYTHING)
        (rule,) = find(objects, "Ingress", RELEASE)["spec"]["rules"]
        assert rule["host"] == MINIMAL["host"]
        paths = {each["path"]: each["backend"]["service"] for each in rule["http"]["paths"]}
        assert {path: service["name"] for path, service in paths.items()} == {
            "/": "ada-frontend",
            "/api": "ada-backend",
            "/_matrix": "ada-matrix",
            "/_synapse/client": "ada-matrix",
        }
        for service in paths.values():
            (port,) = find(objects, "Service", service["name"])["spec"]["ports"]
            assert service["port"] == {"name": port["name"]}
        for workload in workloads(objects).values():
            (container,) = workload["spec"]["template"]["spec"]["containers"]
            assert [each["name"] for each in container["ports"]] == ["http"]

    def test_pods_write_where_they_may_and_have_limits(self) -> None:
        for pod in pod_templates(render(EVERYTHING)):
            assert pod["spec"]["automountServiceAccountToken"] is False
            for kind in ("initContainers", "containers"):
                for container in pod["spec"].get(kind, []):
                    assert container["securityContext"]["readOnlyRootFilesystem"] is True
                    assert container["resources"].keys() == {"requests", "limits"}

    def test_secrets_come_by_reference(self) -> None:
        objects = render(EVERYTHING)
        assert "Secret" not in {item["kind"] for item in objects}
        backend = workloads(objects)["backend"]["spec"]["template"]["spec"]["containers"][0]
        assert backend["envFrom"] == [{"secretRef": {"name": MINIMAL["secretName"]}}]
        assert "envFrom" not in json.dumps(workloads(objects)["frontend"])

    def test_network_is_closed_to_other_instances(self) -> None:
        policy = find(render(MINIMAL), "NetworkPolicy", RELEASE)["spec"]
        own = {"matchLabels": {"mindroom.chat/instance": MINIMAL["instanceId"]}}
        assert policy["podSelector"] == own
        assert policy["policyTypes"] == ["Ingress", "Egress"]
        (ingress,) = policy["ingress"]
        elsewhere = {
            "key": "kubernetes.io/metadata.name",
            "operator": "NotIn",
            "values": ["mindroom-instances"],
        }
        assert ingress["from"] == [
            {"podSelector": own},
            {"namespaceSelector": {"matchExpressions": [elsewhere]}},
        ]
        within, names, outside = policy["egress"]
        assert within == {"to": [{"podSelector": own}]}
        assert {port["port"] for port in names["ports"]} == {53}
        blocks = {each["ipBlock"]["cidr"]: each["ipBlock"]["except"] for each in outside["to"]}
        assert blocks.keys() == {"0.0.0.0/0", "::/0"}
        assert {"10.0.0.0/8", "169.254.0.0/16", "192.168.0.0/16"} <= set(blocks["0.0.0.0/0"])
        assert "fc00::/7" in blocks["::/0"]


class TestValues:
    """What a value does, and which values are refused."""

    @settings(max_examples=25)
    @given(
        st.decimals(min_value="0.01", max_value="999.99", places=2),
        st.integers(1, 2**31 - 1),
        st.integers(1, 2**31 - 1),
        st.booleans(),
    )
    def test_pods_never_get_more_than_the_row_says(
        self, cpu: Any, memory: int, storage: int, matrix: bool
    ) -> None:
        limits = {"cpu": float(cpu), "memoryMb": memory, "storageGb": storage}
        objects = render(
            MINIMAL | {"resources": limits, "matrix": EVERYTHING["matrix"] | {"enabled": matrix}}
        )
        containers = [
            workload["spec"]["template"]["spec"]["containers"][0]["resources"]
            for workload in workloads(objects).values()
        ]
        milli = [int(each["limits"]["cpu"].removesuffix("m")) for each in containers]
        memories = [mebibytes(each["limits"]["memory"]) for each in containers]
        volumes = [
            mebibytes(item["spec"]["resources"]["requests"]["storage"])
            for item in objects
            if item["kind"] == "PersistentVolumeClaim"
        ]
        for parts, whole in (
            (milli, int(cpu * 1000)),
            (memories, memory),
            (volumes, storage * 1024),
        ):
            assert min(parts) >= 1
            # Nothing is lost but by rounding; at the very least each pod has one unit.
            assert whole - len(parts) < sum(parts) <= max(whole, len(parts))
        for each in containers:
            assert each["requests"]["memory"] == each["limits"]["memory"]

    def test_config_and_secrets_come_by_reference(self) -> None:
        objects = render(MINIMAL)
        assert not {"Secret", "ConfigMap"} & {item["kind"] for item in objects}
        pod = workloads(objects)["backend"]["spec"]["template"]["spec"]
        assert pod["volumes"][0]["configMap"] == {"name": MINIMAL["configName"]}

    def test_matrix_server_is_not_named_after_its_host(self) -> None:
        homeserver = yaml.safe_load(
            find(render(EVERYTHING), "ConfigMap", "ada-matrix")["data"]["homeserver.yaml"]
        )
        assert homeserver["server_name"] == "matrix.example"
        assert homeserver["public_baseurl"] == f"https://{MINIMAL['host']}/"
        nameless = template(MINIMAL | {"matrix": {"enabled": True}})
        assert nameless.returncode != 0
        assert "matrix.serverName: a Matrix server needs one" in nameless.stderr

    def test_paused(self) -> None:
        objects = render(EVERYTHING | {"paused": True})
        assert {item["spec"]["replicas"] for item in workloads(objects).values()} == {0}
        assert "Job" not in {item["kind"] for item in objects}
        volumes = [item for item in objects if item["kind"] == "PersistentVolumeClaim"]
        assert len(volumes) == 2

    @pytest.mark.parametrize(
        ("path", "value", "rolled"),
        [
            ("configName", "another", {"backend"}),
            ("secretChecksum", "0b" * 32, {"backend", "matrix"}),
            ("host", "eve.mindroom.example", {"matrix"}),
            ("ingress.className", "traefik", set()),
        ],
    )
    def test_changes_that_roll_the_pods(self, path: str, value: str, rolled: set[str]) -> None:
        after = copy.deepcopy(EVERYTHING)
        put(after, path, value)
        old, new = workloads(render(EVERYTHING)), workloads(render(after))
        assert {
            name for name in old if old[name]["spec"]["template"] != new[name]["spec"]["template"]
        } == rolled

    @pytest.mark.parametrize(
        ("path", "value", "message"),
        [
            ("instanceId", "ada", "at '/instanceId': 'ada' does not match"),
            ("accountId", 7, "at '/accountId': got number, want string"),
            ("host", "ada", "at '/host': 'ada' does not match"),
            ("host", "Ada.mindroom.example", "at '/host': 'Ada.mindroom.example' does not match"),
            ("paused", "no", "at '/paused': got string, want boolean"),
            ("resources.cpu", 0, "at '/resources/cpu': exclusiveMinimum"),
            ("resources.memoryMb", 0.5, "at '/resources/memoryMb': got number, want integer"),
            ("resources.storageGb", 0, "at '/resources/storageGb': minimum"),
            ("resources.gpu", 1, "at '/resources': additional properties 'gpu'"),
            ("config", "{}", "at '': additional properties 'config' not allowed"),
            ("configName", "", "at '/configName': '' does not match"),
            ("secretName", "", "at '/secretName': '' does not match"),
            ("secretChecksum", "hunter2", "at '/secretChecksum': 'hunter2' does not match"),
            ("images.backend", "mindroom/backend", "at '/images/backend': "),
            ("matrix.enabled", "yes", "at '/matrix/enabled': got string, want boolean"),
            ("matrix.serverName", "a:8448", "at '/matrix/serverName': 'a:8448' does not match"),
            ("ingress.tls", True, "at '/ingress': additional properties 'tls'"),
            ("token", "x", "at '': additional properties 'token' not allowed"),
        ],
    )
    def test_wrong_value_is_refused(self, path: str, value: object, message: str) -> None:
        result = template(changed(path, value))
        assert result.returncode != 0
        assert message in result.stderr

    @pytest.mark.parametrize("name", MINIMAL)
    def test_missing_value_is_refused(self, name: str) -> None:
        values = {key: value for key, value in MINIMAL.items() if key != name}
        result = template(values)
        assert result.returncode != 0
        assert f"at '': missing property '{name}'" in result.stderr

    def test_schema_is_closed_and_described(self) -> None:
        schema = json.loads((CHART / "values.schema.json").read_text())
        found = list(object_schemas(schema))
        assert len(found) == 5
        for each in found:
            assert each["additionalProperties"] is False
            for name, value in each["properties"].items():
                assert value.get("description"), name

    def test_readme_names_every_value(self) -> None:
        defaults = yaml.safe_load((CHART / "values.yaml").read_text())
        readme = (CHART / "README.md").read_text()
        for path in sorted({*leaves(defaults), *leaves(MINIMAL)}):
            assert f"`{path}`" in readme


class TestHook:
    """The command of the chart's test, on a server of ours."""

    @pytest.fixture
    def url(self) -> Iterator[str]:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(500 if self.path == "/broken" else 200)
                self.end_headers()

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{server.server_port}"
            server.shutdown()

    def test_it_asks_every_component(self) -> None:
        job = find(render(EVERYTHING), "Job", "ada-test")
        _, _, _, *urls = job["spec"]["template"]["spec"]["containers"][0]["command"]
        assert urls == [
            "http://ada-frontend/",
            "http://ada-backend/api/health",
            "http://ada-matrix/health",
        ]

    @pytest.mark.parametrize(("path", "well"), [("/", True), ("/broken", False)])
    def test_it_fails_where_one_does_not_answer(self, url: str, path: str, well: bool) -> None:
        job = find(render(MINIMAL), "Job", "ada-test")
        _, *command = job["spec"]["template"]["spec"]["containers"][0]["command"][:3]
        done = subprocess.run([sys.executable, *command, url, url + path], capture_output=True)
        assert (done.returncode == 0) is well


@dataclass(frozen=True)
class Instance(Helm):
    """The release in one namespace of a cluster, and what it brings about there."""

    def install(self, values: Values, *options: str) -> None:
        key = "--from-literal=MATRIX_REGISTRATION_SHARED_SECRET=x"
        config = "--from-literal=config.json={}"
        for create in (
            ("create", "secret", "generic", values["secretName"], key),
            ("create", "configmap", values["configName"], config),
        ):
            manifest = self.kubectl(*create, "--dry-run=client", "-oyaml")
            self.kubectl("apply", "-f-", stdin=manifest)
        self.upgrade(RELEASE, CHART, values, *options)

    def ready(self) -> dict[str, int]:
        """Ready pods, by component."""
        return {
            name: workload["status"].get("readyReplicas", 0)
            for name, workload in workloads(self.get("deployments,statefulsets")).items()
        }

    def limits(self, component: str) -> Values:
        pod = workloads(self.get("deployments"))[component]["spec"]["template"]["spec"]
        limits: Values = pod["containers"][0]["resources"]["limits"]
        return limits

    def volumes(self) -> dict[str, str]:
        """Capacity of the bound claims, by name."""
        return {
            each["metadata"]["name"]: each["status"]["capacity"]["storage"]
            for each in self.get("pvc")
        }


class TestOnACluster:
    """A release in a namespace under the restricted Pod Security Standard."""

    @pytest.fixture
    def release(self, cluster: ClusterAccess, restricted: str) -> Instance:
        return Instance(cluster, restricted)

    def test_release_comes_up(self, release: Instance) -> None:
        release.install(EVERYTHING)
        assert release.ready() == {"backend": 1, "frontend": 1, "matrix": 1}
        assert release.volumes() == {"ada-backend": "768Mi", "ada-matrix": "256Mi"}
        release("test", RELEASE)
        release.install(EVERYTHING)
        assert "Complete" not in release.kubectl("get", "jobs")  # removed as it succeeded

    def test_every_pod_is_restricted(self, release: Instance) -> None:
        release.takes_only_restricted(pod_templates(render(EVERYTHING)))

    def test_larger_tier_and_back(self, release: Instance) -> None:
        release.install(MINIMAL)
        large = {"cpu": 4, "memoryMb": 8192, "storageGb": 200}
        release.install(MINIMAL | {"resources": large})
        assert release.volumes() == {"ada-backend": "200Gi"}
        assert release.limits("backend") == {"cpu": "3200m", "memory": "6553Mi"}
        release.install(MINIMAL)
        assert release.volumes() == {"ada-backend": "200Gi"}
        assert release.limits("backend") == {"cpu": "400m", "memory": "819Mi"}

    def test_pause_keeps_the_volumes(self, release: Instance) -> None:
        release.install(EVERYTHING)
        before = release.volumes()
        release.install(EVERYTHING | {"paused": True})
        assert release.ready() == {"backend": 0, "frontend": 0, "matrix": 0}
        assert release.volumes() == before
        release.install(EVERYTHING)
        assert release.ready() == {"backend": 1, "frontend": 1, "matrix": 1}

    def test_volumes_outlive_the_release_and_are_found_again(self, release: Instance) -> None:
        release.install(MINIMAL)
        uid = ("get", "pvc", "ada-backend", "-o", "jsonpath={.metadata.uid}")
        before = release.kubectl(*uid)
        release("uninstall", RELEASE, "--wait")
        assert release.volumes() == {"ada-backend": "1Gi"}
        release.install(MINIMAL)
        assert release.kubectl(*uid) == before
        release("uninstall", RELEASE, "--wait")
        label = f"mindroom.chat/instance={MINIMAL['instanceId']}"
        release.kubectl("delete", "pvc", "-l", label)
        assert release.volumes() == {}

    @pytest.mark.parametrize(
        ("tag", "reason"), [("not-there", "ImagePullBackOff"), ("crashes", "CrashLoopBackOff")]
    )
    def test_image_that_does_not_run(self, release: Instance, tag: str, reason: str) -> None:
        values = MINIMAL | {"images": {"backend": f"mindroom/backend:{tag}"}}
        with pytest.raises(AssertionError, match="context deadline exceeded"):
            release.install(values, "--timeout", "3s")
        waiting = "jsonpath={.items[*].status.containerStatuses[*].state.waiting.reason}"
        assert release.kubectl("get", "pods", "-o", waiting) == reason
        release.install(MINIMAL)
        assert release.ready() == {"backend": 1, "frontend": 1}
