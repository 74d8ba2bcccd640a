"""How often a sender may come: a leaky bucket for each, in bounded memory."""

import time
from collections.abc import Callable, Hashable

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
        self._empty_at: dict[Hashable, float] = {}

    def __contains__(self, sender: Hashable) -> bool:
        """Whether a sender is remembered."""
        return sender in self._empty_at

    def seconds_to_wait(self, sender: Hashable) -> float:
        """Count a visit: 0 if it may be now; else after how long, and it does not count."""
        now = self._clock()
        empty_at = max(self._empty_at.pop(sender, now), now)
        wait = max(empty_at - now - self._burst_seconds, 0)
        self._empty_at[sender] = empty_at if wait else empty_at + self._seconds
        if len(self._empty_at) > MAX_SENDERS:
            del self._empty_at[next(iter(self._empty_at))]
        return wait

    def give_back(self, sender: Hashable) -> None:
        """A visit does not count after all."""
        if sender in self:
            self._empty_at[sender] -= self._seconds

    def forget(self, sender: Hashable) -> None:
        """Remember a sender no more."""
        self._empty_at.pop(sender, None)


class Senders:
    """Who presents a secret that was good is limited by it, others by where they come from.

    So whoever tries secrets hinders nobody who has one.
    """

    def __init__(self, known: Rates, strangers: Rates) -> None:
        self._known = known
        self._strangers = strangers

    def __contains__(self, secret: Hashable) -> bool:
        """Whether a secret was good."""
        return secret in self._known

    def seconds_to_wait(self, secret: Hashable, origin: Hashable) -> float:
        """Count a visit: 0 if it may be now; else after how long, and it does not count."""
        if secret in self._known:
            return self._known.seconds_to_wait(secret)
        return self._strangers.seconds_to_wait(origin)

    def learn(self, secret: Hashable, origin: Hashable, *, good: bool) -> None:
        """Take note of whether the secret of a visit was good."""
        if good and secret not in self._known:
            self._strangers.give_back(origin)
            self._known.seconds_to_wait(secret)
        elif not good and secret in self._known:
            self._known.forget(secret)
            self._strangers.seconds_to_wait(origin)
