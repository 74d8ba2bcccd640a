"""Messages are counted, limited and billed as promised, on a real server.

Most tests are rolled back; those that need several connections make customers of their own.
"""

from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg.errors import InvalidParameterValue

from tests.support.customers import (
    ANN,
    TODAY,
    ZONES,
    Customer,
    Db,
    add_instance,
    agents,
    at_once,
    customer_of_its_own,
    said,
    track,
    usage,
)
from tests.support.platforms import Platform


def limit_to(db: Db, messages: int) -> None:
    db.update("subscriptions", ANN.subscription, max_messages_per_day=messages)


def limits(db: Db, customer: Customer = ANN) -> dict[str, Any]:
    row = db.run("select to_jsonb(l) from check_usage_limits(%s) l", customer.instance)
    [[found]] = row
    return dict(found)


# ---- messages


def test_a_message_is_counted_by_type_agent_tool_and_platform(db: Db) -> None:
    track(db, agent="ada", tool="search", platform="matrix")
    track(db, agent="ada", tool="shell", message_type="received")
    track(db, agent='o"dd, {name}')
    found = usage(
        db, "messages_sent, messages_received, agent_counts, tool_counts, platforms_active"
    )
    assert found == (2, 1, {"ada": 2, 'o"dd, {name}': 1}, {"search": 1, "shell": 1}, ["matrix"])


@pytest.mark.parametrize("zone", ZONES)
def test_a_message_counts_on_the_utc_day_whatever_the_sessions_time_zone(db: Db, zone: str) -> None:
    db.run(f"set local timezone = '{zone}'")
    track(db)
    track(db)
    assert usage(db, f"usage_date = {TODAY}, messages_sent") == (True, 2)
    assert limits(db)["messages_used"] == 2


def test_over_the_limit_it_counts_on_and_says_so_once(db: Db) -> None:
    limit_to(db, 2)
    assert [track(db) for _ in range(5)] == [True, True, False, False, False]
    assert usage(db, "messages_sent, limit_exceeded") == (5, True)
    [details] = said(db, "usage.limit_exceeded")
    assert details == {"limit": 2, "day": str(db.one(f"select {TODAY}"))}


def test_the_flag_cleared_too_early_makes_no_second_audit_row(db: Db) -> None:
    """As when a transaction that began before midnight counts after the day was closed."""
    limit_to(db, 0)
    track(db)
    db.run("update usage_metrics set limit_exceeded = false")
    assert track(db) is False
    assert len(said(db, "usage.limit_exceeded")) == 1


def test_another_instance_and_another_day_say_it_again(db: Db) -> None:
    limit_to(db, 0)
    track(db)
    db.run(f"update usage_metrics set usage_date = {TODAY} - 1")
    db.run("update audit_logs set created_at = created_at - interval '1 day'")
    assert track(db) is False
    assert len(said(db, "usage.limit_exceeded")) == 2
    other = add_instance(db, ANN, "other", status="running")["id"]
    assert db.one("select track_usage(%s)", other) is False
    assert len(said(db, "usage.limit_exceeded")) == 3


def test_a_limit_holds_from_the_next_message_on(db: Db) -> None:
    track(db), track(db)
    limit_to(db, 2)
    assert track(db) is False
    limit_to(db, 4)
    assert track(db) is True
    limit_to(db, -1)
    assert all(track(db) for _ in range(3))
    limit_to(db, 0)
    assert track(db) is False
    assert len(said(db, "usage.limit_exceeded")) == 1


def test_without_a_subscription_in_force_the_last_ones_limit_holds(db: Db) -> None:
    limit_to(db, 2)
    db.update("subscriptions", ANN.subscription, status="cancelled")
    assert [track(db) for _ in range(4)] == [True, True, False, False]
    assert usage(db, "messages_sent, limit_exceeded") == (4, True)
    assert len(said(db, "usage.limit_exceeded")) == 1
    limit_to(db, -1)
    assert track(db) is True


def test_sent_and_received_share_the_limit(db: Db) -> None:
    limit_to(db, 1)
    assert [track(db), track(db, message_type="received")] == [True, False]


def test_a_message_is_the_instances_activity(db: Db) -> None:
    query = "select last_active_at = now() from instances where id = %s"
    for passed in ("5 minutes", "10 minutes"):
        db.run("update instances set last_active_at = null where id = %s", ANN.instance)
        track(db)
        assert db.one(query, ANN.instance)
        db.run("update instances set last_active_at = null where id = %s", ANN.instance)
        track(db)
        assert not db.one(query, ANN.instance)  # not every message writes the row
        db.run(
            "update usage_metrics set activity_noted_until = activity_noted_until - %s::interval",
            passed,
        )


def test_counting_writes_no_audit_row_and_no_update_of_the_instance(db: Db) -> None:
    before = db.audited(ANN)
    db.run("select set_config('session_replication_role', 'replica', true)")
    db.run("update instances set updated_at = '2026-01-01'")
    db.run("select set_config('session_replication_role', 'origin', true)")
    track(db)
    assert db.audited(ANN) == before
    assert db.one("select max(updated_at) < now() from instances")


