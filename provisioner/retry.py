"""When and how often failed work is retried."""

import random
from collections.abc import Awaitable, Callable

from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    stop_after_delay,
    wait_exponential_jitter,
)

from provisioner.database import UNREACHABLE_ERRORS
from provisioner.settings import Settings


def backoff(settings: Settings, attempt: int) -> float:
    """Seconds until the next attempt at an instance: exponential, half of it jitter."""
    doubled = settings.first_backoff_seconds * 2.0 ** min(attempt - 1, 32)
    longest = min(settings.last_backoff_seconds, doubled)
    return longest * random.uniform(0.5, 1)  # noqa: S311 - no secret


async def retry_while_unreachable(settings: Settings, write: Callable[[], Awaitable[None]]) -> None:
    """Write to the database; retried while that is unreachable, for as long as a lease lasts.

    Raises:
        psycopg.Error: the last error, if the database did not come back in time.
    """
    async for attempt in AsyncRetrying(
        retry=retry_if_exception_type(UNREACHABLE_ERRORS),
        wait=wait_exponential_jitter(initial=0.2, max=5),
        stop=stop_after_delay(settings.lease_seconds),
        reraise=True,
    ):
        with attempt:
            await write()
