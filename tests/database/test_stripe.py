"""Stripe's door: what each event does, on a real server, in any order and any number of times."""

import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.errors import (
    InsufficientPrivilege,
    InvalidParameterValue,
    NullValueNotAllowed,
)
from psycopg.types.json import Jsonb

from components.authorization import AUTHORIZATION
from tests.support.customers import ANN, BOB, NEWCOMER, Db, add_instance, catalogue
from tests.support.platforms import Platform
from tests.support.stripe_events import (
    MONTH,
    START,
    STATUSES,
    Event,
    at,
    customer,
    deleted,
    error_of,
    event,
    fetched,
    invoice,
    linked,
    plans,
    refused,
    send,
    start_without_a_plan,
    subscription,
)

# ---- what an event does


def test_a_customers_life_from_sign_up_to_the_end(db: Db) -> None:
    said = send(
        db,
        customer("created", 0),
        subscription("created", 1, "incomplete"),
        subscription("updated", 2, tier="professional"),
    )
    assert said == ["applied"] * 3
    assert linked(db) == "cus_1"
    columns = "tier, status, stripe_price_id, current_period_start, current_period_end"
    plan = plans(db, columns)["sub_1"]
    assert plan == ("professional", "active", "price_professional", at(0), at(MONTH))
    limits = ("max_messages_per_day", "max_agents", "features")
    assert plans(db, ", ".join(limits))["sub_1"] == catalogue(db, "professional", limits)
    assert send(db, deleted(9)) == ["applied"]
    assert plans(db, "status, cancelled_at")["sub_1"] == ("cancelled", at(9))
    assert send(db, customer("deleted", 10)) == ["applied"]
    assert linked(db) is None


@pytest.mark.parametrize(("theirs", "ours"), STATUSES.items())
def test_every_status_of_stripes_is_mapped(db: Db, theirs: str, ours: str) -> None:
    start_without_a_plan(db)
    send(db, customer("created", 0), subscription("updated", 1, theirs))
    assert plans(db) == {"sub_1": ours}


def test_a_subscription_that_was_deleted_is_cancelled_whatever_it_says(db: Db) -> None:
    send(db, customer("created", 0), subscription("deleted", 5, "active"))
    assert plans(db, "status, cancelled_at")["sub_1"] == ("cancelled", at(5))


def test_a_cancellation_at_the_periods_end_is_noted_and_can_be_taken_back(db: Db) -> None:
    send(db, customer("created", 0), subscription("updated", 5, canceled_at=START + 4))
    assert plans(db, "status, cancelled_at")["sub_1"] == ("active", at(4))
    send(db, subscription("updated", 6))
    assert plans(db, "status, cancelled_at")["sub_1"] == ("active", None)


def test_a_trial_has_its_dates(db: Db) -> None:
    trial: Event = {"trial_start": START, "trial_end": START + 7}
    send(db, customer("created", 0), subscription("created", 1, "trialing", **trial))
    found = plans(db, "status, trial_started_at, trial_ends_at")["sub_1"]
    assert found == ("trialing", at(0), at(7))


def test_the_shapes_of_older_api_versions_are_read(db: Db) -> None:
    old = subscription("updated", 1, current_period_start=START + 3, current_period_end=START + 4)
    [item] = old["data"]["object"]["items"]["data"]
    del item["current_period_start"], item["current_period_end"]
    send(db, customer("created", 0), old)
    found = plans(db, "status, current_period_start, current_period_end")["sub_1"]
    assert found == ("active", at(3), at(4))


@pytest.mark.parametrize(
    ("metadata", "price", "tier"),
    [
        ({}, {"lookup_key": "enterprise"}, "enterprise"),
        ({}, {"lookup_key": "enterprise_yearly"}, "enterprise"),
        ({}, {"lookup_key": "enterprise-monthly"}, "enterprise"),
        ({}, {"lookup_key": "a-key", "metadata": {"tier": "enterprise"}}, "enterprise"),
        ({"tier": "enterprise"}, {"lookup_key": None}, "enterprise"),
        ({"tier": "enterprise"}, {"lookup_key": "a-key"}, "enterprise"),
        ({"tier": "enterprise"}, {"lookup_key": "starter"}, "starter"),  # the plan was changed
        ({}, {"lookup_key": "enterprise_annual"}, "enterprise"),
        ({}, {"lookup_key": "enterprise-year-eur"}, "enterprise"),
        ({}, {"lookup_key": "enterprises"}, None),
        (
            {"tier": "starter"},
            {"lookup_key": "k", "product": {"metadata": {"tier": "free"}}},
            "free",
        ),
        ({"tier": "gold"}, {"lookup_key": "gold"}, None),
        ({}, {"lookup_key": None}, None),
    ],
)
def test_the_tier_is_the_prices_or_the_metadatas(
    db: Db, metadata: Event, price: Event, tier: str | None
) -> None:
    send(db, customer("created", 0))
    sent = subscription("updated", 1, metadata=metadata)
    sent["data"]["object"]["items"]["data"][0]["price"] |= price
    if tier is None:
        refused(db, sent, "names no known tier.*private.stripe_prices")
        assert "sub_1" not in plans(db)
    else:
        send(db, sent)
        assert plans(db, "tier")["sub_1"] == tier


