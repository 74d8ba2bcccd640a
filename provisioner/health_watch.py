"""Watches the workloads and pods of all instances, and writes the health that changed."""

import asyncio
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

import psycopg
import structlog
from lightkube import ApiError
from lightkube.core.resource import NamespacedResource
from lightkube.resources.core_v1 import PersistentVolumeClaim, Pod

from provisioner import instances
from provisioner.cluster import (
    CLUSTER_ERRORS,
    INSTANCE_LABEL,
    WORKLOADS,
    Cluster,
    KubernetesObject,
)
from provisioner.database import Database
from provisioner.health import CANNOT_GROW_LABEL, Health, Problem, Summary, assess, summarize
from provisioner.reachability import Reachability

log = structlog.get_logger()

LABELS: Mapping[type[NamespacedResource], Mapping[str, None]] = {
    **{kind: {INSTANCE_LABEL: None} for kind in (*WORKLOADS, Pod)},
    PersistentVolumeClaim: {INSTANCE_LABEL: None, CANNOT_GROW_LABEL: None},
}
"""Kinds that are watched, and the labels of those objects of them that are."""

TASKS = tuple(f"watch of {kind.__name__}s" for kind in LABELS)

RECONNECT_SECONDS = 1.0
WATCH_SECONDS = 300
"""After so long the API server ends a watch, and the next one continues from there."""

DEBOUNCE_SECONDS = 1.0
"""Changes of one instance within this time are written together."""

READY_POLL_SECONDS = 0.1
"""How often what the watches found is looked at while something waits for ready pods."""

Summaries = dict[tuple[str, str], Summary]
"""Kind and name of an object -> its summary."""


