"""The rules of subscriptions: at most one live, limits and features from the catalogue."""

from itertools import product
from typing import Any
from uuid import UUID

import pytest
from psycopg.errors import UniqueViolation

from tests.support.customers import ANN, LIMITS, NEWCOMER, TIERS, Db, catalogue

PLAN = (*LIMITS, "features")
LIVE = ("trialing", "active", "past_due", "paused", "incomplete")


def plan(db: Db, subscription: UUID) -> tuple[Any, ...]:
    [row] = db.run(f"select {', '.join(PLAN)} from subscriptions where id = %s", subscription)
    return row


@pytest.mark.parametrize("status", LIVE)
def test_an_account_has_at_most_one_live_subscription(db: Db, status: str) -> None:
    db.update("subscriptions", ANN.subscription, status=status)
    for second in LIVE:
        with db.acting("stripe_handler"), db.refused(UniqueViolation, "one_live_per_account"):
            db.insert("subscriptions", account_id=ANN.account, status=second)


def test_an_account_has_any_number_of_cancelled_subscriptions_beside_a_live_one(db: Db) -> None:
    with db.acting("stripe_handler"):
        for _ in range(3):
            db.insert("subscriptions", account_id=ANN.account, status="cancelled")
        db.update("subscriptions", ANN.subscription, status="cancelled")
        db.insert("subscriptions", account_id=ANN.account, status="active")
    assert db.counts(ANN)["public.subscriptions"] == 5


@pytest.mark.parametrize("tier", TIERS)
def test_limits_and_features_come_from_the_catalogue_on_insert(db: Db, tier: str) -> None:
    db.sign_up(NEWCOMER, NEWCOMER.email)
    db.run("update private.tiers set max_agents = 77 where tier = %s", tier)
    with db.acting("stripe_handler"):
        row = db.insert("subscriptions", account_id=NEWCOMER.account, tier=tier)
    assert tuple(row[name] for name in PLAN) == catalogue(db, tier, PLAN)
    assert row["max_agents"] == 77


@pytest.mark.parametrize(("old", "new"), [(a, b) for a, b in product(TIERS, TIERS) if a != b])
def test_limits_and_features_follow_a_change_of_tier(db: Db, old: str, new: str) -> None:
    db.update("subscriptions", ANN.subscription, tier=old)
    assert plan(db, ANN.subscription) == catalogue(db, old, PLAN)
    with db.acting("stripe_handler"):
        db.update("subscriptions", ANN.subscription, tier=new)
    assert plan(db, ANN.subscription) == catalogue(db, new, PLAN) != catalogue(db, old, PLAN)


@pytest.mark.parametrize("column", PLAN)
def test_what_the_writer_states_goes_before_the_catalogue(db: Db, column: str) -> None:
    db.sign_up(NEWCOMER, NEWCOMER.email)
    stated: object = {"sso": True} if column == "features" else 4242
    wanted = dict(zip(PLAN, catalogue(db, "free", PLAN), strict=True)) | {column: stated}
    with db.acting("stripe_handler"):
        row = db.insert(
            "subscriptions", account_id=NEWCOMER.account, tier="free", **{column: stated}
        )
        db.update("subscriptions", ANN.subscription, tier="free", **{column: stated})
    assert {name: row[name] for name in PLAN} == wanted
    assert plan(db, ANN.subscription) == tuple(wanted.values())
    db.update("subscriptions", ANN.subscription, tier="free", status="past_due")  # no change of it
    assert plan(db, ANN.subscription) == tuple(wanted.values())


def test_cancelled_at_says_when_and_goes_when_it_is_revived(db: Db) -> None:
    for status, said in (("cancelled", True), ("active", False)):
        db.update("subscriptions", ANN.subscription, status=status)
        query = "select cancelled_at = now() from subscriptions where id = %s"
        assert bool(db.one(query, ANN.subscription)) is said
