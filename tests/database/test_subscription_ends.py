"""What becomes of instances when a subscription ends or begins again, and how many may run.

Most tests are rolled back; those that need several connections make customers of their own.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.errors import CheckViolation, NoDataFound, ObjectNotInPrerequisiteState

from tests.support.customers import (
    ANN,
    BOB,
    STATUSES,
    Db,
    add_instance,
    catalogue,
    customer_of_its_own,
    said,
    wait_until_blocked,
)
from tests.support.platforms import Platform
from tests.support.stripe_events import customer, deleted, send, subscription

GRACE = "7 * interval '24 hours'"
"""Ann's, on the plan professional."""

AT_THE_END = f"now() - {GRACE}"
BEFORE_THE_END = f"now() - {GRACE} + interval '1 microsecond'"

PLANS = [
    ("status = 'active', current_period_end = null", False),
    ("status = 'active', current_period_end = now() - interval '1 day'", False),
    (f"status = 'active', current_period_end = {BEFORE_THE_END}", False),
    (f"status = 'active', current_period_end = {AT_THE_END}", True),
    (f"status = 'active', trial_ends_at = {AT_THE_END}, current_period_end = now()", False),
    (f"status = 'trialing', trial_ends_at = {BEFORE_THE_END}", False),
    (f"status = 'trialing', trial_ends_at = {AT_THE_END}", True),
    (f"status = 'paused', trial_ends_at = {BEFORE_THE_END}", False),
    (f"status = 'paused', trial_ends_at = {AT_THE_END}", True),
    (f"status = 'incomplete', current_period_end = {BEFORE_THE_END}", False),
    (f"status = 'incomplete', current_period_end = {AT_THE_END}", True),
    ("status = 'past_due', current_period_end = '2020-01-01'", False),
    ("status = 'past_due', unpaid = true, current_period_end = '2096-01-01'", True),
    ("status = 'cancelled', current_period_end = '2096-01-01'", True),
]
"""What is said of a subscription, and whether its entitlement has ended."""

INSTANCES = [
    *((status, None) for status in STATUSES),
    ("stopped", "unused"),
]
"""Statuses of an instance, with the platform's reason for a stop."""


def follow(db: Db) -> tuple[int, int, int]:
    done = db.one("select follow_subscriptions()")
    assert set(done) == {"stopped", "removed", "resumed"}
    return done["stopped"], done["removed"], done["resumed"]


def state(db: Db, instance: object = ANN.instance) -> tuple[str, str | None, bool]:
    """Status, reason, and whether its removal is planned."""
    query = "select status, stop_reason, remove_after is not null from instances where id = %s"
    [found] = db.run(query, instance)
    return found


def end(db: Db, plan: UUID = ANN.subscription) -> None:
    db.update("subscriptions", plan, status="cancelled")


def ended(status: str, reason: str | None) -> tuple[str, str | None, bool]:
    """What becomes of an instance whose subscription has ended."""
    match status:
        case "provisioning" | "running":
            return "stopped", "subscription ended", True
        case "stopped" | "failed":
            return status, reason, True
    return status, reason, False


@pytest.mark.parametrize(("plan", "has_ended"), PLANS)
def test_every_instance_follows_its_subscription_to_the_end_and_back(
    db: Db, plan: str, has_ended: bool
) -> None:
    db.run("update private.tiers set max_instances = -1")
    names = {(status, reason): f"i{n}" for n, (status, reason) in enumerate(INSTANCES)}
    ids = {
        key: add_instance(db, ANN, name, status=key[0], stop_reason=key[1])["id"]
        for key, name in names.items()
    }
    db.update("instances", ANN.instance, status="stopped")
    db.run(f"update subscriptions set {plan} where id = %s", ANN.subscription)

    def states() -> dict[tuple[str, str | None], tuple[str, str | None, bool]]:
        return {key: state(db, instance) for key, instance in ids.items()}

    before = {key: (*key, False) for key in ids}
    wanted = {key: ended(*key) for key in ids} if has_ended else before
    follow(db)
    assert states() == wanted
    assert follow(db) == (0, 0, 0)

    with db.connection.transaction(force_rollback=True):
        again = {
            key: ("running", None, False)
            if found[1] == "subscription ended"
            else (found[0], found[1], False)
            for key, found in wanted.items()
        }
        unpaid = "unpaid = false, current_period_end = null, trial_ends_at = null"
        query = f"update subscriptions set status = 'active', {unpaid} where id = %s"
        db.run(query, ANN.subscription)
        assert states() == again
        assert follow(db) == (0, 0, 0)

    db.run(
        "update instances set remove_after = now() + interval '1 microsecond' where remove_after"
        " is not null"
    )
    assert follow(db) == (0, 0, 0)
    db.run("update instances set remove_after = now() where remove_after is not null")
    follow(db)
    gone = {
        key: ("deprovisioning", found[1], True) if found[2] else found
        for key, found in wanted.items()
    }
    assert states() == gone