def priced(sent: Event, **price: Any) -> Event:
    """The event with another price, which names nothing unless it is said."""
    item = sent["data"]["object"]["items"]["data"][0]
    item["price"] = {"id": "price_x", "lookup_key": None, "metadata": {}} | price
    return sent


def test_a_price_that_names_no_tier_any_more_keeps_it(db: Db) -> None:
    send(db, customer("created", 0), subscription("created", 1))
    unnamed = {"id": "price_starter"}
    assert send(db, priced(subscription("updated", 2, "past_due"), **unnamed)) == ["applied"]
    assert plans(db, "tier, status")["sub_1"] == ("starter", "past_due")
    # and so it does for another's subscription
    send(db, customer("created", 3, "cus_bob", BOB))
    sent = subscription("created", 4, id_="sub_bob", owner="cus_bob", metadata={"tier": "free"})
    assert send(db, priced(sent, **unnamed)) == ["applied"]
    assert plans(db, "tier", BOB)["sub_bob"] == "starter"
    assert send(db, priced(subscription("updated", 5))) == ["applied"]  # a price of no tier at all
    assert plans(db, "tier")["sub_1"] == "starter"
    assert send(db, priced(deleted(6))) == ["applied"]
    assert plans(db, "tier, status")["sub_1"] == ("starter", "cancelled")


def test_a_deletion_needs_no_tier(db: Db) -> None:
    send(db, customer("created", 0))
    assert send(db, priced(deleted(5))) == ["applied"]
    assert "sub_1" not in plans(db)
    assert send(db, subscription("updated", 1)) == ["stale"]


def test_a_known_price_goes_before_old_metadata_of_the_subscription(db: Db) -> None:
    send(db, customer("created", 0), subscription("created", 1, metadata={"tier": "starter"}))
    send(db, subscription("updated", 2, tier="professional", metadata={"tier": "starter"}))
    assert plans(db, "tier")["sub_1"] == "professional"
    sent = priced(subscription("updated", 3, metadata={"tier": "starter"}), id="price_professional")
    send(db, sent)
    assert plans(db, "tier")["sub_1"] == "professional"


def test_what_an_operator_says_of_a_price_goes_before_what_it_names(db: Db) -> None:
    db.run(
        "insert into private.stripe_prices (price_id, tier) values ('price_starter', 'enterprise')"
    )
    send(db, customer("created", 0), subscription("created", 1))
    assert plans(db, "tier")["sub_1"] == "enterprise"


def test_a_price_that_an_operator_adds_heals_what_was_refused(db: Db) -> None:
    send(db, customer("created", 0))
    sent = priced(subscription("created", 1))
    refused(db, sent, "Insert its price, price_x, into private.stripe_prices")
    db.run("insert into private.stripe_prices (price_id, tier) values ('price_x', 'professional')")
    query = (
        "select handle_stripe_event(payload) from private.stripe_events where outcome = 'refused'"
    )
    assert db.run(query) == [("applied",)]
    assert plans(db, "tier")["sub_1"] == "professional"


def test_a_price_of_another_product_is_ignored(db: Db) -> None:
    db.run("insert into private.stripe_prices (price_id) values ('price_x')")
    send(db, customer("created", 0))
    assert send(db, priced(subscription("created", 1))) == ["ignored"]
    assert "sub_1" not in plans(db)


def test_the_item_that_names_a_tier_is_the_plan(db: Db) -> None:
    sent = subscription("updated", 1)
    items = sent["data"]["object"]["items"]["data"]
    add_on = items[0] | {"price": {"id": "price_seats", "lookup_key": "seats", "metadata": {}}}
    items.insert(0, add_on)
    send(db, customer("created", 0), sent)
    assert plans(db, "tier, stripe_price_id")["sub_1"] == ("starter", "price_starter")


