"""The rules of support_tickets: priority, status and what a user may close."""

import pytest
from psycopg.errors import CheckViolation, InsufficientPrivilege

from tests.support.customers import ANN, BOB, TIERS, Db, add_key, one_row_of_each


@pytest.mark.parametrize("priority", ["low", "normal", "high", "urgent"])
@pytest.mark.parametrize("tier", TIERS)
def test_a_high_priority_needs_the_plans_priority_support(db: Db, tier: str, priority: str) -> None:
    db.update("subscriptions", ANN.subscription, tier=tier)
    ticket = {"subject": "help", "description": "please"}
    with db.acting("authenticated", ANN):
        opened = db.insert("support_tickets", **ticket)
        assert (opened["status"], opened["priority"]) == ("open", "normal")
        if priority in ("low", "normal") or tier in ("professional", "enterprise"):
            db.insert("support_tickets", **ticket, priority=priority)
            db.update("support_tickets", opened["id"], priority=priority)
        else:
            with db.refused(CheckViolation, "priority support"):
                db.insert("support_tickets", **ticket, priority=priority)
            with db.refused(CheckViolation, "priority support"):
                db.update("support_tickets", opened["id"], priority=priority)


LAPSED = [
    *((f"status = '{status}'", False) for status in ("past_due", "paused", "cancelled")),
    ("current_period_end = now() - interval '1 s'", False),
    ("status = 'trialing', trial_ends_at = now() - interval '1 s'", False),
    ("status = 'trialing', trial_ends_at = now() + interval '1 s'", True),
    ("current_period_end = now() + interval '1 s'", True),
]


@pytest.mark.parametrize(("change", "has"), LAPSED)
def test_only_a_live_subscription_gives_priority_support_and_api_access(
    db: Db, change: str, has: bool
) -> None:
    db.run(f"update subscriptions set {change} where id = %s", ANN.subscription)
    ticket = {"subject": "help", "description": "please", "priority": "high"}
    with db.acting("authenticated", ANN):
        if has:
            db.insert("support_tickets", **ticket)
            add_key(db, "new")
        else:
            with db.refused(CheckViolation, "priority support"):
                db.insert("support_tickets", **ticket)
            with db.refused(InsufficientPrivilege, "API access"):
                add_key(db, "new")


@pytest.mark.parametrize("status", ["open", "in_progress", "resolved", "closed"])
def test_a_user_may_close_an_own_ticket_and_set_no_other_status(db: Db, status: str) -> None:
    ticket = one_row_of_each(db, ANN)["support_tickets"]["id"]
    for to in ("open", "in_progress", "resolved", "closed"):
        db.update("support_tickets", ticket, status=status)
        with db.acting("authenticated", ANN):
            if to in (status, "closed"):
                db.update("support_tickets", ticket, status=to, subject="more")
            else:
                with db.refused(InsufficientPrivilege, f"to {to}"):
                    db.update("support_tickets", ticket, status=to)
    assert db.one("select resolved_at = now() from support_tickets where id = %s", ticket)
    with db.acting("authenticated", BOB):
        db.run("update support_tickets set status = 'closed'")
    assert db.one("select subject from support_tickets where id = %s", ticket) == "more"


@pytest.mark.parametrize("done", ["resolved", "closed"])
@pytest.mark.parametrize("reopened", ["open", "in_progress"])
def test_resolved_at_says_when_and_goes_when_it_is_reopened(
    db: Db, done: str, reopened: str
) -> None:
    ticket = one_row_of_each(db, ANN)["support_tickets"]["id"]
    for status, said in ((done, True), (reopened, False)):
        with db.acting("admin_dashboard"):
            db.update("support_tickets", ticket, status=status)
        query = "select resolved_at = now() from support_tickets where id = %s"
        assert bool(db.one(query, ticket)) is said
