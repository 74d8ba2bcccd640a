"""What MindRoom did, told to the instance gateway, which counts it: the plugin platform-usage.

Each hook writes an event into a buffer on the volume, and a task sends what is there. The gateway
counts an id once, and an event leaves the buffer only when it was counted: when a process is killed
or the gateway away, nothing is lost and nothing counts twice. Ids are those of Matrix, so that a
message that MindRoom handles again is no other one.

MINDROOM_STORAGE_PATH is the volume, PLATFORM_GATEWAY_URL the gateway (without it nothing is done),
PLATFORM_USAGE_TOKEN_FILE a file with the instance's token.
"""

import asyncio
import hashlib
import http.client
import json
import logging
import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from datetime import UTC, datetime
from email.message import Message
from email.utils import parsedate_to_datetime
from functools import cache
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from mindroom.plugin_api import hook

SEND_EVERY = 2.0
"""Seconds between batches, unless SEND_AT events came before."""

SEND_AT = 50

BATCH_EVENTS = 1_000
BATCH_BYTES = 1_000_000
"""The gateway takes 1,000 events and 1 MiB at a time."""

BUFFER_PAGES = 8_192
"""Pages of 4 KiB that the buffer may have: room for more than 100,000 events."""

PAGES_OF_A_CHANGE = 16
"""Pages that an event needs at most."""

DROPPED_AT_ONCE = 1_000
"""Events, the oldest, that make room in a full buffer."""

MALFORMED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)

ASK_EVERY = 30.0
"""Seconds between questions whether messages are allowed again."""

LONGEST_PAUSE = 60.0
"""Seconds between attempts to reach a gateway that is away, unless it says how many; up to half
more is added to either."""

TIMEOUT = 10.0

SCHEMA = f"""
pragma journal_mode = wal;
pragma synchronous = normal;
pragma max_page_count = {BUFFER_PAGES};
create table if not exists events (id text primary key, event text not null);
create table if not exists told (room text primary key, until real not null);
"""

logger = logging.getLogger("platform_usage")

T = TypeVar("T")