@pytest.mark.parametrize("change", ["payment_failed", "paid", "payment_succeeded", "finalized"])
@pytest.mark.parametrize("status", STATUSES)
def test_an_invoice_leaves_the_status_to_its_subscription(db: Db, status: str, change: str) -> None:
    """A failed upgrade, or an invoice that is not due yet, is no reason to stop a customer."""
    start_without_a_plan(db)
    send(db, customer("created", 0), subscription("updated", 1, status))
    sent = invoice(change, 2)
    assert send(db, sent, sent) == ["ignored", "duplicate"]
    assert plans(db) == {"sub_1": STATUSES[status]}


@pytest.mark.parametrize(
    "kind", ["product.created", "customer.tax_id.created", "invoice.upcoming", "made.up"]
)
def test_an_unknown_type_is_recorded_and_ignored(db: Db, kind: str) -> None:
    before = plans(db, "subscriptions::text"), db.audited(ANN)
    sent = event(kind, 3, {"customer": "cus_1", "object": "thing"})
    assert send(db, sent, sent) == ["ignored", "duplicate"]
    assert (plans(db, "subscriptions::text"), db.audited(ANN)) == before
    recorded = db.run("select event_id, type, outcome, created_at from private.stripe_events")
    assert recorded == [(sent["id"], kind, "ignored", at(3))]


# ---- once, in order


def test_a_repeated_event_does_nothing_and_is_audited_once(db: Db) -> None:
    sent = [customer("created", 0), subscription("created", 1)]
    send(db, *sent)
    first, before = db.audited(ANN), plans(db, "subscriptions::text")
    assert send(db, *sent, *sent) == ["duplicate"] * 4
    assert (db.audited(ANN), plans(db, "subscriptions::text")) == (first, before)


def test_each_change_is_audited_once_and_says_which_event_it_was(db: Db) -> None:
    start_without_a_plan(db)
    before = db.audited(ANN)
    sent = [
        customer("created", 0),
        subscription("created", 1),
        subscription("updated", 2),  # changes nothing
        subscription("updated", 3, "past_due"),
    ]
    send(db, *sent)
    rows = [row for key, row in db.audited(ANN).items() if key not in before]
    assert sorted((action, details["reason"]) for action, *_, details in rows) == [
        ("account.updated", f"Stripe event {sent[0]['id']} (customer.created)"),
        ("subscription.created", f"Stripe event {sent[1]['id']} (customer.subscription.created)"),
        ("subscription.updated", f"Stripe event {sent[3]['id']} (customer.subscription.updated)"),
    ]
    assert db.one("select current_setting('mindroom.audit_reason')") == ""


def test_an_older_event_changes_nothing(db: Db) -> None:
    send(db, customer("created", 0), subscription("updated", 9, "past_due", tier="professional"))
    before = plans(db, "subscriptions::text")
    assert send(db, subscription("updated", 8), customer("updated", 0)) == ["stale", "applied"]
    assert plans(db, "subscriptions::text") == before


def test_within_a_second_the_later_step_counts(db: Db) -> None:
    steps = [
        subscription("created", 1, "incomplete"),
        subscription("updated", 1, "active"),
        deleted(1),
    ]
    for each in steps:
        each["id"] = f"evt_{9 - steps.index(each)}"  # not the order of the ids
    send(db, customer("created", 0), steps[1], steps[0])
    assert plans(db)["sub_1"] == "active"
    send(db, steps[2])
    assert plans(db)["sub_1"] == "cancelled"


def changed(second: int, before: str, after: str) -> Event:
    """An event with the attribute that it changed."""
    sent = subscription("updated", second, after)
    sent["data"]["previous_attributes"] = {"status": before}
    return sent


@pytest.mark.parametrize("ids", [("evt_1", "evt_2"), ("evt_2", "evt_1")])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_within_a_second_the_previous_attributes_tell_which_event_is_later(
    db: Db, ids: tuple[str, str], order: tuple[int, int]
) -> None:
    send(db, customer("created", 0))
    sent = [changed(5, "trialing", "active"), changed(5, "active", "past_due")]
    for each, id_ in zip(sent, ids, strict=True):
        each["id"] = id_
    outcomes = send(db, *(sent[place] for place in order))
    assert outcomes == (["applied", "applied"] if order == (0, 1) else ["applied", "stale"])
    assert plans(db)["sub_1"] == "past_due"


