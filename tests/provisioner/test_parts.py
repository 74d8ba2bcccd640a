"""The parts of the provisioner that need no server: health, delays, chart values, imports."""

import importlib.metadata
import json
import re
import subprocess
import sys
from typing import Any
from uuid import UUID

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from lightkube.core.resource import NamespacedResource
from lightkube.resources.apps_v1 import Deployment
from lightkube.resources.core_v1 import ConfigMap, PersistentVolumeClaim, Pod

from components import ROOT
from provisioner.actions import TOKENS, chart_values
from provisioner.advice import ADVICE, advice
from provisioner.cluster import DELETE_AFTER, KubernetesObject, Metadata, fingerprint
from provisioner.config import as_yaml
from provisioner.health import CANNOT_GROW_LABEL, assess, summarize
from provisioner.instance_secrets import checksum
from provisioner.instances import Instance
from provisioner.preflight import growth
from provisioner.retry import backoff
from provisioner.settings import Settings

LABELS = {"app.kubernetes.io/component": "mindroom"}


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name, value in {
        "DATABASE_URL": "postgresql://u:p@127.0.0.1/x",
        "API_TOKEN": "sixteen-bytes-or-more",
        "BASE_DOMAIN": "mindroom.test",
        "INSTANCES_NAMESPACE": "instances",
        "INSTANCE_VALUES": '{"images": {"mindroom": "a:1", "matrix": "b:1"}, "host": "x.test"}',
    }.items():
        monkeypatch.setenv(name, value)
    return Settings()  # type: ignore[call-arg]  # from the environment


def deployment(wanted: int, ready: int | None, **status: Any) -> Deployment:
    return msgspec.convert(
        {
            "metadata": {"name": "a-mindroom", "labels": LABELS},
            "spec": {"replicas": wanted, "selector": {}, "template": {}},
            "status": ({} if ready is None else {"readyReplicas": ready}) | status,
        },
        Deployment,
    )


def pod(**status: Any) -> Pod:
    metadata = {"name": "a-mindroom-1", "labels": LABELS}
    return msgspec.convert({"metadata": metadata, "status": status}, Pod)


def waiting(reason: str, message: str = "", **container: Any) -> Pod:
    state = {"state": {"waiting": {"reason": reason, "message": message}}}
    required = {"name": "mindroom", "image": "an:image", "imageID": "", "restartCount": 1}
    return pod(containerStatuses=[required | {"ready": False} | state | container])


