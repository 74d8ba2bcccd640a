"""The loop: claims what is due, has it done, writes what came of it."""

import asyncio
import time
from collections.abc import Awaitable

import psycopg
import structlog

from provisioner import metrics
from provisioner.database import Claim, Instance, LeaseLostError, Outcome
from provisioner.handlers import ACTIONS, Parts, undo
from provisioner.health import HealthWatch
from provisioner.reach import Reach
from provisioner.retry import backoff, persist

log = structlog.get_logger()

TASK = "claims"
RECONNECT_SECONDS = 1.0
RENEWALS_PER_LEASE = 3


class PostponedError(Exception):
    """The cluster went away: the attempt does not count."""


class SupersededError(Exception):
    """The row wants something else by now: the attempt is of no use."""


class Loop:
    """Works on up to `workers` instances at a time.

    Attributes:
        wake: set when there may be something to do.
    """

    def __init__(self, parts: Parts, health: HealthWatch, database: Reach, cluster: Reach) -> None:
        self.wake = asyncio.Event()
        self._parts = parts
        self._settings = parts.settings
        self._health = health
        self._database = database
        self._cluster = cluster
        self._free = asyncio.Semaphore(parts.settings.workers)
        self._held: dict[Claim, float] = {}
        metrics.leases.set_function(lambda: len(self._held))
        metrics.lease_age.set_function(self._oldest_lease)

    async def run(self, stopping: asyncio.Event) -> None:
        """Work until told to stop; then finish what is held, or release it."""
        tasks: set[asyncio.Task[None]] = set()
        while await _before(stopping, self._free.acquire()):
            if claim := await self._next(stopping):
                task = asyncio.create_task(self._work(claim))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                task.add_done_callback(lambda _: self._free.release())
            else:
                self._free.release()
        log.info("stopping", held=len(tasks))
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=self._settings.grace_seconds)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _oldest_lease(self) -> float:
        now = time.monotonic()
        return now - min(self._held.values(), default=now)

    async def _next(self, stopping: asyncio.Event) -> Claim | None:
        """The next claim; or None, after a wait for something to change."""
        if not await _before(stopping, self._cluster.wait()):
            return None
        self.wake.clear()
        try:
            if claim := await self._parts.database.claim():
                return claim
            length, seconds = await self._parts.database.pending()
        except psycopg.Error as error:
            self._database.lost(TASK, error)
            seconds = RECONNECT_SECONDS
        else:
            self._database.found(TASK)
            metrics.queue_length.set(length)
        await _before(stopping, self.wake.wait(), seconds)
        return None

    async def _work(self, claim: Claim) -> None:
        structlog.contextvars.bind_contextvars(
            instance_id=str(claim.instance_id), attempt=claim.attempt
        )
        metrics.queue_delay.observe(claim.waited)
        self._held[claim] = time.monotonic()
        try:
            outcome = await self._hold(claim, self._attempt(claim))
            await persist(self._settings, lambda: self._parts.database.finish(claim, outcome))
        except LeaseLostError:
            metrics.leases_lost.inc()
            log.warning("lease lost")
        except SupersededError:
            await self._release(claim, 0, "its row was changed")
        except PostponedError as reason:
            await self._release(claim, backoff(self._settings, 1), str(reason))
        except psycopg.Error as error:
            self._database.lost("work", error)
            await self._release(claim, backoff(self._settings, 1), str(error))
        except asyncio.CancelledError:
            await self._release(claim, 0, "stopping")
        else:
            self._database.found("work")
        finally:
            del self._held[claim]

    async def _hold(self, claim: Claim, work: Awaitable[Outcome]) -> Outcome:
        """Have work done while the lease is renewed; without the lease, or a reason, it ends."""
        lease = self._settings.lease_seconds
        task = asyncio.ensure_future(work)
        until = time.monotonic() + lease
        try:
            while not (await asyncio.wait({task}, timeout=lease / RENEWALS_PER_LEASE))[0]:
                try:
                    async with asyncio.timeout(until - time.monotonic()):
                        if not await self._parts.database.renew(claim):
                            raise SupersededError
                    until = time.monotonic() + lease
                except (psycopg.OperationalError, TimeoutError) as error:
                    log.warning("lease not renewed", error=str(error))
                    if time.monotonic() >= until:
                        raise LeaseLostError from None
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})

    async def _attempt(self, claim: Claim) -> Outcome:
        instance = await self._parts.database.read(claim.instance_id)
        action = ACTIONS.get(instance.status)
        if action is None:
            return Outcome(instance.status, instance.status)
        log.info("claimed", status=instance.status, waited=round(claim.waited, 3))
        started = time.monotonic()
        result = "dropped"
        try:
            outcome = await action(self._parts, instance)
            result = "done"
            log.info("done", status=outcome.after, seconds=round(time.monotonic() - started, 3))
        except (psycopg.Error, LeaseLostError):
            raise
        except Exception as error:
            if not await self._parts.cluster.answers():
                result = "postponed"
                raise PostponedError(str(error)) from error
            result = "failed"
            metrics.failures.labels(action.__name__, type(error).__name__).inc()
            outcome = await self._failed(claim, instance, error, started)
        finally:
            metrics.attempts.labels(action.__name__, result).inc()
            metrics.attempt_duration.labels(action.__name__).observe(time.monotonic() - started)
        return outcome

    async def _failed(
        self, claim: Claim, instance: Instance, error: Exception, started: float
    ) -> Outcome:
        """Try again later; after the last attempt an instance that is new is given up."""
        text = str(error) or type(error).__name__
        if problem := self._health.problem_since(instance.id, started):
            text = f"{problem}; {text}"
        if instance.status == "provisioning" and claim.attempt >= self._settings.max_attempts:
            try:
                await undo(self._parts, instance)
            except Exception as other:
                text = f"{text}; and what was half made could not be removed: {other}"
            else:
                log.error("given up", error=text)
                return Outcome(instance.status, "failed", text)
        seconds = backoff(self._settings, claim.attempt)
        log.warning("failed", error=text, again_in=round(seconds, 3))
        return Outcome(instance.status, instance.status, text, seconds)

    async def _release(self, claim: Claim, again_in: float, reason: str) -> None:
        """Let go of an instance; if the database is away, its lease runs out."""
        log.info("released", reason=reason, again_in=round(again_in, 3))
        try:
            await persist(self._settings, lambda: self._parts.database.release(claim, again_in))
        except psycopg.Error as error:
            log.warning("not released: its lease will run out", error=str(error))


async def _before(
    stopping: asyncio.Event, wanted: Awaitable[object], seconds: float | None = None
) -> bool:
    """Wait for something, at most so long; False when told to stop before that."""
    tasks = [asyncio.ensure_future(wanted), asyncio.ensure_future(stopping.wait())]
    try:
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
    return not stopping.is_set()
