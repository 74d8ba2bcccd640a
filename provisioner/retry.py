"""When to try again."""

import random
from collections.abc import Awaitable, Callable

from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    stop_after_delay,
    wait_exponential_jitter,
)

from provisioner import database
from provisioner.settings import Settings


def backoff(settings: Settings, attempt: int) -> float:
    """Seconds to wait after an attempt at an instance failed; half of them are left to chance."""
    doubled = settings.first_backoff_seconds * 2.0 ** min(attempt - 1, 32)
    longest = min(settings.last_backoff_seconds, doubled)
    return longest * random.uniform(0.5, 1)  # noqa: S311 - no secret


async def persist(settings: Settings, write: Callable[[], Awaitable[None]]) -> None:
    """Write, however often the database goes away, for as long as a lease lasts.

    Raises:
        psycopg.Error: the last error, if it never came back.
    """
    async for attempt in AsyncRetrying(
        retry=retry_if_exception_type(database.Unreachable),
        wait=wait_exponential_jitter(initial=0.2, max=5),
        stop=stop_after_delay(settings.lease_seconds),
        reraise=True,
    ):
        with attempt:
            await write()
