"""The instance-provisioner chart, rendered by the real Helm.

Rendered manifests are validated against the schemas of three Kubernetes minors and against the
restricted Pod Security Standard; wrong values have to be refused with the path of the value.
"""

import copy
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from components.authorization import SERVICES
from components.instance_provisioner import RESTRICTED
from embedded.cluster import ClusterAccess
from embedded.errors import UserError
from provisioner.gateway.database import MAX_CONNECTIONS
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

Render: TypeAlias = Callable[[Values], list[Object]]

CHART = CHARTS / "instance-provisioner"
MINIMAL = CHART / "ci" / "minimal-values.yaml"
RELEASE = "instance-provisioner"
GATEWAY = "instance-gateway"
PROJECT = "mindroom"
DIGEST = "sha256:" + "0a" * 32
SECRET_NAME = re.compile(r"SECRET|TOKEN|PASSWORD|PASSPHRASE|CREDENTIAL|_KEY|DATABASE_URL|DSN")

# Paths and selectors that the tables of wrong values below use.
OWN = "containers.0.securityContext"
PEERS, AT_PEER = "networkPolicy.allowFrom", "at '/networkPolicy/allowFrom/0"
LABELS: Values = {"matchLabels": {"a": "b"}}
NONE: Values = {"matchLabels": {}}

JOBS: Values = {
    "sweep": {"schedule": "*/5 0-6,22 * * 1-5", "sql": "do $$ begin commit; end $$;\n"},
    "count_all_the_things": {"schedule": "0 0 * * *", "sql": "-- All.\nselect 1;\n\nselect 2;"},
}
AT_JOB = "at '/automation/jobs/sweep"


@pytest.fixture
def values() -> Values:
    """The smallest accepted values, for the test to change."""
    loaded: Values = yaml.safe_load(MINIMAL.read_text())
    return loaded


@pytest.fixture(scope="session")
def render(helm: Path) -> Render:
    def rendered(values: Values) -> list[Object]:
        result = template(helm, values)
        assert result.returncode == 0, result.stderr
        return [item for item in yaml.safe_load_all(result.stdout) if item]

    return rendered


def template(
    helm: Path, values: Values, namespace: str = PROJECT
) -> subprocess.CompletedProcess[str]:
    """Values with `monitoring` are for a cluster that has the Prometheus Operator."""
    operator = ("--api-versions", "monitoring.coreos.com/v1") if "monitoring" in values else ()
    target = ("--namespace", namespace, "--values", "-", *operator)
    return run(helm, "template", RELEASE, CHART, *target, stdin=json.dumps(values))


def only(objects: list[Object], kind: str, name: str = RELEASE) -> Object:
    (found,) = (
        item for item in objects if item["kind"] == kind and item["metadata"]["name"] == name
    )
    return found


def pod_template(objects: list[Object]) -> Object:
    return only(objects, "Deployment")["spec"]["template"]


def cron_jobs(objects: list[Object]) -> dict[str, Object]:
    """The specifications of the CronJobs, by name."""
    return {item["metadata"]["name"]: item["spec"] for item in objects if item["kind"] == "CronJob"}


def container(objects: list[Object]) -> Object:
    (found,) = pod_template(objects)["spec"]["containers"]
    return found


def everything(values: Values) -> Values:
    """The values with every option in use."""
    peer = {"namespaceSelector": LABELS, "podSelector": LABELS}
    return values | {
        "image": values["image"] | {"digest": DIGEST},
        "secretChecksum": "0a" * 32,
        "networkPolicy": {"allowFrom": [peer]},
        "monitoring": {"labels": {"release": "prometheus"}},
        "automation": {"jobs": JOBS},
    }


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