def test_a_message_without_names_adds_none(db: Db) -> None:
    track(db), track(db)
    found = usage(db, "messages_sent, agent_counts, tool_counts, platforms_active")
    assert found == (2, {}, {}, [])


def test_a_message_that_is_refused_is_not_counted(db: Db) -> None:
    track(db, agent="ada")
    for wrong in ({"agent": ""}, {"tool": "x" * 101}, {"message_type": "read"}):
        with db.refused(InvalidParameterValue):
            track(db, ANN, **wrong)
    assert usage(db, "messages_sent, agent_counts, tool_counts") == (1, {"ada": 1}, {})


def test_a_day_of_endless_names_stays_small_and_counts_all(db: Db) -> None:
    count = db.one(
        """select count(track_usage(%s, 'agent ' || n || repeat('x', 80), 'tool ' || n))
           from generate_series(1, 1000) n""",
        ANN.instance,
    )
    track(db, agent="agent 1" + "x" * 80)
    size, sent, of_first = usage(
        db,
        f"""pg_column_size(agent_counts) + pg_column_size(tool_counts), messages_sent,
            agent_counts -> 'agent 1{"x" * 80}'""",
    )
    assert (count, sent, of_first) == (1000, 1001, 2)
    assert size < 20_000


# ---- limits


def test_limits_say_what_was_used_today_and_what_is_left(db: Db) -> None:
    limit_to(db, 3)
    db.update("subscriptions", ANN.subscription, max_storage_gb=7, max_agents=9)
    db.update("subscriptions", ANN.subscription, storage_used_gb=2.5)
    db.update("instances", ANN.instance, config={"agents": agents(2)})
    track(db), track(db, message_type="received")
    assert limits(db) == {
        "within_limits": True,
        "messages_used": 2,
        "messages_remaining": 1,
        "messages_limit": 3,
        "storage_used_gb": 2.5,
        "storage_limit_gb": 7,
        "agents_used": 2,
        "agents_limit": 9,
    }
    track(db)
    assert (limits(db)["within_limits"], limits(db)["messages_remaining"]) == (False, 0)
    track(db)
    assert (limits(db)["messages_used"], limits(db)["messages_remaining"]) == (4, 0)


def test_yesterday_does_not_count_today(db: Db) -> None:
    limit_to(db, 1)
    track(db)
    db.run(f"update usage_metrics set usage_date = {TODAY} - 1")
    assert (limits(db)["within_limits"], limits(db)["messages_used"]) == (True, 0)


@pytest.mark.parametrize(
    ("change", "within"),
    [
        ("max_storage_gb = 1, storage_used_gb = 1", True),
        ("max_storage_gb = 1, storage_used_gb = 1.001", False),
        ("max_storage_gb = -1, storage_used_gb = 9999", True),
        ("max_agents = 2", True),
        ("max_agents = 1", False),
        ("max_agents = -1", True),
        ("max_messages_per_day = 0", False),
        ("max_messages_per_day = -1", True),
    ],
)
def test_each_limit_counts_and_minus_one_is_unlimited(db: Db, change: str, within: bool) -> None:
    db.update("instances", ANN.instance, config={"agents": agents(2)})
    db.run(f"update subscriptions set {change} where id = %s", ANN.subscription)
    found = limits(db)
    assert found["within_limits"] is within
    assert (found["messages_remaining"] == -1) == (found["messages_limit"] == -1)


def test_messages_of_both_types_together_are_more_than_an_integer_holds(db: Db) -> None:
    most = 2_147_483_000
    row = {"account_id": ANN.account, "instance_id": ANN.instance}
    db.insert("usage_metrics", **row, messages_sent=most, messages_received=most)
    assert track(db) is False
    assert (limits(db)["messages_used"], limits(db)["messages_remaining"]) == (2 * most + 1, 0)
    assert usage(db, "messages_sent, limit_exceeded") == (most + 1, True)
    billed = f"select total_messages from get_billing_metrics(%s, {TODAY}, {TODAY})"
    assert db.one(billed, ANN.account) == 2 * most + 1


@pytest.mark.parametrize(
    "config", [{}, {"agents": None}, {"agents": []}, {"agents": [1, 2]}, {"agents": {"a": 1}}]
)
def test_agents_are_counted_as_the_limit_on_them_counts_them(
    db: Db, config: dict[str, object]
) -> None:
    db.update("instances", ANN.instance, config=config)
    query = "select private.count_agents(config) from instances where id = %s"
    assert limits(db)["agents_used"] == db.one(query, ANN.instance)


# ---- billing

DAYS = st.lists(
    st.tuples(
        st.integers(0, 1),  # which instance
        st.integers(-5, 0),  # which day, from today
        st.integers(0, 50),  # sent
        st.integers(0, 50),  # received
        st.integers(0, 3000),  # MB
        st.dictionaries(st.sampled_from("abc"), st.integers(1, 9)),
        st.dictionaries(st.sampled_from("xyz"), st.integers(1, 9)),
    ),
    unique_by=lambda day: day[:2],
)


