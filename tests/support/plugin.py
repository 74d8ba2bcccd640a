"""The plugin platform-usage outside of MindRoom, and a gateway that answers it as a test wants."""

import json
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

ROOT = Path(__file__).parents[2]

PLUGIN = ROOT / "charts" / "instance" / "files" / "platform-usage"
NOON = datetime(2026, 12, 1, 12, tzinfo=UTC).timestamp()
DAY = 86_400.0
TOKEN = "a-token-of-the-plugin's-tests"

Answer = tuple[int, dict[str, str], object]


def load() -> ModuleType:
    """The plugin's module as MindRoom loads it, anew: a process that has just begun."""
    api = ModuleType("mindroom.plugin_api")
    api.hook = lambda _event: lambda function: function  # type: ignore[attr-defined]
    sys.modules |= {"mindroom": ModuleType("mindroom"), "mindroom.plugin_api": api}
    module = ModuleType("platform_usage")
    file = PLUGIN / "hooks.py"
    exec(compile(file.read_text(), file, "exec"), module.__dict__)
    return module


@dataclass
class Gateway:
    """A gateway whose answers a test sets.

    Attributes:
        received: the batches that it was sent.
        counted: id -> event, each once.
        answer: what it says instead of counting, if anything.
        limit: of messages.
        now: its clock.
    """

    received: list[list[dict[str, Any]]] = field(default_factory=list)
    counted: dict[str, dict[str, Any]] = field(default_factory=dict)
    answer: Callable[[list[dict[str, Any]]], Answer | None] = lambda _: None
    limit: float = float("inf")
    now: Callable[[], float] = time.time
    token: str = TOKEN
    port: int = 0

    def count(self, events: list[dict[str, Any]]) -> dict[str, Any]:
        for event in events:
            self.counted.setdefault(event["id"], event)
        midnight = (self.now() // DAY + 1) * DAY
        return {
            "within_limits": len(self.counted) <= self.limit,
            "resets_at": datetime.fromtimestamp(midnight, UTC).isoformat(),
        }

    def reply(self, token: str | None, body: bytes) -> Answer:
        assert len(body) < 2**20
        if token != f"Bearer {self.token}":
            return 401, {}, {"detail": "no such token"}
        events = json.loads(body)["events"]
        assert len(events) <= 1000
        self.received.append(events)
        return self.answer(events) or (200, {}, self.count(events))

    @contextmanager
    def serving(self) -> Iterator["Gateway"]:
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/usage"
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status, headers, answer = gateway.reply(self.headers["Authorization"], body)
                if status == 0:  # counted, and the answer is lost
                    return
                text = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response_only(status)
                headers = {"Date": formatdate(gateway.now(), usegmt=True)} | headers
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: object) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", self.port), Handler) as server:
            self.port = server.server_address[1]
            thread = threading.Thread(target=server.serve_forever, args=[0.01])
            thread.start()
            try:
                yield self
            finally:
                server.shutdown()
                thread.join()


@dataclass
class Instance:
    """A MindRoom with the plugin, on a volume and with a clock of its own."""

    volume: Path
    port: int
    now: float = NOON
    sent: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.token_file = self.volume / "token"
        self.token_file.write_text(f"{TOKEN}\n")
        self.start()

    def start(self) -> None:
        """Begin, or begin again after a crash."""
        self.plugin = load()
        self.usage = self.plugin.Usage(
            self.volume / "platform-usage",
            f"http://127.0.0.1:{self.port}",
            self.token_file,
            clock=lambda: self.now,
        )
        self.plugin.__dict__["_started"] = lambda: self.usage

    def receive(
        self, event: str, room: str = "!a", by: str = "user", writable: bool = True
    ) -> bool:
        """A message comes in; whether an agent may answer it."""

        async def send_message(
            room: str, text: str, *, extra_content: Mapping[str, str]
        ) -> str | None:
            assert extra_content == {"msgtype": "m.notice"}
            self.sent.append(f"{room}: {text}")
            return "$told" if writable else None

        envelope = envelope_of("ada", event, room, by)
        ctx = SimpleNamespace(envelope=envelope, suppress=False, send_message=send_message)
        finish(self.plugin.count_or_refuse(ctx))
        return not ctx.suppress

    def answer(self, event: str, agent: str = "ada") -> None:
        """An agent answers."""
        result = SimpleNamespace(response_event_id=event, envelope=envelope_of(agent, "$question"))
        finish(self.plugin.count_response(SimpleNamespace(result=result)))

    def call_tool(self, tool: str, message: str, blocked: bool = False) -> None:
        """An agent calls a tool, to answer a message."""
        ctx = SimpleNamespace(
            tool_name=tool, agent_name="ada", blocked=blocked, correlation_id=message
        )
        finish(self.plugin.count_tool_call(ctx))

    def send(self) -> float:
        pause: float = self.usage.send()
        return pause

    @property
    def buffered(self) -> int:
        [[rows]] = self.usage._buffer.execute("select count(*) from events")
        return int(rows)


def finish(hook: Coroutine[None, None, None]) -> None:
    """Run a hook, which waits for nothing."""
    try:
        hook.send(None)
    except StopIteration:
        return
    raise AssertionError("it waits for something")


def envelope_of(agent: str, event: str, room: str = "!a", by: str = "user") -> SimpleNamespace:
    origin = SimpleNamespace(sender_kind=by)
    return SimpleNamespace(source_event_id=event, room_id=room, agent_name=agent, origin=origin)
