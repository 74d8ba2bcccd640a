"""How many attempts may work at the same time; those that only wait do not count."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Worker:
    """One of the service's workers, which an attempt has, but not while it waits."""

    def __init__(self, free_workers: asyncio.Semaphore) -> None:
        """It has been acquired from these."""
        self._free_workers = free_workers
        self._is_held = True

    @asynccontextmanager
    async def waiting(self) -> AsyncIterator[None]:
        """Leave the worker to other attempts; afterwards wait until one is free.

        After an exception the attempt goes on without one: only cleaning up is left.
        """
        self.release()
        yield
        await self._free_workers.acquire()
        self._is_held = True

    def release(self) -> None:
        """Leave the worker to other attempts, unless that was done."""
        if self._is_held:
            self._is_held = False
            self._free_workers.release()