class Usage:
    """The buffer, and what the gateway last said of the limit.

    What hooks call touches the volume only, and does not wait for it: `send` also does what the
    buffer has to flush, unless there is as much of that as the buffer may have.
    """

    def __init__(
        self, directory: Path, url: str, token_file: Path, clock: Callable[[], float] = time.time
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._host = urlsplit(url).netloc
        self._token_file = token_file
        self._clock = clock
        self._clock_is_behind = 0.0
        self._refused_until = 0.0
        self._ask_at = 0.0
        self._failures = 0
        self._batch_events = BATCH_EVENTS
        self._added = 0
        self._many_added = asyncio.Event()
        self._number = 0
        while self._file(self._number + 1).exists():
            self._number += 1
        self._replacing = threading.Lock()
        self._buffer = self._repaired(self._open_for_hooks)

    # ---- for the hooks

    def add(self, id: str, type: str, agent: str | None = None, tool: str | None = None) -> None:  # noqa: A002
        """Buffer an event; one with an id that is there is no further one."""
        event = {"id": id, "type": type, "platform": "matrix", "at": self._now().isoformat()}
        event |= {k: name[:100] for k, name in (("agent", agent), ("tool", tool)) if name}
        self._repaired(lambda: self._insert([id, json.dumps(event)]))
        self._added += 1
        if self._added >= SEND_AT:
            self._many_added.set()

    def _insert(self, row: list[str]) -> None:
        insert = "insert or ignore into events values (?, ?)"
        try:
            self._buffer.execute(insert, row)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_FULL or not self._is_full():
                raise
            dropped = self._buffer.execute(
                """delete from events
                   where rowid in (select rowid from events order by rowid limit ?)""",
                [DROPPED_AT_ONCE],
            ).rowcount
            logger.error("the buffer is full: its %d oldest events are dropped, uncounted", dropped)
            self._buffer.execute(insert, row)

    def _is_full(self) -> bool:
        """Whether the buffer has as many pages as it may, rather than the volume no room."""
        pages, free, most = (
            self._buffer.execute(f"pragma {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "max_page_count")
        )
        return bool(pages - free + PAGES_OF_A_CHANGE > most)

    def refused_until(self) -> datetime | None:
        """When messages are allowed again, if they are not now."""
        if self._now().timestamp() >= self._refused_until:
            return None
        return datetime.fromtimestamp(self._refused_until, UTC)

    def mark_told(self, room: str) -> bool:
        """Note that a room is told of this refusal; False if it was."""
        return self._repaired(lambda: self._insert_told([room, self._refused_until]))

    def _insert_told(self, row: list[object]) -> bool:
        self._buffer.execute("delete from told where until <= ?", [self._now().timestamp()])
        return self._buffer.execute("insert or ignore into told values (?, ?)", row).rowcount == 1

    def mark_untold(self, room: str) -> None:
        """Note that a room could not be told."""
        delete = "delete from told where room = ?"
        self._repaired(lambda: self._buffer.execute(delete, [room]))

    # ---- the sending

    async def run(self) -> None:
        """Send for ever."""
        while True:
            self._added = 0
            self._many_added.clear()
            try:
                pause = await asyncio.to_thread(self.send)
            except Exception:
                logger.exception("usage could not be sent")
                pause = LONGEST_PAUSE
            if pause != SEND_EVERY:
                await asyncio.sleep(pause)
                continue
            with suppress(TimeoutError):
                await asyncio.wait_for(self._many_added.wait(), pause)

    def send(self) -> float:
        """Send the oldest events, if there are any; returns the seconds to wait afterwards."""
        return self._repaired(self._send)

    def _send(self) -> float:
        with closing(self._open()) as buffer:
            buffer.execute("pragma wal_checkpoint")
            ids, body = self._oldest(buffer)
            if not ids and self._clock() < self._ask_at:
                return SEND_EVERY
            try:
                status, headers, answer = self._post(body)
            except (OSError, http.client.HTTPException) as error:
                return self._pause(repr(error))

            if status == 200 and "within_limits" in answer:
                self._forget(buffer, ids)
                self._learn(headers, answer)
                return 0 if len(ids) == BATCH_EVENTS else SEND_EVERY
            if status in (413, 422) and ids:
                bad = ids if len(ids) == 1 else _at(ids, answer.get("index"))
                logger.error("refused with %d: %s; dropped: %s", status, answer.get("detail"), bad)
                self._forget(buffer, bad)
                self._batch_events = BATCH_EVENTS if bad else len(ids) // 2
                return SEND_EVERY
            return self._pause(f"{status} {answer.get('detail')}", headers.get("Retry-After"))

    def _oldest(self, buffer: sqlite3.Connection) -> tuple[list[str], str]:
        """The oldest events that fit into a batch: their ids, and the body of the request."""
        ids, events, size = [], [], 0
        for id, event in buffer.execute(  # noqa: A001
            "select id, event from events order by rowid limit ?", [self._batch_events]
        ):
            size += len(event) + 1
            if size > BATCH_BYTES:
                break
            ids.append(id)
            events.append(event)
        return ids, f'{{"events":[{",".join(events)}]}}'

    def _post(self, body: str) -> tuple[int, Message, dict[str, Any]]:
        """The status, headers and JSON object of the gateway's answer; {} where there is none."""
        headers = {
            "Authorization": f"Bearer {self._token_file.read_text().strip()}",
            "Content-Type": "application/json",
        }
        with closing(http.client.HTTPConnection(self._host, timeout=TIMEOUT)) as connection:
            connection.request("POST", "/v1/usage", body, headers)
            response = connection.getresponse()
            try:
                answer = json.loads(response.read())
            except ValueError:
                answer = {}
            return response.status, response.headers, answer if isinstance(answer, dict) else {}

    def _forget(self, buffer: sqlite3.Connection, ids: list[str]) -> None:
        with buffer:
            buffer.execute("begin immediate")
            buffer.executemany("delete from events where id = ?", zip(ids))

    def _learn(self, headers: Message, answer: dict[str, Any]) -> None:
        """Take over what the gateway says of the limit, and its clock if ours is wrong."""
        if self._failures:
            logger.info("the gateway takes usage again")
        self._failures = 0
        self._batch_events = BATCH_EVENTS
        if headers["Date"]:
            behind = parsedate_to_datetime(headers["Date"]).timestamp() - self._clock()
            self._clock_is_behind = behind if abs(behind) > 60 else 0.0
        self._refused_until, self._ask_at = 0.0, float("inf")
        if answer["within_limits"] is False:
            self._refused_until = datetime.fromisoformat(answer["resets_at"]).timestamp()
            self._ask_at = self._clock() + ASK_EVERY

    def _pause(self, problem: str, retry_after: str | None = None) -> float:
        """Seconds before the next attempt."""
        if not self._failures:
            logger.warning("usage is kept until the gateway takes it again: %s", problem)
        self._failures += 1
        pause = min(SEND_EVERY * 2.0 ** min(self._failures, 10), LONGEST_PAUSE)
        if retry_after and retry_after.isdecimal():
            pause = max(SEND_EVERY, float(retry_after))
        jitter: float = random.uniform(1, 1.5)  # noqa: S311
        return pause * jitter

    # ---- the buffer

    def _file(self, number: int) -> Path:
        """The nth buffer: each but the last is malformed."""
        return self._directory / (f"events-{number}.sqlite3" if number else "events.sqlite3")

    def _open(self) -> sqlite3.Connection:
        file = self._file(self._number)
        buffer = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
        try:
            buffer.executescript(SCHEMA)
        except sqlite3.Error:
            buffer.close()
            raise
        return buffer

    def _open_for_hooks(self) -> sqlite3.Connection:
        buffer = self._open()
        buffer.execute(f"pragma wal_autocheckpoint = {BUFFER_PAGES}")
        return buffer

    def _repaired(self, work: Callable[[], T]) -> T:
        """What some work returns; if the buffer is malformed it is done with a new one."""
        number = self._number
        try:
            return work()
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF not in MALFORMED:
                raise
            with self._replacing:
                if self._number == number:
                    # Not renamed: SQLite knows a file that is open by its name.
                    logger.error("%s: %s; it stays there, uncounted", self._file(number), error)
                    self._number += 1
                    self._buffer = self._open_for_hooks()
            return work()

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock() + self._clock_is_behind, UTC)


def _at(ids: list[str], index: object) -> list[str]:
    return [ids[index]] if isinstance(index, int) and 0 <= index < len(ids) else []


# ---- the hooks, and what they use of MindRoom's contexts


class Origin(Protocol):
    """Who sent a message: `user`, or `managed_entity`, which is an agent, a team or the router."""

    sender_kind: str


class Envelope(Protocol):
    """A message of Matrix."""

    source_event_id: str
    room_id: str
    agent_name: str
    origin: Origin


class MessageReceived(Protocol):
    """Each bot in a room receives each message; one that is suppressed is not answered."""

    envelope: Envelope
    suppress: bool

    async def send_message(
        self, room_id: str, text: str, *, extra_content: dict[str, Any]
    ) -> str | None:
        """Write to a room; the message's id, or None where that failed."""


class Response(Protocol):
    """An answer in a room."""

    response_event_id: str
    envelope: Envelope


class AfterResponse(Protocol):
    """An agent answered."""

    result: Response


class ToolAfterCall(Protocol):
    """An agent called a tool, or was not allowed to. `correlation_id`: of the message's event."""

    tool_name: str
    agent_name: str
    blocked: bool
    correlation_id: str


_sending: asyncio.Task[None] | None = None  # MindRoom cancels the tasks of a module that it reloads
_calls: dict[tuple[str, str, str], int] = {}


@cache
def _usage() -> Usage | None:
    url = os.environ.get("PLATFORM_GATEWAY_URL")
    if not url:
        logger.warning("usage is not counted: PLATFORM_GATEWAY_URL is not set")
        return None
    directory = Path(os.environ["MINDROOM_STORAGE_PATH"]) / "platform-usage"
    return Usage(directory, url, Path(os.environ["PLATFORM_USAGE_TOKEN_FILE"]))


def _started() -> Usage | None:
    """The usage, being sent; None where there is no gateway."""
    global _sending
    usage = _usage()
    if usage and (_sending is None or _sending.done()):
        _sending = asyncio.create_task(usage.run())
    return usage


@hook("bot:ready")
async def send_what_is_left(_ctx: object) -> None:
    """Send what was buffered before a restart, and ask whether messages are allowed."""
    _started()


@hook("config:reloaded")
async def send_after_reload(_ctx: object) -> None:
    """Go on with what this module's predecessor sent."""
    _started()


@hook("message:received")
async def count_or_refuse(ctx: MessageReceived) -> None:
    """Count a message of a user, or refuse any message and say when the limit is reset.

    Who answers is known from the answer: the message is of no agent.
    """
    message = ctx.envelope
    if not (usage := _started()):
        return
    if until := usage.refused_until():
        ctx.suppress = True
        if usage.mark_told(message.room_id):
            await _tell(ctx, usage, until)
    elif message.origin.sender_kind == "user":
        usage.add(message.source_event_id, "received")


async def _tell(ctx: MessageReceived, usage: Usage, until: datetime) -> None:
    room = ctx.envelope.room_id
    told = None
    try:
        told = await ctx.send_message(
            room,
            "The messages that the plan allows a day are used up."
            f" Agents answer again from {until:%H:%M} UTC on {until.day} {until:%B}.",
            extra_content={"msgtype": "m.notice"},  # no agent answers a notice
        )
    finally:
        if told is None:
            usage.mark_untold(room)


@hook("message:after_response")
async def count_response(ctx: AfterResponse) -> None:
    """Count an answer of an agent; one that is edited is no further one."""
    if usage := _started():
        response = ctx.result
        usage.add(response.response_event_id, "sent", agent=response.envelope.agent_name)


@hook("tool:after_call")
async def count_tool_call(ctx: ToolAfterCall) -> None:
    """Count a call of a tool: the nth one of this tool, by this agent, for this message."""
    if ctx.blocked or not (usage := _started()):
        return
    call = (ctx.correlation_id, ctx.agent_name, ctx.tool_name)
    _calls[call] = _calls.pop(call, 0) + 1
    if len(_calls) > 10_000:
        del _calls[next(iter(_calls))]
    id = hashlib.sha256(json.dumps([*call, _calls[call]]).encode()).hexdigest()  # noqa: A001
    usage.add(id, "tool", agent=ctx.agent_name, tool=ctx.tool_name)
