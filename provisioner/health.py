"""The health of every instance, from a watch of its workloads and pods."""

import asyncio
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import psycopg
import structlog
from lightkube import ApiError
from lightkube.core.resource import NamespacedResource
from lightkube.resources.apps_v1 import Deployment, StatefulSet
from lightkube.resources.core_v1 import Pod

from provisioner.cluster import INSTANCE, Cluster, ClusterError
from provisioner.database import Database
from provisioner.reach import Reach

log = structlog.get_logger()

KINDS: tuple[type[NamespacedResource], ...] = (Deployment, StatefulSet, Pod)
TASKS = tuple(f"watch of {kind.__name__}s" for kind in KINDS)

GONE = 410
"""What the API server says of a version that is too old to go on from."""

RECONNECT_SECONDS = 1.0
WATCH_SECONDS = 300
"""After which the API server ends a watch, and another one goes on where it ended."""

SETTLE_SECONDS = 1.0
"""Time for what happens together to be told together."""

COMPONENT = "app.kubernetes.io/component"
LONGEST_MESSAGE = 300

ADVICE = {
    "ImagePullBackOff": "see that the image exists and that the cluster may pull it",
    "CrashLoopBackOff": "read the log of its last run: kubectl logs --previous",
    "OOMKilled": "it needs more memory than its limit: raise the limit or the tier",
    "CreateContainerConfigError": "see that the Secret and ConfigMap that it names are there",
    "Unschedulable": "no node has room: add nodes, or lower the instance's limits",
    "FailedCreate": "a quota or the pod security of the namespace refuses its pods",
    "Evicted": "its node ran out of memory or disk",
}

SAME = {"ErrImagePull": "ImagePullBackOff", "InvalidImageName": "ImagePullBackOff"}
"""Reasons that take turns while nothing changes."""


STARTING = ("ContainerCreating", "PodInitializing")


class Problem(NamedTuple):
    """Why something does not run."""

    component: str
    reason: str
    message: str

    def __str__(self) -> str:
        """One line for people."""
        advice = ADVICE.get(self.reason)
        return f"{self.component}: {self.reason}: {self.message}" + (
            f" ({advice})" if advice else ""
        )


@dataclass(frozen=True, slots=True)
class Part:
    """What is kept of a workload or a pod; a pod wants nothing, it only has problems."""

    component: str
    wanted: int
    ready: int
    problems: tuple[Problem, ...]


Parts = dict[tuple[str, str], Part]
"""Kind and name -> the summary."""


@dataclass(frozen=True)
class Health:
    """As update_instance_health takes it."""

    status: str
    details: Mapping[str, Any]


def summarise(obj: Any) -> Part:
    """A workload or a pod in a few words."""
    component = (obj.metadata.labels or {}).get(COMPONENT, obj.metadata.name)
    if isinstance(obj, Pod):
        return Part(component, 0, 0, tuple(_pod_problems(component, obj)))
    status = obj.status
    problems = [
        Problem(component, each.reason, (each.message or "")[:LONGEST_MESSAGE])
        for each in (status and status.conditions) or []
        if each.type == "ReplicaFailure" and each.status == "True"
    ]
    ready = (status and status.readyReplicas) or 0
    return Part(component, obj.spec.replicas, ready, tuple(problems))


def _pod_problems(component: str, pod: Pod) -> Iterable[Problem]:
    status = pod.status
    if status is None or pod.metadata is None or pod.metadata.deletionTimestamp:
        return
    if status.phase == "Failed" and status.reason:
        yield Problem(component, status.reason, (status.message or "")[:LONGEST_MESSAGE])
    for condition in status.conditions or []:
        if condition.type == "PodScheduled" and condition.reason == "Unschedulable":
            yield Problem(component, "Unschedulable", (condition.message or "")[:LONGEST_MESSAGE])
    for container in [*(status.initContainerStatuses or []), *(status.containerStatuses or [])]:
        waiting = container.state and container.state.waiting
        last = container.lastState and container.lastState.terminated
        if waiting and waiting.reason and waiting.reason not in STARTING:
            reason = SAME.get(waiting.reason, waiting.reason)
            # Kubernetes' own words change with every attempt.
            if reason == "ImagePullBackOff":
                message = f"the image {container.image} cannot be pulled"
            elif reason == "CrashLoopBackOff":
                message = f"it ended with code {last.exitCode}" if last else "it keeps ending"
            else:
                message = (waiting.message or "")[:LONGEST_MESSAGE]
            yield Problem(component, reason, message)
        if last and last.reason == "OOMKilled" and not container.ready:
            yield Problem(component, "OOMKilled", "it was ended for using too much memory")


