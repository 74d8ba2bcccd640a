"""What Stripe may do, by a model of it: any history, delivered in any way, ends as Stripe is."""

from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.customers import ANN, Db
from tests.support.stripe_events import (
    MONTH,
    START,
    STATUSES,
    Event,
    at,
    customer,
    deleted,
    event,
    linked,
    plans,
    send,
    start_without_a_plan,
    subscription,
)

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
        db.run("select to_jsonb(o) - 'recorded_at' from private.stripe_customers o order by 1"),
        db.run("select to_jsonb(o) from private.stripe_subscriptions o order by 1"),
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


# ---- reconciliation

NEXT = {
    "incomplete": ["active", "incomplete_expired"],
    "trialing": ["active", "past_due", "paused", "canceled"],
    "active": ["past_due", "canceled"],
    "past_due": ["active", "unpaid", "canceled"],
    "unpaid": ["active", "canceled"],
    "paused": ["active", "canceled"],
    "incomplete_expired": [],
    "canceled": [],
}
"""A subscription's status in Stripe -> those that may follow."""

BEST = ["active", "past_due", "paused", "incomplete"]


@dataclass
class Stripe:
    """Customers and subscriptions as Stripe has them, and the events of how they came to be so.

    Attributes:
        items_have_periods: whether the periods are the items', as since API version 2025-03-31.
        second: Stripe's clock.
    """

    items_have_periods: bool
    second: int = 0
    customers: dict[str, Event] = field(default_factory=dict)
    subscriptions: dict[str, Event] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)

    def sign_up(self, id_: str) -> None:
        created = customer("created", self.second, id_, created=self.second)
        self.customers[id_] = created["data"]["object"]
        self.events.append(deepcopy(created))

    def subscribe(self, id_: str, owner: str, status: str, tier: str) -> None:
        made = subscription(
            "created",
            self.second,
            status,
            id_=id_,
            owner=owner,
            tier=tier,
            created=self.second,
            metadata={"account_id": str(ANN.account)},
        )
        self.subscriptions[id_] = made["data"]["object"]
        self.renew(id_, 0)
        made["data"]["object"] = deepcopy(self.subscriptions[id_])
        self.events[-1:] = [made]

    def update(self, id_: str, kind: str = "updated", **changes: Any) -> None:
        """Change attributes; the event has what they were before."""
        now = self.subscriptions[id_]
        before = {key: deepcopy(now.get(key)) for key in changes if now.get(key) != changes[key]}
        now |= deepcopy(changes)
        sent = event(f"customer.subscription.{kind}", self.second, deepcopy(now))
        sent["data"]["previous_attributes"] = before
        self.events.append(sent)

    def renew(self, id_: str, months: int) -> None:
        start, end = START + months * MONTH, START + (months + 1) * MONTH
        period: Event = {"current_period_start": start, "current_period_end": end}
        items = deepcopy(self.subscriptions[id_]["items"])
        [item] = items["data"]
        if self.items_have_periods:
            self.update(id_, items={**items, "data": [item | period]})
        else:
            for key in period:
                item.pop(key, None)
            self.update(id_, items=items, **period)

    def change_plan(self, id_: str, tier: str) -> None:
        items = deepcopy(self.subscriptions[id_]["items"])
        items["data"][0]["price"] |= {"id": f"price_{tier}", "lookup_key": f"{tier}_monthly"}
        self.update(id_, items=items)

    def move(self, id_: str, status: str) -> None:
        if status in ("canceled", "incomplete_expired"):
            kind = "deleted" if status == "canceled" else "updated"
            self.update(id_, kind, status=status, ended_at=START + self.second)
        else:
            self.update(id_, status=status)

    def delete(self, id_: str) -> None:
        """Stripe ends a customer's subscriptions first."""
        for key, obj in self.subscriptions.items():
            if obj["customer"] == id_ and "canceled" in NEXT[obj["status"]]:
                self.move(key, "canceled")
        self.events.append(customer("deleted", self.second, id_, created=self.second))
        self.customers[id_] = {"id": id_, "object": "customer", "deleted": True}

    def wanted(self) -> dict[str | None, Any]:
        """What public.subscriptions shall have."""
        ranked = sorted(
            self.subscriptions.values(), key=lambda obj: (obj["created"], obj["id"]), reverse=True
        )
        live = [obj for obj in ranked if STATUSES[obj["status"]] != "cancelled"]

        def rank(obj: Event) -> int:
            return BEST.index(STATUSES[obj["status"]].replace("trialing", "active"))

        best = min(live, key=rank, default=None)
        wanted: dict[str | None, Any] = {}
        for obj in ranked:
            [item] = obj["items"]["data"]
            ends = item.get("current_period_end") or obj["current_period_end"]
            status = STATUSES[obj["status"]] if obj is best else "cancelled"
            tier = item["price"]["id"].removeprefix("price_")
            unpaid = obj is best and obj["status"] == "unpaid"
            wanted[obj["id"]] = (tier, status, unpaid, datetime.fromtimestamp(ends, UTC))
        return wanted