class HealthWatch:
    """Keeps the health of every instance, and writes it to the database when it changes."""

    def __init__(
        self, database: Database, cluster: Cluster, cluster_reachability: Reachability
    ) -> None:
        self._database = database
        self._cluster = cluster
        self._cluster_reachability = cluster_reachability
        self._summaries: dict[str, Summaries] = {}
        self._written: dict[str, Health] = {}
        self._changed: set[str] = set()
        self._has_changes = asyncio.Event()
        self._last_problems: dict[str, tuple[float, str]] = {}

    async def run(self) -> None:
        """Watch and write until cancelled."""
        async with asyncio.TaskGroup() as group:
            for kind, task in zip(LABELS, TASKS, strict=True):
                group.create_task(self._watch(kind, task))
            group.create_task(self._write_changes())

    def health(self, instance_id: uuid.UUID) -> Health:
        """The health of an instance now."""
        return assess(self._of(str(instance_id)).values())

    def is_running(self, instance_id: uuid.UUID) -> bool:
        """Whether each of its workloads has a ready pod."""
        workloads = [
            summary
            for summary in self._of(str(instance_id)).values()
            if summary.replicas and summary.trial is None
        ]
        return bool(workloads) and all(workload.ready_replicas for workload in workloads)

    def problems_since(self, instance_id: uuid.UUID, since: float) -> str | None:
        """The problems of an instance now, or the last ones since a time of time.monotonic()."""
        if problems := self.health(instance_id).details.get("problems"):
            return "; ".join(problems)
        seen_at, text = self._last_problems.get(str(instance_id), (0.0, ""))
        return text if seen_at >= since else None

    async def wait_until_ready(
        self, instance_id: uuid.UUID, objects: Iterable[KubernetesObject], seconds: float
    ) -> bool:
        """Wait, at most so long, until the pods are those that these objects ask for, and ready.

        The time during which the cluster cannot be reached does not count.
        """
        generations = {
            (obj.kind.__name__, obj.metadata.name): obj.metadata.generation
            for obj in objects
            if obj.kind in WORKLOADS
        }
        deadline = time.monotonic() + seconds
        while True:
            if self._cluster_reachability.problems:
                left = deadline - time.monotonic()
                await self._cluster_reachability.wait()
                deadline = time.monotonic() + left
            summaries = self._of(str(instance_id))
            if all(
                key in summaries and summaries[key].rolled_out >= generation
                for key, generation in generations.items()
            ):
                return True
            if time.monotonic() >= deadline:
                return False
            await asyncio.sleep(READY_POLL_SECONDS)

    async def wait_for_trial(
        self, instance_id: uuid.UUID, trial: str, seconds: float, *, wait_for_room: bool
    ) -> Problem | None:
        """Wait, at most so long, until the pod of a trial has its images; the problem if it cannot.

        That no node has room is waited for to change, if so asked.
        """
        deadline = time.monotonic() + seconds
        while True:
            summaries = [
                each for each in self._of(str(instance_id)).values() if each.trial == trial
            ]
            if any(summary.has_images for summary in summaries):
                return None
            problems = [problem for summary in summaries for problem in summary.problems]
            is_late = time.monotonic() >= deadline
            for problem in problems:
                if is_late or not (wait_for_room and problem.reason == "Unschedulable"):
                    return problem
            if is_late:
                text = f"its images were not pulled within {seconds:g} s"
                return Problem(trial, "Slow", text, "")
            await asyncio.sleep(READY_POLL_SECONDS)

    def correct(self, instance_id: uuid.UUID, recorded_status: str) -> None:
        """Write the health of an instance again if the database has another status."""
        if self._cluster_reachability.problems:
            return  # what is known here may be out of date
        if self.health(instance_id).status != recorded_status:
            self._written.pop(str(instance_id), None)
            self._mark_changed(str(instance_id))

    async def _watch(self, kind: type[NamespacedResource], task: str) -> None:
        while True:
            try:
                version = await self._list(kind)
                self._cluster_reachability.ok(task)
                async for event, obj in self._cluster.watch(
                    kind,
                    labels=dict(LABELS[kind]),
                    resource_version=version,
                    server_timeout=WATCH_SECONDS,
                ):
                    self._apply_event(kind, event, obj)
            except CLUSTER_ERRORS as error:
                # The version is too old to continue from: list again.
                if isinstance(error, ApiError) and error.status.code == HTTPStatus.GONE:
                    continue
                self._cluster_reachability.failed(task, error)
                await asyncio.sleep(RECONNECT_SECONDS)

    async def _list(self, kind: type[NamespacedResource]) -> str:
        """Replace all summaries of a kind; returns the resource version to watch from."""
        listed = self._cluster.list(kind, labels=dict(LABELS[kind]))
        found: dict[str, Summaries] = defaultdict(dict)
        obj: Any
        async for obj in listed:
            key = (kind.__name__, obj.metadata.name)
            found[obj.metadata.labels[INSTANCE_LABEL]][key] = summarize(obj)
        for instance_id in {*found, *self._summaries}:
            other_kinds = {
                key: summary
                for key, summary in self._of(instance_id).items()
                if key[0] != kind.__name__
            }
            self._replace(instance_id, other_kinds | found[instance_id])
        return listed.resourceVersion

    def _apply_event(self, kind: type[NamespacedResource], event: str, obj: Any) -> None:
        instance_id = obj.metadata.labels[INSTANCE_LABEL]
        summaries = dict(self._of(instance_id))
        key = (kind.__name__, obj.metadata.name)
        if event == "DELETED":
            summaries.pop(key, None)
        else:
            summaries[key] = summarize(obj)
        self._replace(instance_id, summaries)

    def _of(self, instance_id: str) -> Summaries:
        return self._summaries.get(instance_id, {})

    def _replace(self, instance_id: str, summaries: Summaries) -> None:
        if summaries == self._of(instance_id):
            return
        if summaries:
            self._summaries[instance_id] = summaries
        else:
            del self._summaries[instance_id]
        if problems := assess(summaries.values()).details.get("problems"):
            self._last_problems[instance_id] = (time.monotonic(), "; ".join(problems))
        self._mark_changed(instance_id)

    def _mark_changed(self, instance_id: str) -> None:
        self._changed.add(instance_id)
        self._has_changes.set()

    async def _write_changes(self) -> None:
        while True:
            await self._has_changes.wait()
            await self._cluster_reachability.wait()
            await asyncio.sleep(DEBOUNCE_SECONDS)
            self._has_changes.clear()
            changed, self._changed = self._changed, set()
            for instance_id in sorted(changed):
                try:
                    await self._write(instance_id)
                except psycopg.Error as error:
                    log.warning("health not written", instance_id=instance_id, error=str(error))
                    self._mark_changed(instance_id)

    async def _write(self, instance_id: str) -> None:
        health = assess(self._of(instance_id).values())
        if self._written.get(instance_id) == health:
            return
        try:
            row_id = uuid.UUID(instance_id)
        except ValueError:  # the label was set by someone else, to another value
            return
        await instances.write_health(self._database, row_id, health.status, health.details)
        self._written[instance_id] = health
        log.info("health", instance_id=instance_id, status=health.status, **health.details)