UNSCHEDULABLE = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": "0/1 nodes are available: 1 Insufficient memory.",
}
EXITED: dict[str, Any] = {"lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}

NEVER_RAN: dict[str, Any] = {
    "lastState": {
        "terminated": {"exitCode": 128, "reason": "StartError", "message": "no such file"}
    }
}

PROBLEMS = [
    (waiting("ErrImagePull", "rpc error"), "ImagePullBackOff: the image an:image cannot be pulled"),
    (waiting("ImagePullBackOff"), "ImagePullBackOff: the image an:image cannot be pulled"),
    (waiting("InvalidImageName", "cannot parse"), "InvalidImageName: cannot parse"),
    (waiting("CrashLoopBackOff", **EXITED), "CrashLoopBackOff: it ended with code 137"),
    (waiting("CrashLoopBackOff", **NEVER_RAN), "StartError: no such file"),
    (waiting("CrashLoopBackOff", **EXITED), "OOMKilled: it was ended for using too much memory"),
    (waiting("CreateContainerConfigError", 'secret "a" not found'),
     'CreateContainerConfigError: secret "a" not found'),
    (pod(conditions=[UNSCHEDULABLE]), "Unschedulable: 0/1 nodes are available: 1 Insuf"),
    (pod(phase="Failed", reason="Evicted", message="The node was low on resource: x"),
     "Evicted: The node was low on resource: x"),
    (
        deployment(1, None, conditions=[
            {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate",
             "message": "exceeded quota"}]),
        "FailedCreate: exceeded quota",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("obj", "problem"), PROBLEMS)
def test_a_problem_comes_with_advice_and_makes_the_instance_critical(
    obj: Pod | Deployment, problem: str
) -> None:
    health = assess([summarize(deployment(1, 0)), summarize(obj)])
    assert health.status == "critical"
    assert [
        line
        for line in health.details["problems"]
        if line.startswith(f"mindroom: {problem}") and line.endswith(")")
    ]


CLAIM = "see that its storage class exists"
ROOM = "no node has room: add nodes"
OTHER_POD = "another pod is made"
NODES = "0/3 nodes are available: "
NO_USE = (
    " no new claims to deallocate, preemption: 0/3 nodes are available: "
    "1 Insufficient memory, 2 Preemption is not helpful for scheduling."
)
PODS = 'pods "a-mindroom-1" is forbidden: '

# As Kubernetes 1.36 writes them, and where it was otherwise, as 1.31 did.
REASONS = [
    ("Unschedulable", f"{NODES}pod has unbound immediate PersistentVolumeClaims. not found", CLAIM),
    ("Unschedulable", f'{NODES}persistentvolumeclaim "a" not found. not found', "make the claim"),
    ("Unschedulable", f'{NODES}persistentvolumeclaim "a" is being deleted.', "wait until"),
    ("Unschedulable", 'persistentvolumeclaim "a" bound to non-existent persistentvolume "b"',
     "restore it from a backup"),
    ("Unschedulable", f"{NODES}3 node(s) unavailable due to one or more pvc(s) bound to "
     f"non-existent pv(s).{NO_USE}", "restore it from a backup"),
    ("Unschedulable", f"{NODES}3 node(s) didn't find available persistent volumes to bind.{NO_USE}",
     "no volume fits its claim"),
    ("Unschedulable", f"{NODES}3 node(s) did not have enough free storage.{NO_USE}", "add storage"),
    ("Unschedulable", f"{NODES}3 node(s) exceed max volume count.{NO_USE}", "another volume"),
    ("Unschedulable", f"{NODES}3 node(s) unavailable due to PersistentVolumeClaim with "
     f"ReadWriteOncePod access mode already in-use by another pod.{NO_USE}", "wait for its end"),
    ("Unschedulable", f"{NODES}1 Insufficient cpu, 2 node(s) had volume node affinity conflict."
     f"{NO_USE}", "without room: add a node there"),
    ("Unschedulable", f"{NODES}1 Insufficient cpu, 2 node(s) didn't match PersistentVolume's node "
     f"affinity.{NO_USE}", "without room: add a node there"),
    ("Unschedulable", f"{NODES}3 node(s) had no available volume zone.{NO_USE}", "a node there"),
    ("Unschedulable", f"{NODES}3 Insufficient cpu.{NO_USE}", ROOM),
    ("Unschedulable", f"{NODES}1 node(s) had untolerated taint(s), 2 Insufficient memory.{NO_USE}",
     ROOM),
    ("Unschedulable", f"{NODES}3 Too many pods.{NO_USE}", "no node takes another pod"),
    ("Unschedulable", f"{NODES}3 node(s) didn't have free ports for the requested pod ports."
     f"{NO_USE}", "do without hostPort"),
    ("Unschedulable", f"{NODES}3 node(s) didn't match pod topology spread constraints (missing "
     f"required label).{NO_USE}", "topologySpreadConstraints"),
    ("Unschedulable", f"{NODES}3 node(s) didn't match pod anti-affinity rules.{NO_USE}",
     "affinity to other pods"),
    ("Unschedulable", f"{NODES}3 node(s) didn't satisfy existing pods anti-affinity rules.{NO_USE}",
     "affinity to other pods"),
    ("Unschedulable", f"{NODES}3 node(s) didn't match pod affinity rules.{NO_USE}",
     "affinity to other pods"),
    ("Unschedulable", f"{NODES}3 node(s) didn't match Pod's node affinity/selector.{NO_USE}",
     "the labels that it asks for"),
    ("Unschedulable", f"{NODES}3 node(s) didn't match the requested node name.{NO_USE}",
     "there is no such node"),
    ("Unschedulable", f"{NODES}3 node(s) had untolerated taint(s).{NO_USE}", "add a toleration"),
    ("Unschedulable", f"{NODES}3 node(s) had untolerated taint {{a: b}}.{NO_USE}",
     "add a toleration"),
    ("Unschedulable", f"{NODES}3 node(s) were unschedulable.{NO_USE}", "kubectl uncordon"),
    ("Unschedulable", "no nodes available to schedule pods", "the cluster has no node"),
    ("Unschedulable", f"{NODES}3 node(s) had no available disk.{NO_USE}", ""),
    ("SchedulingGated", "Scheduling is blocked due to non-empty scheduling gates", "remove them"),
    ("SchedulerError", 'running PreFilter plugin "a": timed out', ""),
    ("ErrImageNeverPull", 'Container image "a" is not present', "imagePullPolicy"),
    ("InvalidImageName", 'Failed to apply default image tag "A": couldn\'t parse', "the name"),
    ("ImageInspectError", 'Failed to inspect image "a"', "container runtime"),
    ("RunContainerError", 'exec: "a": executable file not found in $PATH', "that command"),
    ("PostStartHookError", "command exited with 1", "postStart"),
    ("CreateContainerConfigError", 'secret "a" not found', "make the Secret or ConfigMap"),
    ("CreateContainerConfigError", 'configmap "a" not found', "make the Secret or ConfigMap"),
    ("CreateContainerConfigError", "couldn't find key a in Secret b/c", "add that key"),
    ("CreateContainerConfigError", "container has runAsNonRoot and image will run as root",
     "not root"),
    ("CreateContainerConfigError", "failed to sync secret cache: timed out", ""),
    ("CreateContainerError", "Error response from daemon: no command specified", "give it one"),
    ("CreateContainerError", "context deadline exceeded", ""),
    ("FailedCreate", f"{PODS}exceeded quota: q, requested: pods=1", "raise the quota"),
    ("FailedCreate", f"{PODS}failed quota: q: must specify limits.cpu", "limits of every"),
    ("FailedCreate", f'{PODS}violates PodSecurity "restricted:latest": x', "pod security"),
    ("FailedCreate", 'admission webhook "a.test" denied the request: no', "a webhook"),
    ("FailedCreate", 'Internal error occurred: failed calling webhook "a.test"', "a webhook"),
    ("FailedCreate", f'{PODS}error looking up service account a/b: serviceaccount "b" not found',
     "ServiceAccount"),
    ("FailedCreate", f"{PODS}no PriorityClass with name a was found", "PriorityClass"),
    ("FailedCreate", f"{PODS}maximum memory usage per Container is 1Gi, but limit is 2Gi",
     "LimitRange"),
    ("FailedCreate", "the server is currently unable to handle the request", ""),
    ("CannotGrow", "only dynamically provisioned pvc can be resized and the storageclass that "
     "provisions the pvc must support resize", "allowVolumeExpansion"),
    ("CannotGrow", 'persistentvolumeclaims "a" is forbidden: exceeded quota: q', "raise the quota"),
    ("Evicted", "The node was low on resource: memory. ", "its node ran out"),
    ("Evicted", "The node had condition: [DiskPressure]. ", "its node ran out"),
    ("Evicted", 'Container a exceeded its local ephemeral storage limit "1Gi". ', "wrote more"),
    ("Evicted", "Pod ephemeral local storage usage exceeds the total limit of containers 1Gi. ",
     "wrote more"),
    ("Evicted", 'Usage of EmptyDir volume "a" exceeds the limit "1Gi". ', "wrote more"),
    ("OutOfcpu", "Pod was rejected: Node didn't have enough resource: cpu", OTHER_POD),
    ("OutOfmemory", "Pod was rejected: Node didn't have enough resource: memory", OTHER_POD),
    ("OutOfpods", "Pod was rejected: Node didn't have enough resource: pods", OTHER_POD),
    ("Preempting", "Preempted in order to admit critical pod", OTHER_POD),
    ("NodeAffinity", "Pod was rejected: Predicate NodeAffinity failed", OTHER_POD),
    ("NodeShutdown", "Pod was rejected as the node is shutting down.", OTHER_POD),
    ("Terminated", "Pod was terminated in response to imminent node shutdown.", OTHER_POD),
    ("UnexpectedAdmissionError", "Allocate failed", ""),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "message", "expected"), REASONS)
def test_advice_is_about_what_is_known(reason: str, message: str, expected: str) -> None:
    given = advice(reason, message)
    assert expected in given
    assert bool(expected) == bool(given)


def test_every_advice_is_tested() -> None:
    tested = {advice(reason, message) for reason, message, _ in REASONS}
    tested |= {problem.advice for obj, _ in PROBLEMS for problem in summarize(obj).problems}
    assert {what for parts in ADVICE.values() for what in parts.values()} <= tested


VOLUME: PersistentVolumeClaim = msgspec.convert(
    {
        "metadata": {"name": "a", "labels": LABELS | {CANNOT_GROW_LABEL: "20Gi"}},
        "spec": {"resources": {"requests": {"storage": "10Gi"}}},
    },
    PersistentVolumeClaim,
)


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        ([deployment(1, 1)], "healthy"),
        ([deployment(1, 1), deployment(2, 1)], "degraded"),
        ([deployment(1, None)], "degraded"),
        ([deployment(1, 1), waiting("CrashLoopBackOff")], "degraded"),
        ([deployment(1, 1), waiting("ContainerCreating")], "healthy"),
        ([deployment(0, None)], "unknown"),
        ([deployment(0, None), VOLUME], "unknown"),
        ([deployment(1, 1), VOLUME], "degraded"),
        ([deployment(1, 0), VOLUME], "degraded"),
        ([VOLUME], "critical"),
        ([], "critical"),
    ],
)
def test_health_follows_from_workloads_and_pods(parts: list[Pod | Deployment], status: str) -> None:
    health = assess(summarize(part) for part in parts)
    assert health.status == status
    json.dumps(health.details)