class TestRenderedManifests:
    """What holds for the objects whatever the values are."""

    def test_lint_is_clean(self, helm: Path) -> None:
        result = run(helm, "lint", "--strict", CHART, "--values", MINIMAL)
        assert result.returncode == 0, result.stdout + result.stderr

    @pytest.mark.parametrize("minor", KUBERNETES)
    @pytest.mark.parametrize("complete", [False, True], ids=["minimal", "everything"])
    def test_valid_for_kubernetes(
        self, render: Render, values: Values, minor: str, complete: bool
    ) -> None:
        objects = render(everything(values) if complete else values)
        builtin = [item for item in objects if "monitoring.coreos.com" not in item["apiVersion"]]
        assert len(builtin) == (13 + 3 + len(JOBS) if complete else 13)
        for item in builtin:
            assert kubernetes_validate.validate(item, minor, strict=True) == minor

    def test_validation_is_strict(self, render: Render, values: Values) -> None:
        broken = only(render(values), "Deployment")
        broken["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
        with pytest.raises(kubernetes_validate.ValidationError, match="readynessProbe"):
            kubernetes_validate.validate(broken, KUBERNETES[0], strict=True)

    def test_kinds_and_names(self, render: Render, values: Values) -> None:
        found = {
            (item["kind"], item["metadata"]["namespace"], item["metadata"]["name"])
            for item in render(everything(values))
        }
        own = ["ConfigMap", "Deployment", "NetworkPolicy", "PodDisruptionBudget"]
        own += ["PrometheusRule", "Service", "ServiceAccount", "ServiceMonitor"]
        gateways = ["Deployment", "NetworkPolicy", "PodDisruptionBudget", "Service"]
        jobs = {"CronJob": ["sweep", "count-all-the-things"], "Job": ["test"]}
        jobs |= {"ConfigMap": ["jobs", "dashboards"], "NetworkPolicy": ["jobs"]}
        assert found == {(kind, PROJECT, RELEASE) for kind in own} | {
            (kind, PROJECT, GATEWAY) for kind in gateways
        } | {(kind, values["instancesNamespace"], RELEASE) for kind in ("Role", "RoleBinding")} | {
            (kind, PROJECT, f"{RELEASE}-{name}") for kind, names in jobs.items() for name in names
        }

    def test_standard_labels(self, render: Render, values: Values) -> None:
        for item in render(everything(values)):
            labels = item["metadata"]["labels"]
            assert labels.pop("app.kubernetes.io/version")
            assert labels.pop("helm.sh/chart").startswith("instance-provisioner-")
            labels.pop("release", "")
            labels.pop("grafana_dashboard", "")
            is_gateways = item["metadata"]["name"] == GATEWAY
            assert labels == {
                "app.kubernetes.io/name": GATEWAY if is_gateways else "instance-provisioner",
                "app.kubernetes.io/instance": RELEASE,
                "app.kubernetes.io/component": "gateway" if is_gateways else "provisioner",
                "app.kubernetes.io/part-of": "mindroom",
                "app.kubernetes.io/managed-by": "Helm",
            }

    def test_selectors_find_the_pods(self, render: Render, values: Values) -> None:
        objects = render(everything(values))
        deployment = only(objects, "Deployment")["spec"]
        selectors = [
            deployment["selector"]["matchLabels"],
            only(objects, "Service")["spec"]["selector"],
            only(objects, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
            only(objects, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        ]
        spread = deployment["template"]["spec"]["topologySpreadConstraints"]
        selectors += [constraint["labelSelector"]["matchLabels"] for constraint in spread]
        labels = deployment["template"]["metadata"]["labels"]
        test = only(objects, "Job", f"{RELEASE}-test")["spec"]["template"]["metadata"]["labels"]
        for selector in selectors:
            assert selector
            assert selector.items() <= labels.items()
            assert not selector.items() <= test.items()

    def test_ports_have_one_name(self, render: Render, values: Values) -> None:
        objects = render(everything(values))
        pod = container(objects)
        assert pod["ports"] == [{"name": "http", "containerPort": 8080}]
        assert only(objects, "Service")["spec"]["ports"] == [
            {"name": "http", "port": 8080, "targetPort": "http"}
        ]
        (ingress,) = only(objects, "NetworkPolicy")["spec"]["ingress"]
        assert ingress["ports"] == [{"port": "http", "protocol": "TCP"}]
        paths = {"startupProbe": "/health", "livenessProbe": "/health", "readinessProbe": "/ready"}
        for probe, path in paths.items():
            assert pod[probe]["httpGet"] == {"path": path, "port": "http"}


class TestSecurity:
    """What the pods and the service account may do."""

    def test_restricted_pods(self, render: Render, values: Values) -> None:
        assert list(restricted_violations(pod_template(render(values))["spec"])) == []

    @pytest.mark.parametrize(
        ("path", "value", "violation"),
        [
            ("hostNetwork", True, "hostNetwork"),
            ("volumes.0.hostPath", {"path": "/"}, "volume hostPath"),
            ("securityContext.sysctls", [{"name": "kernel.msgmax"}], "pod: sysctls"),
            ("securityContext.runAsNonRoot", False, "provisioner: runAsNonRoot"),
            ("securityContext.seccompProfile", {}, "provisioner: seccompProfile"),
            (f"{OWN}.runAsUser", 0, "provisioner: runAsUser"),
            (f"{OWN}.privileged", True, "provisioner: privileged"),
            (f"{OWN}.allowPrivilegeEscalation", True, "provisioner: allowPrivilegeEscalation"),
            (f"{OWN}.capabilities.add", ["NET_ADMIN"], "provisioner: capabilities"),
            ("containers.0.ports.0.hostPort", 80, "provisioner: hostPort"),
            ("containers.0.startupProbe.httpGet.host", "x", "provisioner: host of a handler"),
            ("initContainers", [{"name": "first"}], "first: capabilities"),
        ],
    )
    def test_checker_finds_violations(
        self, render: Render, values: Values, path: str, value: object, violation: str
    ) -> None:
        pod = pod_template(render(values))["spec"]
        put(pod, path, value)
        assert violation in restricted_violations(pod)

    def test_root_is_read_only(self, render: Render, values: Values) -> None:
        objects = render(values)
        assert container(objects)["securityContext"]["readOnlyRootFilesystem"] is True
        assert container(objects)["volumeMounts"] == [{"name": "tmp", "mountPath": "/tmp"}]
        (volume,) = pod_template(objects)["spec"]["volumes"]
        assert volume["emptyDir"]["sizeLimit"]

    def test_limits(self, render: Render, values: Values) -> None:
        resources = container(render(values))["resources"]
        for kind in ("requests", "limits"):
            assert resources[kind].keys() == {"cpu", "memory"}

    def test_no_wildcard(self, render: Render, values: Values) -> None:
        objects = render(values)
        assert not [item for item in objects if item["kind"].startswith("ClusterRole")]
        for rule in only(objects, "Role")["rules"]:
            assert rule.keys() == {"apiGroups", "resources", "verbs"}
            assert "*" not in json.dumps(rule)

    def test_role_covers_what_helm_manages(self, render: Render, values: Values) -> None:
        allowed = {
            (group, resource): set(rule["verbs"])
            for rule in only(render(values), "Role")["rules"]
            for group in rule["apiGroups"]
            for resource in rule["resources"]
        }
        manage = {"create", "delete", "get", "list", "patch", "update", "watch"}
        watch = {"get", "list", "watch"}
        managed = {
            "": ("configmaps", "persistentvolumeclaims", "secrets", "services"),
            "apps": ("deployments", "statefulsets"),
            "networking.k8s.io": ("ingresses", "networkpolicies"),
        }
        watched = {"": ("events", "pods"), "apps": ("replicasets",)}
        assert allowed == {
            (group, resource): verbs
            for table, verbs in ((managed, manage), (watched, watch))
            for group, resources in table.items()
            for resource in resources
        }

    def test_measuring_takes_the_statistics_of_nodes_and_a_way_to_them(
        self, render: Render, values: Values
    ) -> None:
        values["config"] |= {"measure": "kubelet", "kubeletCa": "-----BEGIN..."}
        objects = render(values)
        name = f"{PROJECT}-{RELEASE}-measure"
        role = only(objects, "ClusterRole", name)
        binding = only(objects, "ClusterRoleBinding", name)
        assert [(rule["resources"], rule["verbs"]) for rule in role["rules"]] == [
            (["nodes"], ["list"]),
            (["nodes/stats"], ["get"]),
        ]
        assert binding["roleRef"]["name"] == name
        assert binding["subjects"] == only(objects, "RoleBinding")["subjects"]
        (egress,) = only(objects, "NetworkPolicy")["spec"]["egress"]
        assert {"port": 10250, "protocol": "TCP"} in egress["ports"]
        settings = only(objects, "ConfigMap")["data"]
        assert (settings["MEASURE"], settings["KUBELET_CA"]) == ("kubelet", "-----BEGIN...")
        for item in objects:
            kubernetes_validate.validate(item, KUBERNETES[0], strict=True)

    def test_binding_joins_role_and_account(self, render: Render, values: Values) -> None:
        objects = render(values)
        binding = only(objects, "RoleBinding")
        assert binding["roleRef"]["name"] == only(objects, "Role")["metadata"]["name"]
        account = only(objects, "ServiceAccount")["metadata"]
        assert binding["subjects"] == [
            {"kind": "ServiceAccount", "name": account["name"], "namespace": account["namespace"]}
        ]
        pod = pod_template(objects)["spec"]
        assert pod["serviceAccountName"] == account["name"]
        assert pod["automountServiceAccountToken"] is True

    def test_secrets_come_by_reference(self, render: Render, values: Values) -> None:
        objects = render(everything(values))
        assert "Secret" not in {item["kind"] for item in objects}
        plain = {item["name"] for item in container(objects)["env"] if "value" in item}
        plain |= only(objects, "ConfigMap")["data"].keys()
        assert not [name for name in plain if SECRET_NAME.search(name)]
        referenced = {
            item["name"]: item["valueFrom"]["secretKeyRef"]
            for item in container(objects)["env"]
            if "valueFrom" in item
        }
        assert referenced == {
            key: {"name": values["existingSecret"], "key": key}
            for key in ("DATABASE_URL", "API_TOKEN")
        }

    def test_own_namespace_is_refused(self, helm: Path, values: Values) -> None:
        result = template(helm, values, namespace=values["instancesNamespace"])
        assert result.returncode != 0
        assert "give the instances a namespace of their own" in result.stderr

    def test_network_is_closed_but_for_what_it_needs(self, render: Render, values: Values) -> None:
        changed = values | {"networkPolicy": {"databasePort": 6000, "apiServerPorts": [7000]}}
        policy = only(render(changed), "NetworkPolicy")["spec"]
        assert policy["policyTypes"] == ["Ingress", "Egress"]
        (ingress,), (egress,) = policy["ingress"], policy["egress"]
        assert ingress["from"] == [{"podSelector": {}}]
        assert [(port["protocol"], port["port"]) for port in egress["ports"]] == [
            ("UDP", 53),
            ("TCP", 53),
            ("TCP", 6000),
            ("TCP", 7000),
        ]

    def test_callers_from_other_namespaces(self, render: Render, values: Values) -> None:
        changed = everything(values)
        (ingress,) = only(render(changed), "NetworkPolicy")["spec"]["ingress"]
        assert ingress["from"] == [{"podSelector": {}}, *changed["networkPolicy"]["allowFrom"]]


class TestGateway:
    """The instance gateway beside the service."""

    @pytest.fixture
    def objects(self, render: Render, values: Values) -> list[Object]:
        return render(everything(values) | {"databaseCa": True})

    @pytest.fixture
    def pod(self, objects: list[Object]) -> Object:
        return only(objects, "Deployment", GATEWAY)["spec"]["template"]

    def test_pods_are_restricted_and_cannot_ask_the_cluster(self, pod: Object) -> None:
        spec = pod["spec"]
        # Of the Secret with the certificate.
        assert list(restricted_violations(spec)) == ["volume secret"]
        assert spec["automountServiceAccountToken"] is False
        assert "serviceAccountName" not in spec
        (container,) = spec["containers"]
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        for kind in ("requests", "limits"):
            assert container["resources"][kind].keys() == {"cpu", "memory"}

    def test_secret_is_its_own(self, objects: list[Object], pod: Object, values: Values) -> None:
        own = values["gateway"]["existingSecret"]
        assert own != values["existingSecret"]
        assert own in json.dumps(pod)
        assert values["existingSecret"] not in json.dumps(pod)
        assert own not in json.dumps(pod_template(objects))
        (container,) = pod["spec"]["containers"]
        assert [item["name"] for item in container["env"] if "valueFrom" in item] == [
            "DATABASE_URL"
        ]

    def test_selectors_find_its_pods_and_no_others(
        self, objects: list[Object], pod: Object
    ) -> None:
        others = [pod_template(objects)["metadata"]["labels"]]
        others.append(
            only(objects, "Job", f"{RELEASE}-test")["spec"]["template"]["metadata"]["labels"]
        )
        own = pod["metadata"]["labels"]
        for selector in (
            only(objects, "Deployment", GATEWAY)["spec"]["selector"]["matchLabels"],
            only(objects, "Service", GATEWAY)["spec"]["selector"],
            only(objects, "PodDisruptionBudget", GATEWAY)["spec"]["selector"]["matchLabels"],
            only(objects, "NetworkPolicy", GATEWAY)["spec"]["podSelector"]["matchLabels"],
        ):
            assert selector.items() <= own.items()
            assert not [labels for labels in others if selector.items() <= labels.items()]
        for kind in ("Deployment", "PodDisruptionBudget", "NetworkPolicy"):
            found = only(objects, kind)["spec"]
            selector = found.get("selector") or found["podSelector"]
            assert not selector["matchLabels"].items() <= own.items()

    def test_ports_have_one_name(self, objects: list[Object], pod: Object) -> None:
        (container,) = pod["spec"]["containers"]
        assert container["ports"] == [{"name": "http", "containerPort": 8081}]
        assert only(objects, "Service", GATEWAY)["spec"]["ports"] == [
            {"name": "http", "port": 8081, "targetPort": "http"}
        ]
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert container[probe]["httpGet"] == {"path": "/health", "port": "http"}

    def test_network_is_open_to_who_asks_and_leads_to_the_database_only(
        self, render: Render, values: Values
    ) -> None:
        changed = everything(values)
        changed["networkPolicy"]["databasePort"] = 6000
        changed["gateway"] = values["gateway"] | {"ingressNamespace": "ingress"}
        policy = only(render(changed), "NetworkPolicy", GATEWAY)["spec"]
        assert policy["policyTypes"] == ["Ingress", "Egress"]
        (ingress,), (egress,) = policy["ingress"], policy["egress"]
        own, *others = ingress["from"]
        assert own == {"podSelector": {}}
        assert (
            others
            == [
                {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}
                for name in (values["instancesNamespace"], "ingress")
            ]
            + changed["networkPolicy"]["allowFrom"]
        )
        assert ingress["ports"] == [{"port": "http", "protocol": "TCP"}]
        assert [port["port"] for port in egress["ports"]] == [53, 53, 6000]

    def test_role_has_connections_for_every_pod_of_a_rollout(self) -> None:
        schema = json.loads((CHART / "values.schema.json").read_text())
        pods = schema["properties"]["gateway"]["properties"]["replicas"]["maximum"] + 1
        assert pods * MAX_CONNECTIONS <= SERVICES["instance_gateway"].connection_limit

    def test_its_secret_rolls_its_pods_alone(self, render: Render, values: Values) -> None:
        before = everything(values)
        after = copy.deepcopy(before)
        put(after, "gateway.secretChecksum", "0b" * 32)
        old, new = render(before), render(after)
        assert pod_template(old) == pod_template(new)
        assert only(old, "Deployment", GATEWAY) != only(new, "Deployment", GATEWAY)


class TestJobs:
    """The database's jobs, as CronJobs."""

    @pytest.fixture
    def objects(self, render: Render, values: Values) -> list[Object]:
        return render(values | {"automation": {"jobs": JOBS}})

    def test_none_without_jobs(self, render: Render, values: Values) -> None:
        assert cron_jobs(render(values)) == {}

    def test_job_runs_in_utc_once_at_a_time_and_late_if_need_be(
        self, objects: list[Object]
    ) -> None:
        found = cron_jobs(objects)
        assert {name: spec["schedule"] for name, spec in found.items()} == {
            f"{RELEASE}-sweep": "*/5 0-6,22 * * 1-5",
            f"{RELEASE}-count-all-the-things": "0 0 * * *",
        }
        for spec in found.values():
            assert spec["timeZone"] == "Etc/UTC"
            assert spec["concurrencyPolicy"] == "Forbid"
            # Below 100 missed runs of the most frequent job, or the controller gives it up.
            assert spec["startingDeadlineSeconds"] == 24 * 60 * 60
            assert spec["successfulJobsHistoryLimit"] + spec["failedJobsHistoryLimit"] == 4
            job = spec["jobTemplate"]["spec"]
            assert (job["backoffLimit"], job["activeDeadlineSeconds"]) == (3, 3600)
            assert job["template"]["spec"]["restartPolicy"] == "Never"

    def test_pods_are_restricted(self, objects: list[Object]) -> None:
        for spec in cron_jobs(objects).values():
            pod = spec["jobTemplate"]["spec"]["template"]["spec"]
            assert list(restricted_violations(pod)) == []
            assert pod["automountServiceAccountToken"] is False
            (only_container,) = pod["containers"]
            assert only_container["securityContext"]["readOnlyRootFilesystem"] is True
            for kind in ("requests", "limits"):
                assert only_container["resources"][kind].keys() == {"cpu", "memory"}

    def test_secret_comes_by_reference_and_no_more_of_it_than_needed(
        self, objects: list[Object], values: Values
    ) -> None:
        reference = {"name": values["existingSecret"], "key": "DATABASE_URL"}
        for spec in cron_jobs(objects).values():
            (only_container,) = spec["jobTemplate"]["spec"]["template"]["spec"]["containers"]
            assert only_container["env"] == [
                {"name": "DATABASE_URL", "valueFrom": {"secretKeyRef": reference}}
            ]

    def test_certificate_is_where_the_services_is(self, render: Render, values: Values) -> None:
        objects = render(values | {"automation": {"jobs": JOBS}, "databaseCa": True})

        def of_certificate(pod: Object) -> list[Object]:
            (only_container,) = pod["containers"]
            items = [*only_container["env"], *only_container["volumeMounts"], *pod["volumes"]]
            return [item for item in items if item["name"] in ("PGSSLROOTCERT", "database-ca")]

        expected = of_certificate(pod_template(objects)["spec"])
        assert len(expected) == 3
        for spec in cron_jobs(objects).values():
            assert of_certificate(spec["jobTemplate"]["spec"]["template"]["spec"]) == expected

    def test_command_runs_the_sql_as_it_was_given(self, objects: list[Object]) -> None:
        texts = only(objects, "ConfigMap", f"{RELEASE}-jobs")["data"]
        assert texts == {f"{name}.sql": f"{job['sql'].strip()}\n" for name, job in JOBS.items()}
        for name, spec in cron_jobs(objects).items():
            pod = spec["jobTemplate"]["spec"]["template"]["spec"]
            (only_container,), (volume,) = pod["containers"], pod["volumes"]
            job = name.removeprefix(f"{RELEASE}-").replace("-", "_")
            assert only_container["command"] == [
                "python",
                "-m",
                "provisioner.job",
                f"/etc/jobs/{job}.sql",
            ]
            (mount,) = only_container["volumeMounts"]
            assert mount == {"name": volume["name"], "mountPath": "/etc/jobs", "readOnly": True}
            assert volume["configMap"] == {"name": f"{RELEASE}-jobs"}

    def test_pods_are_none_of_the_services_and_reach_the_database_only(
        self, render: Render, values: Values
    ) -> None:
        changed = {"automation": {"jobs": JOBS}, "networkPolicy": {"databasePort": 6000}}
        objects = render(values | changed)
        policy = only(objects, "NetworkPolicy", f"{RELEASE}-jobs")["spec"]
        assert policy["policyTypes"] == ["Ingress", "Egress"]
        assert "ingress" not in policy
        (egress,) = policy["egress"]
        assert [port["port"] for port in egress["ports"]] == [53, 53, 6000]
        for spec in cron_jobs(objects).values():
            labels = spec["jobTemplate"]["spec"]["template"]["metadata"]["labels"]
            assert policy["podSelector"]["matchLabels"].items() <= labels.items()
            for selector in (
                only(objects, "Service")["spec"]["selector"],
                only(objects, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
                only(objects, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
            ):
                assert not selector.items() <= labels.items()


class TestValues:
    """What a value does, and which values are refused."""

    def test_image(self, render: Render, values: Values) -> None:
        assert container(render(values))["image"] == "mindroom/instance-provisioner:0.1.0"
        values["image"]["digest"] = DIGEST
        pinned = f"mindroom/instance-provisioner@{DIGEST}"
        assert container(render(values))["image"] == pinned
        del values["image"]["tag"]
        assert container(render(values))["image"] == pinned

    def test_settings(self, render: Render, values: Values) -> None:
        values["config"] |= {"logLevel": "debug", "workers": 8, "resyncSeconds": 3_000_000}
        values["config"]["instanceValues"] = {"ingress": {"className": "nginx"}}
        objects = render(values)
        assert only(objects, "ConfigMap")["data"] == {
            "BASE_DOMAIN": "mindroom.example",
            "GRACE_SECONDS": "45",
            "INSTANCE_VALUES": json.dumps(
                {
                    "gateway": {
                        "namespace": "mindroom",
                        "url": "http://instance-gateway.mindroom.svc.cluster.local:8081",
                    },
                    "ingress": {"className": "nginx"},
                },
                separators=(",", ":"),
            ),
            "INSTANCES_NAMESPACE": "mindroom-instances",
            "LOG_LEVEL": "debug",
            "MEASURE": "none",
            "RESYNC_SECONDS": "3000000",
            "WORKERS": "8",
        }
        assert container(objects)["envFrom"] == [{"configMapRef": {"name": RELEASE}}]

    @pytest.mark.parametrize(
        ("path", "value", "annotation"),
        [
            ("config.logLevel", "debug", "checksum/config"),
            ("instancesNamespace", "elsewhere", "checksum/config"),
            ("secretChecksum", "0b" * 32, "checksum/secret"),
        ],
    )
    def test_changes_that_roll_the_pods(
        self, render: Render, values: Values, path: str, value: str, annotation: str
    ) -> None:
        before = everything(values)
        after = copy.deepcopy(before)
        put(after, path, value)
        old, new = (pod_template(render(each)) for each in (before, after))
        old_sum = old["metadata"]["annotations"].pop(annotation)
        assert new["metadata"]["annotations"].pop(annotation) != old_sum
        assert new == old

    def test_pods(self, render: Render, values: Values) -> None:
        resources = {
            "requests": {"cpu": "250m", "memory": "64Mi"},
            "limits": {"cpu": "1", "memory": "2Gi"},
        }
        changed = {"replicas": 3, "terminationGracePeriodSeconds": 90, "resources": resources}
        objects = render(values | changed)
        assert only(objects, "Deployment")["spec"]["replicas"] == 3
        assert pod_template(objects)["spec"]["terminationGracePeriodSeconds"] == 90
        assert container(objects)["resources"] == resources

    def test_nothing_needs_the_prometheus_operator(self, render: Render, values: Values) -> None:
        assert not [item for item in render(values) if "monitoring" in item["apiVersion"]]

    def test_alerts_and_dashboards(self, render: Render, values: Values) -> None:
        objects = render(everything(values))
        rule = only(objects, "PrometheusRule")
        assert rule["metadata"]["labels"]["release"] == "prometheus"
        assert rule["spec"] == yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())
        dashboards = only(objects, "ConfigMap", f"{RELEASE}-dashboards")
        assert dashboards["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert [json.loads(text)["uid"] for text in dashboards["data"].values()] == [
            "mindroom-instances"
        ]

    def test_service_monitor(self, render: Render, values: Values) -> None:
        objects = render(everything(values))
        monitor = only(objects, "ServiceMonitor")
        assert monitor["metadata"]["labels"]["release"] == "prometheus"
        for service in (only(objects, "Service"), only(objects, "Service", GATEWAY)):
            assert (
                monitor["spec"]["selector"]["matchLabels"].items()
                <= service["metadata"]["labels"].items()
            )
            assert monitor["spec"]["endpoints"] == [
                {"port": service["spec"]["ports"][0]["name"], "path": "/metrics"}
            ]

    @pytest.mark.parametrize(
        ("path", "value", "message"),
        [
            ("replica", 3, "at '': additional properties 'replica' not allowed"),
            ("replicas", 0, "at '/replicas': minimum: got 0, want 1"),
            ("replicas", "2", "at '/replicas': got string, want integer"),
            ("image", "mindroom/provisioner", "at '/image': got string, want object"),
            ("image.pullPolicy", "Always", "at '/image': additional properties 'pullPolicy'"),
            ("image.repository", "mindroom/provisioner:1", "at '/image/repository': "),
            ("image.tag", "", "at '/image/tag': '' does not match"),
            ("image.tag", 1.0, "at '/image/tag': got number, want string"),
            ("image.digest", "sha256:abc", "at '/image/digest': 'sha256:abc' does not match"),
            ("existingSecret", "", "at '/existingSecret': '' does not match"),
            ("existingSecret", {"name": "x"}, "at '/existingSecret': got object, want string"),
            ("gateway.replicas", 0, "at '/gateway/replicas': minimum: got 0, want 1"),
            ("gateway.replicas", 4, "at '/gateway/replicas': maximum: got 4, want 3"),
            ("gateway.ingressNamespace", "a.b", "at '/gateway/ingressNamespace': "),
            ("gateway.enabled", True, "at '/gateway': additional properties 'enabled'"),
            ("secretChecksum", "hunter2", "at '/secretChecksum': 'hunter2' does not match"),
            ("instancesNamespace", "In_Stances", "at '/instancesNamespace': "),
            ("config.baseDomain", "https://x.example", "at '/config/baseDomain': "),
            ("config.logLevel", "loud", "at '/config/logLevel': value must be one of 'debug'"),
            ("config.workers", 0, "at '/config/workers': minimum"),
            ("config.resyncSeconds", 1.5, "at '/config/resyncSeconds': got number, want integer"),
            ("config.API_TOKEN", "x", "at '/config': additional properties 'API_TOKEN'"),
            ("resources.limits.memory", "lots", "at '/resources/limits/memory': 'lots'"),
            ("resources.limits.cpu", 2, "at '/resources/limits/cpu': got number, want string"),
            ("resources.limits.gpu", "1", "at '/resources/limits': additional properties 'gpu'"),
            ("terminationGracePeriodSeconds", 5, "at '/terminationGracePeriodSeconds': minimum"),
            ("networkPolicy.databasePort", 70000, "at '/networkPolicy/databasePort': maximum"),
            ("networkPolicy.apiServerPorts", [], "at '/networkPolicy/apiServerPorts': minItems"),
            ("networkPolicy.apiServerPorts", [443, "x"], "at '/networkPolicy/apiServerPorts/1': "),
            (PEERS, [{"podSelector": LABELS}], f"{AT_PEER}': missing property 'namespaceSelector'"),
            (PEERS, [{"namespaceSelector": {}}], f"{AT_PEER}/namespaceSelector': missing property"),
            (
                PEERS,
                [{"namespaceSelector": NONE}],
                f"{AT_PEER}/namespaceSelector/matchLabels': min",
            ),
            (PEERS, [{"ipBlock": {}}], f"{AT_PEER}': additional properties 'ipBlock'"),
            ("automation.jobs.Sweep", JOBS["sweep"], "invalid propertyName 'Sweep'"),
            ("automation.jobs.sweep", {"schedule": "0 0 * * *"}, f"{AT_JOB}': missing property"),
            ("automation.jobs.sweep", JOBS["sweep"] | {"schedule": "@daily"}, f"{AT_JOB}/schedule"),
            (
                "automation.jobs.sweep",
                JOBS["sweep"] | {"schedule": "0 0 * *"},
                f"{AT_JOB}/schedule",
            ),
            ("automation.jobs.sweep", JOBS["sweep"] | {"sql": " \n"}, f"{AT_JOB}/sql"),
            ("automation.jobs.sweep", JOBS["sweep"] | {"image": "x"}, f"{AT_JOB}': additional"),
            ("automation.resources.limits.cpu", 1, "at '/automation/resources/limits/cpu': got"),
            ("monitoring.labels", {"a": 1}, "at '/monitoring/labels/a': got number"),
        ],
    )
    def test_wrong_value_is_refused(
        self, helm: Path, values: Values, path: str, value: object, message: str
    ) -> None:
        put(values, path, value)
        assert message in refusal(helm, values)

    @pytest.mark.parametrize(
        ("path", "message"),
        [
            ("image", "at '': missing property 'image'"),
            ("image.repository", "at '/image': missing property 'repository'"),
            ("image.tag", "at '/image': missing property 'tag'"),
            ("existingSecret", "at '': missing property 'existingSecret'"),
            ("gateway.existingSecret", "at '/gateway': missing property 'existingSecret'"),
            ("instancesNamespace", "at '': missing property 'instancesNamespace'"),
            ("config.baseDomain", "at '/config': missing property 'baseDomain'"),
        ],
    )
    def test_missing_value_is_refused(
        self, helm: Path, values: Values, path: str, message: str
    ) -> None:
        above, _, name = path.rpartition(".")
        del (values[above] if above else values)[name]
        assert message in refusal(helm, values)

    def test_schema_is_closed_and_described(self) -> None:
        schema = json.loads((CHART / "values.schema.json").read_text())
        found = list(object_schemas(schema))
        assert len(found) > 5
        for each in found:
            assert "additionalProperties" in each, each
            assert each["additionalProperties"] is not True
            for name, value in each.get("properties", {}).items():
                assert value.get("description"), name

    def test_readme_names_every_value(self, values: Values) -> None:
        defaults = yaml.safe_load((CHART / "values.yaml").read_text())
        readme = (CHART / "README.md").read_text()
        for path in sorted({*leaves(defaults), *leaves(values), "image.digest"}):
            assert f"`{path}`" in readme


class TestOnACluster:
    """Both namespaces under the restricted Pod Security Standard, as the Pulumi program makes them.

    The instances' namespace is the fixture's; the release is in one beside it.
    """

    @pytest.fixture
    def release(self, cluster: ClusterAccess, restricted: str) -> Iterator[Helm]:
        own = Helm(cluster, f"{restricted}-own")
        cluster.kubectl("create", "namespace", own.namespace)
        labels = (f"{key}={value}" for key, value in RESTRICTED.items())
        cluster.kubectl("label", "namespace", own.namespace, *labels)
        yield own
        cluster.kubectl("delete", "namespace", own.namespace, "--wait=false")

    @pytest.fixture
    def service(self, release: Helm, restricted: str, values: Values, tmp_path: Path) -> Helm:
        """Helm and kubectl where the instances live, with the rights of the installed service."""
        values |= {"instancesNamespace": restricted}
        release.upgrade(RELEASE, CHART, values)
        config = yaml.safe_load(release.cluster.kubeconfig.read_text())
        config["users"][0]["user"] = {"token": release.kubectl("create", "token", RELEASE)}
        (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
        return Helm(ClusterAccess(tmp_path / "kubeconfig"), restricted)

    def test_release_comes_up(self, release: Helm, restricted: str, values: Values) -> None:
        values |= {"instancesNamespace": restricted, "automation": {"jobs": JOBS}}
        release.upgrade(RELEASE, CHART, values)
        ready = {
            deployment["metadata"]["name"]: deployment["status"]["readyReplicas"]
            for deployment in release.get("deployments")
        }
        assert ready == {GATEWAY: 2, RELEASE: 2}
        release("test", RELEASE)
        assert release.get("jobs") == []  # removed as it succeeded
        release.kubectl("create", "job", "now", f"--from=cronjob/{RELEASE}-sweep")
        release.kubectl("wait", "--for=condition=complete", "job/now", "--timeout=30s")

    def test_every_pod_is_restricted(self, release: Helm, render: Render, values: Values) -> None:
        release.kubectl("create", "serviceaccount", RELEASE)
        release.takes_only_restricted(pod_templates(render(everything(values))))

    def test_service_account_manages_instances(self, service: Helm) -> None:
        chart = CHARTS / "instance"
        instance = yaml.safe_load((chart / "ci" / "minimal-values.yaml").read_text())
        service.kubectl("create", "secret", "generic", instance["secretName"])
        service.upgrade("ada", chart, instance)
        service.upgrade("ada", chart, instance | {"paused": True})
        for kind in ("pods", "events", "replicasets", "persistentvolumeclaims"):
            service.get(kind)
        service("uninstall", "ada", "--wait")
        service.kubectl("delete", "pvc", "--all")
        service.kubectl("delete", "secret", instance["secretName"])
        assert service.get("secrets,deployments,services,ingresses,pvc") == []

    def test_service_account_may_do_nothing_else(self, service: Helm, release: Helm) -> None:
        for words in (
            f"get secrets --namespace {release.namespace}",
            "get secrets --namespace kube-system",
            "get namespaces",
            "get nodes",
            "create token default",
            "create serviceaccount another",
            "create role more --verb=get --resource=pods",
            "create job job --image=a:1",
            "run pod --image=a:1",
            "delete pod one",
        ):
            with pytest.raises(UserError, match="is forbidden"):
                service.kubectl(*words.split())


def refusal(helm: Path, values: Values) -> str:
    result = template(helm, values)
    assert result.returncode != 0, "accepted"
    assert result.stdout == ""
    return result.stderr
