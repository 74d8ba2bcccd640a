"""What a connection may do before it has asked for anything."""

import asyncio
from collections import Counter
from typing import ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 500
"""From one address, so that nobody takes them from all others."""

HEAD_SECONDS = 5.0
"""Within which the head of a request has to arrive."""


class Connection(H11Protocol):
    """Closed at once if its address has too many, and if no request comes in time."""

    opened: ClassVar[Counter[str]] = Counter()
    _deadline: asyncio.TimerHandle

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count it."""
        super().connection_made(transport)
        self._await_head()
        self.opened[self._address] += 1
        if self.opened[self._address] > MAX_CONNECTIONS:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Count it no more."""
        self._deadline.cancel()
        self.opened[self._address] -= 1
        if not self.opened[self._address]:
            del self.opened[self._address]
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """Take what has arrived."""
        super().handle_events()
        if self.cycle and not self.cycle.response_complete:
            self._deadline.cancel()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self._await_head()
        super().on_response_complete()

    def _await_head(self) -> None:
        self._deadline = self.loop.call_later(HEAD_SECONDS, self.timeout_keep_alive_handler)

    @property
    def _address(self) -> str:
        return self.client[0] if self.client else ""