def test_what_nothing_can_tell_is_ambiguous_until_the_object_is_fetched(db: Db) -> None:
    send(db, customer("created", 0))
    there, back = changed(5, "active", "past_due"), changed(5, "past_due", "active")
    assert send(db, there, back) == ["applied", "ambiguous"]
    assert plans(db)["sub_1"] == "past_due"
    assert fetched(db, subscription("updated", 5), 5) == "ambiguous"  # of the same second
    assert fetched(db, subscription("updated", 6), 6) == "applied"
    assert plans(db)["sub_1"] == "active"
    assert send(db, back) == ["stale"]
    assert fetched(db, subscription("updated", 4, "past_due"), 4) == "stale"
    assert plans(db)["sub_1"] == "active"


def test_a_plan_that_changed_twice_in_a_second_is_the_last(db: Db) -> None:
    send(db, customer("created", 0))
    first, second = subscription("updated", 5), subscription("updated", 5, tier="professional")
    first["data"]["previous_attributes"] = {
        "items": subscription("updated", 4, tier="free")["data"]["object"]["items"]
    }
    second["data"]["previous_attributes"] = {"items": first["data"]["object"]["items"]}
    assert send(db, second, first) == ["applied", "stale"]
    assert plans(db, "tier")["sub_1"] == "professional"


def test_nothing_comes_after_the_deletion(db: Db) -> None:
    send(db, customer("created", 0), deleted(5))
    assert send(db, subscription("updated", 6)) == ["stale"]
    assert plans(db)["sub_1"] == "cancelled"


# ---- whose it is


def test_a_subscription_before_its_customer_waits_for_it(db: Db) -> None:
    sent = [subscription("created", 1), subscription("updated", 2, "past_due")]
    assert send(db, *sent) == ["unlinked"] * 2
    assert "sub_1" not in plans(db)
    assert send(db, customer("created", 0)) == ["applied"]
    assert (linked(db), plans(db)["sub_1"]) == ("cus_1", "past_due")
    assert send(db, *sent) == ["duplicate"] * 2


def test_a_customer_that_stripe_handler_wrote_down_is_known(db: Db) -> None:
    db.update("accounts", ANN.account, stripe_customer_id="cus_1")
    assert send(db, customer("created", 0, owner=None), subscription("created", 1)) == [
        "applied",
        "applied",
    ]
    assert plans(db)["sub_1"] == "active"


def test_a_subscriptions_own_metadata_links_its_customer(db: Db) -> None:
    send(db, subscription("created", 1, metadata={"account_id": str(ANN.account)}))
    assert (linked(db), plans(db)["sub_1"]) == ("cus_1", "active")


def test_an_email_links_nothing(db: Db) -> None:
    sent = customer("created", 0, owner=None)
    sent["data"]["object"]["email"] = ANN.email
    assert send(db, sent, subscription("created", 1)) == ["unlinked", "unlinked"]
    assert (linked(db), linked(db, BOB)) == (None, None)


def test_an_account_that_is_not_there_links_nothing(db: Db) -> None:
    metadata = {"account_id": str(uuid4())}
    assert send(db, subscription("created", 1, metadata=metadata)) == ["unlinked"]


def test_the_words_on_an_account_go_with_it(db: Db) -> None:
    start_without_a_plan(db)
    send(db, customer("created", 0), subscription("created", 1), deleted(5))
    db.run("delete from auth.users where id = %s", ANN.account)
    for table in ("stripe_customers", "stripe_subscriptions"):
        assert db.one(f"select count(*) from private.{table}") == 0
    assert send(db, customer("deleted", 9)) == ["unlinked"]


FORGED = [
    customer("updated", 9, owner=BOB),
    subscription("updated", 9, metadata={"account_id": str(BOB.account)}),
    subscription("created", 9, id_="sub_2", metadata={"account_id": str(BOB.account)}),
    subscription("updated", 9, owner="cus_bob"),
]


@pytest.mark.parametrize("forged", FORGED, ids=lambda sent: sent["type"])
def test_what_belongs_to_one_account_is_not_anothers(db: Db, forged: Event) -> None:
    send(db, customer("created", 0), subscription("created", 1))
    send(db, customer("created", 0, "cus_bob", BOB))
    before = [plans(db, "subscriptions::text", each) for each in (ANN, BOB)]
    refused(db, forged, "belongs to several accounts|is of customer cus_1, not of cus_bob")
    assert [plans(db, "subscriptions::text", each) for each in (ANN, BOB)] == before
    assert (linked(db), linked(db, BOB)) == ("cus_1", "cus_bob")


