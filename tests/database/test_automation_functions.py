"""What the jobs' functions do to unused instances and to what is past its time, on a real server.

Most tests are rolled back; those that need several connections make customers of their own.
"""

from datetime import UTC, datetime, timedelta

import pytest

from tests.support.customers import ANN, BOB, TODAY, Db, at_once, customer_of_its_own, said
from tests.support.platforms import Platform

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
        reason = "select stop_reason from instances where id = %s"
        assert db.one(reason, ANN.instance) == "unused"


def test_who_starts_a_paused_instance_has_days_again(db: Db) -> None:
    db.update("subscriptions", ANN.subscription, tier="free")
    db.update("instances", ANN.instance, created_at="2026-01-01", status="stopped")
    db.update("instances", ANN.instance, status="running")
    assert db.run("select auto_pause_inactive_instances()") == []


# ---- the session's time zone


@pytest.fixture(params=["a day of 23 hours", "a day of 25 hours"])
def zone(request: pytest.FixtureRequest, db: Db) -> None:
    """A time zone whose clocks were changed three days ago."""
    changed, back = (
        (datetime.now(UTC) - timedelta(days=days)).timetuple().tm_yday - 1 for days in (3, 183)
    )
    days = (changed, back) if request.param == "a day of 23 hours" else (back, changed)
    db.run(f"set local timezone = 'AAA0BBB,{days[0]},{days[1]}'")
    shift = "select now() - interval '7 days' <> now() - interval '168 hours'"
    assert db.one(shift)


@pytest.mark.usefixtures("zone")
@pytest.mark.parametrize("minutes", [-30, 30])
def test_the_sessions_time_zone_moves_no_cut_off(db: Db, minutes: int) -> None:
    age = f"now() - interval '168 hours {minutes} minutes'"
    db.update("subscriptions", ANN.subscription, tier="free")
    db.run(f"update instances set created_at = {age} where id = %s", ANN.instance)
    paused = db.run("select auto_pause_inactive_instances()")
    assert paused == ([(ANN.instance,)] if minutes > 0 else [])
    db.run("delete from audit_logs")
    db.run("update private.retention set keep_days = 7 where table_name = 'audit_logs'")
    db.run(
        f"""insert into audit_logs (account_id, action, category, created_at)
            values (%s, 'thing.done', 'test', {age})""",
        ANN.account,
    )
    assert db.one("select cleanup_expired_data()")["audit_logs"] == (minutes > 0)


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
    for days in (2, 4):
        db.run(
            """insert into private.usage_events (instance_id, event_id, recorded_at)
               values (%s, %s, now() - make_interval(days => %s))""",
            ANN.instance,
            f"{days} days old",
            days,
        )
    for days in (89, 91):
        db.run(
            """insert into private.stripe_events (event_id, type, outcome, created_at, received_at)
               select 'evt_' || days, 'a.b', 'ignored', now(), now() - make_interval(days => days)
                 from (values (%s)) as given (days)""",
            days,
        )
        for owner in (None, ANN.account):
            db.run(
                """insert into private.stripe_customers (customer_id, account_id, recorded_at)
                   select concat('cus_', days, owner), owner, now() - make_interval(days => days)
                     from (values (%s, %s::uuid)) as given (days, owner)""",
                days,
                owner,
            )
        db.run(
            """insert into private.released_subdomains (subdomain, account_id, released_at)
               values (%s, %s, now() - make_interval(days => %s))""",
            f"ada-{days}",
            ANN.account,
            days,
        )
    cleanup = "select cleanup_expired_data()"
    once = dict.fromkeys((row[0] for row in db.run("select table_name from private.retention")), 1)
    assert db.one(cleanup) == once
    assert db.one(cleanup) == dict.fromkeys(once, 0)
    assert db.one("select count(*) from audit_logs where action = 'thing.done'") == 1
    assert db.one("select count(*) from usage_metrics") == 1
    assert db.one("select count(*) from instance_backups") == 1
    events = "select event_id from private.usage_events where instance_id = %s"
    assert db.run(events, ANN.instance) == [("2 days old",)]
    assert db.run("select event_id from private.stripe_events") == [("evt_89",)]
    assert db.one("select count(*) from private.stripe_customers where account_id is null") == 1
    assert db.one("select count(*) from private.stripe_customers") == 3
    assert db.run("select is_active from api_keys order by 1") == [(False,), (True,)]
    released = "select subdomain from private.released_subdomains where subdomain like 'ada-%'"
    assert db.run(released) == [("ada-89",)]
    db.run("update private.retention set keep_days = 30 where table_name = 'audit_logs'")
    assert db.one(cleanup)["audit_logs"] == 1


def test_more_than_one_batch_goes_in_one_call(db: Db) -> None:
    """On a machine that gives it the time: of five calls, one at least finds a second for two."""

    def removed() -> int:
        db.run(
            """insert into audit_logs (action, category, created_at)
               select 'thing.done', 'test', '2020-01-01' from generate_series(1, 12000)"""
        )
        return int(db.one("select cleanup_expired_data()")["audit_logs"])

    assert any(removed() > 5_000 for _ in range(5))


# ---- several at once


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
