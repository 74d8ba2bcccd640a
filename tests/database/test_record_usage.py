"""Batches of events are counted exactly once, on their day, or refused as a whole."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg.errors import InvalidParameterValue, NoDataFound, NullValueNotAllowed
from psycopg.types.json import Jsonb

from tests.support.customers import (
    ANN,
    NOBODY,
    ZONES,
    Db,
    add_customer,
    at_once,
    customer_of_its_own,
    said,
    track,
    usage,
)
from tests.support.platforms import Platform

CALL = "select to_jsonb(r) from record_usage(instance_id => %s, events => %s) r"


def record(db: Db, *events: Any) -> dict[str, Any]:
    answer: dict[str, Any] = db.one(CALL, ANN.instance, Jsonb(list(events)))
    return answer


def event(id: str, type: str = "sent", **more: object) -> dict[str, object]:  # noqa: A002
    return {"id": id, "type": type} | more


def days_ago(db: Db, days: float) -> str:
    """A time as an event says it, by the server's clock."""
    now: datetime = db.one("select now()")
    return (now - timedelta(days=days)).isoformat()


def by_day(db: Db) -> dict[int, int]:
    """Days ago -> messages."""
    rows = db.run(
        """select (now() at time zone 'utc')::date - usage_date, messages_sent + messages_received
           from usage_metrics where instance_id = %s""",
        ANN.instance,
    )
    return dict(rows)


def test_a_batch_counts_like_its_messages_one_by_one(db: Db) -> None:
    columns = "messages_sent, messages_received, agent_counts, tool_counts, platforms_active"
    with db.connection.transaction(force_rollback=True):
        track(db, agent="ada", tool="search", platform="matrix")
        track(db, agent="ada", platform="matrix")
        track(db, agent="bo", message_type="received")
        expected = usage(db, columns)
    record(
        db,
        event("a", agent="ada", tool="search", platform="matrix"),
        event("b", agent="ada", platform="matrix", tool=None, unknown={}),
        event("c", "received", agent="bo"),
    )
    assert usage(db, columns) == expected
    record(db, event("d", agent="ada"), event("e", agent="cy", platform="slack"))
    record(db, event("f", "tool", agent="ada", tool="search"))
    assert usage(db, columns) == (
        4,
        1,
        {"ada": 3, "bo": 1, "cy": 1},
        {"search": 2},
        ["matrix", "slack"],
    )


def test_the_answer_says_what_was_counted_and_what_is_left(db: Db) -> None:
    db.update("subscriptions", ANN.subscription, max_messages_per_day=4)
    answer = record(db, event("a"), event("b"), event("a"))
    tomorrow = db.one("select date_trunc('day', now() at time zone 'utc') + interval '1 day'")
    assert datetime.fromisoformat(answer.pop("resets_at")) == tomorrow.replace(tzinfo=UTC)
    assert answer == {
        "counted": 2,
        "duplicates": 1,
        "within_limits": True,
        "messages_remaining": 2,
    }
    assert record(db)["messages_remaining"] == 2
    answer = record(db, event("b"), event("c"), event("d"), event("e"))
    assert (answer["counted"], answer["within_limits"], answer["messages_remaining"]) == (
        3,
        False,
        0,
    )
    assert record(db, event("f"))["within_limits"] is False
    assert usage(db, "messages_sent, limit_exceeded") == (6, True)
    assert len(said(db, "usage.limit_exceeded")) == 1
    db.update("subscriptions", ANN.subscription, max_messages_per_day=-1)
    answer = record(db, event("g"))
    assert (answer["within_limits"], answer["messages_remaining"]) == (True, -1)


def test_two_instances_may_have_the_same_ids(db: Db) -> None:
    record(db, event("a"))
    move = "update private.usage_events set instance_id = %s where instance_id = %s"
    db.run(move, uuid4(), ANN.instance)
    assert record(db, event("a"))["counted"] == 1


@pytest.mark.parametrize("zone", ZONES)
def test_an_event_counts_on_its_own_utc_day_when_that_is_not_long_ago(db: Db, zone: str) -> None:
    db.run(f"set local timezone = '{zone}'")
    times = [0, 1, 2, 3, 400, -1, -400]
    answer = record(db, *(event(str(t), at=days_ago(db, t)) for t in times), event("now"))
    assert answer["counted"] == len(times) + 1
    assert by_day(db) == {0: 6, 1: 1, 2: 1}
    assert record(db, event("2", at=days_ago(db, 2)))["duplicates"] == 1


def test_yesterdays_messages_leave_todays_limit_alone(db: Db) -> None:
    db.update("subscriptions", ANN.subscription, max_messages_per_day=1)
    answer = record(db, *(event(str(n), at=days_ago(db, 1)) for n in range(5)))
    assert (answer["within_limits"], answer["messages_remaining"]) == (True, 1)
    assert said(db, "usage.limit_exceeded") == []


