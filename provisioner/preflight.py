"""What can be known of a change before it stops a running instance."""

import secrets
from collections.abc import Iterable, Mapping
from typing import Any

from lightkube import ApiError, codecs
from lightkube.resources.core_v1 import PersistentVolumeClaim

from provisioner.cluster import INSTANCE_LABEL, WORKLOADS, quantity
from provisioner.context import Context
from provisioner.health import COMPONENT_LABEL, TRIAL_LABEL
from provisioner.instances import Instance
from provisioner.workers import Worker

OF_THE_POD = (
    "affinity",
    "imagePullSecrets",
    "nodeSelector",
    "priorityClassName",
    "runtimeClassName",
    "securityContext",
    "serviceAccountName",
    "tolerations",
)
OF_A_CONTAINER = ("name", "image", "imagePullPolicy", "securityContext")
"""What of a pod and its containers decides where it can run, and whether its images are there."""

SMALLEST = {"cpu": "1m", "memory": "16Mi"}


class PreflightError(Exception):
    """A change would not work; nothing was stopped for it."""


async def check(
    context: Context, instance: Instance, worker: Worker, objects: Iterable[codecs.AnyResource]
) -> None:
    """Ask the API server for the objects of a release, and try whether its new pods could start.

    Raises:
        PreflightError: the API server refuses an object, a node lacks room, a quota is used up, or
            an image cannot be pulled.
    """
    changed: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for obj in objects:
        if isinstance(obj, PersistentVolumeClaim):
            continue
        try:
            present, accepted = await context.cluster.try_to_write(obj)
        except ApiError as error:
            raise PreflightError(f"the cluster refuses the change: {error}") from error
        if isinstance(obj, WORKLOADS) and present:
            wanted, before = accepted.to_dict(), present.to_dict()
            if _what_is_tried(wanted) != _what_is_tried(before):
                changed.append((wanted, before))
    try:
        async with worker.waiting():
            for each in changed:
                await _try(context, instance, *each)
    finally:
        if changed:
            await context.cluster.delete_trials(str(instance.id))


def _what_is_tried(workload: Mapping[str, Any]) -> list[dict[str, Any]]:
    pod = workload["spec"]["template"]["spec"]
    return [
        {name: pod.get(name) for name in OF_THE_POD},
        *(
            {name: container.get(name) for name in (*OF_A_CONTAINER, "resources")}
            for container in _containers(pod)
        ),
    ]


def _containers(pod: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [*pod.get("initContainers", []), *pod["containers"]]


async def _try(
    context: Context, instance: Instance, wanted: Mapping[str, Any], present: Mapping[str, Any]
) -> None:
    """Start a pod with the images of a workload, where its own pod could run.

    That is on the same node, if that has room for what the new pod needs more than the old one,
    which ends before; otherwise on any node that has room for all of it.
    """
    problem = None
    for is_same_node in (True, False):
        await context.cluster.delete_trials(str(instance.id))
        trial = trial_of(str(instance.id), wanted, present, is_same_node=is_same_node)
        try:
            await context.cluster.apply(codecs.from_dict(trial), force=True)
        except ApiError as error:
            raise PreflightError(f"the cluster refuses the change: {error}") from error
        problem = await context.health_watch.wait_for_trial(
            instance.id,
            trial["metadata"]["labels"][TRIAL_LABEL],
            context.settings.helm_timeout_seconds,
            wait_for_room=not is_same_node,
        )
        if problem is None or problem.reason != "Unschedulable":
            break
    if problem:
        raise PreflightError(f"{problem}; it goes on running as before")


def trial_of(
    instance_id: str, wanted: Mapping[str, Any], present: Mapping[str, Any], *, is_same_node: bool
) -> dict[str, Any]:
    """A Deployment whose pod pulls a workload's images and does nothing with them."""
    component = wanted["metadata"]["labels"][COMPONENT_LABEL]
    where = "same-node" if is_same_node else "any-node"
    # Another one in each attempt, so that no pod of an earlier one is taken for this trial's.
    labels = {INSTANCE_LABEL: instance_id, TRIAL_LABEL: f"{component}-{secrets.token_hex(4)}"}
    named = labels | {COMPONENT_LABEL: component}
    pod = wanted["spec"]["template"]["spec"]
    before = present["spec"]["template"]["spec"] if is_same_node else {"containers": []}
    spec = {name: pod[name] for name in OF_THE_POD if name in pod}
    if is_same_node:
        term = {
            "labelSelector": {"matchLabels": present["spec"]["selector"]["matchLabels"]},
            "topologyKey": "kubernetes.io/hostname",
        }
        spec["affinity"] = {
            "podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}
        }
    resources = {each["name"]: each.get("resources", {}) for each in _containers(before)}
    spec |= {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 0,
        "containers": [
            {name: container[name] for name in OF_A_CONTAINER if name in container}
            | {
                "command": ["true"],
                "resources": growth(
                    container.get("resources", {}), resources.get(container["name"], {})
                ),
            }
            for container in _containers(pod)
        ],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": f"{wanted['metadata']['name']}-{where}",
            "namespace": wanted["metadata"]["namespace"],
            "labels": named,
        },
        "spec": {
            "replicas": 1,
            "revisionHistoryLimit": 0,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": named}, "spec": spec},
        },
    }


def growth(
    wanted: Mapping[str, Mapping[str, str]], present: Mapping[str, Mapping[str, str]]
) -> dict[str, dict[str, str]]:
    """The requests and limits that a container has more than before; at least a little."""
    requests, limits = (
        {
            name: max(
                quantity(amount) - quantity(present.get(kind, {}).get(name)),
                quantity(SMALLEST.get(name)),
            )
            for name, amount in wanted.get(kind, {}).items()
        }
        for kind in ("requests", "limits")
    )
    limits = {name: max(limit, requests.get(name, limit)) for name, limit in limits.items()}
    return {
        kind: {name: f"{number.normalize():f}" for name, number in numbers.items()}
        for kind, numbers in (("requests", requests), ("limits", limits))
    }
