"""Stripe's door: what each event does, on a real server, in any order and any number of times."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import count
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from customers import ANN, BOB, Customer, Db, add_instance, catalogue
from hypothesis import given, settings
from hypothesis import strategies as st
from platforms import Platform
from psycopg.errors import (
    InsufficientPrivilege,
    IntegrityConstraintViolation,
    InvalidParameterValue,
    NullValueNotAllowed,
)
from psycopg.types.json import Jsonb

from components.matrix import MATRIX

Event = dict[str, Any]

START = 4_000_000_000  # in 2096: what is live here stays so
MONTH = 2_678_400
NUMBERS = count(1)

STATUSES = {
    "trialing": "trialing",
    "active": "active",
    "past_due": "past_due",
    "unpaid": "past_due",
    "paused": "paused",
    "incomplete": "incomplete",
    "incomplete_expired": "cancelled",
    "canceled": "cancelled",
}
"""Stripe's spelling -> ours."""


def at(seconds: int) -> datetime:
    return datetime.fromtimestamp(START + seconds, UTC)


def event(kind: str, second: int, obj: Event) -> Event:
    """As Stripe sends it, `second` seconds after the start."""
    return {
        "id": f"evt_{next(NUMBERS):06}",
        "object": "event",
        "api_version": "2025-03-31.basil",
        "created": START + second,
        "data": {"object": obj},
        "livemode": True,
        "pending_webhooks": 1,
        "request": {"id": None, "idempotency_key": None},
        "type": kind,
    }


def customer(
    change: str, second: int, id_: str = "cus_1", owner: Customer | None = ANN, created: int = 0
) -> Event:
    return event(
        f"customer.{change}",
        second,
        {
            "id": id_,
            "object": "customer",
            "created": START + created,
            "email": BOB.email,  # anybody can state it: means nothing
            "name": "Ann Example",
            "metadata": {"account_id": str(owner.account)} if owner else {},
        }
        | ({"deleted": True} if change == "deleted" else {}),
    )


def subscription(
    change: str,
    second: int,
    status: str = "active",
    *,
    id_: str = "sub_1",
    owner: str = "cus_1",
    tier: str = "starter",
    created: int = 1,
    **fields: Any,
) -> Event:
    price = {"id": f"price_{tier}", "object": "price", "lookup_key": tier, "metadata": {}}
    item = {
        "id": "si_1",
        "object": "subscription_item",
        "current_period_start": START,
        "current_period_end": START + MONTH,
        "price": price,
        "quantity": 1,
    }
    obj: Event = {
        "id": id_,
        "object": "subscription",
        "cancel_at_period_end": False,
        "canceled_at": None,
        "created": START + created,
        "customer": owner,
        "ended_at": None,
        "items": {"object": "list", "data": [item], "has_more": False},
        "metadata": {},
        "status": status,
        "trial_end": None,
        "trial_start": None,
    }
    return event(f"customer.subscription.{change}", second, obj | fields)


def deleted(second: int, **options: Any) -> Event:
    ended: Event = {"ended_at": START + second, "canceled_at": START + second}
    return subscription("deleted", second, "canceled", **ended, **options)


def invoice(
    change: str, second: int, id_: str = "sub_1", owner: str = "cus_1", created: int = 0
) -> Event:
    return event(
        f"invoice.{change}",
        second,
        {
            "id": "in_1",
            "object": "invoice",
            "created": START + created,
            "customer": owner,
            "parent": {
                "type": "subscription_details",
                "subscription_details": {"subscription": id_, "metadata": {}},
            },
            "status": "open",
        },
    )


def send(db: Db, *events: Event) -> list[str]:
    return [db.one("select handle_stripe_event(%s)", each) for each in events]


def plans(db: Db, columns: str = "status", whose: Customer = ANN) -> dict[str | None, Any]:
    """Stripe's id of each of an account's subscriptions -> a column, or several."""
    rows = db.run(
        f"select stripe_subscription_id, {columns} from subscriptions where account_id = %s",
        whose.account,
    )
    return {key: row[0] if len(row) == 1 else tuple(row) for key, *row in rows}


def linked(db: Db, whose: Customer = ANN) -> Any:
    return db.one("select stripe_customer_id from accounts where id = %s", whose.account)


def start_without_a_plan(db: Db) -> None:
    """Takes away what Stripe knows nothing of."""
    db.run("delete from usage_metrics")
    db.run("update instances set status = 'deprovisioning' where account_id = %s", ANN.account)
    db.run("update instances set status = 'deprovisioned' where account_id = %s", ANN.account)
    db.run("delete from instances where account_id = %s", ANN.account)
    db.run("delete from subscriptions where account_id = %s", ANN.account)


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
    failed = invoice("payment_failed", 2)
    failed["data"]["object"] |= {"subscription": "sub_1", "parent": None}
    send(db, customer("created", 0), old, failed)
    found = plans(db, "status, current_period_start, current_period_end")["sub_1"]
    assert found == ("past_due", at(3), at(4))


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
        with db.refused(InvalidParameterValue, match="names no known tier"):
            send(db, sent)
        assert "sub_1" not in plans(db)
    else:
        send(db, sent)
        assert plans(db, "tier")["sub_1"] == tier


