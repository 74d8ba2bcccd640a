"""The examples of docs/services.md, each under the login of its service, on a real server."""

import json
import logging
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from decimal import Decimal
from hashlib import sha256
from itertools import islice
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.errors import (
    CheckViolation,
    DivisionByZero,
    InsufficientPrivilege,
    ObjectNotInPrerequisiteState,
)

from components import ROOT
from components.authorization import SERVICES
from docs.examples import admin_dashboard, customer_portal, instance_provisioner, stripe_handler
from tests.support.customers import Db
from tests.support.platforms import Platform

EVENT = (ROOT / "docs" / "examples" / "customer.subscription.created.json").read_text()

Logins = dict[str, psycopg.Connection]


@pytest.fixture
def logins(platform: Platform) -> Iterator[Logins]:
    """Service -> a connection by its URL in the stack's outputs."""
    with ExitStack() as stack:
        yield {
            role: stack.enter_context(psycopg.connect(platform.service_url(role), autocommit=True))
            for role in SERVICES
        }


@pytest.fixture
def admin(platform: Platform) -> Iterator[Db]:
    """The administrator, who leaves the platform without customers."""
    with psycopg.connect(platform.url, autocommit=True) as connection:
        db = Db(connection)
        yield db
        for status in ("deprovisioning", "deprovisioned"):
            db.run("update instances set status = %s where status <> 'deprovisioned'", status)
        db.run("update subscriptions set status = 'cancelled'")
        stripes = ("private.stripe_events", "private.stripe_customers")
        for table in ("auth.users", "audit_logs", *stripes):
            db.run(f"delete from {table}")


def sign_up(admin: Db) -> dict[str, Any]:
    """The claims of a new user."""
    user = uuid4()
    admin.run("insert into auth.users (id, email) values (%s, %s)", user, f"{user}@users.example")
    return {"sub": str(user), "role": "authenticated"}


def event(claims: dict[str, Any], **changes: object) -> dict[str, Any]:
    """The event that the document shows, of a user, by ids of its own."""
    sent: dict[str, Any] = json.loads(EVENT)
    subscription = sent["data"]["object"]
    subscription["metadata"] = {"account_id": claims["sub"]}
    sent["id"] = f"evt_{uuid4()}"
    for name in ("id", "customer"):
        subscription[name] = f"{name}_of_{claims['sub']}"
    subscription |= changes
    return sent


def subscribe(admin: Db, logins: Logins, claims: dict[str, Any]) -> UUID:
    """The subscription that Stripe has told of."""
    body = json.dumps(event(claims))
    assert stripe_handler.receive(logins["stripe_handler"], body, not_fetched) == 200
    found: UUID = admin.one("select id from subscriptions where account_id = %s", claims["sub"])
    return found


def deploy(admin: Db, logins: Logins, claims: dict[str, Any]) -> UUID:
    """A running instance."""
    connection, subscription = logins["instance_provisioner"], subscribe(admin, logins, claims)
    instance = instance_provisioner.provision(connection, subscription, {"agents": {}})
    instance_provisioner.deployed(connection, instance, "https://a.example", {"TOKEN": "shh"})
    return instance


# ---- stripe-handler


def not_fetched(id_: str) -> stripe_handler.Fetched:
    raise AssertionError(id_)


def test_an_event_is_taken_any_number_of_times(admin: Db, logins: Logins) -> None:
    claims = sign_up(admin)
    body = json.dumps(event(claims))
    for _ in range(3):
        assert stripe_handler.receive(logins["stripe_handler"], body, not_fetched) == 200
    plans = admin.run("select tier, status from subscriptions where account_id = %s", claims["sub"])
    assert plans == [("professional", "active")]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"status": "on_holiday"}, "unknown status 'on_holiday'"),
        ({"items": {"data": []}}, "names no known tier"),
    ],
)
def test_what_is_refused_is_to_be_sent_again_and_nothing_personal_is_kept(
    admin: Db,
    logins: Logins,
    caplog: pytest.LogCaptureFixture,
    change: dict[str, Any],
    said: str,
) -> None:
    claims = sign_up(admin)
    sent = event(claims, **change, description="Ann Example")
    assert stripe_handler.receive(logins["stripe_handler"], json.dumps(sent), not_fetched) == 500
    assert "a Stripe event was refused: see private.stripe_events" in caplog.text
    kept = str(admin.run("select * from private.stripe_events"))
    assert said in kept
    assert "Ann Example" not in caplog.text + kept
    again = json.dumps(event(claims))
    assert stripe_handler.receive(logins["stripe_handler"], again, not_fetched) == 200