def test_a_pod_that_is_being_deleted_has_no_problems() -> None:
    ending = waiting("CrashLoopBackOff")
    assert ending.metadata
    ending.metadata.deletionTimestamp = "2026-01-01T00:00:00Z"  # type: ignore[assignment]
    assert summarize(ending).problems == ()


@given(attempt=st.integers(1, 10_000))
def test_backoff_doubles_up_to_a_limit_and_half_of_it_is_jitter(attempt: int) -> None:
    settings = Settings.model_construct(first_backoff_seconds=5, last_backoff_seconds=300)
    longest = min(300, 5 * 2 ** (attempt - 1))
    assert longest / 2 <= backoff(settings, attempt) <= longest


def test_backoffs_differ() -> None:
    settings = Settings.model_construct(first_backoff_seconds=5, last_backoff_seconds=300)
    assert len({backoff(settings, 3) for _ in range(20)}) > 15


def an_instance(**changes: Any) -> Instance:
    row: dict[str, Any] = {
        "id": UUID(int=1),
        "account_id": UUID(int=2),
        "app_name": "ada",
        "app_config": {},
        "subdomain": "ada",
        "matrix_url": None,
        "status": "running",
        "config": "{}",
        "cpu_limit": 0.5,
        "memory_limit_mb": 1024,
        "storage_limit_gb": 1,
        "provisioned_at": None,
        "volume_retention_days": 0,
        "error_message": None,
        "applied": None,
        "held": None,
    }
    return Instance(**(row | changes))