def test_a_customer_that_is_linked_later_has_what_was_said_before(db: Db) -> None:
    sent = [customer("created", 0, owner=None), subscription("created", 1)]
    assert send(db, *sent) == ["unlinked"] * 2
    with db.acting("stripe_handler"):
        db.run("update accounts set stripe_customer_id = 'cus_1' where id = %s", ANN.account)
    assert plans(db)["sub_1"] == "active"
    assert send(db, *sent) == ["duplicate"] * 2
    outcomes = "select distinct outcome from private.stripe_events"
    assert db.run(outcomes) == [("applied",)]


def test_an_unlinked_event_can_be_sent_again(db: Db) -> None:
    sent = subscription("created", 1, metadata={"account_id": str(NEWCOMER.account)})
    assert send(db, sent, sent) == ["unlinked"] * 2
    db.sign_up(NEWCOMER, NEWCOMER.email)
    assert send(db, sent) == ["applied"]
    assert plans(db, whose=NEWCOMER) == {"sub_1": "active"}


@pytest.mark.parametrize("key", ["account_id", "supabase_user_id"])
def test_either_name_of_the_account_in_the_metadata_links(db: Db, key: str) -> None:
    send(db, subscription("created", 1, metadata={key: str(ANN.account).upper()}))
    assert plans(db)["sub_1"] == "active"


def test_a_subscription_of_another_product_is_never_an_error(db: Db) -> None:
    price: Event = {"data": [{"price": {"id": "price_book", "lookup_key": None}}]}
    for metadata in ({}, {"account_id": "4711"}, {"account_id": ["a"]}, {"account_id": None}):
        for status in ("active", "on_holiday"):
            sent = subscription("updated", 1, status, items=price, metadata=metadata)
            assert send(db, sent, sent) == ["unlinked", "unlinked"]
    sent = subscription("deleted", 2, "canceled", items=price)
    assert send(db, sent) == ["unlinked"]


def test_an_expanded_customer_is_its_id(db: Db) -> None:
    expanded: Event = {
        "id": "cus_1",
        "object": "customer",
        "sources": {"data": [{"last4": "4242"}]},
    }
    sent = subscription("created", 1, customer=expanded)
    assert send(db, customer("created", 0), sent) == ["applied"] * 2
    assert (linked(db), plans(db)["sub_1"]) == ("cus_1", "active")
    assert "4242" not in str(db.run("select * from private.stripe_events"))


def test_the_hint_on_several_accounts_works_for_wrong_metadata(db: Db) -> None:
    send(db, customer("created", 0))
    refused(db, customer("updated", 1, owner=BOB), "several accounts.*metadata, in Stripe")
    assert send(db, customer("updated", 2), subscription("created", 3)) == ["applied"] * 2
    assert plans(db)["sub_1"] == "active"


def test_the_hint_on_several_accounts_works_for_a_wrong_account(db: Db) -> None:
    """Bob was given Ann's customer, and has had her subscription for a while."""
    db.update("accounts", BOB.account, stripe_customer_id="cus_1")
    send(db, subscription("created", 1, tier="enterprise"))
    assert plans(db, whose=BOB) == {None: "cancelled", "sub_1": "active"}
    sent = customer("updated", 2)
    refused(db, sent, "several accounts.*accounts.stripe_customer_id, by clearing it there")
    db.update("accounts", BOB.account, stripe_customer_id=None)
    db.update("accounts", ANN.account, stripe_customer_id="cus_1")
    assert plans(db, whose=BOB) == {None: "cancelled"}
    assert plans(db) == {None: "cancelled", "sub_1": "active"}
    replay = "select handle_stripe_event(payload) from private.stripe_events where event_id = %s"
    assert db.one(replay, sent["id"]) == "applied"
    assert (linked(db), linked(db, BOB)) == ("cus_1", None)
    assert send(db, subscription("updated", 3, "past_due")) == ["applied"]
    assert plans(db)["sub_1"] == "past_due"