def test_the_item_that_names_a_tier_is_the_plan(db: Db) -> None:
    sent = subscription("updated", 1)
    items = sent["data"]["object"]["items"]["data"]
    add_on = items[0] | {"price": {"id": "price_seats", "lookup_key": "seats", "metadata": {}}}
    items.insert(0, add_on)
    send(db, customer("created", 0), sent)
    assert plans(db, "tier, stripe_price_id")["sub_1"] == ("starter", "price_starter")


def test_a_failed_payment_is_past_due_until_it_is_paid(db: Db) -> None:
    send(db, customer("created", 0), subscription("updated", 1))
    for change, status in [
        ("payment_failed", "past_due"),
        ("paid", "active"),
        ("payment_failed", "past_due"),
        ("payment_succeeded", "active"),
        ("finalized", "active"),
    ]:
        send(db, invoice(change, next(NUMBERS) + 10))
        assert plans(db)["sub_1"] == status


def test_an_older_invoice_that_is_paid_does_not_hide_that_the_last_one_failed(db: Db) -> None:
    send(db, customer("created", 0), subscription("updated", 1))
    send(db, invoice("payment_failed", 5, created=4), invoice("paid", 6, created=2))
    assert plans(db)["sub_1"] == "past_due"


def test_what_stripe_says_of_the_subscription_later_goes_before_its_invoice(db: Db) -> None:
    send(db, customer("created", 0), invoice("payment_failed", 5), subscription("updated", 6))
    assert plans(db)["sub_1"] == "active"


@pytest.mark.parametrize("status", ["trialing", "paused", "incomplete", "canceled"])
def test_an_invoice_changes_only_what_is_active_or_past_due(db: Db, status: str) -> None:
    start_without_a_plan(db)
    send(db, customer("created", 0), subscription("updated", 1, status))
    send(db, invoice("payment_failed", 2), invoice("paid", 3))
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


def test_an_invoice_of_no_subscription_is_ignored(db: Db) -> None:
    sent = invoice("paid", 1)
    sent["data"]["object"]["parent"] = None
    assert send(db, sent) == ["ignored"]


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


def test_nothing_comes_after_the_deletion(db: Db) -> None:
    send(db, customer("created", 0), deleted(5))
    assert send(db, subscription("updated", 6)) == ["stale"]
    assert plans(db)["sub_1"] == "cancelled"


# ---- whose it is


def test_a_subscription_before_its_customer_waits_for_it(db: Db) -> None:
    assert send(db, subscription("created", 1), invoice("payment_failed", 2)) == ["unlinked"] * 2
    assert "sub_1" not in plans(db)
    assert send(db, customer("created", 0)) == ["applied"]
    assert (linked(db), plans(db)["sub_1"]) == ("cus_1", "past_due")


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
    assert db.one("select count(*) from private.stripe_objects") == 0
    assert send(db, customer("deleted", 9)) == ["unlinked"]


FORGED = [
    customer("updated", 9, owner=BOB),
    subscription("updated", 9, metadata={"account_id": str(BOB.account)}),
    subscription("created", 9, id_="sub_2", metadata={"account_id": str(BOB.account)}),
    subscription("updated", 9, owner="cus_bob"),
    invoice("paid", 9, owner="cus_bob"),
]


@pytest.mark.parametrize("forged", FORGED, ids=lambda sent: sent["type"])
def test_what_belongs_to_one_account_is_not_anothers(db: Db, forged: Event) -> None:
    send(db, customer("created", 0), subscription("created", 1))
    send(db, customer("created", 0, "cus_bob", BOB))
    before = [plans(db, "subscriptions::text", each) for each in (ANN, BOB)]
    with db.refused(IntegrityConstraintViolation, match="several accounts"):
        send(db, forged)
    assert [plans(db, "subscriptions::text", each) for each in (ANN, BOB)] == before
    assert (linked(db), linked(db, BOB)) == ("cus_1", "cus_bob")


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
    send(db, subscription("updated", 3), deleted(4))
    assert db.run(scanned) == before


# ---- any order

BEGUN = st.lists(
    st.sampled_from(["trialing", "active", "past_due", "unpaid", "paused"]), max_size=3
)
TIERS = st.sampled_from(["free", "starter", "professional"])