def assess(parts: Iterable[Part]) -> Health:
    """The health of an instance that has these workloads and pods."""
    parts = list(parts)
    problems = sorted({problem for part in parts for problem in part.problems})
    workloads = [part for part in parts if part.wanted]
    details: dict[str, Any] = {
        "ready": {each.component: f"{each.ready}/{each.wanted}" for each in workloads}
    }
    if problems:
        details["problems"] = [str(problem) for problem in problems]
    if not parts:
        return Health("critical", {"problems": ["nothing of it is in the cluster"]})
    if not workloads:
        return Health("unknown", {"stopped": True})
    if all(each.ready >= each.wanted for each in workloads) and not problems:
        return Health("healthy", details)
    if problems and any(each.ready == 0 for each in workloads):
        return Health("critical", details)
    return Health("degraded", details)


class HealthWatch:
    """Follows workloads and pods, and writes the health that changed."""

    def __init__(self, database: Database, cluster: Cluster, reach: Reach) -> None:
        self._database = database
        self._cluster = cluster
        self._reach = reach
        self._parts: dict[str, Parts] = {}
        self._written: dict[str, Health] = {}
        self._changed: set[str] = set()
        self._news = asyncio.Event()
        self._problems: dict[str, tuple[float, str]] = {}

    async def run(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as group:
            for kind, task in zip(KINDS, TASKS, strict=True):
                group.create_task(self._follow(kind, task))
            group.create_task(self._write())

    def health(self, instance_id: uuid.UUID) -> Health:
        """Of an instance, as it is now."""
        return assess(self._of(str(instance_id)).values())

    def problem_since(self, instance_id: uuid.UUID, moment: float) -> str | None:
        """What is wrong with an instance, or was last since a moment of time.monotonic()."""
        if problems := self.health(instance_id).details.get("problems"):
            return "; ".join(problems)
        at, text = self._problems.get(str(instance_id), (0.0, ""))
        return text if at >= moment else None

    def check(self, instance_id: uuid.UUID, status: str) -> None:
        """Write an instance's health again, if it is not what the database has."""
        if not self._reach.problems and self.health(instance_id).status != status:
            self._written.pop(str(instance_id), None)
            self._note(str(instance_id))

    async def _follow(self, kind: type[NamespacedResource], task: str) -> None:
        while True:
            try:
                version = await self._list(kind)
                self._reach.found(task)
                async for event, obj in self._cluster.watch(
                    kind,
                    labels={INSTANCE: None},
                    resource_version=version,
                    server_timeout=WATCH_SECONDS,
                ):
                    self._take(kind, event, obj)
            except ClusterError as error:
                if isinstance(error, ApiError) and error.status.code == GONE:
                    continue
                self._reach.lost(task, error)
                await asyncio.sleep(RECONNECT_SECONDS)

    async def _list(self, kind: type[NamespacedResource]) -> str:
        """Take over what there is; the version to watch from."""
        listing = self._cluster.list(kind, labels={INSTANCE: None})
        found: dict[str, Parts] = defaultdict(dict)
        obj: Any
        async for obj in listing:
            found[obj.metadata.labels[INSTANCE]][kind.__name__, obj.metadata.name] = summarise(obj)
        for instance_id in {*found, *self._parts}:
            others = {k: v for k, v in self._of(instance_id).items() if k[0] != kind.__name__}
            self._replace(instance_id, others | found[instance_id])
        return listing.resourceVersion

    def _take(self, kind: type[NamespacedResource], event: str, obj: Any) -> None:
        key, instance_id = (kind.__name__, obj.metadata.name), obj.metadata.labels[INSTANCE]
        others = {k: v for k, v in self._of(instance_id).items() if k != key}
        self._replace(instance_id, others if event == "DELETED" else others | {key: summarise(obj)})

    def _of(self, instance_id: str) -> Parts:
        return self._parts.get(instance_id, {})

    def _replace(self, instance_id: str, parts: Parts) -> None:
        if parts == self._of(instance_id):
            return
        if parts:
            self._parts[instance_id] = parts
        else:
            del self._parts[instance_id]
        if problems := assess(parts.values()).details.get("problems"):
            self._problems[instance_id] = (time.monotonic(), "; ".join(problems))
        self._note(instance_id)

    def _note(self, instance_id: str) -> None:
        self._changed.add(instance_id)
        self._news.set()

    async def _write(self) -> None:
        """Write what changed, whenever it has settled."""
        while True:
            await self._news.wait()
            await self._reach.wait()
            await asyncio.sleep(SETTLE_SECONDS)
            self._news.clear()
            changed, self._changed = self._changed, set()
            for instance_id in sorted(changed):
                try:
                    await self._write_one(instance_id)
                except psycopg.Error as error:
                    log.warning("health not written", instance_id=instance_id, error=str(error))
                    self._note(instance_id)

    async def _write_one(self, instance_id: str) -> None:
        health = assess(self._of(instance_id).values())
        if self._written.get(instance_id) == health:
            return
        try:
            row = uuid.UUID(instance_id)
        except ValueError:  # somebody else's idea of an instance
            return
        await self._database.write_health(row, health.status, health.details)
        self._written[instance_id] = health
        log.info("health", instance_id=instance_id, status=health.status, **health.details)
