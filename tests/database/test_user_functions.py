"""What a user asks of the own account is answered as promised, on a real server."""

from typing import Any

import pytest
from psycopg.errors import ObjectNotInPrerequisiteState

from tests.support.customers import ANN, NOBODY, Db, add_instance, catalogue


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


def test_all_instances_of_a_user_come_with_the_plan_that_is_in_force(db: Db) -> None:
    add_instance(db, ANN, "old", status="deprovisioned")
    query = "select distinct tier, subscription_status from get_all_user_instances(%s)"
    assert db.run(query, ANN.account) == [(ANN.tier, "active")]
    db.update("subscriptions", ANN.subscription, status="cancelled")
    with db.acting("authenticated", ANN):
        assert db.run(query, ANN.account) == [(ANN.tier, "cancelled")]
    db.insert("subscriptions", account_id=ANN.account, tier="free", status="past_due")
    assert db.run(query, ANN.account) == [("free", "past_due")]


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