@st.composite
def sequences(draw: st.DrawFn) -> tuple[list[Event], list[Event]]:
    """What Stripe says of two customers with up to three subscriptions; and how it arrives."""
    sent = [customer("created", 0), customer("created", 3, "cus_2", created=3)]
    if draw(st.booleans()):
        sent.append(customer("deleted", 90, "cus_2", created=3))
    for number in range(draw(st.integers(1, 3))):
        created = second = draw(st.integers(1, 20))
        which: dict[str, Any] = {
            "id_": f"sub_{number}",
            "owner": draw(st.sampled_from(["cus_1", "cus_2"])),
            "created": created,
        }
        begun = draw(BEGUN)
        first = ["incomplete"] if not begun or draw(st.booleans()) else []  # never a later status
        for step, status in enumerate(first + begun):
            change = "updated" if step else "created"
            tier = draw(TIERS)
            sent.append(subscription(change, second, status, tier=tier, **which))
            second += draw(st.integers(1, 9))
            if draw(st.booleans()):
                paid = draw(st.sampled_from(["paid", "payment_failed"]))
                sent.append(invoice(paid, second, which["id_"], which["owner"], second - 1))
        match draw(st.sampled_from(["goes on", "updated", "deleted"])):
            case "updated":
                end = "canceled" if begun else "incomplete_expired"
                sent.append(subscription("updated", second, end, tier=tier, **which))
            case "deleted" if begun:
                sent.append(deleted(second, tier=tier, **which))
    arriving = draw(st.permutations(sent + draw(st.lists(st.sampled_from(sent), max_size=5))))
    return sorted(sent, key=lambda each: each["created"]), arriving


def state(db: Db) -> list[Any]:
    bookkeeping = "{id,created_at,updated_at}"
    return [
        linked(db),
        db.run(
            f"""select to_jsonb(s) - '{bookkeeping}'::text[] from subscriptions s
                where account_id = %s order by stripe_subscription_id""",
            ANN.account,
        ),
        db.run(
            """select i.cpu_limit, s.stripe_subscription_id
               from instances i join subscriptions s on s.id = subscription_id
               where i.account_id = %s""",
            ANN.account,
        ),
        db.run("select to_jsonb(o) from private.stripe_objects o order by kind, id"),
    ]


def test_any_order_with_repeats_ends_as_the_ordered_sequence(db: Db) -> None:
    @settings(max_examples=150)
    @given(sequences())
    def holds(sequence: tuple[list[Event], list[Event]]) -> None:
        ends = []
        for events in sequence:
            with db.connection.transaction(force_rollback=True):
                send(db, *events)
                ends.append(state(db))
        assert ends[0] == ends[1]

    holds()


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
        lasting.run("delete from private.stripe_objects")
        lasting.run(
            "update subscriptions set status = 'cancelled' where account_id = %s", ANN.account
        )
        lasting.run("delete from subscriptions where account_id = %s", ANN.account)


# ---- what is refused


@pytest.mark.parametrize(
    "spoilt",
    [
        {"id": None},
        {"id": ""},
        {"type": None},
        {"created": None},
        {"created": "yesterday"},
        {"data": None},
        {"data": {"object": "sub_1"}},
        {"data": {"object": {}}},
        {"data": {"object": {"id": "sub_1", "created": START}}},
        {"data": {"object": {"id": "sub_1", "customer": "cus_1"}}},
        subscription("updated", 1, "on_holiday"),
        subscription("updated", 1, metadata={"account_id": "1 or 1=1"}),
    ],
)
def test_what_is_no_event_of_stripes_is_an_error_with_a_hint(db: Db, spoilt: Event) -> None:
    with pytest.raises(InvalidParameterValue) as caught, db.connection.transaction():
        send(db, subscription("updated", 1) | spoilt)
    assert caught.value.diag.message_hint
    assert db.one("select count(*) from private.stripe_events") == 0


@pytest.mark.parametrize("sent", ["null", "'null'", "'[]'", "'\"evt_1\"'"])
def test_no_event_at_all_is_an_error_with_a_hint(db: Db, sent: str) -> None:
    wanted = NullValueNotAllowed if sent == "null" else InvalidParameterValue
    with pytest.raises(wanted) as caught, db.connection.transaction():
        db.run(f"select handle_stripe_event({sent})")
    assert caught.value.diag.message_hint


@pytest.mark.parametrize("role", [role for role in MATRIX if role != "stripe_handler"])
def test_nobody_but_stripe_handler_gets_in(db: Db, role: str) -> None:
    sent = subscription("created", 1, tier="enterprise", metadata={"account_id": str(ANN.account)})
    with db.refused(InsufficientPrivilege), db.acting(role, ANN):
        send(db, sent)


def test_stripe_handler_gets_in_and_no_further(db: Db) -> None:
    with db.acting("stripe_handler"):
        send(db, customer("created", 0), subscription("created", 1))
    assert plans(db)["sub_1"] == "active"
    for query in (
        "select * from private.stripe_events",
        "select private.apply_stripe_objects(gen_random_uuid())",
    ):
        with db.refused(InsufficientPrivilege), db.acting("stripe_handler"):
            db.run(query)