@st.composite
def histories(draw: st.DrawFn) -> Stripe:
    """An account with up to two customers and three subscriptions, and what they go through."""
    stripe = Stripe(draw(st.booleans()))
    owners = ["cus_1", "cus_2"][: draw(st.integers(1, 2))]
    for owner in owners:
        stripe.sign_up(owner)
    for number in range(draw(st.integers(len(owners), 3))):
        stripe.second += draw(st.integers(1, 3))
        status = draw(st.sampled_from(["incomplete", "trialing", "active"]))
        stripe.subscribe(f"sub_{number}", owners[number % len(owners)], status, draw(TIERS))
    for _ in range(draw(st.integers(0, 12))):
        stripe.second += draw(st.sampled_from([0, 0, 1, 9]))
        id_ = draw(st.sampled_from(sorted(stripe.subscriptions)))
        following = NEXT[stripe.subscriptions[id_]["status"]]
        if not following:
            continue
        match draw(st.sampled_from(["move", "move", "plan", "renew", "delete"])):
            case "move":
                stripe.move(id_, draw(st.sampled_from(following)))
            case "plan":
                stripe.change_plan(id_, draw(TIERS))
            case "renew":
                stripe.renew(id_, draw(st.integers(1, 9)))
            case "delete" if draw(st.booleans()):
                stripe.delete(stripe.subscriptions[id_]["customer"])
    return stripe


def reconcile(db: Db, stripe: Stripe) -> None:
    for obj in stripe.subscriptions.values():
        expanded = obj | {"customer": stripe.customers[obj["customer"]]}
        outcome = db.one("select handle_stripe_object(%s, %s)", expanded, at(stripe.second + 1))
        assert outcome in ("applied", "stale")


COLUMNS = "tier, status, unpaid, current_period_end"


def test_one_reconciliation_makes_it_what_stripe_is_whatever_was_delivered(db: Db) -> None:
    start_without_a_plan(db)

    @settings(max_examples=150)
    @given(histories(), st.data())
    def holds(stripe: Stripe, data: st.DataObject) -> None:
        kept = [each for each in stripe.events if data.draw(st.integers(0, 3))]
        again = data.draw(st.lists(st.sampled_from(stripe.events), max_size=4))
        arriving = data.draw(st.permutations(kept + again))
        with db.connection.transaction(force_rollback=True):
            assert "refused" not in send(db, *arriving)
            reconcile(db, stripe)
            assert plans(db, COLUMNS) == stripe.wanted()
            of = [obj["customer"] for obj in stripe.subscriptions.values()]
            alive = {id_ for id_ in of if not stripe.customers[id_].get("deleted")}
            assert (linked(db) in alive) if alive else linked(db) is None

    holds()


def test_all_events_in_the_order_they_were_made_need_no_reconciliation(db: Db) -> None:
    start_without_a_plan(db)

    @settings(max_examples=150)
    @given(histories())
    def holds(stripe: Stripe) -> None:
        with db.connection.transaction(force_rollback=True):
            outcomes = send(db, *stripe.events)
            if "ambiguous" not in outcomes:
                assert plans(db, COLUMNS) == stripe.wanted()

    holds()
