"""Hears of every change of an instance, and tells whoever waits for one."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import psycopg

from provisioner.database import CONNECT_SECONDS, Database
from provisioner.reach import Reach
from provisioner.settings import Settings

TASK = "listener"
RECONNECT_SECONDS = 1.0


class Listener:
    """The listening connection."""

    def __init__(self, settings: Settings, database: Database, reach: Reach) -> None:
        self._settings = settings
        self._database = database
        self._reach = reach
        self._waiting: dict[str, set[asyncio.Event]] = defaultdict(set)

    async def run(self, heard: Callable[[], None], connected: Callable[[], None]) -> None:
        """Listen until cancelled.

        Args:
            heard: called on every change.
            connected: called when changes may have been missed.
        """
        while True:
            try:
                async with self._database.listening() as connection:
                    self._reach.found(TASK)
                    connected()
                    self.wake_all()
                    while True:
                        async for change in connection.notifies(
                            timeout=self._settings.keepalive_seconds
                        ):
                            heard()
                            for event in self._waiting.get(change.payload, ()):
                                event.set()
                        async with asyncio.timeout(CONNECT_SECONDS):
                            await connection.execute("select 1")
            except (psycopg.Error, TimeoutError) as error:
                self._reach.lost(TASK, error)
                await asyncio.sleep(RECONNECT_SECONDS)

    @contextmanager
    def waiting(self, instance_ids: Iterable[object]) -> Iterator[asyncio.Event]:
        """An event that is set whenever one of these instances changes."""
        event = asyncio.Event()
        names = [str(each) for each in instance_ids]
        for name in names:
            self._waiting[name].add(event)
        try:
            yield event
        finally:
            for name in names:
                self._waiting[name].discard(event)
                if not self._waiting[name]:
                    del self._waiting[name]

    def wake_all(self) -> None:
        """Have everybody who waits look again."""
        for events in self._waiting.values():
            for event in events:
                event.set()
