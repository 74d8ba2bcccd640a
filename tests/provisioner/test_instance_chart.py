"""The chart of one customer's instance: rendered by the real Helm, and on a real Kubernetes API."""

import copy
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dev.in_process import HELM
from dev.published import LOCK, PACKAGES
from embedded.cluster import ClusterAccess
from provisioner.actions import TOKENS
from provisioner.config import PLATFORM
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
    "secretNames": ["OPENAI_API_KEY", "WEATHER_KEY"],
    "images": {"mindroom": "example:5000/mindroom@sha256:" + "0a" * 32},
    "ingress": {"className": "nginx", "tlsSecret": "wildcard"},
    "gateway": {"url": "http://gateway.example:8081", "namespace": "platform"},
}
WITHOUT_MATRIX: Values = MINIMAL | {"matrix": {"enabled": False}}
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
        assert len(objects) == (12 if values is EVERYTHING else 11)
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
        assert found.keys() == {"mindroom", "matrix"}
        pods = {
            item["metadata"]["name"]: item["spec"]["template"]["metadata"]["labels"].items()
            for item in objects
            if "template" in item.get("spec", {})
        }
        assert len(pods) == 3
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
            "/": "ada-mindroom",
            "/_matrix": "ada-matrix",
            "/_synapse/client": "ada-matrix",
        }
        for service in paths.values():
            (port,) = find(objects, "Service", service["name"])["spec"]["ports"]
            assert service["port"] == {"name": port["name"]}
        for workload in workloads(objects).values():
            container = workload["spec"]["template"]["spec"]["containers"][0]
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
        pod = workloads(objects)["mindroom"]["spec"]["template"]["spec"]
        mindroom, sandbox = (
            {each["name"]: each for each in container["env"]} for container in pod["containers"]
        )
        variables = {name for name, each in mindroom.items() if "valueFrom" in each}
        assert variables == {
            "MINDROOM_API_KEY",
            "MINDROOM_CREDENTIALS_ENCRYPTION_KEY",
            "MINDROOM_SANDBOX_PROXY_TOKEN",
            "OPENAI_COMPAT_API_KEYS",
            "WEATHER_KEY",
        }
        (volume,) = (each["secret"] for each in pod["volumes"] if "secret" in each)
        assert volume["secretName"] == MINIMAL["secretName"]
        assert volume["defaultMode"] == 0o400
        files = {f"{item['key']}_FILE": item["path"] for item in volume["items"]}
        assert files.keys() == {
            "MATRIX_REGISTRATION_SHARED_SECRET_FILE",
            "OPENAI_API_KEY_FILE",
            "PLATFORM_USAGE_TOKEN_FILE",
        }
        for name, path in files.items():
            assert mindroom[name]["value"] == f"/etc/mindroom-secrets/{path}"
        # Agents' code has what it is called with, and nothing else.
        assert [name for name, each in sandbox.items() if "valueFrom" in each] == [
            "MINDROOM_SANDBOX_PROXY_TOKEN"
        ]
        assert "secrets" not in {each["name"] for each in pod["containers"][1]["volumeMounts"]}

    def test_agents_code_does_not_reach_what_is_still_to_be_reported(self) -> None:
        pod = workloads(render(EVERYTHING))["mindroom"]["spec"]["template"]["spec"]
        mindroom, sandbox = (
            {each["mountPath"]: each for each in container["volumeMounts"]}
            for container in pod["containers"]
        )
        assert mindroom["/data"] == sandbox["/data"] == {"name": "data", "mountPath": "/data"}
        buffer = "/data/platform-usage"
        assert (mindroom[buffer]["name"], sandbox[buffer]["name"]) == ("data", "sandbox")
        assert mindroom[buffer]["subPath"] == "platform-usage"
        assert {"name": "sandbox", "emptyDir": {"sizeLimit": "1Gi"}} in pod["volumes"]

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

    def test_the_gateway_is_all_that_an_instance_reaches_in_the_cluster(self) -> None:
        egress = find(render(EVERYTHING), "NetworkPolicy", RELEASE)["spec"]["egress"]
        before = find(render(MINIMAL), "NetworkPolicy", RELEASE)["spec"]["egress"]
        (gateway,) = (each for each in egress if each not in before)
        assert gateway["ports"] == [{"port": 8081, "protocol": "TCP"}]
        assert [each.keys() for each in gateway["to"]] == [{"namespaceSelector", "podSelector"}]
        nowhere = template(MINIMAL | {"gateway": {"url": "http://gateway.example:8081"}})
        assert nowhere.returncode != 0
        assert "gateway.namespace: where the pods of gateway.url are" in nowhere.stderr

    def test_only_the_gateway_opens_the_openai_compatible_api(self) -> None:
        ingress = find(render(EVERYTHING), "Ingress", "ada-v1")
        url = f"http://gateway.example:8081/auth?instance={MINIMAL['instanceId']}"
        assert ingress["metadata"]["annotations"] == {
            "nginx.ingress.kubernetes.io/auth-url": url,
            # The first is what MindRoom asks for, in place of what the client sent.
            "nginx.ingress.kubernetes.io/auth-response-headers": (
                "Authorization,X-Account-Id,X-Api-Scopes"
            ),
            "nginx.ingress.kubernetes.io/limit-rps": "20",
        }
        (rule,) = ingress["spec"]["rules"]
        assert [each["path"] for each in rule["http"]["paths"]] == ["/v1"]
        for closed in (
            EVERYTHING | {"ingress": {"className": "traefik"}},
            EVERYTHING | {"gateway": {"url": ""}},
        ):
            assert [item["kind"] for item in render(closed)].count("Ingress") == 1

    def test_the_plugin_is_beside_the_config(self) -> None:
        objects = render(MINIMAL)
        pod = workloads(objects)["mindroom"]["spec"]["template"]["spec"]
        config, plugin = (each["configMap"] for each in pod["volumes"][0]["projected"]["sources"])
        assert config == {"name": MINIMAL["configName"]}
        files = find(objects, "ConfigMap", plugin["name"])["data"]
        directory, path = CHART / "files" / "platform-usage", PLATFORM["plugins"][0]["path"]
        assert files == {
            file.name: file.read_text() for file in directory.iterdir() if file.is_file()
        }
        assert {item["key"]: f"./{item['path']}" for item in plugin["items"]} == {
            name: f"{path}/{name}" for name in files
        }
        for container in pod["containers"]:
            (mount,) = (each for each in container["volumeMounts"] if each["name"] == "config")
            assert mount == {"name": "config", "mountPath": "/etc/mindroom", "readOnly": True}


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
            MINIMAL | {"resources": limits, "matrix": MINIMAL["matrix"] | {"enabled": matrix}}
        )
        containers = [
            container["resources"]
            for workload in workloads(objects).values()
            for container in workload["spec"]["template"]["spec"]["containers"]
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

    def test_matrix_server_is_not_named_after_its_host(self) -> None:
        homeserver = yaml.safe_load(
            find(render(changed("matrix.serverName", "matrix.example")), "ConfigMap", "ada-matrix")[
                "data"
            ]["homeserver.yaml"]
        )
        assert homeserver["server_name"] == "matrix.example"
        assert homeserver["public_baseurl"] == f"https://{MINIMAL['host']}/"
        nameless = template({name: MINIMAL[name] for name in MINIMAL if name != "matrix"})
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
            ("configName", "another", {"mindroom"}),
            ("secretChecksum", "0b" * 32, {"mindroom", "matrix"}),
            ("host", "eve.mindroom.example", {"mindroom", "matrix"}),
            ("ingress.tlsSecret", "another", set()),
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
            ("images.mindroom", "mindroom/mindroom", "at '/images/mindroom': "),
            ("images.backend", "a:1", "at '/images': additional properties 'backend' not allowed"),
            ("secretNames", ["A B"], "at '/secretNames/0': 'A B' does not match"),
            ("gateway.url", "gateway", "at '/gateway/url': 'gateway' does not match"),
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

    @pytest.mark.parametrize("name", [name for name in MINIMAL if name != "matrix"])
    def test_missing_value_is_refused(self, name: str) -> None:
        values = {key: value for key, value in MINIMAL.items() if key != name}
        result = template(values)
        assert result.returncode != 0
        assert f"at '': missing property '{name}'" in result.stderr

    def test_images_are_the_versions_that_are_tested(self) -> None:
        """And locked with all that they need, by hash, wherever they come from."""
        images = yaml.safe_load((CHART / "values.yaml").read_text())["images"]
        versions = {package.rpartition("==")[2] for package in PACKAGES}
        assert {image.rpartition(":")[2].removeprefix("v") for image in images.values()} == versions
        lock = LOCK.read_text()
        for package in PACKAGES:
            assert f"\n{package.replace('[chromadb]', '')} \\\n" in lock
        assert "://" not in lock
        for line in lock.splitlines():
            assert line.startswith("    --hash=sha256:") or line.endswith(" \\")

    def test_schema_is_closed_and_described(self) -> None:
        schema = json.loads((CHART / "values.schema.json").read_text())
        found = list(object_schemas(schema))
        assert len(found) == 6
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
            "http://ada-mindroom/",
            "http://ada-mindroom/api/ready",
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

    def install(self, values: Values, *options: str, chart: Path = CHART) -> None:
        keys = (f"--from-literal={name}=x" for name in (*TOKENS, *values.get("secretNames", ())))
        config = "--from-literal=config.json={}"
        for create in (
            ("create", "secret", "generic", values["secretName"], *keys),
            ("create", "configmap", values["configName"], config),
        ):
            manifest = self.kubectl(*create, "--dry-run=client", "-oyaml")
            self.kubectl("apply", "-f-", stdin=manifest)
        self.upgrade(RELEASE, chart, values, *options)

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
        assert release.ready() == {"mindroom": 1, "matrix": 1}
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
        volumes = {"ada-backend": "150Gi", "ada-matrix": "50Gi"}
        assert release.volumes() == volumes
        assert release.limits("mindroom") == {"cpu": "2", "memory": "4Gi"}
        release.install(MINIMAL)
        assert release.volumes() == volumes
        assert release.limits("mindroom") == {"cpu": "250m", "memory": "512Mi"}

    def test_pause_keeps_the_volumes(self, release: Instance) -> None:
        release.install(EVERYTHING)
        before = release.volumes()
        release.install(EVERYTHING | {"paused": True})
        assert release.ready() == {"mindroom": 0, "matrix": 0}
        assert release.volumes() == before
        release.install(EVERYTHING)
        assert release.ready() == {"mindroom": 1, "matrix": 1}

    def test_volumes_outlive_the_release_and_are_found_again(self, release: Instance) -> None:
        release.install(WITHOUT_MATRIX)
        uid = ("get", "pvc", "ada-backend", "-o", "jsonpath={.metadata.uid}")
        before = release.kubectl(*uid)
        release("uninstall", RELEASE, "--wait")
        assert release.volumes() == {"ada-backend": "1Gi"}
        release.install(WITHOUT_MATRIX)
        assert release.kubectl(*uid) == before
        release("uninstall", RELEASE, "--wait")
        label = f"mindroom.chat/instance={MINIMAL['instanceId']}"
        release.kubectl("delete", "pvc", "-l", label)
        assert release.volumes() == {}

    def test_a_release_of_the_old_chart_keeps_its_volumes(
        self, release: Instance, tmp_path: Path
    ) -> None:
        """Chart 0.1.0: a backend and a frontend as user 10001, no Matrix server unless wanted."""
        old = tmp_path / "instance"
        (old / "templates").mkdir(parents=True)
        (old / "Chart.yaml").write_text("{apiVersion: v2, name: instance, version: 0.1.0}")
        shutil.copy(Path(__file__).with_name("chart-0.1.0.yaml"), old / "templates")
        release.install(MINIMAL, chart=old)
        assert release.ready() == {"backend": 1, "frontend": 1}
        uid = ("get", "pvc", "ada-backend", "-o", "jsonpath={.metadata.uid}")
        before = release.kubectl(*uid)
        release.install(MINIMAL)
        assert release.ready() == {"mindroom": 1, "matrix": 1}
        assert release.kubectl(*uid) == before
        assert release.volumes() == {"ada-backend": "1Gi", "ada-matrix": "256Mi"}
        (pod,) = (
            each["spec"]
            for each in release.get("pods")
            if "ada-mindroom" in each["metadata"]["name"]
        )
        claims = [
            each["persistentVolumeClaim"]["claimName"]
            for each in pod["volumes"]
            if "persistentVolumeClaim" in each
        ]
        assert claims == ["ada-backend"]
        # Its files are another group's, which a root of another group has the kubelet change.
        assert pod["securityContext"]["fsGroup"] == 1000
        assert pod["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch"
        # And back, as where the new one does not work.
        release.install(MINIMAL, chart=old)
        assert release.ready() == {"backend": 1, "frontend": 1}
        assert release.kubectl(*uid) == before

    @pytest.mark.parametrize(
        ("tag", "reason"), [("not-there", "ImagePullBackOff"), ("crashes", "CrashLoopBackOff")]
    )
    def test_image_that_does_not_run(self, release: Instance, tag: str, reason: str) -> None:
        values = WITHOUT_MATRIX | {"images": {"mindroom": f"mindroom/mindroom:{tag}"}}
        with pytest.raises(AssertionError, match="context deadline exceeded"):
            release.install(values, "--timeout", "3s")
        waiting = "jsonpath={.items[*].status.containerStatuses[*].state.waiting.reason}"
        assert set(release.kubectl("get", "pods", "-o", waiting).split()) == {reason}
        release.install(WITHOUT_MATRIX)
        assert release.ready() == {"mindroom": 1}