def test_an_ambiguous_event_has_its_subscription_fetched(
    admin: Db, logins: Logins, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims = sign_up(admin)
    now = event(claims, status="paused")["data"]["object"]
    date = datetime.fromtimestamp(event(claims)["created"] + 1, UTC)
    monkeypatch.setattr("docs.examples.stripe_handler.time.sleep", lambda _: None)
    for name, status in (("evt_1", "active"), ("evt_2", "past_due")):
        sent = event(claims, status=status) | {"id": name, "type": "customer.subscription.updated"}
        body = json.dumps(sent)
        taken = stripe_handler.receive(
            logins["stripe_handler"], body, lambda id_: ({now["id"]: now}[id_], date)
        )
        assert taken == 200
    plans = admin.run("select status from subscriptions where account_id = %s", claims["sub"])
    assert plans == [("paused",)]


def test_a_reconciliation_goes_on_after_what_is_refused(
    admin: Db, logins: Logins, caplog: pytest.LogCaptureFixture
) -> None:
    claims = sign_up(admin)
    whole = event(claims)["data"]["object"]
    date = datetime.fromtimestamp(whole["created"] + 9, UTC)
    refused = whole | {"id": "sub_x", "status": "on_holiday"}
    stripe_handler.reconcile(logins["stripe_handler"], [(refused, date), (whole, date)])
    assert "unknown status 'on_holiday' of Stripe subscription sub_x" in caplog.text
    plans = admin.run("select status from subscriptions where account_id = %s", claims["sub"])
    assert plans == [("active",)]


@pytest.mark.parametrize("body", ["", "Ann Example", '{"id": "Ann Example'])
def test_what_is_no_json_is_refused_and_not_logged(
    logins: Logins, caplog: pytest.LogCaptureFixture, body: str
) -> None:
    assert stripe_handler.receive(logins["stripe_handler"], body, not_fetched) == 500
    assert "invalid input syntax for type json" in caplog.text
    assert "Ann" not in caplog.text


def test_without_a_database_the_event_is_to_be_sent_again(
    logins: Logins, caplog: pytest.LogCaptureFixture
) -> None:
    logins["stripe_handler"].close()
    assert stripe_handler.receive(logins["stripe_handler"], EVENT, not_fetched) == 500
    assert "OperationalError" in caplog.text


@pytest.mark.usefixtures("admin")
def test_an_event_of_no_account_is_taken_and_told(
    logins: Logins, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    body = EVENT.replace("ACCOUNT", str(uuid4()))
    assert stripe_handler.receive(logins["stripe_handler"], body, not_fetched) == 200
    assert "a Stripe event was unlinked" in caplog.text


# ---- customer-portal


def asks(connection: psycopg.Connection) -> tuple[Any, ...] | None:
    query = "select current_user, coalesce(current_setting('request.jwt.claims', true), '')"
    found = connection.execute(query).fetchone()
    connection.rollback()
    return found


@pytest.mark.parametrize("autocommit", [True, False])
def test_users_share_a_connection_and_nothing_else(
    admin: Db, logins: Logins, autocommit: bool
) -> None:
    portal, users = logins["customer_portal"], [sign_up(admin) for _ in range(2)]
    portal.autocommit = autocommit
    instances = [deploy(admin, logins, claims) for claims in users]
    for claims, instance in zip(users, instances, strict=True):
        found = customer_portal.home(portal, claims)
        assert found is not None
        assert found[0][:4] == (instance, "https://a.example", "running", "professional")
        assert found[0].features["priority_support"] is True
        assert found[1] == (True, 10_000, 10_000)
        assert asks(portal) == ("customer_portal", "")
    assert customer_portal.home(portal, sign_up(admin)) is None


def test_nothing_of_a_user_is_left_when_something_fails(admin: Db, logins: Logins) -> None:
    portal, claims = logins["customer_portal"], sign_up(admin)
    with pytest.raises(CheckViolation):
        customer_portal.open_ticket(portal, claims, "", "please")
    assert asks(portal) == ("customer_portal", "")
    with pytest.raises(DivisionByZero), customer_portal.acting_for(portal, claims):
        portal.execute("select 1 / 0")
    assert asks(portal) == ("customer_portal", "")
    with pytest.raises(InsufficientPrivilege):
        portal.execute("select * from accounts")


def test_a_user_configures_an_own_instance_within_the_plan(admin: Db, logins: Logins) -> None:
    portal, claims, other = logins["customer_portal"], sign_up(admin), sign_up(admin)
    instance = deploy(admin, logins, claims)
    config = {"agents": {"ada": {"model": "a-model"}}}
    assert customer_portal.configure(portal, claims, instance, config) is True
    assert admin.one("select config from instances where id = %s", instance) == config
    assert customer_portal.configure(portal, other, instance, {}) is False
    too_many: dict[str, object] = {"agents": {f"agent{number}": {} for number in range(51)}}
    with pytest.raises(CheckViolation, match="51 agents, the plan allows 50") as caught:
        customer_portal.configure(portal, claims, instance, too_many)
    assert caught.value.diag.message_hint
    assert admin.one("select config from instances where id = %s", instance) == config


def test_a_user_opens_a_ticket_and_creates_a_key(admin: Db, logins: Logins) -> None:
    portal, claims = logins["customer_portal"], sign_up(admin)
    customer_portal.open_ticket(portal, claims, "help", "please")
    tickets = admin.run("select account_id::text, subject, status from support_tickets")
    assert tickets == [(claims["sub"], "help", "open")]
    with pytest.raises(InsufficientPrivilege, match="API access"):
        customer_portal.create_api_key(portal, claims, "mine", ["read"])
    subscribe(admin, logins, claims)
    key = customer_portal.create_api_key(portal, claims, "mine", ["read", "write"])
    [row] = admin.run(
        """select account_id::text, key_prefix, h.key_hash, permissions
             from api_keys join private.api_key_hashes h on api_key_id = id"""
    )
    hashed = sha256(key.encode()).hexdigest()
    assert row == (claims["sub"], key[:8], hashed, ["read", "write"])


# ---- instance-provisioner


def test_the_provisioner_looks_at_all_rows_and_then_at_what_changes(
    admin: Db, logins: Logins, platform: Platform
) -> None:
    before = deploy(admin, logins, sign_up(admin))
    subscription = subscribe(admin, logins, sign_up(admin))
    url = platform.service_url("instance_provisioner")
    with psycopg.connect(url, autocommit=True) as listener:
        work = instance_provisioner.to_reconcile(listener, resync=1)
        assert next(work) == before
        connection = logins["instance_provisioner"]
        new = instance_provisioner.provision(connection, subscription, {})
        assert next(work) == new
        instance_provisioner.deployed(connection, new, "https://b.example", {"TOKEN": "shh"})
        assert next(work) == new
        assert set(islice(work, 2)) == {before, new}  # a second later


def test_an_instance_is_provisioned_observed_and_removed(admin: Db, logins: Logins) -> None:
    connection = logins["instance_provisioner"]
    instance = deploy(admin, logins, sign_up(admin))
    instance_provisioner.observed(connection, instance, "critical", {"pods": "crash loop"}, 1.5)
    [row] = admin.run(
        """select i.status, frontend_url, health_status, health_details, p.storage_used_gb, value
             from instances i join subscriptions p on p.id = subscription_id
             join private.instance_secrets on instance_id = i.id where i.id = %s""",
        instance,
    )
    reasons = {"pods": "crash loop"}
    assert row == ("running", "https://a.example", "critical", reasons, Decimal("1.5"), "shh")
    assert instance_provisioner.deprovision(connection, instance, "asked for") is True
    assert instance_provisioner.deprovision(connection, instance, "asked again") is False


def test_nothing_is_provisioned_without_a_live_plan(admin: Db, logins: Logins) -> None:
    subscription = subscribe(admin, logins, sign_up(admin))
    admin.update("subscriptions", subscription, status="past_due")
    with pytest.raises(ObjectNotInPrerequisiteState, match="is not live"):
        instance_provisioner.provision(logins["instance_provisioner"], subscription, {})


# ---- admin-dashboard


def test_the_dashboard_shows_every_customer_with_the_use(admin: Db, logins: Logins) -> None:
    user, visitor = (sign_up(admin) for _ in range(2))
    instance = deploy(admin, logins, user)
    instance_provisioner.observed(logins["instance_provisioner"], instance, "healthy", {}, 2.5)
    for _ in range(3):
        admin.run("select track_usage(%s)", instance)
    today = admin.one("select (now() at time zone 'utc')::date")
    found = admin_dashboard.customers(logins["admin_dashboard"], today, today)
    wanted = [
        (f"{user['sub']}@users.example", "professional", "active", 3, Decimal("2.5")),
        (f"{visitor['sub']}@users.example", None, None, 0, 0),
    ]
    assert found == sorted(wanted)


def test_the_dashboard_resolves_a_ticket_and_says_who_did(admin: Db, logins: Logins) -> None:
    claims, staff = sign_up(admin), uuid4()
    customer_portal.open_ticket(logins["customer_portal"], claims, "help", "please")
    ticket = admin.one("select id from support_tickets")
    connection = logins["admin_dashboard"]
    assert admin_dashboard.resolve(connection, ticket, staff, "done") is True
    assert admin_dashboard.resolve(connection, uuid4(), staff, "done") is False
    [row] = admin.run(
        "select status, assignee, resolution, resolved_at is null from support_tickets"
    )
    assert row == ("resolved", str(staff), "done", False)
    audited = admin.run(
        """select account_id::text, actor_role, actor_user_id, resource_id from audit_logs
            where action = 'support_ticket.resolved'"""
    )
    assert audited == [(claims["sub"], "admin_dashboard", staff, ticket)]