def test_the_hint_on_several_accounts_works_for_a_wrong_subscription(db: Db) -> None:
    db.update("subscriptions", BOB.subscription, stripe_subscription_id="sub_1")
    send(db, customer("created", 0))
    sent = subscription("updated", 1)
    refused(db, sent, "several accounts.*subscriptions.stripe_subscription_id, by clearing it")
    db.update("subscriptions", BOB.subscription, stripe_subscription_id=None)
    assert send(db, sent) == ["applied"]
    assert plans(db)["sub_1"] == "active"
    assert plans(db, whose=BOB) == {None: "active"}


def test_a_new_customer_object_takes_nothing_from_the_one_who_pays(db: Db) -> None:
    send(db, customer("created", 0), subscription("created", 1))
    send(db, customer("created", 5, "cus_2", created=5))
    assert linked(db) == "cus_1"
    send(db, deleted(6))
    assert linked(db) == "cus_2"


def test_events_in_test_mode_are_refused_once_the_platform_is_live(db: Db) -> None:
    def in_mode(sent: Event, *, live: bool) -> Event:
        return sent | {"livemode": live}

    assert send(db, in_mode(customer("created", 0), live=False)) == ["applied"]
    assert send(db, in_mode(customer("updated", 1), live=True)) == ["applied"]
    refused(db, in_mode(subscription("created", 2), live=False), "test mode.*webhook endpoint")
    assert "sub_1" not in plans(db)


# ---- one plan per account


def test_a_free_plan_ends_when_a_subscription_begins_and_its_instances_go_along(db: Db) -> None:
    send(db, customer("created", 0), subscription("created", 1, "incomplete"))
    assert plans(db) == {None: "active", "sub_1": "cancelled"}  # nothing is paid yet
    send(db, subscription("updated", 2, tier="enterprise"))
    assert plans(db) == {None: "cancelled", "sub_1": "active"}
    columns = "subscription_id <> %s, status, cpu_limit"
    [row] = db.run(f"select {columns} from instances where id = %s", ANN.subscription, ANN.instance)
    assert row == (True, "running", *catalogue(db, "enterprise", ("cpu_limit",)))
    assert db.one("select tier from get_user_instance(%s)", ANN.account) == "enterprise"


def test_a_checkout_that_fails_leaves_the_free_plan(db: Db) -> None:
    send(db, customer("created", 0), subscription("created", 1, "incomplete"))
    send(db, subscription("updated", 2, "incomplete_expired"))
    assert plans(db) == {None: "active", "sub_1": "cancelled"}


def test_a_plan_given_after_the_end_stays(db: Db) -> None:
    send(db, customer("created", 0), subscription("created", 1), deleted(5))
    db.insert("subscriptions", account_id=ANN.account, created_at=at(6))
    send(db, subscription("deleted", 7, "canceled", ended_at=START + 5))
    assert db.one("select has_active_subscription(%s)", ANN.account) is True


def test_of_two_live_subscriptions_the_newest_is_in_force_until_it_ends(db: Db) -> None:
    send(db, customer("created", 0), subscription("created", 1))
    send(db, subscription("created", 5, id_="sub_2", created=5))
    assert plans(db, "status, cancelled_at") | {None: None} == {
        None: None,
        "sub_1": ("cancelled", at(5)),
        "sub_2": ("active", None),
    }
    send(db, subscription("updated", 6, "past_due", id_="sub_2", created=5))
    assert plans(db)["sub_1"] == "active"
    send(db, deleted(7, id_="sub_2", created=5))
    assert plans(db, "status, cancelled_at") | {None: None} == {
        None: None,
        "sub_1": ("active", None),
        "sub_2": ("cancelled", at(7)),
    }


def test_an_account_with_two_customers_has_the_newest(db: Db) -> None:
    send(db, customer("created", 3, "cus_2", created=3), customer("created", 0))
    assert linked(db) == "cus_2"
    send(db, customer("deleted", 4, "cus_2", created=3))
    assert linked(db) == "cus_1"


def test_who_comes_back_finds_the_instances(db: Db) -> None:
    gone = add_instance(db, ANN, "gone", status="deprovisioned")["id"]
    send(db, customer("created", 0), subscription("created", 1), deleted(5))
    assert db.run("select 1 from get_user_instance(%s)", ANN.account) == []
    send(db, subscription("created", 9, id_="sub_2", created=9))
    assert db.one("select id from get_user_instance(%s)", ANN.account) == ANN.instance
    query = "select subscription_id from instances where id = %s"
    assert db.one(query, gone) == ANN.subscription  # history stays where it was


# ---- at any size