def test_the_end_is_said_once_to_the_user_and_to_the_audit_log(db: Db) -> None:
    end(db)
    assert follow(db) == (1, 0, 0)
    assert follow(db) == (0, 0, 0)
    [change] = said(db, "instance.updated")
    assert change["reason"] == "the subscription has ended"
    assert (change["old"], change["new"]) == ({"status": "running"}, {"status": "stopped"})
    with db.acting("authenticated", ANN):
        [found] = db.run(
            """select status, stop_reason, remove_after - now() = 60 * interval '24 hours'
               from get_all_user_instances(%s)""",
            ANN.account,
        )
    assert found == ("stopped", "subscription ended", True)
    db.update("instances", ANN.instance, remove_after="2026-01-01")
    assert follow(db) == (0, 1, 0)
    reasons = [each["reason"] for each in said(db, "instance.updated")]
    assert "kept for 60 days after the subscription had ended" in reasons


def test_who_was_stopped_by_somebody_else_stays_stopped_when_the_subscription_is_back(
    db: Db,
) -> None:
    by_hand, broken = (add_instance(db, ANN, name, status="running")["id"] for name in "ab")
    end(db)
    follow(db)
    for instance in (by_hand, broken):
        db.update("instances", instance, status="maintenance")
        db.update("instances", instance, status="stopped" if instance == by_hand else "failed")
    assert state(db, by_hand) == ("stopped", None, True)
    db.insert("subscriptions", account_id=ANN.account, tier="starter")
    assert state(db) == ("running", None, False)
    assert state(db, by_hand) == ("stopped", None, False)
    assert state(db, broken) == ("failed", None, False)


def test_an_instance_in_maintenance_is_left_to_who_works_on_it(db: Db) -> None:
    db.update("instances", ANN.instance, status="maintenance")
    end(db)
    assert follow(db) == (0, 0, 0)
    db.update("instances", ANN.instance, status="running")
    assert follow(db) == (1, 0, 0)


def test_stripe_ends_and_renews(db: Db) -> None:
    """Stripe's unpaid is an end, and its past_due is none, though both are past_due here."""
    said_then = [
        ("past_due", "running"),
        ("unpaid", "stopped"),
        ("past_due", "running"),
        ("unpaid", "stopped"),
        ("active", "running"),
        ("paused", "running"),
    ]
    send(db, customer("created", 0), subscription("created", 1))
    for second, (status, wanted) in enumerate(said_then, 2):
        assert send(db, subscription("updated", second, status)) == ["applied"]
        follow(db)
        assert state(db)[0] == wanted
    send(db, deleted(20))
    assert follow(db) == (1, 0, 0)
    send(db, subscription("created", 21, "incomplete", id_="sub_2", created=21))
    assert state(db) == ("running", None, False)
    send(db, subscription("updated", 22, "incomplete_expired", id_="sub_2", created=21))
    assert follow(db) == (1, 0, 0)
    send(db, subscription("created", 30, id_="sub_3", created=30))
    assert state(db) == ("running", None, False)


def test_a_longer_grace_brings_back_what_the_shorter_one_had_stopped(db: Db) -> None:
    query = f"update subscriptions set current_period_end = {AT_THE_END} where id = %s"
    db.run(query, ANN.subscription)
    assert follow(db) == (1, 0, 0)
    db.run("update private.tiers set grace_days = 30")
    assert follow(db) == (0, 0, 1)
    assert state(db) == ("running", None, False)


