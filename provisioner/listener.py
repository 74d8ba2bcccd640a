"""Receives the notifications of changed instances and wakes the tasks that wait for them."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from uuid import UUID

import psycopg

from provisioner.context import Context
from provisioner.database import CONNECT_TIMEOUT_SECONDS

TASK = "listener"
RECONNECT_SECONDS = 1.0


class Listener:
    """The connection that listens, and who waits for which instance."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._subscribers: dict[str, set[asyncio.Event]] = defaultdict(set)

    async def run(self, on_change: Callable[[], None], on_connect: Callable[[], None]) -> None:
        """Listen until cancelled.

        Args:
            on_change: called for every changed instance.
            on_connect: called after each connect, since changes before it may have been missed.
        """
        while True:
            try:
                async with self._context.database.listening() as connection:
                    self._context.database_reachability.ok(TASK)
                    on_connect()
                    self.wake_all()
                    while True:
                        async for notification in connection.notifies(
                            timeout=self._context.settings.keepalive_seconds
                        ):
                            on_change()
                            for event in self._subscribers.get(notification.payload, ()):
                                event.set()
                        async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
                            await connection.execute("select 1")
            except (psycopg.Error, TimeoutError) as error:
                self._context.database_reachability.failed(TASK, error)
                await asyncio.sleep(RECONNECT_SECONDS)

    @contextmanager
    def subscribe(self, instance_ids: Sequence[UUID]) -> Iterator[asyncio.Event]:
        """An event that is set whenever one of these instances changes."""
        event = asyncio.Event()
        for instance_id in instance_ids:
            self._subscribers[str(instance_id)].add(event)
        try:
            yield event
        finally:
            for instance_id in instance_ids:
                subscribers = self._subscribers[str(instance_id)]
                subscribers.discard(event)
                if not subscribers:
                    del self._subscribers[str(instance_id)]

    def wake_all(self) -> None:
        """Set the events of all subscribers."""
        for events in self._subscribers.values():
            for event in events:
                event.set()
