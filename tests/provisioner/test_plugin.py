"""The plugin platform-usage by itself: its hooks, its buffer, HTTP and the database are real."""

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from components import ROOT
from tests.support.customers import Db, customer_of_its_own
from tests.support.gateways import running_gateway
from tests.support.platforms import Platform
from tests.support.plugin import DAY, NOON, TOKEN, Answer, Gateway, Instance, envelope_of, load


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with Gateway(now=lambda: NOON).serving() as gateway:
        yield gateway


@pytest.fixture
def instance(gateway: Gateway, tmp_path: Path) -> Instance:
    return Instance(tmp_path, gateway.port)


class TestWhatIsCounted:
    """Events and their ids."""

    def test_a_question_and_its_answer_are_a_message_each(
        self, instance: Instance, gateway: Gateway
    ) -> None:
        assert instance.receive("$question")
        instance.answer("$answer")
        assert not gateway.received
        assert instance.send() == 2
        at = "2026-12-01T12:00:00+00:00"
        assert gateway.received == [
            [
                {"id": "$question", "type": "received", "platform": "matrix", "at": at},
                {"id": "$answer", "type": "sent", "platform": "matrix", "at": at, "agent": "ada"},
            ]
        ]
        assert instance.buffered == 0

    def test_each_bot_of_a_room_and_an_edited_answer_repeat_ids(
        self, instance: Instance, gateway: Gateway
    ) -> None:
        instance.receive("$question")
        instance.answer("$answer")
        instance.send()
        instance.receive("$question")
        instance.answer("$answer")
        instance.send()
        assert len(gateway.counted) == 2

    def test_what_an_agent_wrote_is_no_question(self, instance: Instance, gateway: Gateway) -> None:
        assert instance.receive("$answer", by="managed_entity")
        instance.send()
        assert gateway.counted == {}

    def test_a_tool_call_is_the_nth_of_its_message(
        self, instance: Instance, gateway: Gateway
    ) -> None:
        for again in range(2):  # the message is handled again after a crash
            if again:
                instance.start()
            instance.call_tool("search", "$question")
            instance.call_tool("search", "$question")
            instance.call_tool("search", "$other")
            instance.call_tool("mail", "$question", blocked=True)
            instance.send()
        tools = [event["tool"] for event in gateway.counted.values()]
        assert tools == ["search"] * 3
        assert {event["type"] for event in gateway.counted.values()} == {"tool"}

    def test_names_are_as_long_as_the_gateway_takes_them(
        self, instance: Instance, gateway: Gateway
    ) -> None:
        instance.answer("$a", agent="a" * 101)
        instance.answer("$b", agent="")
        instance.send()
        assert [event.get("agent") for event in gateway.counted.values()] == ["a" * 100, None]

    def test_nothing_without_a_gateway(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PLATFORM_GATEWAY_URL", "")
        monkeypatch.setenv("MINDROOM_STORAGE_PATH", str(tmp_path))
        plugin = load()
        envelope = envelope_of("ada", "$question")
        asyncio.run(plugin.count_or_refuse(SimpleNamespace(envelope=envelope, suppress=False)))
        assert list(tmp_path.iterdir()) == []


class TestSending:
    """Batches, and what the gateway answers."""

    def test_fifty_events_are_sent_at_once_and_fewer_after_a_while(
        self, gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "token").write_text(TOKEN)
        monkeypatch.setenv("MINDROOM_STORAGE_PATH", str(tmp_path))
        monkeypatch.setenv("PLATFORM_GATEWAY_URL", f"http://127.0.0.1:{gateway.port}")
        monkeypatch.setenv("PLATFORM_USAGE_TOKEN_FILE", str(tmp_path / "token"))
        plugin = load()
        plugin.__dict__["SEND_EVERY"] = 1.0

        async def run() -> float:
            async def until(messages: int) -> None:
                while len(gateway.counted) < messages:
                    await asyncio.sleep(0.01)

            await plugin.send_what_is_left(None)
            while not gateway.received:  # the question whether messages are allowed
                await asyncio.sleep(0.01)
            started = time.monotonic()
            for number in range(50):
                envelope = envelope_of("ada", f"${number}")
                await plugin.count_or_refuse(SimpleNamespace(envelope=envelope))
            await asyncio.wait_for(until(50), 30)
            took = time.monotonic() - started
            await plugin.count_or_refuse(SimpleNamespace(envelope=envelope_of("ada", "$50")))
            await asyncio.wait_for(until(51), 30)
            assert time.monotonic() - started - took > 0.9
            return took

        assert asyncio.run(run()) < 0.9
        assert gateway.received[0] == []

    def test_batches_are_what_the_gateway_takes(self, instance: Instance, gateway: Gateway) -> None:
        for number in range(1_100):
            instance.answer(f"{number:04}".ljust(255, "e"), agent="\N{OLD PERSIAN SIGN A}" * 100)
        while instance.send() == 0 or instance.buffered:
            pass
        assert len(gateway.counted) == 1_100
        for number in range(1_100):
            instance.receive(f"${number}")
        assert instance.send() == 0, "there is more"
        instance.send()
        assert [len(batch) for batch in gateway.received[-2:]] == [1_000, 100]

    @pytest.mark.parametrize("index", [7, None])
    def test_a_bad_event_is_dropped_and_the_others_are_counted(
        self, instance: Instance, gateway: Gateway, index: int | None
    ) -> None:
        def refuse(events: list[dict[str, Any]]) -> Answer | None:
            bad = [at for at, event in enumerate(events) if event["id"] == "$7"]
            detail = {"detail": "it is bad"} | ({"index": bad[0]} if bad and index else {})
            return (422, {}, detail) if bad else None

        gateway.answer = refuse
        for number in range(20):
            instance.receive(f"${number}")
        for _ in range(20):
            instance.send()
        assert gateway.counted.keys() == {f"${number}" for number in range(20)} - {"$7"}
        assert instance.buffered == 0

    @pytest.mark.parametrize(
        "answer",
        [
            (401, {}, {"detail": "no such token"}),
            (429, {}, {"detail": "slowly"}),
            (503, {}, b"<html>"),
            (404, {}, {}),
            (200, {}, b"welcome to the hotel"),
            (200, {}, []),
            (0, {}, None),
        ],
        ids=lambda answer: f"{answer[0]} {answer[2]!r}",
    )
    def test_whatever_else_is_answered_keeps_the_events(
        self, instance: Instance, gateway: Gateway, answer: Answer
    ) -> None:
        gateway.answer = lambda _: answer
        instance.receive("$a")
        pauses = [instance.send() for _ in range(8)]
        assert all(4 <= pause <= 90 for pause in pauses)
        assert pauses[-1] >= 60
        assert instance.buffered == 1
        assert instance.receive("$b"), "messages are let through"
        gateway.answer = lambda _: None
        assert instance.send() == 2
        assert gateway.counted.keys() == {"$a", "$b"}

    def test_the_gateway_says_when(self, instance: Instance, gateway: Gateway) -> None:
        gateway.answer = lambda _: (429, {"Retry-After": "600"}, {})
        instance.receive("$a")
        assert 600 <= instance.send() <= 900

    def test_a_rotated_token_works_at_once(self, instance: Instance, gateway: Gateway) -> None:
        gateway.token = "rotated"
        instance.receive("$a")
        assert instance.send() >= 4
        instance.token_file.unlink()
        assert instance.send() >= 8
        instance.token_file.write_text("rotated")
        assert instance.send() == 2
        assert gateway.counted.keys() == {"$a"}

    @pytest.mark.parametrize("off", [-DAY, DAY])
    def test_a_clock_that_is_a_day_off_is_put_right(
        self, instance: Instance, gateway: Gateway, off: float
    ) -> None:
        gateway.limit = 1
        instance.now = NOON + off
        instance.send()
        instance.receive("$a")
        instance.receive("$b")
        instance.send()
        assert {event["at"] for event in gateway.received[-1]} == {"2026-12-01T12:00:00+00:00"}
        assert not instance.receive("$refused")
        instance.now += DAY / 2
        assert instance.receive("$c"), "a new day"


class TestGatewayAway:
    """An hour, a day, and until the buffer is full."""

    def test_a_day_of_messages_is_counted_afterwards_each_once_at_its_time(
        self, gateway: Gateway, tmp_path: Path
    ) -> None:
        instance = Instance(tmp_path, port=9)  # nobody listens
        next_attempt, attempts, number = 0.0, 0, 0
        while instance.now < NOON + DAY:
            assert instance.receive(f"${number}")
            number += 1
            if instance.now >= next_attempt:
                next_attempt = instance.now + instance.send()
                attempts += 1
            if number % 500 == 0:
                instance.start()
            instance.now += 60
        assert instance.buffered == number == 1440
        instance.port = gateway.port
        instance.start()
        assert instance.send() == 0
        assert instance.send() == 2
        times = [datetime.fromisoformat(event["at"]) for event in gateway.counted.values()]
        start = datetime.fromtimestamp(NOON, UTC)
        assert times == [start + timedelta(minutes=minutes) for minutes in range(1440)]

    def test_a_full_buffer_drops_its_oldest_events_and_says_so(
        self,
        instance: Instance,
        gateway: Gateway,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        pages = 64
        instance.usage._buffer.execute(f"pragma max_page_count = {pages}")
        for number in range(3_000):
            assert instance.receive(f"${number}")
        dropped = caplog.text.count("its 1000 oldest events are dropped, uncounted") * 1_000
        assert 0 < dropped < 3_000
        assert instance.buffered == 3_000 - dropped
        instance.usage._buffer.execute("pragma wal_checkpoint(truncate)")
        files = (instance.volume / "platform-usage").iterdir()
        assert sum(file.stat().st_size for file in files) <= (pages + 16) * 4096
        for _ in range(4):
            instance.send()
        assert gateway.counted.keys() == {f"${number}" for number in range(dropped, 3_000)}

    def test_a_volume_without_room_costs_no_event_that_waits(
        self, instance: Instance, caplog: pytest.LogCaptureFixture
    ) -> None:
        for number in range(10):
            instance.receive(f"${number}")
        buffer = instance.usage._buffer

        def execute(statement: str, *values: object) -> object:
            if "insert" not in statement:
                return buffer.execute(statement, *values)
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error

        instance.usage._buffer = SimpleNamespace(execute=execute)
        with pytest.raises(sqlite3.OperationalError):
            instance.receive("$10")
        assert instance.buffered == 10
        assert "dropped" not in caplog.text

    def test_the_buffer_holds_a_hundred_thousand_events_in_32_mib(self, instance: Instance) -> None:
        event = {"id": "$" + "e" * 43, "type": "received", "platform": "matrix", "at": "t" * 32}
        instance.usage._buffer.execute(
            """insert into events with recursive n (n) as (select 1 union all select n + 1 from n
               where n < 100000) select n || substr(?, 1, 38), ? from n""",
            [event["id"], json.dumps(event)],
        )
        assert instance.plugin.BUFFER_PAGES * 4096 == 32 * 2**20
        assert instance.buffered == 100_000


class TestLimit:
    """Refused in the room until it is reset."""

    def test_over_it_messages_are_refused_and_each_room_is_told_once_a_day(
        self, instance: Instance, gateway: Gateway
    ) -> None:
        gateway.limit = 2
        for event in ("$1", "$2"):
            assert instance.receive(event)
        instance.send()
        assert instance.receive("$3"), "the one that shows that the limit is passed"
        instance.send()
        for event in ("$4", "$5"):
            assert not instance.receive(event)
        assert not instance.receive("$6", room="!b")
        assert not instance.receive("$7", by="managed_entity"), "an agent's, or a schedule's"
        instance.start()
        instance.send()
        assert not instance.receive("$8")
        text = (
            "The messages that the plan allows a day are used up."
            " Agents answer again from 00:00 UTC on 2 December."
        )
        assert instance.sent == [f"!a: {text}", f"!b: {text}"]
        assert gateway.counted.keys() == {"$1", "$2", "$3"}, "what is refused is not counted"

        instance.now = NOON + DAY / 2
        gateway.limit = 4
        assert instance.receive("$9")
        gateway.now = lambda: instance.now
        instance.receive("$10")
        instance.send()
        assert not instance.receive("$11")
        assert len(instance.sent) == 3, "on the next day the room is told again"
        assert instance.sent[2].endswith("from 00:00 UTC on 3 December.")

    def test_a_larger_plan_is_seen_within_half_a_minute(
        self, instance: Instance, gateway: Gateway
    ) -> None:
        gateway.limit = 0
        instance.receive("$1")
        instance.send()
        gateway.limit = 10
        instance.send()
        assert not instance.receive("$2")
        instance.now += 30
        instance.send()
        assert gateway.received[-1] == []
        assert instance.receive("$3")

    def test_it_holds_while_the_gateway_is_away(self, instance: Instance, gateway: Gateway) -> None:
        gateway.limit = 0
        instance.receive("$1")
        instance.send()
        gateway.answer = lambda _: (503, {}, {})
        instance.now += 60
        instance.send()
        assert not instance.receive("$2")
        instance.now = NOON + DAY / 2
        assert instance.receive("$3")

    def test_a_room_that_could_not_be_told_is_told_next_time(
        self, instance: Instance, gateway: Gateway
    ) -> None:
        gateway.limit = 0
        instance.receive("$1")
        instance.send()
        for writable in (False, True, True):
            instance.receive("$2", writable=writable)
        assert len(instance.sent) == 2


class TestCrashes:
    """Nothing is lost, and nothing counted twice."""

    def test_killed_in_mid_send_at_any_time(self, gateway: Gateway, tmp_path: Path) -> None:
        """Killed four times: what a message's hook had returned for is counted, and once."""
        (tmp_path / "token").write_text(TOKEN)
        gateway.answer = lambda _: time.sleep(0.005)
        script = """
import asyncio, itertools, os
from types import SimpleNamespace
from tests.support.plugin import envelope_of, load
plugin = load()
plugin.SEND_AT = 5

async def main():
    await plugin.send_what_is_left(None)
    for number in itertools.count():
        event = f"${os.getpid()}-{number}"
        await plugin.count_or_refuse(SimpleNamespace(envelope=envelope_of("ada", event)))
        print(event, flush=True)
        await asyncio.sleep(0.001)

asyncio.run(main())
"""
        environment = os.environ | {
            "MINDROOM_STORAGE_PATH": str(tmp_path),
            "PLATFORM_GATEWAY_URL": f"http://127.0.0.1:{gateway.port}",
            "PLATFORM_USAGE_TOKEN_FILE": str(tmp_path / "token"),
        }
        handled: set[str] = set()
        for round_ in range(4):
            command = [sys.executable, "-c", script]
            with subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
            ) as process:
                assert process.stdout
                for _ in range(20 + 13 * round_):
                    handled.add(process.stdout.readline().strip())
                process.send_signal(signal.SIGKILL)
                handled |= set(process.stdout.read().split("\n")[:-1])
        last = Instance(tmp_path, gateway.port)
        while last.buffered:
            last.send()
        # One may have been killed between the hook and the line that says that it returned.
        assert handled <= gateway.counted.keys()
        assert len(gateway.counted) <= len(handled) + 4
        sent = sum(len(batch) for batch in gateway.received)
        assert sent >= len(gateway.counted)

    @pytest.mark.parametrize("found", ["by a hook", "by the sending", "at the start"])
    def test_a_malformed_buffer_is_left_aside(
        self, instance: Instance, gateway: Gateway, found: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        instance.receive("$lost")
        instance.usage._buffer.execute("pragma wal_checkpoint(truncate)")
        file = instance.volume / "platform-usage" / "events.sqlite3"
        rubbish = b"rubbish" * 4096
        file.write_bytes(rubbish)
        if found == "by a hook":
            # Whoever changes a database says so in its first page, which this one has not.
            instance.usage._buffer = sqlite3.connect(file, isolation_level=None)
        elif found == "by the sending":
            instance.send()
        else:
            instance.start()
        for again in range(3):
            assert instance.receive(f"${again}")
            instance.answer(f"${again} answered")
            instance.send()
            instance.start()
        assert gateway.counted.keys() == {
            f"${again}{answered}" for again in range(3) for answered in ("", " answered")
        }
        assert file.read_bytes() == rubbish
        assert caplog.text.count("events.sqlite3: file is not a database") == 1

    def test_a_reloaded_module_shares_the_buffer(
        self, instance: Instance, gateway: Gateway
    ) -> None:
        before = instance.usage
        instance.receive("$1")
        instance.start()
        instance.receive("$2")
        before.send()
        instance.receive("$1")
        instance.send()
        assert [event["id"] for batch in gateway.received for event in batch] == ["$1", "$2", "$1"]


def test_a_message_costs_less_than_5_ms(instance: Instance, gateway: Gateway) -> None:
    """Also while the gateway is away and a hundred thousand events wait."""
    gateway.answer = lambda _: (503, {}, {})
    TestGatewayAway().test_the_buffer_holds_a_hundred_thousand_events_in_32_mib(instance)

    async def receive(count: int) -> list[float]:
        took = []
        for number in range(count):
            ctx = SimpleNamespace(envelope=envelope_of("ada", f"${number}"))
            started = time.perf_counter()
            await instance.plugin.count_or_refuse(ctx)
            took.append(time.perf_counter() - started)
        return took

    took = sorted(asyncio.run(receive(1_000)))
    print(f"median {took[500] * 1e6:.0f} us, 99 of 100 within {took[990] * 1e6:.0f} us")
    assert took[990] < 0.005


STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["message", "answer"]), st.integers(0, 30)),
        st.tuples(st.sampled_from(["send", "crash", "rotate"]), st.just(0)),
        st.tuples(st.just("gateway"), st.sampled_from([0, 200, 429, 503])),
    ),
    max_size=60,
)


