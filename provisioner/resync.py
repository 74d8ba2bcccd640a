"""The whole table beside the whole namespace: what was missed, and what was changed by hand."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import psycopg
import structlog
from lightkube.resources.core_v1 import PersistentVolumeClaim

from provisioner import metrics
from provisioner.cluster import ClusterError, Objects, delete_after, fingerprint
from provisioner.database import State
from provisioner.handlers import Parts, applied
from provisioner.health import HealthWatch
from provisioner.reach import Reach

log = structlog.get_logger()

TASK = "resync"
AGAIN_SECONDS = 5.0
"""After a resync that failed."""


class Resync:
    """Looks at everything once in a while, and when asked.

    Attributes:
        wanted: set to have it done at once.
    """

    def __init__(self, parts: Parts, health: HealthWatch, database: Reach, cluster: Reach) -> None:
        self.wanted = asyncio.Event()
        self._parts = parts
        self._health = health
        self._database = database
        self._cluster = cluster
        self._orphans: set[str] = set()

    async def run(self, wake: Callable[[], None]) -> None:
        """Resync until cancelled, each time waking the loop, whatever came of it."""
        while True:
            seconds = AGAIN_SECONDS
            self.wanted.clear()
            try:
                await self._resync()
            except psycopg.Error as error:
                self._database.lost(TASK, error)
            except ClusterError as error:
                self._cluster.lost(TASK, error)
            else:
                self._database.found(TASK)
                self._cluster.found(TASK)
                metrics.resync_time.set_to_current_time()
                seconds = self._parts.settings.resync_seconds
            wake()
            try:
                async with asyncio.timeout(seconds):
                    await self.wanted.wait()
            except TimeoutError:
                continue

    async def _resync(self) -> None:
        started = time.monotonic()
        # The rows first: what is done between the two looks is seen in the row when it is repaired.
        states = await self._parts.database.states()
        objects, releases = await asyncio.gather(
            self._parts.cluster.objects(), self._parts.cluster.releases()
        )
        _count(states)
        repaired = 0
        for state in states:
            if state.status in ("running", "stopped"):
                now = applied(state.checksum, fingerprint(objects.get(str(state.id), [])))
                if not state.due and (state.applied != now or state.app_name not in releases):
                    repaired += await self._repair(state)
                self._health.check(state.id, state.health_status)
        self._report_orphans(states, objects, releases)
        await self._remove_expired_volumes(objects)
        log.debug("resync", seconds=round(time.monotonic() - started, 3), repaired=repaired)

    async def _repair(self, state: State) -> bool:
        asked = await self._parts.database.repair(state)
        if asked:
            metrics.repairs.inc()
            log.warning(
                "not as it was made: it will be put right",
                instance_id=str(state.id),
                release=state.app_name,
            )
        return asked

    def _report_orphans(
        self, states: Sequence[State], objects: Objects, releases: set[str]
    ) -> None:
        """Report what no row speaks of; it is never touched."""
        ids = {str(state.id) for state in states}
        orphans = {f"release {each}" for each in releases - {state.app_name for state in states}}
        orphans |= {
            f"{each.kind.__name__} {each.metadata.name}"
            for instance_id, those in objects.items()
            if instance_id not in ids
            for each in those
            if not delete_after(each)
        }
        for orphan in sorted(orphans - self._orphans):
            log.warning("orphan: no row speaks of it", orphan=orphan)
        self._orphans = orphans
        metrics.orphans.set(len(orphans))

    async def _remove_expired_volumes(self, objects: Objects) -> None:
        for instance_id, those in objects.items():
            for each in those:
                until = delete_after(each)
                if each.kind is PersistentVolumeClaim and until and until < datetime.now(UTC):
                    await self._parts.cluster.remove(each)
                    log.info("volume removed", instance_id=instance_id, volume=each.metadata.name)


def _count(states: Sequence[State]) -> None:
    running = [state for state in states if state.status == "running"]
    for gauge, values in (
        (metrics.instances, Counter(state.status for state in states)),
        (metrics.health, Counter(state.health_status for state in running)),
    ):
        gauge.clear()
        for value, count in values.items():
            gauge.labels(value).set(count)
