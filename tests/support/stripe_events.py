"""Stripe's events, as Stripe sends them, and what the platform has made of them."""

import re
from datetime import UTC, datetime
from itertools import count
from typing import Any

from tests.support.customers import ANN, BOB, Customer, Db

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


def fetched(db: Db, sent: Event, second: int) -> str:
    """The object of an event as if fetched from Stripe `second` seconds after the start."""
    outcome = db.one("select handle_stripe_object(%s, %s)", sent["data"]["object"], at(second))
    return str(outcome)


def error_of(db: Db, sent: Event) -> str:
    query = "select error from private.stripe_events where event_id = %s"
    return str(db.one(query, sent["id"]))


def refused(db: Db, sent: Event, match: str) -> None:
    assert send(db, sent) == ["refused"]
    assert re.search(match, error_of(db, sent))


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
