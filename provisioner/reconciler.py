"""The reconciliation loop: claims due work, performs its action and writes the outcome."""

import asyncio
import time
from collections.abc import Awaitable
from dataclasses import replace

import psycopg
import structlog

from provisioner import instances, leases, metrics
from provisioner.actions import ACTIONS, remove
from provisioner.context import Context
from provisioner.instances import Instance
from provisioner.leases import Claim, LeaseLostError, Outcome
from provisioner.preflight import PreflightError
from provisioner.releases import NotRecordedError, UpgradeError
from provisioner.retry import backoff, retry_while_unreachable
from provisioner.workers import Worker

log = structlog.get_logger()

TASK = "claims"
RECONNECT_SECONDS = 1.0
RENEWALS_PER_LEASE = 3


class ClusterUnreachableError(Exception):
    """The cluster became unreachable during an attempt, which therefore does not count."""


class SupersededError(Exception):
    """The row was changed during an attempt, which is therefore of no use."""


class Reconciler:
    """Works on up to `workers` instances at a time, beside those whose pods it waits for.

    Attributes:
        wake: set when there may be new work.
    """

    def __init__(self, context: Context) -> None:
        self.wake = asyncio.Event()
        self._context = context
        self._settings = context.settings
        self._free_workers = asyncio.Semaphore(context.settings.workers)
        self._claimed_at: dict[Claim, float] = {}
        metrics.leases.set_function(lambda: len(self._claimed_at))
        metrics.lease_age.set_function(self._oldest_lease_age)

    async def run(self, stopping: asyncio.Event) -> None:
        """Work until `stopping` is set; then finish what is in progress, or release it."""
        tasks: set[asyncio.Task[None]] = set()
        while await _wait_unless_stopping(stopping, self._free_workers.acquire()):
            if claim := await self._next_claim(stopping):
                task = asyncio.create_task(self._work(claim, Worker(self._free_workers)))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            else:
                self._free_workers.release()
        log.info("stopping", in_progress=len(tasks))
        if tasks:
            _, unfinished = await asyncio.wait(tasks, timeout=self._settings.grace_seconds)
            for task in unfinished:
                task.cancel()
            await asyncio.gather(*unfinished, return_exceptions=True)

    def _oldest_lease_age(self) -> float:
        now = time.monotonic()
        return now - min(self._claimed_at.values(), default=now)

    async def _next_claim(self, stopping: asyncio.Event) -> Claim | None:
        """The next claim; None after a wait for new work, if there is none."""
        if not await _wait_unless_stopping(stopping, self._context.cluster_reachability.wait()):
            return None
        self.wake.clear()
        database = self._context.database
        try:
            if claim := await leases.claim(
                database, self._settings.lease_owner, self._settings.lease_seconds
            ):
                return claim
            queue = await leases.queue(database)
        except psycopg.Error as error:
            self._context.database_reachability.failed(TASK, error)
            seconds: float | None = RECONNECT_SECONDS
        else:
            self._context.database_reachability.ok(TASK)
            metrics.queue_length.set(queue.length)
            seconds = queue.next_in
        await _wait_unless_stopping(stopping, self.wake.wait(), seconds)
        return None

    async def _work(self, claim: Claim, worker: Worker) -> None:
        """Perform the action of a claimed instance, and write its outcome or release the claim."""
        structlog.contextvars.bind_contextvars(
            instance_id=str(claim.instance_id), attempt=claim.attempt
        )
        metrics.queue_delay.observe(claim.waited)
        self._claimed_at[claim] = time.monotonic()
        try:
            outcome = await self._while_renewing(claim, self._attempt(claim, worker))
            await retry_while_unreachable(
                self._settings, lambda: leases.finish(self._context.database, claim, outcome)
            )
        except LeaseLostError:
            metrics.leases_lost.inc()
            log.warning("lease lost")
        except SupersededError:
            await self._release(claim, 0, "its row was changed")
        except ClusterUnreachableError as error:
            await self._release(claim, backoff(self._settings, 1), str(error))
        except psycopg.Error as error:
            self._context.database_reachability.failed("work", error)
            await self._release(claim, backoff(self._settings, 1), str(error))
        except asyncio.CancelledError:
            await self._release(claim, 0, "stopping")
        else:
            self._context.database_reachability.ok("work")
        finally:
            worker.release()
            del self._claimed_at[claim]

    async def _while_renewing(self, claim: Claim, attempt: Awaitable[Outcome]) -> Outcome:
        """The outcome of an attempt, during which the lease is renewed.

        Raises:
            LeaseLostError: the lease could not be renewed in time; the attempt was cancelled.
            SupersededError: the row was changed; the attempt was cancelled.
        """
        lease_seconds = self._settings.lease_seconds
        task = asyncio.ensure_future(attempt)
        expires = time.monotonic() + lease_seconds
        try:
            while not (await asyncio.wait({task}, timeout=lease_seconds / RENEWALS_PER_LEASE))[0]:
                try:
                    async with asyncio.timeout(expires - time.monotonic()):
                        if not await leases.renew(self._context.database, claim, lease_seconds):
                            raise SupersededError
                    expires = time.monotonic() + lease_seconds
                except (psycopg.OperationalError, TimeoutError) as error:
                    log.warning("lease not renewed", error=str(error))
                    if time.monotonic() >= expires:
                        raise LeaseLostError from None
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})

    async def _attempt(self, claim: Claim, worker: Worker) -> Outcome:
        """Perform the action for the status of a claimed instance."""
        instance = await instances.read(self._context.database, claim.instance_id)
        if instance is None:
            raise LeaseLostError
        action = ACTIONS.get(instance.status)
        if action is None:
            return Outcome(instance.status, instance.status)
        log.info("claimed", status=instance.status, waited=round(claim.waited, 3))
        started = time.monotonic()
        result = "dropped"
        try:
            outcome = await action(self._context, instance, worker)
            result = "held" if outcome.held else "done"
            log.info(
                result, status=outcome.new_status, seconds=round(time.monotonic() - started, 3)
            )
        except (psycopg.Error, LeaseLostError):
            raise
        except Exception as error:
            if not await self._context.cluster.is_reachable():
                result = "postponed"
                raise ClusterUnreachableError(str(error)) from error
            result = "failed"
            metrics.failures.labels(action.__name__, type(error).__name__).inc()
            outcome = await self._failed_outcome(claim, worker, instance, error, started)
        finally:
            metrics.attempts.labels(action.__name__, result).inc()
            metrics.attempt_duration.labels(action.__name__).observe(time.monotonic() - started)
        return outcome

    async def _failed_outcome(
        self, claim: Claim, worker: Worker, instance: Instance, error: Exception, started: float
    ) -> Outcome:
        """Schedule a retry; after the last attempt at a new instance remove it and give up."""
        message = str(error) or type(error).__name__
        if problems := self._context.health_watch.problems_since(instance.id, started):
            message = f"{problems}; {message}"
        is_new = instance.status == "provisioning" and instance.provisioned_at is None
        if is_new and claim.attempt >= self._settings.max_attempts:
            try:
                await remove(self._context, instance, worker)
            except Exception as removal_error:
                message = f"{message}; and the incomplete release was not removed: {removal_error}"
            else:
                log.error("given up", error=message)
                return Outcome(instance.status, "failed", message)
        seconds = backoff(self._settings, claim.attempt)
        # A change that is held stays so, unless it has become another one, or is refused now.
        held = None if isinstance(error, (NotRecordedError, PreflightError)) else instance.held
        outcome = Outcome(instance.status, instance.status, message, seconds, held=held)
        if isinstance(error, UpgradeError):
            outcome = replace(outcome, applied=error.applied, held=error.held)
        log.warning(
            "failed", error=message, retry_in=round(seconds, 3), held=outcome.held is not None
        )
        return outcome

    async def _release(self, claim: Claim, retry_in: float, reason: str) -> None:
        """Release a claim; while the database is unreachable, its lease expires by itself."""
        log.info("released", reason=reason, retry_in=round(retry_in, 3))
        try:
            await retry_while_unreachable(
                self._settings, lambda: leases.release(self._context.database, claim, retry_in)
            )
        except psycopg.Error as error:
            log.warning("not released: its lease will expire", error=str(error))


async def _wait_unless_stopping(
    stopping: asyncio.Event, awaited: Awaitable[object], seconds: float | None = None
) -> bool:
    """Wait, at most so long; False as soon as `stopping` is set."""
    tasks = [asyncio.ensure_future(awaited), asyncio.ensure_future(stopping.wait())]
    try:
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
    return not stopping.is_set()
