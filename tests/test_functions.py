"""The promises of the functions, on a real server. Who may call which is test_authorization.py's.

Most tests are rolled back; those that need several connections make customers of their own.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import date, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from customers import ANN, BOB, NEWCOMER, ZONES, Customer, Db, add_instance, agents, catalogue
from hypothesis import given, settings
from hypothesis import strategies as st
from platforms import Platform
from psycopg.errors import (
    CheckViolation,
    InsufficientPrivilege,
    InvalidParameterValue,
    NoDataFound,
    NullValueNotAllowed,
    ObjectNotInPrerequisiteState,
)

TODAY = "(now() at time zone 'utc')::date"
NOBODY = "00000000-0000-4000-8000-000000000000"


def track(db: Db, customer: Customer = ANN, **given: object) -> bool:
    names = "".join(f", {name} => %s" for name in given)
    query = f"select track_usage(instance_id => %s{names})"
    return bool(db.one(query, customer.instance, *given.values()))


def usage(db: Db, columns: str, customer: Customer = ANN) -> tuple[Any, ...]:
    [row] = db.run(f"select {columns} from usage_metrics where instance_id = %s", customer.instance)
    return row


def limit_to(db: Db, messages: int) -> None:
    db.update("subscriptions", ANN.subscription, max_messages_per_day=messages)


def limits(db: Db, customer: Customer = ANN) -> dict[str, Any]:
    row = db.run("select to_jsonb(l) from check_usage_limits(%s) l", customer.instance)
    [[found]] = row
    return dict(found)


def said(db: Db, action: str, customer: Customer = ANN) -> list[dict[str, Any]]:
    """The details of what the audit log says of a customer."""
    return [row[4] for row in db.audited(customer).values() if row[0] == action]


# ---- what is refused

REFUSED = [
    ("get_user_instance(null)", NullValueNotAllowed),
    ("get_all_user_instances(null)", NullValueNotAllowed),
    ("has_active_subscription(null)", NullValueNotAllowed),
    ("check_user_permission({ann}, null)", NullValueNotAllowed),
    ("check_user_permission(null, 'sso')", NullValueNotAllowed),
    ("check_usage_limits(null)", NullValueNotAllowed),
    ("check_usage_limits({nobody})", NoDataFound),
    ("get_billing_metrics(null, '2026-01-01', '2026-01-01')", NullValueNotAllowed),
    ("get_billing_metrics({ann}, null, '2026-01-01')", NullValueNotAllowed),
    ("get_billing_metrics({ann}, '2026-01-01', null)", NullValueNotAllowed),
    ("get_billing_metrics({ann}, '2026-01-02', '2026-01-01')", InvalidParameterValue),
    ("get_billing_metrics({nobody}, '2026-01-01', '2026-01-01')", NoDataFound),
    ("track_usage(null)", NullValueNotAllowed),
    ("track_usage({nobody})", NoDataFound),
    ("track_usage({instance}, message_type => null)", InvalidParameterValue),
    ("track_usage({instance}, message_type => 'read')", InvalidParameterValue),
    ("track_usage({instance}, agent => '')", InvalidParameterValue),
    ("track_usage({instance}, tool => repeat('x', 101))", InvalidParameterValue),
    ("track_usage({instance}, 'a', platform => '')", InvalidParameterValue),
    ("provision_instance(null)", NullValueNotAllowed),
    ("provision_instance({subscription}, null)", NullValueNotAllowed),
    ("provision_instance({nobody})", NoDataFound),
    ("provision_instance({subscription}, '[]')", CheckViolation),
    ("deprovision_instance(null)", NullValueNotAllowed),
    ("deprovision_instance({nobody})", NoDataFound),
    ("update_instance_health(null, 'healthy')", NullValueNotAllowed),
    ("update_instance_health({nobody}, 'healthy')", NoDataFound),
    ("update_instance_health({instance}, 'fine')", InvalidParameterValue),
    ("update_instance_health({instance}, null)", InvalidParameterValue),
    ("update_instance_health({instance}, 'healthy', null)", NullValueNotAllowed),
    ("calculate_storage_usage(null)", NullValueNotAllowed),
    ("calculate_storage_usage({nobody})", NoDataFound),
]


@pytest.mark.parametrize("row", ["no row of the day", "a row of the day"])
@pytest.mark.parametrize(("call", "error"), REFUSED)
def test_what_makes_no_sense_is_an_error_with_a_hint(
    db: Db, call: str, error: type[psycopg.Error], row: str
) -> None:
    if row == "a row of the day":
        track(db)
    ids = {
        "ann": f"'{ANN.account}'",
        "subscription": f"'{ANN.subscription}'",
        "instance": f"'{ANN.instance}'",
        "nobody": f"'{NOBODY}'",
    }
    with pytest.raises(error) as caught, db.connection.transaction():
        db.run(f"select {call.format(**ids)}")
    assert caught.type is error
    assert caught.value.diag.message_hint


# ---- users ask


def test_the_newest_running_instance_is_the_users(db: Db) -> None:
    def found() -> Any:
        return [row[0] for row in db.run("select id from get_user_instance(%s)", ANN.account)]

    newer = add_instance(db, ANN, "newer", status="running", created_at="2126-01-01")["id"]
    assert found() == [newer]
    db.update("instances", newer, status="stopped")
    assert found() == [ANN.instance]
    db.update("instances", ANN.instance, status="stopped")
    assert found() == []


def test_a_users_instance_comes_with_its_plan(db: Db) -> None:
    db.update("instances", ANN.instance, api_url="https://api", config={"agents": {"a": {}}})
    [[row]] = db.run("select to_jsonb(i) from get_user_instance(%s) i", ANN.account)
    [features] = catalogue(db, ANN.tier, ("features",))
    assert row == {
        "id": str(ANN.instance),
        "subdomain": ANN.name,
        "frontend_url": None,
        "api_url": "https://api",
        "matrix_url": None,
        "status": "running",
        "tier": ANN.tier,
        "config": {"agents": {"a": {}}},
        "features": features,
    }


def test_all_instances_of_a_user_newest_first_removed_ones_included(db: Db) -> None:
    old = add_instance(db, ANN, "old", status="deprovisioned", created_at="2020-01-01")["id"]
    new = add_instance(db, ANN, "new", created_at="2126-01-01")["id"]
    found = db.run("select id from get_all_user_instances(%s)", ANN.account)
    assert [row[0] for row in found] == [new, ANN.instance, old]


PAST, FUTURE = "now() - interval '1 s'", "now() + interval '1 s'"
LIVE = [
    ("status = 'active'", True),
    (f"status = 'active', current_period_end = {FUTURE}", True),
    (f"status = 'active', current_period_end = {PAST}", False),
    (f"status = 'active', current_period_end = {FUTURE}, trial_ends_at = {PAST}", True),
    ("status = 'trialing'", True),
    (f"status = 'trialing', trial_ends_at = {FUTURE}", True),
    (f"status = 'trialing', trial_ends_at = {PAST}", False),
    (f"status = 'trialing', current_period_end = {PAST}", False),
    *((f"status = '{each}'", False) for each in ("past_due", "paused", "incomplete", "cancelled")),
]


@pytest.mark.parametrize(("change", "live"), LIVE)
def test_live_means_active_or_trialing_and_not_past_its_end(
    db: Db, change: str, live: bool
) -> None:
    db.run(f"update subscriptions set {change} where id = %s", ANN.subscription)
    assert db.one("select has_active_subscription(%s)", ANN.account) is live
    assert db.one("select check_user_permission(%s, 'api_access')", ANN.account) is live
    assert len(db.run("select 1 from get_user_instance(%s)", ANN.account)) == live
    provision = "select provision_instance(%s)"
    if live:
        db.one(provision, ANN.subscription)
    else:
        with db.refused(ObjectNotInPrerequisiteState):
            db.one(provision, ANN.subscription)


def test_a_permission_is_the_plans_flag_and_false_when_unknown(db: Db) -> None:
    [features] = catalogue(db, ANN.tier, ("features",))
    for permission, flag in [*features.items(), ("fly", False), ("", False)]:
        query = "select check_user_permission(%s, %s)"
        assert db.one(query, ANN.account, permission) is flag


def test_who_has_no_account_has_nothing(db: Db) -> None:
    assert db.one("select has_active_subscription(%s)", NOBODY) is False
    assert db.run("select 1 from get_user_instance(%s)", NOBODY) == []


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


# ---- storage


def test_storage_is_summed_over_all_instances_of_the_subscription(db: Db) -> None:
    db.update("instances", ANN.instance, storage_used_gb=1.5)
    add_instance(db, ANN, "stopped", status="stopped", storage_used_gb=2)
    add_instance(db, ANN, "gone", status="deprovisioned", storage_used_gb=64)
    db.update("instances", BOB.instance, storage_used_gb=128)
    calculate = "select calculate_storage_usage(%s)"
    for used, total in ((1.5, 3.5), (0.5, 2.5)):
        db.update("instances", ANN.instance, storage_used_gb=used)
        for _ in range(2):
            assert float(db.one(calculate, ANN.instance)) == used
            query = "select storage_used_gb from subscriptions where id = %s"
            assert float(db.one(query, ANN.subscription)) == total
    assert usage(db, "storage_used_gb::float, messages_sent") == (1.5, 0)  # the day's peak


# ---- instances


def test_a_new_instance_has_unique_names_and_the_tiers_resources(db: Db) -> None:
    with db.acting("instance_provisioner"):
        new = [
            db.one("select provision_instance(%s, %s)", ANN.subscription, {"a": 1})
            for _ in range(20)
        ]
    resources = ("cpu_limit", "memory_limit_mb", "storage_limit_gb")
    rows = db.run(
        f"""select app_name, subdomain, account_id, status, config, {", ".join(resources)}
            from instances where id = any(%s)""",
        new,
    )
    assert len({row[0] for row in rows}) == len({row[1] for row in rows}) == 20
    assert {row[2:4] for row in rows} == {(ANN.account, "provisioning")}
    assert all(row[4] == {"a": 1} for row in rows)
    assert {row[5:] for row in rows} == {catalogue(db, ANN.tier, resources)}
    assert len(said(db, "instance.created")) == 21


def test_more_agents_than_the_plan_allows_are_not_provisioned(db: Db) -> None:
    db.update("subscriptions", ANN.subscription, max_agents=2)
    with db.refused(CheckViolation, "the plan allows 2"):
        db.one("select provision_instance(%s, %s)", ANN.subscription, {"agents": agents(3)})


def test_removal_begins_once_and_says_why(db: Db) -> None:
    remove = "select deprovision_instance(%s, %s)"
    with db.acting("instance_provisioner"):
        assert db.one(remove, ANN.instance, "asked for") is True
        assert db.one(remove, ANN.instance, "asked again") is False
        db.update("instances", ANN.instance, status="deprovisioned")
        assert db.one(remove, ANN.instance, None) is False
    [first, second] = sorted(said(db, "instance.updated"), key=lambda each: each["new"]["status"])
    assert first["new"] == {"status": "deprovisioned"}
    assert "reason" not in first
    assert second["old"] == {"status": "running"}
    assert second["reason"] == "asked for"


@pytest.mark.parametrize("status", ["provisioning", "running", "stopped", "failed", "maintenance"])
def test_removal_begins_from_every_status(db: Db, status: str) -> None:
    instance = add_instance(db, ANN, "another", status=status)["id"]
    assert db.one("select deprovision_instance(%s)", instance) is True


HEALTH = ("unknown", "healthy", "degraded", "critical")


@pytest.mark.parametrize("old", HEALTH)
@pytest.mark.parametrize("new", HEALTH)
def test_health_is_audited_only_when_it_changes_to_or_from_critical(
    db: Db, old: str, new: str
) -> None:
    db.update("instances", ANN.instance, health_status=old)
    with db.acting("instance_provisioner"):
        for _ in range(2):
            db.run("select update_instance_health(%s, %s, %s)", ANN.instance, new, {"pods": 2})
    query = "select health_status, health_details, last_health_check = now() from instances"
    assert db.run(query + " where id = %s", ANN.instance) == [(new, {"pods": 2}, True)]
    audited = [{"old": old, "new": new}] if old != new and "critical" in (old, new) else []
    assert said(db, "instance.health_changed") == audited


# ---- unused instances

UNUSED = [
    ("created_at = now() - interval '8 days'", True),
    ("created_at = now() - interval '6 days'", False),
    (
        "created_at = now() - interval '9 days', last_active_at = now() - interval '8 days'",
        True,
    ),
    ("created_at = now() - interval '9 days', last_active_at = now() - interval '6 days'", False),
    (
        "created_at = now() - interval '9 days', last_health_check = now()",
        True,
    ),
    ("created_at = now() - interval '9 days', started_at = now() - interval '1 day'", False),
]


@pytest.mark.parametrize(("change", "paused"), UNUSED)
def test_an_unused_instance_of_the_free_tier_is_stopped_and_that_is_said_once(
    db: Db, change: str, paused: bool
) -> None:
    db.update("subscriptions", ANN.subscription, tier="free")
    db.run(f"update instances set {change} where account_id in (%s, %s)", ANN.account, BOB.account)
    pause = "select auto_pause_inactive_instances()"
    assert db.run(pause) == ([(ANN.instance,)] if paused else [])
    assert db.run(pause) == []
    statuses = db.run(
        "select status from instances where id in (%s, %s) order by app_name",
        ANN.instance,
        BOB.instance,
    )
    assert statuses == [("stopped" if paused else "running",), ("running",)]
    assert len(said(db, "instance.updated")) == paused
    if paused:
        assert said(db, "instance.updated")[0]["reason"] == "unused for 7 days"


def test_who_starts_a_paused_instance_has_days_again(db: Db) -> None:
    db.update("subscriptions", ANN.subscription, tier="free")
    db.update("instances", ANN.instance, created_at="2026-01-01", status="stopped")
    db.update("instances", ANN.instance, status="running")
    assert db.run("select auto_pause_inactive_instances()") == []


# ---- retention


def test_what_has_no_time_left_goes_and_the_rest_stays(db: Db) -> None:
    db.run("delete from audit_logs")
    for days in (89, 91):
        db.run(
            """insert into audit_logs (account_id, action, category, created_at)
               values (%s, 'thing.done', 'test', now() - make_interval(days => %s))""",
            ANN.account,
            days,
        )
    for days in (364, 366):
        db.run(
            f"""insert into usage_metrics (account_id, instance_id, usage_date)
                values (%s, %s, {TODAY} - %s)""",
            ANN.account,
            ANN.instance,
            days,
        )
    for created in ("now()", "now() - interval '2 days'"):
        db.run(
            f"""insert into instance_backups (account_id, instance_id, retention_days, created_at)
                values (%s, %s, 1, {created})""",
            ANN.account,
            ANN.instance,
        )
        db.run(
            f"""insert into api_keys
                  (account_id, name, key_prefix, key_hash, created_at, expires_at)
                values (%s, 'key', 'mr_12345', encode(sha256(({created})::text::bytea), 'hex'),
                        {created}, {created} + interval '1 day')""",
            ANN.account,
        )
    for days in (89, 91):
        db.run(
            """insert into private.stripe_events (event_id, type, outcome, created_at, received_at)
               select 'evt_' || days, 'a.b', 'ignored', now(), now() - make_interval(days => days)
                 from (values (%s)) as given (days)""",
            days,
        )
    cleanup = "select cleanup_expired_data()"
    tables = ("api_keys", "audit_logs", "instance_backups", "stripe_events", "usage_metrics")
    once = dict.fromkeys(tables, 1)
    assert db.one(cleanup) == once
    assert db.one(cleanup) == dict.fromkeys(once, 0)
    assert db.one("select count(*) from audit_logs where action = 'thing.done'") == 1
    assert db.one("select count(*) from usage_metrics") == 1
    assert db.one("select count(*) from instance_backups") == 1
    assert db.run("select event_id from private.stripe_events") == [("evt_89",)]
    assert db.run("select is_active from api_keys order by 1") == [(False,), (True,)]
    db.run("update private.retention set keep_days = 30 where table_name = 'audit_logs'")
    assert db.one(cleanup)["audit_logs"] == 1


def test_more_than_one_batch_goes_in_one_call(db: Db) -> None:
    db.run(
        """insert into audit_logs (action, category, created_at)
           select 'thing.done', 'test', '2020-01-01' from generate_series(1, 12000)"""
    )
    assert db.one("select cleanup_expired_data()")["audit_logs"] == 12_000


# ---- several at once


@contextmanager
def customer_of_its_own(platform: Platform) -> Iterator[tuple[Db, UUID, UUID]]:
    """A committed customer with a subscription and a running instance, removed afterwards."""
    with psycopg.connect(platform.url, autocommit=True) as connection:
        db, account = Db(connection), uuid4()
        db.run(
            "insert into auth.users (id, email) values (%s, %s)", account, f"{account}@x.example"
        )
        plan = db.insert("subscriptions", account_id=account, tier="enterprise")["id"]
        name = f"i{account.hex[:12]}"
        instance = db.insert(
            "instances",
            account_id=account,
            subscription_id=plan,
            app_name=name,
            subdomain=name,
            status="running",
        )["id"]
        try:
            yield db, plan, instance
        finally:
            for status in ("deprovisioning", "deprovisioned"):
                db.run(
                    """update instances set status = %s where account_id = %s
                       and status not in ('deprovisioned', %s)""",
                    status,
                    account,
                    status,
                )
            db.run("delete from auth.users where id = %s", account)
            db.run("delete from audit_logs where account_id = %s", account)


def at_once(platform: Platform, calls: list[tuple[str, list[object]]], times: int = 1) -> list[Any]:
    """Each call on a connection of its own, all beginning together; their first values."""
    start = threading.Barrier(len(calls))

    def run(call: tuple[str, list[object]]) -> list[Any]:
        with psycopg.connect(platform.url, autocommit=True) as connection:
            start.wait()
            found = []
            for _ in range(times):
                row = connection.execute(call[0].encode(), call[1]).fetchone()
                found.append(row[0] if row else None)
            return found

    with ThreadPoolExecutor(len(calls)) as pool:
        return [value for each in pool.map(run, calls) for value in each]


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


def test_two_removals_at_once_one_of_which_begins_it(platform: Platform) -> None:
    with customer_of_its_own(platform) as (_, _, instance):
        calls: list[tuple[str, list[object]]] = [
            ("select deprovision_instance(%s)", [instance]) for _ in range(8)
        ]
        assert sorted(at_once(platform, calls)) == [False] * 7 + [True]


def test_two_provisioners_at_once_get_an_instance_each(platform: Platform) -> None:
    with customer_of_its_own(platform) as (_, plan, _):
        calls: list[tuple[str, list[object]]] = [
            ("select provision_instance(%s)", [plan]) for _ in range(8)
        ]
        assert len(set(at_once(platform, calls))) == 8


def test_jobs_at_once_do_each_thing_once(platform: Platform) -> None:
    with customer_of_its_own(platform) as (db, plan, instance):
        db.update("subscriptions", plan, tier="free")
        db.update("instances", instance, created_at="2026-01-01", started_at="2026-01-01")
        db.run(
            f"""insert into usage_metrics (account_id, instance_id, usage_date, limit_exceeded)
                select account_id, id, {TODAY} - n, true
                from instances, generate_series(1, 300) n where id = %s""",
            instance,
        )
        db.run(
            """insert into audit_logs (action, category, created_at)
               select 'thing.done', 'test', '2020-01-01' from generate_series(1, 3000)"""
        )
        expired = "select (cleanup_expired_data() ->> 'audit_logs')::int"
        assert sum(at_once(platform, [(expired, [])] * 4, times=2)) == 3000
        assert sum(at_once(platform, [("select reset_daily_usage()", [])] * 4)) == 300
        paused = at_once(platform, [("select auto_pause_inactive_instances()", [])] * 4)
        assert [each for each in paused if each] == [instance]
        query = "select count(*) from audit_logs where resource_id = %s and details ? 'reason'"
        assert db.one(query, instance) == 1


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


def test_a_new_instance_and_each_change_of_what_is_wanted_wakes_the_provisioner_on_commit(
    platform: Platform,
) -> None:
    with (
        customer_of_its_own(platform) as (db, plan, instance),
        psycopg.connect(platform.url, autocommit=True) as listener,
        psycopg.connect(platform.url) as writer,
    ):
        listener.execute("listen instances")

        def heard() -> list[str]:
            return [each.payload for each in listener.notifies(timeout=0.2)]

        [new] = writer.execute("select provision_instance(%s)", [plan]).fetchone() or [None]
        assert heard() == []
        writer.commit()
        assert heard() == [str(new)]
        for quiet in ("track_usage(%s)", "update_instance_health(%s, 'critical')"):
            db.run(f"select {quiet}", instance)
        assert heard() == []
        db.update("instances", instance, config={"agents": {}})
        assert heard() == [str(instance)]
        db.update("subscriptions", plan, tier="starter")
        assert sorted(heard()) == sorted([str(instance), str(new)])
        db.run("select deprovision_instance(%s)", instance)
        assert heard() == [str(instance)]


# ---- attacks


def test_no_function_is_led_astray_by_objects_that_stand_in_its_way(db: Db) -> None:
    """A search_path with look-alikes first, as a caller could set it."""
    db.run("create schema evil")
    for table in ("usage_metrics", "instances", "subscriptions", "accounts", "audit_logs"):
        db.run(f"create table evil.{table} (like public.{table})")
    db.run(
        "create function evil.now() returns timestamptz language sql as 'select null::timestamptz'"
    )
    db.run(
        "create function evil.least(text) returns text language plpgsql as"
        " $$ begin raise 'hijacked'; end $$"
    )
    db.run("set local search_path = evil, pg_catalog, public")
    db.run("select public.track_usage(%s, 'a', 't', 'p')", ANN.instance)
    db.run("select public.update_instance_health(%s, 'critical')", ANN.instance)
    db.run("select public.calculate_storage_usage(%s)", ANN.instance)
    new = db.one("select public.provision_instance(%s)", ANN.subscription)
    db.run("select public.deprovision_instance(%s)", new)
    for job in ("reset_daily_usage", "cleanup_expired_data", "auto_pause_inactive_instances"):
        db.run(f"select public.{job}()")
    db.run("set local search_path = public")
    assert usage(db, "messages_sent") == (1,)
    for table in ("usage_metrics", "instances", "audit_logs"):
        assert db.one(f"select count(*) from evil.{table}") == 0


ATTACKS = [
    "update subscriptions set max_messages_per_day = -1",
    "update subscriptions set tier = 'enterprise'",
    "update accounts set stripe_customer_id = 'cus_mine'",
    "update api_keys set permissions = '{admin}'",
    "update instances set account_id = auth.uid()",
    "insert into usage_metrics (account_id, instance_id) select account_id, id from instances",
    "insert into audit_logs (account_id, action, category) values (auth.uid(), 'a.b', 'c')",
    "truncate usage_metrics",
    "select * from private.instance_secrets",
    "select * from private.api_key_hashes",
    "select private.log_audit(null, 'a', 'b', null, null)",
    "select private.begin_usage_day('{ann}')",
    "select private.settle_message('{ann}', null, null, null, 'sent', true, true)",
    "select private.set_instance_status('{ann}', 'stopped', null)",
    "select track_usage('{ann}')",
    "select provision_instance('{ann}')",
    "select deprovision_instance('{ann}')",
    "select cleanup_expired_data()",
]


@pytest.mark.parametrize("role", ["anon", "authenticated"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_refused(db: Db, role: str, attack: str) -> None:
    with db.acting(role, ANN), db.refused(InsufficientPrivilege):
        db.run(attack.replace("{ann}", str(ANN.instance)))


def test_another_customers_rows_are_out_of_reach(db: Db) -> None:
    with db.acting("authenticated", ANN):
        assert db.run("select 1 from audit_logs where account_id = %s", BOB.account) == []
        for query in ("get_all_user_instances(%s)", "get_user_instance(%s)"):
            assert db.run(f"select 1 from {query}", BOB.account) == []
        assert db.run("select 1 from check_usage_limits(%s)", BOB.instance) == []
        query = "select 1 from get_billing_metrics(%s, '2026-01-01', '2026-01-02')"
        assert db.run(query, BOB.account) == []
        with db.refused(InsufficientPrivilege):
            db.insert(
                "support_tickets", account_id=BOB.account, subject="help", description="please"
            )


def test_who_has_no_account_yet_asks_and_is_told_nothing(db: Db) -> None:
    with db.acting("authenticated", NEWCOMER):
        assert db.one("select has_active_subscription(%s)", NEWCOMER.account) is False


# ---- the work of the instance-provisioner

ASKS_FOR_WORK = [
    ({"config": {"agents": {"a": {}}}}, True),
    ({"app_config": {"matrix": {"enabled": True}}}, True),
    ({"subdomain": "another"}, True),
    ({"memory_limit_mb": 1}, True),
    ({"status": "stopped"}, True),
    ({"status": "deprovisioning"}, True),
    ({"status": "maintenance"}, False),
    ({"status": "failed"}, False),
    ({"runtime": "dokku"}, False),
]


@pytest.mark.parametrize(("change", "due"), ASKS_FOR_WORK)
def test_what_the_provisioner_has_to_do_is_due_and_nothing_else(
    db: Db, change: dict[str, Any], due: bool
) -> None:
    work = "select {} from private.provisioning where instance_id = %s"
    db.run("update private.provisioning set due_at = null, attempts = 3")
    before = db.one(work.format("revision"), ANN.instance)
    db.update("instances", ANN.instance, **change)
    [row] = db.run(work.format("due_at is not null, attempts, revision"), ANN.instance)
    assert row == (due, 0, before + 1)


def test_what_the_provisioner_answers_is_no_new_work(db: Db) -> None:
    instance = add_instance(db, ANN, "new")["id"]
    work = "select due_at, revision from private.provisioning where instance_id = %s"
    before = db.run(work, instance)
    assert before[0][0]
    db.update("instances", instance, status="running", frontend_url="https://new.example")
    db.run("select update_instance_health(%s, 'healthy')", instance)
    db.run("select track_usage(%s)", instance)
    assert db.run(work, instance) == before
