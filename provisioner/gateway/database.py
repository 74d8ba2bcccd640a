"""The three functions that the gateway calls, as the role instance_gateway."""

import asyncio
import uuid
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool, PoolTimeout, TooManyRequests

MAX_CONNECTIONS = 5
"""Of one process: two replicas, and a third during a rollout, have what Supabase's pooler gives a
role, which is less than the role's own limit."""

RECORDING = 2
"""Connections that count at the same time; the others are left to API keys."""

BATCHES = 25
"""Batches that one statement counts at most."""

MAX_WAITING = 1_000
"""Batches, and API keys, that wait for a connection; more are told to come again."""

TIMEOUT_SECONDS = 3.0
"""To get a connection, or for the server to take what is sent to it."""

ANSWER_SECONDS = 8.0
"""After which nobody waits for an answer any more: senders give up after ten."""

# The token is looked up where it is used, so that one that was rotated is known at once; `offset 0`
# has it looked up once. In the order of tokens, no two statements wait for one another in a circle.
RECORD = """
select known.number, known.id, recorded.*
  from (
    select number, events, public.instance_of_token(token_hash => hash) as id
      from unnest(%s::text[], %s::text[]) with ordinality as given (hash, events, number)
     order by hash
    offset 0
  ) as known
 cross join lateral
   public.record_usage(instance_id => known.id, events => known.events::jsonb) as recorded
 where known.id is not null
"""

VERIFY = """
select * from public.verify_api_key(key_hash => %s, instance_id => %s, permission => %s)
"""


class Counted(NamedTuple):
    """What `record_usage` answers, and the instance."""

    instance_id: uuid.UUID
    counted: int
    duplicates: int
    within_limits: bool
    messages_remaining: int
    resets_at: datetime


@dataclass(frozen=True)
class Verdict:
    """What `verify_api_key` answers; `reason` is for the log, `upstream_key` never."""

    valid: bool
    account_id: uuid.UUID | None
    scopes: Sequence[str] | None
    reason: str | None
    upstream_key: str | None = field(repr=False)


@dataclass(frozen=True, eq=False)
class _Batch:
    """A batch of events, JSON, of the instance whose token has this SHA-256."""

    token_hash: str
    events: str
    answer: "asyncio.Future[Counted | None]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Database:
    """Connections in autocommit mode, each call one statement.

    Entering it starts to connect, and does not wait: the server may be unreachable at that time.
    """

    def __init__(self, url: str) -> None:
        self._pool = AsyncConnectionPool[AsyncConnection[TupleRow]](
            url,
            kwargs={
                "autocommit": True,
                "application_name": "instance-gateway",
                "connect_timeout": int(TIMEOUT_SECONDS),
                "tcp_user_timeout": int(TIMEOUT_SECONDS * 1000),
                "keepalives_idle": 3,
                "keepalives_interval": 1,
            },
            min_size=2,
            max_size=MAX_CONNECTIONS,
            max_waiting=MAX_WAITING,
            timeout=TIMEOUT_SECONDS,
            # So that the pause between attempts stays short.
            reconnect_timeout=TIMEOUT_SECONDS,
            open=False,
        )
        self._waiting: deque[_Batch] = deque()
        self._recording: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "Database":
        """Begin to connect."""
        await self._pool.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connections."""
        await self._pool.close()

    async def record_usage(self, token_hash: str, events: str) -> Counted | None:
        """Count a batch of the instance that has a token; None if none has it.

        Batches that come while `RECORDING` statements run are counted together by the next one.

        Args:
            token_hash: the token's SHA-256, hexadecimal.
            events: the batch, JSON.

        Raises:
            psycopg.DataError: an event is malformed; nothing of the batch was counted.
            psycopg.Error: the database cannot be reached, or too many batches wait.
            TimeoutError: the database does not answer in time.
        """
        if len(self._waiting) >= MAX_WAITING:
            raise TooManyRequests("too many batches wait")
        batch = _Batch(token_hash, events)
        self._waiting.append(batch)
        if len(self._recording) < RECORDING:
            task = asyncio.create_task(self._record_waiting())
            self._recording.add(task)
            task.add_done_callback(self._recording.discard)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await batch.answer
        finally:
            if batch in self._waiting:
                self._waiting.remove(batch)

    async def verify_api_key(
        self, key_hash: str, instance_id: uuid.UUID, permission: str
    ) -> Verdict:
        """Judge an API key by its SHA-256, hexadecimal.

        Raises:
            psycopg.Error: the database cannot be reached.
            TimeoutError: the database does not answer in time.
        """
        asked = asyncio.create_task(self._rows(VERIFY, key_hash, instance_id, permission))
        await asyncio.wait([asked], timeout=ANSWER_SECONDS)
        if not asked.done():
            asked.cancel()  # which may take as long again
            raise TimeoutError
        [row] = asked.result()
        return Verdict(*row)

    async def _record_waiting(self) -> None:
        """Count all batches that wait, some at a time."""
        while self._waiting:
            await self._record(
                [self._waiting.popleft() for _ in range(min(BATCHES, len(self._waiting)))]
            )

    async def _record(self, batches: Sequence[_Batch]) -> None:
        """Count those of the batches whose answer somebody waits for, and answer them."""
        batches = [each for each in batches if not each.answer.done()]
        if not batches:
            return
        hashes, events = zip(*((each.token_hash, each.events) for each in batches), strict=True)
        try:
            rows = await self._rows(RECORD, list(hashes), list(events))
            counted = {number: Counted(*row) for number, *row in rows}
        except Exception as error:
            if len(batches) > 1 and is_of_one_batch(error):
                for each in batches:
                    await self._record([each])
                return
            if is_connection_error(error):
                # Those that wait would only learn the same later.
                batches += self._waiting
                self._waiting.clear()
            for each in batches:
                if not each.answer.done():
                    each.answer.set_exception(error)
            return
        for number, each in enumerate(batches, 1):
            if not each.answer.done():
                each.answer.set_result(counted.get(number))

    async def _rows(self, statement: str, *values: object) -> list[TupleRow]:
        """What a statement returns; it is repeated where a connection broke."""
        try:
            return await self._execute(statement, *values)
        except (PoolTimeout, TooManyRequests):
            raise
        except psycopg.Error as error:
            if not is_connection_error(error):
                raise
        await self._pool.check()
        return await self._execute(statement, *values)

    async def _execute(self, statement: str, *values: object) -> list[TupleRow]:
        async with self._pool.connection() as connection:
            cursor = await connection.execute(statement.encode(), values)
            return await cursor.fetchall()


def is_of_one_batch(error: Exception) -> bool:
    """Whether a batch is refused for what it says, and others counted with it are not."""
    return isinstance(error, psycopg.Error) and (error.sqlstate or "").startswith(
        ("22", "23", "P0")
    )


def is_connection_error(error: Exception) -> bool:
    """Whether there is no connection, and not only a statement that failed."""
    if isinstance(error, psycopg.Error) and error.sqlstate:
        return error.sqlstate.startswith(("08", "57P"))
    return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