@dataclass
class Known:
    """An instance that a gateway of the platform knows by its token.

    Attributes:
        port: the gateway's.
    """

    db: Db
    plan: UUID
    id: UUID
    port: int

    def rotate(self, token: str) -> None:
        self.db.run(
            """insert into private.instance_secrets (instance_id, name, value)
               values (%s, 'PLATFORM_USAGE_TOKEN', %s)
               on conflict (instance_id, name) do update set value = excluded.value""",
            self.id,
            token,
        )

    def allow(self, messages: int) -> None:
        self.db.update("subscriptions", self.plan, max_messages_per_day=messages)

    def forget(self) -> None:
        self.db.run("delete from usage_metrics where instance_id = %s", self.id)

    @property
    def counted(self) -> tuple[int, int]:
        """Messages received and sent, of all days."""
        query = """select coalesce(sum(messages_received), 0), coalesce(sum(messages_sent), 0)
                   from usage_metrics where instance_id = %s"""
        [(received, sent)] = self.db.run(query, self.id)
        return received, sent


@pytest.fixture(scope="module")
def known(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Known]:
    url, log = platform.service_url("instance_gateway"), tmp_path_factory.mktemp("gateway") / "log"
    with running_gateway(url, log) as gateway, customer_of_its_own(platform) as (db, plan, id):  # noqa: A001
        yield Known(db, plan, id, gateway.port)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_the_days_counters_are_the_distinct_messages(
    known: Known, tmp_path: Path, steps: list[tuple[str, int]]
) -> None:
    """For random histories of messages, crashes, retries, outages and rotated tokens.

    Status 0: the gateway counts a batch, and its answer is lost.
    """
    volume = tmp_path / uuid4().hex
    volume.mkdir()
    known.forget()
    status = 200

    def pass_on(events: list[dict[str, Any]]) -> Answer:
        if status in (429, 503):
            return status, {"Retry-After": "1"}, {}
        answer = httpx2.post(
            f"http://127.0.0.1:{known.port}/v1/usage",
            json={"events": events},
            headers={"Authorization": f"Bearer {front.token}"},
        )
        return status and answer.status_code, {}, answer.content

    with Gateway(answer=pass_on).serving() as front:
        instance = Instance(volume, front.port, now=time.time())
        received, sent = set(), set()

        def rotate() -> None:
            front.token = uuid4().hex
            known.rotate(front.token)
            instance.token_file.write_text(front.token)

        rotate()
        for step, value in [*steps, ("gateway", 200), ("rotate", 0)]:
            if step == "message":
                received.add(value)
                instance.receive(f"${volume.name}-q{value}")
            elif step == "answer":
                sent.add(value)
                instance.answer(f"${volume.name}-a{value}")
            elif step == "send":
                instance.send()
            elif step == "crash":
                instance.start()
            elif step == "rotate":
                rotate()
            else:
                status = value
        assert instance.send() == 2
        assert instance.buffered == 0
    assert known.counted == (len(received), len(sent))


def test_the_gateway_refuses_a_bad_event_and_sets_the_limit(known: Known, tmp_path: Path) -> None:
    known.forget()
    known.rotate(TOKEN)
    known.allow(2)
    instance = Instance(tmp_path, known.port, now=time.time())
    instance.receive("$1")
    instance.answer("$" + "e" * 255)
    instance.answer("$2")
    instance.send()
    instance.send()
    assert instance.buffered == 0
    assert known.counted == (1, 1)

    assert instance.receive("$3")
    instance.send()
    assert not instance.receive("$4")
    assert "00:00 UTC" in instance.sent[0]
    known.allow(10)
    instance.now += 30
    instance.send()
    assert instance.receive("$5")
    assert known.counted == (2, 1)