def test_values_of_the_row_override_app_config_which_overrides_instance_values(
    settings: Settings,
) -> None:
    instance = an_instance(
        status="stopped",
        app_config={
            "images": {"mindroom": "a:2"},
            "matrix": {"enabled": True, "serverName": "y.test"},
            "host": "y.test",
            "instanceId": "another",
            "secretName": "another's",
            "resources": {"cpu": 1000},
        },
    )
    content = dict.fromkeys(TOKENS, "x") | {
        "MATRIX_SERVER_NAME": "m.test",
        "OPENAI_API_KEY": "a key",
        "no-variable": "another",
    }
    assert chart_values(settings, instance, "ada-secrets", content) == {
        "images": {"mindroom": "a:2", "matrix": "b:1"},
        "matrix": {"enabled": True, "serverName": "m.test"},
        "instanceId": str(UUID(int=1)),
        "accountId": str(UUID(int=2)),
        "host": "ada.mindroom.test",
        "paused": True,
        "resources": {"cpu": 0.5, "memoryMb": 1024, "storageGb": 1},
        "configName": "ada-config-44136fa355b3678a",
        "secretName": "ada-secrets",
        "secretNames": ["OPENAI_API_KEY"],
        "secretChecksum": checksum(content),
    }


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner)
    ),
)


@given(JSON)
def test_a_config_is_to_yaml_what_it_is_to_json(value: object) -> None:
    config = as_yaml(json.dumps(value, ensure_ascii=False))
    assert json.loads(config) == yaml.load(config, yaml.CSafeLoader) == value


