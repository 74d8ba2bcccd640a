"""Compares all rows with all objects in the cluster: finds missed and manual changes."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime

import psycopg
import structlog
from lightkube.resources.core_v1 import PersistentVolumeClaim

from provisioner import instances, metrics
from provisioner.cluster import (
    ACCOUNT_LABEL,
    CLUSTER_ERRORS,
    KubernetesObject,
    ObjectsByInstance,
    fingerprint,
)
from provisioner.context import Context
from provisioner.health import CANNOT_GROW_LABEL
from provisioner.instances import RecordedState
from provisioner.releases import Applied

log = structlog.get_logger()

TASK = "resync"
RETRY_SECONDS = 5.0
"""Until the next resync after one that failed."""


class Resync:
    """Compares once per `resync_seconds`, and on request.

    Attributes:
        requested: set to have it done at once.
    """

    def __init__(self, context: Context) -> None:
        self.requested = asyncio.Event()
        self._context = context
        self._orphans: set[str] = set()

    async def run(self, on_end: Callable[[], None]) -> None:
        """Resync until cancelled; `on_end` is called after each, also if it failed."""
        while True:
            seconds = RETRY_SECONDS
            self.requested.clear()
            try:
                await self._resync()
            except psycopg.Error as error:
                self._context.database_reachability.failed(TASK, error)
            except CLUSTER_ERRORS as error:
                self._context.cluster_reachability.failed(TASK, error)
            else:
                self._context.database_reachability.ok(TASK)
                self._context.cluster_reachability.ok(TASK)
                metrics.resync_time.set_to_current_time()
                seconds = self._context.settings.resync_seconds
            on_end()
            try:
                async with asyncio.timeout(seconds):
                    await self.requested.wait()
            except TimeoutError:
                continue

    async def _resync(self) -> None:
        started = time.monotonic()
        # The rows are read first: work that ends before the objects are read has then changed
        # `applied`, and request_repair() refuses.
        states = await instances.recorded_states(self._context.database)
        to_erase = await instances.accounts_to_erase(self._context.database)
        objects, releases = await asyncio.gather(
            self._context.cluster.objects(), self._context.cluster.releases()
        )
        _count(states)
        repaired = 0
        for state in states:
            if state.status in ("running", "stopped"):
                repaired += await self._repair_if_changed(state, objects, releases)
                self._context.health_watch.correct(state.id, state.health_status)
            if state.status in ("running", "stopped") and not state.due:
                await self._grow_volumes(objects.get(str(state.id), []))
        self._report_orphans(states, objects, releases)
        await self._delete_kept_volumes(objects, to_erase)
        log.debug("resync", seconds=round(time.monotonic() - started, 3), repaired=repaired)

    async def _repair_if_changed(
        self, state: RecordedState, objects: ObjectsByInstance, releases: set[str]
    ) -> bool:
        """Request work on an instance that the cluster does not have as it was applied."""
        applied = Applied.parse(state.applied)
        found = fingerprint(objects.get(str(state.id), []), applied.config_name)
        is_unchanged = applied[:2] == (state.secrets_checksum, found) and state.app_name in releases
        if state.due or is_unchanged:
            return False
        requested = await instances.request_repair(self._context.database, state)
        if requested:
            metrics.repairs.inc()
            log.warning(
                "not as it was made: it will be repaired",
                instance_id=str(state.id),
                release=state.app_name,
            )
        return requested

    async def _grow_volumes(self, objects: Iterable[KubernetesObject]) -> None:
        """Try again what the cluster refused: its storage class may be another one since."""
        for obj in objects:
            if size := obj.metadata.labels.get(CANNOT_GROW_LABEL):
                await self._context.cluster.grow_volume(obj.metadata.name, size)

    def _report_orphans(
        self, states: Sequence[RecordedState], objects: ObjectsByInstance, releases: set[str]
    ) -> None:
        """Report releases and objects without a row, once each; they are never touched."""
        ids = {str(state.id) for state in states}
        orphans = {f"release {name}" for name in releases - {state.app_name for state in states}}
        orphans |= {
            f"{obj.kind.__name__} {obj.metadata.name}"
            for instance_id, objects_of_instance in objects.items()
            if instance_id not in ids
            for obj in objects_of_instance
            if not obj.delete_after
        }
        for orphan in sorted(orphans - self._orphans):
            log.warning("orphan: no row speaks of it", orphan=orphan)
        self._orphans = orphans
        metrics.orphans.set(len(orphans))

    async def _delete_kept_volumes(self, objects: ObjectsByInstance, to_erase: set[str]) -> None:
        """Delete the volumes of removed instances that expired or whose account is erased."""
        now = datetime.now(UTC)
        accounts = set()
        for instance_id, objects_of_instance in objects.items():
            for obj in objects_of_instance:
                account = obj.metadata.labels.get(ACCOUNT_LABEL, "")
                accounts.add(account)
                if (
                    obj.kind is PersistentVolumeClaim
                    and obj.delete_after
                    and (obj.delete_after < now or account in to_erase)
                    and not obj.metadata.deletionTimestamp
                ):
                    await self._context.cluster.delete_object(obj)
                    log.info("volume deleted", instance_id=instance_id, volume=obj.metadata.name)
        for account in to_erase - accounts:
            await instances.record_deleted_volumes(self._context.database, account)


def _count(states: Sequence[RecordedState]) -> None:
    """Set the gauges of instances by status, and by health."""
    metrics.held.set(sum(state.held for state in states))
    running = [state for state in states if state.status == "running"]
    for gauge, values in (
        (metrics.instances, Counter(state.status for state in states)),
        (metrics.health, Counter(state.health_status for state in running)),
    ):
        gauge.clear()
        for value, count in values.items():
            gauge.labels(value).set(count)