def test_an_event_looks_everything_up_by_an_index(db: Db) -> None:
    scanned = "select relname, seq_scan from pg_stat_xact_user_tables where seq_scan > 0 order by 1"
    db.run("discard plans")
    db.run("set local enable_seqscan = off")  # then only what no index serves
    before = db.run(scanned)
    send(db, customer("created", 0), subscription("created", 1), invoice("payment_failed", 2))
    send(db, subscription("updated", 3), subscription("updated", 3, "past_due"), deleted(4))
    fetched(db, subscription("updated", 5), 5)
    db.update("accounts", BOB.account, stripe_customer_id="cus_2")
    assert db.run(scanned) == before


# ---- at the same time


@pytest.fixture
def lasting(platform: Platform) -> Iterator[Db]:
    """A customer of this test's own, for several connections."""
    with psycopg.connect(platform.url, autocommit=True) as connection:
        db = Db(connection)
        db.sign_up(ANN, ANN.email)
        yield db
        db.run("update subscriptions set status = 'cancelled' where account_id = %s", ANN.account)
        db.run("delete from auth.users where id = %s", ANN.account)
        db.run("delete from audit_logs where account_id = %s", ANN.account)
        db.run("delete from private.stripe_events")


def at_once(platform: Platform, events: list[Event]) -> list[str]:
    """Each event on a connection of stripe-handler's own, all starting together."""
    barrier = threading.Barrier(len(events))

    def deliver(each: Event) -> str:
        url = platform.service_url("stripe_handler")
        with psycopg.connect(url, autocommit=True) as connection:
            barrier.wait()
            cursor = connection.execute("select handle_stripe_event(%s)", [Jsonb(each)])
            [outcome] = cursor.fetchone() or [""]
            return str(outcome)

    with ThreadPoolExecutor(len(events)) as pool:
        return sorted(pool.map(deliver, events))


def test_the_same_event_on_8_connections_is_handled_once(platform: Platform, lasting: Db) -> None:
    send(lasting, customer("created", 0))
    found = at_once(platform, [subscription("created", 1)] * 8)
    assert found == ["applied"] + ["duplicate"] * 7
    audited = [row for row in lasting.audited(ANN).values() if row[0].startswith("subscription")]
    assert [(row[0], row[1]) for row in audited] == [("subscription.created", "stripe_handler")]


def test_a_customer_and_its_subscriptions_at_once_end_as_in_turn(
    platform: Platform, lasting: Db
) -> None:
    for number in range(12):
        one, two = f"cus_a{number}", f"cus_b{number}"
        at_once(
            platform,
            [
                customer("created", 0, one, created=number),
                customer("created", 0, two, created=number),
                subscription("updated", 8, id_="sub_1", owner=one, created=8),
                subscription("created", 8, "incomplete", id_="sub_1", owner=one, created=8),
                subscription("created", 9, id_="sub_2", owner=one, created=9),
                subscription("created", 7, id_="sub_3", owner=two, created=7),
                deleted(9, id_="sub_4", owner=two, created=7),
                invoice("payment_failed", 9, "sub_1", one),
            ],
        )
        found = {"sub_1": "cancelled", "sub_2": "active", "sub_3": "cancelled"}
        assert plans(lasting) == found | {"sub_4": "cancelled"}
        lasting.run("delete from private.stripe_customers")
        lasting.run(
            "update subscriptions set status = 'cancelled' where account_id = %s", ANN.account
        )
        lasting.run("delete from subscriptions where account_id = %s", ANN.account)


# ---- what is refused


HUGE = "1" + "0" * 131_000
"""A number that costs a 36 kB document gigabytes when it is read as text."""


@pytest.mark.parametrize(
    "spoilt",
    [
        {"id": None},
        {"id": ""},
        {"id": "evt_" + "x" * 255},
        {"id": 17},
        {"type": None},
        {"type": ["customer.updated"]},
        {"created": None},
        {"created": "yesterday"},
        {"created": -1},
        {"created": 10**18},
        {"data": None},
        {"data": {"object": "sub_1"}},
    ],
)
def test_what_is_no_event_of_stripes_is_an_error_with_a_hint(db: Db, spoilt: Event) -> None:
    with pytest.raises(InvalidParameterValue) as caught, db.connection.transaction():
        send(db, subscription("updated", 1) | spoilt)
    assert caught.value.diag.message_hint
    assert db.one("select count(*) from private.stripe_events") == 0