def test_a_trial_needs_what_the_new_pod_needs_more_than_the_old_one() -> None:
    before = {"requests": {"cpu": "200m", "memory": "1Gi"}, "limits": {"memory": "1Gi"}}
    wanted = {"requests": {"cpu": "1", "memory": "512Mi"}, "limits": {"memory": "3Gi"}}
    assert growth(wanted, before) == {
        "requests": {"cpu": "0.8", "memory": str(16 * 2**20)},
        "limits": {"memory": str(2 * 2**30)},
    }
    assert growth(wanted, {}) == {
        "requests": {"cpu": "1", "memory": str(512 * 2**20)},
        "limits": {"memory": str(3 * 2**30)},
    }


def an_object(kind: type[NamespacedResource], **metadata: Any) -> KubernetesObject:
    return KubernetesObject(
        kind, Metadata(**({"name": "a", "uid": "u", "resourceVersion": "1"} | metadata))
    )


def test_a_fingerprint_changes_with_the_objects_and_not_with_their_status() -> None:
    volume = an_object(PersistentVolumeClaim, resourceVersion="1")
    config = an_object(ConfigMap, resourceVersion="1")
    workload = an_object(Deployment, resourceVersion="1", generation=1)
    before = fingerprint([volume, config, workload], "")
    assert before == fingerprint(
        [
            an_object(Deployment, resourceVersion="2", generation=1),  # only its status
            config,
            an_object(PersistentVolumeClaim, resourceVersion="2"),  # it was bound
        ],
        "",
    )
    for other in (
        [volume, config],
        [volume, config, an_object(Deployment, resourceVersion="1", generation=2)],
        [volume, config, an_object(Deployment, resourceVersion="1", generation=1, uid="v")],
        [volume, an_object(ConfigMap, resourceVersion="2"), workload],
        [],
    ):
        assert fingerprint(other, "") != before


def test_a_fingerprint_is_of_the_config_in_use_and_of_no_other() -> None:
    labels = {"app.kubernetes.io/component": "config"}
    old, new = (an_object(ConfigMap, name=name, labels=labels) for name in ("old", "new"))
    workload = an_object(Deployment)
    assert fingerprint([workload, old], "old") == fingerprint([workload, old, new], "old")
    assert fingerprint([workload, old, new], "old") != fingerprint([workload, old, new], "new")
    assert fingerprint([workload, new], "old") == fingerprint([workload], "old")


@pytest.mark.parametrize("text", ["", "tomorrow", "2026-13-01"])
def test_an_annotation_that_is_not_a_date_keeps_a_volume(text: str) -> None:
    volume = an_object(PersistentVolumeClaim, annotations={DELETE_AFTER: text})
    assert volume.delete_after is None


def test_it_is_imported_without_the_pulumi_program() -> None:
    """Provisioner -> database only."""
    code = "import sys, provisioner.__main__; print([m for m in sys.modules])"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for other in ("pulumi", "components", "migrate", "embedded", "dev"):
        assert f"'{other}'" not in loaded


WITHOUT = """
import sys


class Missing:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in sys.argv[1:]:
            raise ModuleNotFoundError(name)


sys.meta_path.insert(0, Missing())
import provisioner.__main__
"""


def test_its_image_has_all_that_it_imports_and_nothing_that_is_missing() -> None:
    """By the lock of the image, and the files that the Containerfile copies."""
    lock = (ROOT / "provisioner" / "requirements.txt").read_text()
    locked = set(re.findall(r"^([a-z0-9._-]+)==", lock, re.MULTILINE))
    elsewhere = [
        module
        for module, names in importlib.metadata.packages_distributions().items()
        if not locked & {name.lower().replace("_", "-") for name in names}
    ]
    assert "pulumi" in elsewhere
    subprocess.run([sys.executable, "-c", WITHOUT, *elsewhere], cwd=ROOT, check=True)

    containerfile = (ROOT / "provisioner" / "Containerfile").read_text()
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", containerfile, re.MULTILINE)
    assert all((ROOT / name).exists() for line in copied for name in line.split())
    assert re.findall(r"^USER (\d+):", containerfile, re.MULTILINE) == ["10001"]
    for image in re.findall(r"^ARG \w+=(\S+)", containerfile, re.MULTILINE):
        assert re.search(r":\d+\.\d+\.\d+-", image), f"{image} is not pinned"
