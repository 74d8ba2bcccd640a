"""The health of an instance: assessed from its workloads and pods."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from lightkube.models.core_v1 import ContainerStatus
from lightkube.resources.core_v1 import PersistentVolumeClaim, Pod

from provisioner.advice import advice

COMPONENT_LABEL = "app.kubernetes.io/component"

CANNOT_GROW_LABEL = "mindroom.chat/cannot-grow"
"""The label of a volume that the cluster refuses to let grow: the size that it should have. The
annotation of the same name says why."""

TRIAL_LABEL = "mindroom.chat/trial"
"""The label of what `preflight` tries a change with: of no instance's health."""

MAX_MESSAGE_LENGTH = 300

SAME_PROBLEM = {"ErrImagePull": "ImagePullBackOff"}
"""Reasons that Kubernetes alternates between while the problem stays the same."""

NEVER_RAN = ("StartError", "ContainerCannotRun")
"""Reasons of a container to have ended before its program ran, so that there is no log."""

HARMLESS = ("CannotGrow",)
"""Reasons of problems that stop no pod."""

STARTING = ("ContainerCreating", "PodInitializing")
"""Reasons of a container to wait that are no problem."""

PULLED = (
    "CrashLoopBackOff",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
)
"""Reasons of a container to wait that it has only when its image is there."""


class Problem(NamedTuple):
    """Why a component does not run, and what to do about it; empty where that is not known."""

    component: str
    reason: str
    message: str
    advice: str

    def __str__(self) -> str:
        """One line for people."""
        return f"{self.component}: {self.reason}: {self.message}" + (
            f" ({self.advice})" if self.advice else ""
        )


def _problem(component: str, reason: str, message: str | None) -> Problem:
    message = message or ""
    return Problem(component, reason, message[:MAX_MESSAGE_LENGTH], advice(reason, message))


@dataclass(frozen=True, slots=True)
class Summary:
    """What matters of a workload or a pod.

    Attributes:
        component: such as "mindroom".
        replicas: the desired pods of a workload; 0 for a pod itself.
        ready_replicas: its ready pods; 0 for a pod itself.
        problems: why it does not run.
        rolled_out: the generation whose pods are ready, and no others there; 0 before that.
        has_images: whether the images of a pod have been pulled.
        trial: its label `TRIAL_LABEL`; None if it has none.
    """

    component: str
    replicas: int
    ready_replicas: int
    problems: tuple[Problem, ...]
    rolled_out: int = 0
    has_images: bool = False
    trial: str | None = None


@dataclass(frozen=True)
class Health:
    """The arguments of update_instance_health().

    Attributes:
        status: "healthy", "degraded", "critical" or "unknown".
        details: the ready pods by component, and the problems.
    """

    status: str
    details: Mapping[str, Any]


def summarize(obj: Any) -> Summary:
    """The summary of a Deployment, StatefulSet, Pod, or volume that cannot grow."""
    labels = obj.metadata.labels or {}
    component, trial = labels.get(COMPONENT_LABEL, obj.metadata.name), labels.get(TRIAL_LABEL)
    if isinstance(obj, Pod):
        problems = tuple(_pod_problems(component, obj))
        return Summary(component, 0, 0, problems, has_images=_has_images(obj), trial=trial)
    if isinstance(obj, PersistentVolumeClaim):
        return Summary(component, 0, 0, (_cannot_grow(component, obj),))
    status = obj.status
    problems = tuple(
        _problem(component, condition.reason, condition.message)
        for condition in (status and status.conditions) or []
        if condition.type == "ReplicaFailure" and condition.status == "True"
    )
    ready_replicas = (status and status.readyReplicas) or 0
    return Summary(
        *(component, obj.spec.replicas, ready_replicas, problems),
        rolled_out=_rolled_out(obj),
        trial=trial,
    )


def _cannot_grow(component: str, volume: Any) -> Problem:
    has = volume.spec.resources.requests["storage"]
    wanted = volume.metadata.labels[CANNOT_GROW_LABEL]
    why = (volume.metadata.annotations or {}).get(CANNOT_GROW_LABEL)
    return _problem(
        component, "CannotGrow", f"the volume has {has} and cannot have {wanted}: {why}"
    )


def _rolled_out(workload: Any) -> int:
    status, replicas = workload.status, workload.spec.replicas
    if status is None or (status.replicas or 0) > replicas:
        return 0
    ready = min(status.updatedReplicas or 0, status.readyReplicas or 0)
    return (status.observedGeneration or 0) if ready >= replicas else 0


def _has_images(pod: Pod) -> bool:
    containers = (pod.status and pod.status.containerStatuses) or []
    return bool(containers) and all(
        container.state is not None
        and (container.state.waiting is None or container.state.waiting.reason in PULLED)
        for container in containers
    )


def _pod_problems(component: str, pod: Pod) -> Iterable[Problem]:
    status = pod.status
    if status is None or pod.metadata is None or pod.metadata.deletionTimestamp:
        return
    if status.phase == "Failed" and status.reason:
        yield _problem(component, status.reason, status.message)
    for condition in status.conditions or []:
        if condition.type == "PodScheduled" and condition.status == "False":
            yield _problem(component, condition.reason or "Unschedulable", condition.message)
    for container in [*(status.initContainerStatuses or []), *(status.containerStatuses or [])]:
        yield from _container_problems(component, container)


def _container_problems(component: str, container: ContainerStatus) -> Iterable[Problem]:
    waiting = container.state and container.state.waiting
    last = container.lastState and container.lastState.terminated
    if waiting and waiting.reason and waiting.reason not in STARTING:
        reason, message = SAME_PROBLEM.get(waiting.reason, waiting.reason), waiting.message
        # These two have a message of our own: that of Kubernetes changes with every attempt.
        if reason == "ImagePullBackOff":
            message = f"the image {container.image} cannot be pulled"
        elif reason == "CrashLoopBackOff" and last and last.reason in NEVER_RAN:
            reason, message = last.reason, last.message
        elif reason == "CrashLoopBackOff":
            message = f"it ended with code {last.exitCode}" if last else "it keeps ending"
        yield _problem(component, reason, message)
    if last and last.reason == "OOMKilled" and not container.ready:
        yield _problem(component, "OOMKilled", "it was ended for using too much memory")


def assess(summaries: Iterable[Summary]) -> Health:
    """The health of an instance that has these workloads and pods."""
    summaries = [summary for summary in summaries if summary.trial is None]
    problems = sorted({problem for summary in summaries for problem in summary.problems})
    workloads = [summary for summary in summaries if summary.replicas]
    details: dict[str, Any] = {
        "ready": {
            workload.component: f"{workload.ready_replicas}/{workload.replicas}"
            for workload in workloads
        }
    }
    if problems:
        details["problems"] = [str(problem) for problem in problems]
    harmless = [
        summary
        for summary in summaries
        if summary.problems and all(problem.reason in HARMLESS for problem in summary.problems)
    ]
    if len(harmless) == len(summaries):
        return Health("critical", {"problems": ["it has no workloads or pods in the cluster"]})
    if not workloads:
        del details["ready"]
        return Health("unknown", details | {"stopped": True})
    if not problems and all(w.ready_replicas >= w.replicas for w in workloads):
        return Health("healthy", details)
    stops_pods = any(problem.reason not in HARMLESS for problem in problems)
    if stops_pods and any(workload.ready_replicas == 0 for workload in workloads):
        return Health("critical", details)
    return Health("degraded", details)