def test_a_plan_with_room_for_fewer_starts_those_that_were_used_last(db: Db) -> None:
    used, unused = (
        add_instance(db, ANN, name, status="running", last_active_at=at)["id"]
        for name, at in (("used", "2026-11-01"), ("unused", "2026-01-01"))
    )
    db.update("instances", ANN.instance, created_at="2026-02-01")
    end(db)
    assert follow(db) == (3, 0, 0)
    db.insert("subscriptions", account_id=ANN.account, tier="free")
    assert state(db, used) == ("running", None, False)
    assert state(db, unused) == state(db) == ("stopped", "subscription ended", False)
    assert follow(db) == (0, 0, 0)


def test_many_accounts_are_done_in_batches(db: Db) -> None:
    db.run(
        """with users as (
             insert into auth.users (id, email)
             select gen_random_uuid(), 'many' || n || '@x.example' from generate_series(1, 201) n
             returning id
           )
           select from users"""
    )
    db.run(
        """insert into subscriptions (account_id, tier)
           select id, 'starter' from accounts where email like 'many%@x.example'"""
    )
    db.run(
        """insert into instances (account_id, subscription_id, app_name, subdomain, status)
           select account_id, s.id, 'm' || row_number() over (), 'm' || row_number() over (),
                  'running'
             from subscriptions s join accounts a on a.id = account_id
            where email like 'many%@x.example'"""
    )
    db.run("update subscriptions set status = 'cancelled' where tier = 'starter'")
    assert [follow(db)[0] for _ in range(3)] == [200, 2, 0]  # Bob's, too


# ---- starting


def test_a_user_starts_an_own_stopped_instance(db: Db) -> None:
    db.update("subscriptions", ANN.subscription, tier="free")
    db.update("instances", ANN.instance, created_at="2026-01-01")
    db.run("select auto_pause_inactive_instances()")
    assert state(db) == ("stopped", "unused", False)
    with db.acting("authenticated", ANN):
        assert db.one("select start_instance(%s)", ANN.instance) is True
        assert db.one("select start_instance(%s)", ANN.instance) is False
    assert state(db) == ("running", None, False)
    [started] = [
        (actor, user)
        for action, actor, user, _, details in db.audited(ANN).values()
        if action == "instance.updated" and details["new"] == {"status": "running"}
    ]
    assert started == ("authenticated", ANN.account)
    due = "select due_at <= now() from private.provisioning where instance_id = %s"
    assert db.one(due, ANN.instance) is True
    with db.acting("service_role"):
        db.update("instances", ANN.instance, status="stopped")
        assert db.one("select start_instance(%s)", ANN.instance) is True


START = "select start_instance(%s)"
BY_HAND = """with given as materialized (select set_config('mindroom.start_instance', %s, true))
             update instances set config = config from given where id::text = set_config"""
"""What the function does, without it."""


@pytest.mark.parametrize("call", [START, BY_HAND])
@pytest.mark.parametrize(
    ("plan", "error"),
    [
        ("status = 'cancelled'", ObjectNotInPrerequisiteState),
        ("status = 'past_due'", ObjectNotInPrerequisiteState),
        ("current_period_end = now()", ObjectNotInPrerequisiteState),
        ("tier = 'free'", CheckViolation),
    ],
)
def test_none_is_started_without_a_live_subscription_or_beyond_the_plan(
    db: Db, call: str, plan: str, error: type[psycopg.Error]
) -> None:
    stopped = add_instance(db, ANN, "stopped", status="stopped")["id"]
    db.run(f"update subscriptions set {plan} where id = %s", ANN.subscription)
    with db.acting("authenticated", ANN), db.refused(error):
        db.run(call, str(stopped))
    assert state(db, stopped)[0] == "stopped"


@pytest.mark.parametrize("status", ["failed", "maintenance", "deprovisioning", "deprovisioned"])
def test_only_what_is_stopped_can_be_started(db: Db, status: str) -> None:
    other = add_instance(db, ANN, "other", status=status)["id"]
    with db.acting("authenticated", ANN):
        with db.refused(ObjectNotInPrerequisiteState, match=f"is {status}, not stopped"):
            db.run(START, other)
        db.run(BY_HAND, str(other))
    assert state(db, other)[0] == status


def test_nobody_starts_anothers_instance(db: Db) -> None:
    db.update("instances", BOB.instance, status="stopped")
    with db.acting("authenticated", ANN):
        with db.refused(NoDataFound):
            db.run(START, BOB.instance)
        db.run(BY_HAND, str(BOB.instance))
    assert state(db, BOB.instance)[0] == "stopped"