@settings(max_examples=60)
@given(DAYS, st.integers(-6, 1), st.integers(0, 6))
def recount(db: Db, days: list[Any], first: int, length: int) -> None:
    today: date = db.one(f"select {TODAY}")
    start, end = today + timedelta(first), today + timedelta(first + length)
    with db.connection.transaction(force_rollback=True):
        instances = [ANN.instance, add_instance(db, ANN, "second")["id"]]
        for which, day, sent, received, mb, named, tools in days:
            db.insert(
                "usage_metrics",
                account_id=ANN.account,
                instance_id=instances[which],
                usage_date=today + timedelta(day),
                messages_sent=sent,
                messages_received=received,
                storage_used_gb=Decimal(mb) / 1000,
                agent_counts=named,
                tool_counts=tools,
            )
        query = "select * from get_billing_metrics(%s, %s, %s)"
        [found] = db.run(query, ANN.account, start, end)
    within = [day for day in days if start <= today + timedelta(day[1]) <= end]
    messages: dict[int, int] = {}
    storage: dict[int, int] = {}
    for _, day, sent, received, mb, *_ in within:
        messages[day] = messages.get(day, 0) + sent + received
        storage[day] = storage.get(day, 0) + mb
    active = [count for count in messages.values() if count]
    assert found == (
        sum(active),
        sum(day[2] for day in within),
        sum(day[3] for day in within),
        Decimal(max(storage.values(), default=0)) / 1000,
        len({name for day in within for name in day[5]}),
        len({name for day in within for name in day[6]}),
        len(active),
        pytest.approx(Decimal(sum(active)) / len(active) if active else 0, abs=Decimal("0.005")),
    )


def test_billing_metrics_equal_a_plain_recount(db: Db) -> None:
    recount(db)


# ---- the end of a day


def test_the_end_of_a_day_clears_the_flags_of_past_days_only_and_once(db: Db) -> None:
    limit_to(db, 0)
    for days in (3, 1):
        track(db)
        db.run(f"update usage_metrics set usage_date = {TODAY} - {days} where usage_date = {TODAY}")
    track(db)
    assert db.one("select reset_daily_usage()") == 2
    found = db.run(
        f"select {TODAY} - usage_date, limit_exceeded, messages_sent from usage_metrics order by 1"
    )
    assert found == [(0, True, 1), (1, False, 1), (3, False, 1)]
    assert db.one("select reset_daily_usage()") == 0


# ---- several at once


def test_64_connections_count_exactly_and_say_once_that_it_is_too_much(platform: Platform) -> None:
    connections, times = 64, 10
    total = connections * times
    with customer_of_its_own(platform) as (db, plan, instance):
        db.update("subscriptions", plan, max_messages_per_day=100)
        calls: list[tuple[str, list[object]]] = [
            (
                "select track_usage(%s, %s, %s, 'p', %s)",
                [instance, f"a{n % 4}", f"t{n % 2}", ("sent", "received")[n % 2]],
            )
            for n in range(connections)
        ]
        answers = at_once(platform, calls, times)
        assert answers.count(True) == 100
        assert len(answers) == total
        [row] = db.run(
            """select messages_sent, messages_received, agent_counts, tool_counts, platforms_active
               from usage_metrics where instance_id = %s""",
            instance,
        )
        assert row == (
            total // 2,
            total // 2,
            {f"a{n}": total // 4 for n in range(4)},
            {f"t{n}": total // 2 for n in range(2)},
            ["p"],
        )
        query = "select count(*) from audit_logs where action = 'usage.limit_exceeded'"
        assert db.one(query + " and resource_id = %s", instance) == 1


def test_counting_waits_for_nobody_who_holds_the_instance_or_the_subscription(
    platform: Platform,
) -> None:
    with (
        customer_of_its_own(platform) as (db, plan, instance),
        psycopg.connect(platform.url) as other,
    ):
        db.run("select track_usage(%s)", instance)
        db.run("update instances set last_active_at = null where id = %s", instance)
        db.run(
            "update usage_metrics set activity_noted_until = null where instance_id = %s", instance
        )
        other.execute("update subscriptions set tier = 'starter' where id = %s", [plan])
        other.execute("update instances set health_status = 'healthy' where id = %s", [instance])
        db.run("set lock_timeout = '100ms'")
        assert db.one("select track_usage(%s)", instance) is True
        other.commit()
        assert db.one("select track_usage(%s)", instance) is True
        assert db.one("select last_active_at is not null from instances where id = %s", instance)


def test_billing_waits_for_no_message_that_is_being_counted(platform: Platform) -> None:
    with (
        customer_of_its_own(platform) as (db, plan, instance),
        psycopg.connect(platform.url) as other,
    ):
        db.run("select track_usage(%s)", instance)
        other.execute("select track_usage(%s)", [instance])  # not committed
        db.run("set lock_timeout = '100ms'")
        db.update("subscriptions", plan, tier="starter")
        db.update("subscriptions", plan, max_messages_per_day=1, status="past_due")
        other.rollback()