BAD = [
    ("none", "is no object"),
    (["id"], "is no object"),
    ({"type": "sent"}, "no id"),
    (event(""), "no id"),
    (event("x" * 256), "no id"),
    ({"id": 7, "type": "sent"}, "no id"),
    ({"id": "a"}, "no type"),
    (event("a", "read"), "no type"),
    (event("a", "tool"), "a tool that it does not name"),
    (event("a", agent=""), "100 characters"),
    (event("a", tool="x" * 101), "100 characters"),
    (event("a", platform=["matrix"]), "100 characters"),
    *[
        (event("a", at=at), "has a time at")
        for at in (
            "yesterday",
            "infinity",
            1789,
            "",
            "2026-11-30",
            "2026-11-30T10:00:00",
            "2026-02-29T10:00:00Z",
            "2026-11-31T10:00:00Z",
            "2026-11-00T10:00:00Z",
            "2026-13-01T10:00:00Z",
            "2026-11-30T24:00:00Z",
            "2026-11-30T10:00:00+16:00",
            "0001-11-30T10:00:00Z",
            "2026-11-30T10:00:00Z" + "0" * 1000,
        )
    ],
]


@pytest.mark.parametrize(("bad", "why"), BAD)
def test_a_bad_event_is_named_by_its_index_and_nothing_is_counted(
    db: Db, bad: Any, why: str
) -> None:
    with db.refused(InvalidParameterValue, f"event 1 of the batch .*{why}"):
        record(db, event("good"), bad, event("too"))
    assert db.run("select from usage_metrics") == []
    assert record(db, event("good"))["counted"] == 1


def test_what_is_no_batch_is_refused(db: Db) -> None:
    for batch, error in (
        (None, NullValueNotAllowed),
        (Jsonb(None), InvalidParameterValue),
        ({"id": "a"}, InvalidParameterValue),
        (Jsonb([event(str(n)) for n in range(1001)]), InvalidParameterValue),
    ):
        with db.refused(error):
            db.one(CALL, ANN.instance, batch)
    for instance, missing in ((NOBODY, NoDataFound), (None, NullValueNotAllowed)):
        with db.refused(missing):
            db.one(CALL, instance, Jsonb([event("a")]))
    assert record(db, *(event(str(n)) for n in range(1000)))["counted"] == 1000


def test_names_that_an_instance_makes_up_do_not_make_its_row_big(db: Db) -> None:
    for batch in range(3):
        name = f"{batch}" + "x" * 90
        record(
            db,
            *(
                event(f"{batch}-{n}", agent=f"{n}{name}", tool=f"{n}{name}", platform=f"{n}{name}")
                for n in range(500)
            ),
        )
    count, *sizes = usage(
        db,
        "messages_sent, length(agent_counts::text), length(tool_counts::text), "
        "length(platforms_active::text)",
    )
    assert count == 1500
    assert all(5000 < size < 12_000 for size in sizes)


TIMES = st.sampled_from([None, 0, 0.5, 1, 1.5, 2, 5, -1])
EVENTS = st.builds(
    lambda number, type_, agent, tool, ago: {
        "number": number,
        "type": type_,
        "agent": agent,
        "tool": tool or ("shell" if type_ == "tool" else None),
        "ago": ago,
    },
    st.integers(0, 30),
    st.sampled_from(["sent", "received", "tool"]),
    st.sampled_from([None, "ada", "bo", 'o"dd']),
    st.sampled_from([None, "shell", "search"]),
    TIMES,
)


@settings(max_examples=40)
@given(st.lists(st.lists(EVENTS, max_size=12), max_size=6))
def test_any_history_of_batches_counts_each_id_once(
    connection: psycopg.Connection, history: list[list[dict[str, Any]]]
) -> None:
    db = Db(connection)
    with connection.transaction(force_rollback=True):
        add_customer(db, ANN)
        seen: dict[str, dict[str, Any]] = {}
        for batch in history:
            events = []
            for each in batch:
                id_ = str(each["number"])
                at = {} if each["ago"] is None else {"at": days_ago(db, each["ago"])}
                events.append(event(id_, each["type"], agent=each["agent"], tool=each["tool"]) | at)
            new = {e["id"] for e in events} - seen.keys()
            answer = record(db, *events)
            assert (answer["counted"], answer["duplicates"]) == (len(new), len(batch) - len(new))
            for each in batch:
                seen.setdefault(str(each["number"]), each)
        messages = [each for each in seen.values() if each["type"] != "tool"]
        found = db.run(
            """select coalesce(sum(messages_sent), 0), coalesce(sum(messages_received), 0)
               from usage_metrics where instance_id = %s""",
            ANN.instance,
        )
        types = Counter(each["type"] for each in messages)
        assert found == [(types["sent"], types["received"])]
        for column, names in (
            ("agent_counts", Counter(e["agent"] for e in messages if e["agent"])),
            ("tool_counts", Counter(e["tool"] for e in seen.values() if e["tool"])),
        ):
            rows = db.run(
                f"""select name, sum(times::integer) from usage_metrics
                    cross join jsonb_each_text({column}) as counted (name, times)
                    where instance_id = %s group by name""",
                ANN.instance,
            )
            assert dict(rows) == names


def test_batches_at_once_with_the_same_events_count_each_once(platform: Platform) -> None:
    with customer_of_its_own(platform) as (db, _, instance):
        batches = [
            Jsonb([event(str(n % 200)) for n in range(start, start + 150)])
            for start in (0, 50, 100, 150, 20, 70, 120, 170)
        ]
        calls: list[tuple[str, list[object]]] = [
            ("select counted from record_usage(%s, %s)", [instance, batch]) for batch in batches
        ]
        counted = at_once(platform, calls, times=3)
        track_call = "select track_usage(%s)"
        at_once(platform, [(track_call, [instance]) for _ in range(4)], times=5)
        assert sum(counted) == 200
        [[sent]] = db.run(
            "select messages_sent from usage_metrics where instance_id = %s", instance
        )
        assert sent == 220