# ---- how many


def test_a_smaller_plan_stops_none_and_lets_none_be_started_or_provisioned(db: Db) -> None:
    stopped = add_instance(db, ANN, "stopped", status="stopped")["id"]
    running = add_instance(db, ANN, "running", status="running")["id"]
    db.update("subscriptions", ANN.subscription, tier="free")
    assert follow(db) == (0, 0, 0)
    assert state(db, running)[0] == state(db)[0] == "running"
    provision = "select provision_instance(%s)"
    with db.refused(CheckViolation, match="has 3 instances, the plan allows 1"):
        db.run(provision, ANN.subscription)
    with db.refused(CheckViolation, match="has 2 instances, the plan allows 1"):
        db.run(START, stopped)
    for instance in (ANN.instance, running):
        db.update("instances", instance, status="stopped")
    db.run(START, stopped)
    for instance in (ANN.instance, running):
        db.update("instances", instance, status="deprovisioning")
    with db.refused(CheckViolation, match="has 1 instances, the plan allows 1"):
        db.run(provision, ANN.subscription)
    db.update("subscriptions", ANN.subscription, tier="starter")
    for _ in range(catalogue(db, "starter", ("max_instances",))[0] - 1):
        db.run(provision, ANN.subscription)
    with db.refused(CheckViolation, match="has 5 instances, the plan allows 5"):
        db.run(provision, ANN.subscription)
    db.update("subscriptions", ANN.subscription, tier="enterprise")
    db.run(provision, ANN.subscription)


CALLS = 12


@pytest.fixture
def starter(platform: Platform) -> Iterator[tuple[Db, UUID, UUID]]:
    with customer_of_its_own(platform) as (db, plan, instance):
        db.update("subscriptions", plan, tier="starter")
        yield db, plan, instance


def each_at_once(platform: Platform, calls: list[tuple[str, UUID]]) -> list[Any]:
    """The value of each call, or the type of its error."""

    def run(call: tuple[str, UUID]) -> Any:
        with psycopg.connect(platform.url, autocommit=True) as connection:
            try:
                return Db(connection).one(*call)
            except psycopg.Error as error:
                return type(error)

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


def test_many_at_once_stay_within_the_number(
    platform: Platform, starter: tuple[Db, UUID, UUID]
) -> None:
    db, plan, instance = starter
    provision = ("select provision_instance(%s)", plan)
    made = each_at_once(platform, [provision] * CALLS)
    assert made.count(CheckViolation) == CALLS - 4
    assert sum(isinstance(each, UUID) for each in made) == 4
    account = db.one("select account_id from instances where id = %s", instance)
    for _ in range(CALLS):
        row = {"account_id": account, "subscription_id": plan, "status": "stopped"}
        name = f"s{uuid4().hex[:12]}"
        db.insert("instances", **row, app_name=name, subdomain=name)
    db.run(
        """update instances set status = 'deprovisioning'
            where account_id = %s and status = 'provisioning'""",
        account,
    )
    rows = db.run("select id from instances where account_id = %s and status = 'stopped'", account)
    started = each_at_once(platform, [(START, key) for [key] in rows])
    assert started.count(True) == 4
    assert started.count(CheckViolation) == CALLS - 4


def test_a_subscription_that_begins_while_the_old_ones_end_is_followed_has_the_last_word(
    platform: Platform, starter: tuple[Db, UUID, UUID]
) -> None:
    db, plan, instance = starter
    end(db, plan)
    account = db.one("select account_id from subscriptions where id = %s", plan)
    with (
        psycopg.connect(platform.url) as job,
        psycopg.connect(platform.url, autocommit=True) as stripe,
        ThreadPoolExecutor(1) as pool,
    ):
        assert follow(Db(job)) == (1, 0, 0)
        begin = "insert into subscriptions (account_id, tier) values (%s, 'starter') returning id"
        beginning = pool.submit(Db(stripe).one, begin, account)
        wait_until_blocked(db, stripe, beginning)
        job.commit()
        new = beginning.result()
    assert state(db, instance) == ("running", None, False)
    with psycopg.connect(platform.url) as stripe:
        end(Db(stripe), new)
        assert follow(db) == (0, 0, 0)  # does not wait for who changes the account
        stripe.commit()
    assert follow(db) == (1, 0, 0)