@pytest.mark.parametrize(
    ("spoilt", "error"),
    [
        ({"id": None}, "lacks id"),
        ({"customer": None}, "lacks id, customer"),
        ({"customer": {"email": "ann@customers.example"}}, "lacks|customer"),
        ({"created": None}, "lacks created"),
        ({"created": "yesterday"}, "invalid input syntax"),
        ({"status": "on_holiday"}, "unknown status 'on_holiday'"),
        ({"status": None}, "unknown status NULL"),
        ({"items": None}, "names no known tier"),
        ({"items": {"data": []}}, "names no known tier"),
        ({"items": {"data": {"price": "price_1"}}}, "cannot extract elements"),
        ({"trial_start": START + 2, "trial_end": START + 1}, "subscriptions_trial_in_order"),
        ({"trial_end": 10**14}, "out of range|times_readable"),
        ({"metadata": {"x": "y" * 70_000}}, "larger than 64 kB"),
        ({"livemode": "perhaps"}, "boolean"),
    ],
)
def test_a_refused_event_is_recorded_with_its_error_and_can_be_replayed(
    db: Db, spoilt: Event, error: str
) -> None:
    send(db, customer("created", 0))
    before = plans(db, "subscriptions::text")
    sent = subscription("updated", 1)
    sent["data"]["object"] |= spoilt
    sent["livemode"] = spoilt.get("livemode", True)
    refused(db, sent, error)
    assert re.search(r"\. [A-Z]", error_of(db, sent))  # what to do
    assert plans(db, "subscriptions::text") == before
    kept = "from private.stripe_events where payload is not null and outcome = 'refused'"
    assert db.run(f"select handle_stripe_event(payload) {kept}") in ([("refused",)], [])
    sent["livemode"] = True
    whole = subscription("updated", 1)["data"]["object"]
    assert send(db, sent | {"data": {"object": whole}}) == ["applied"]
    assert plans(db)["sub_1"] == "active"
    assert error_of(db, sent) == "None"


@pytest.mark.parametrize("place", ["created", "trial_end", "metadata", "items"])
@pytest.mark.parametrize("number", [HUGE, f"-{HUGE}", "0." + "0" * 16_000 + "1"])
def test_a_number_of_any_length_costs_no_more_than_it_deserves(
    db: Db, place: str, number: str
) -> None:
    send(db, customer("created", 0))
    sent = subscription("updated", 1)
    simple = place in ("created", "trial_end")
    sent["data"]["object"][place] = "NUMBER" if simple else {"n": ["NUMBER"] * 500}
    text = json.dumps(sent).replace('"NUMBER"', number)
    exponents = text.replace(HUGE, "1e131000").replace("0." + "0" * 16_000 + "1", "1e-16001")
    assert db.one("select handle_stripe_event(%s::text::jsonb)", exponents) == "refused"
    found = db.run("select length(error), payload from private.stripe_events where error <> ''")
    assert found[0][0] < 2001
    assert found[0][1] is None


@pytest.mark.parametrize("sent", ["null", "'null'", "'[]'", "'\"evt_1\"'"])
def test_no_event_at_all_is_an_error_with_a_hint(db: Db, sent: str) -> None:
    wanted = NullValueNotAllowed if sent == "null" else InvalidParameterValue
    with pytest.raises(wanted) as caught, db.connection.transaction():
        db.run(f"select handle_stripe_event({sent})")
    assert caught.value.diag.message_hint


SERVICES = ("stripe_handler", "service_role")


@pytest.mark.parametrize("role", [role for role in AUTHORIZATION if role not in SERVICES])
def test_nobody_but_the_services_gets_in(db: Db, role: str) -> None:
    sent = subscription("created", 1, tier="enterprise", metadata={"account_id": str(ANN.account)})
    with db.refused(InsufficientPrivilege), db.acting(role, ANN):
        send(db, sent)


@pytest.mark.parametrize("role", SERVICES)
def test_the_services_get_in_and_no_further(db: Db, role: str) -> None:
    with db.acting(role):
        send(db, customer("created", 0), subscription("created", 1))
        assert fetched(db, subscription("updated", 2, "past_due"), 2) == "applied"
    assert plans(db)["sub_1"] == "past_due"
    for query in (
        "select * from private.stripe_events",
        "select private.write_stripe_account(gen_random_uuid(), true)",
    ):
        with db.refused(InsufficientPrivilege), db.acting(role):
            db.run(query)
