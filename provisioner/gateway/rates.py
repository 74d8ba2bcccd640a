"""How often a sender may come: a leaky bucket for each, in bounded memory."""

import time
from collections.abc import Callable

MAX_SENDERS = 10_000
"""Senders that are remembered: the one that came longest ago is forgotten first."""


class Rates:
    """Each sender may come `burst` times at once, and `per_second` times for long."""

    def __init__(
        self, per_second: float, burst: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._seconds = 1 / per_second
        self._burst_seconds = (burst - 1) / per_second
        self._clock = clock
        self._empty_at: dict[bytes, float] = {}

    def seconds_to_wait(self, sender: bytes) -> float:
        """Count a visit: 0 if it may be now; else after how long, and it does not count."""
        now = self._clock()
        empty_at = max(self._empty_at.pop(sender, now), now)
        wait = max(empty_at - now - self._burst_seconds, 0)
        self._empty_at[sender] = empty_at if wait else empty_at + self._seconds
        if len(self._empty_at) > MAX_SENDERS:
            del self._empty_at[next(iter(self._empty_at))]
        return wait
