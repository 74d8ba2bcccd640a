"""What is audited: every change exactly once, with who made it and nothing secret."""

import json
from typing import Any

import pytest
from psycopg.errors import InvalidTextRepresentation

from tests.support.customers import ANN, Db, add_instance, add_key, key_hash

KEY, REMOVED = ANN.id("key"), ANN.id("removed instance")

Told = dict[str, tuple[object, object] | None]

AUDITED: list[tuple[str, str, Told]] = [
    (
        "authenticated account.updated",
        "update accounts set full_name = 'Personal', company_name = 'Personal' where id = {ann}",
        {"company_name": None, "full_name": None},
    ),
    (
        "stripe_handler account.updated",
        "update accounts set stripe_customer_id = 'cus_1' where id = {ann}",
        {"stripe_customer_id": None},
    ),
    (
        "stripe_handler subscription.created",
        "insert into subscriptions (account_id, status) values ({ann}, 'cancelled')",
        {},
    ),
    (
        "stripe_handler subscription.updated",
        "update subscriptions set status = 'paused' where id = {subscription}",
        {"status": ("active", "paused")},
    ),
    (  # resizes the instances, too
        "stripe_handler subscription.updated",
        "update subscriptions set tier = 'free' where id = {subscription}",
        {},
    ),
    (
        "instance_provisioner instance.created",
        "insert into instances (account_id, subscription_id, app_name, subdomain)"
        " values ({ann}, {subscription}, 'new', 'new')",
        {},
    ),
    (
        "instance_provisioner instance.updated",
        "update instances set status = 'failed' where id = {instance}",
        {"status": ("running", "failed")},
    ),
    ("service_role instance.deleted", "delete from instances where id = {removed}", {}),
    (
        "authenticated api_key.created",
        "insert into api_keys (name, key_prefix, key_hash)"
        f" values ('Personal', 'mr_12345', '{key_hash('new')}')",
        {},
    ),
    (
        "authenticated api_key.updated",
        "update api_keys set name = 'Personal' where id = {key}",
        {"name": None},
    ),
    (
        "authenticated api_key.updated",
        "update api_keys set is_active = false where id = {key}",
        {"is_active": (True, False)},
    ),
    ("service_role api_key.deleted", "delete from api_keys where id = {key}", {}),
]
"""Who does it and the action; how; where they are few, the columns with values that are told."""

NOT_AUDITED = [
    "update accounts set email = email, full_name = full_name where id = {ann}",
    "update auth.users set email = email where id = {ann}",
    "update subscriptions set status = 'active', tier = tier where id = {subscription}",
    "update subscriptions set storage_used_gb = 3 where id = {subscription}",
    "update instances set status = 'running', error_message = 'x' where id = {instance}",
    "update instances set health_status = 'healthy', cpu_used = 1 where id = {instance}",
    "update instances set last_active_at = now(), config = '{{\"a\": 1}}' where id = {instance}",
    "update api_keys set last_used_at = now(), name = name where id = {key}",
]


def audited_by(db: Db, statement: str, role: str = "") -> list[tuple[Any, ...]]:
    """What is audited of a statement about Ann."""
    add_key(db, "old", id=KEY, account_id=ANN.account)
    add_instance(db, ANN, "removed", id=REMOVED, status="deprovisioned")
    before = db.audited(ANN)
    ids = {
        "ann": ANN.account,
        "subscription": ANN.subscription,
        "instance": ANN.instance,
        "key": KEY,
        "removed": REMOVED,
    }
    query = statement.format(**{name: f"'{each}'" for name, each in ids.items()})
    if role:
        with db.acting(role, ANN if role == "authenticated" else None):
            db.run(query)
    else:
        db.run(query)
    return [row for key, row in db.audited(ANN).items() if key not in before]


@pytest.mark.parametrize(("doing", "statement", "changed"), AUDITED)
def test_a_change_is_audited_exactly_once_with_its_actor_and_nothing_secret(
    db: Db, doing: str, statement: str, changed: Told
) -> None:
    role, action = doing.split()
    [row] = audited_by(db, statement, role)
    assert row[:3] == (action, role, ANN.account if role == "authenticated" else None)
    if changed:
        thing = {"account": ANN.account, "subscription": ANN.subscription, "instance": ANN.instance}
        assert row[3] == thing.get(action.removesuffix(".updated"), KEY)
        old, new = ({name: told[i] for name, told in changed.items() if told} for i in (0, 1))
        assert row[4] == {"changed": list(changed), "old": old, "new": new}
    for secret in ("key_hash", key_hash("new"), key_hash("old"), "Personal", "cus_1", ANN.email):
        assert secret not in json.dumps(row[4])


@pytest.mark.parametrize("statement", NOT_AUDITED)
def test_no_change_and_bookkeeping_are_not_audited(db: Db, statement: str) -> None:
    assert audited_by(db, statement) == []


def test_a_new_account_is_audited_once_and_the_administrator_is_named(db: Db) -> None:
    [row] = [row for row in db.audited(ANN).values() if row[0].startswith("account.")]
    assert row[:4] == ("account.created", db.one("select session_user"), None, ANN.account)


@pytest.mark.parametrize("forwarded", ["203.0.113.9, 10.0.0.1", "unknown", "", "x" * 501])
def test_an_audit_row_has_the_addresses_as_they_were_stated_and_none_as_known(
    db: Db, forwarded: str
) -> None:
    headers = json.dumps({"x-forwarded-for": forwarded, "user-agent": "curl"})
    db.run("select set_config('request.headers', %s, true)", headers)
    db.update("subscriptions", ANN.subscription, status="paused")
    query = "select ip_address, forwarded_for from audit_logs where user_agent = 'curl'"
    assert db.run(query) == [(None, forwarded[:500])]


def test_a_reason_is_the_services_to_state_and_a_users_is_ignored(db: Db) -> None:
    with db.acting("authenticated", ANN):
        db.run("select set_config('mindroom.audit_reason', 'forged', true)")
        db.update("accounts", ANN.account, full_name="New")
    with db.acting("instance_provisioner"):
        db.run("select deprovision_instance(%s, 'the end')", ANN.instance)
    reasons = {row[0]: row[4].get("reason") for row in db.audited(ANN).values()}
    assert reasons["account.updated"] is None
    assert reasons["instance.updated"] == "the end"


MALFORMED = [
    ("request.jwt.claims", "no json"),
    ("request.jwt.claims", "[1]"),
    ("request.jwt.claims", '{"sub": "no uuid"}'),
    ("request.jwt.claims", '{"sub": {"a": 1}}'),
    ("request.jwt.claim.sub", "no uuid"),
    ("request.headers", "no json"),
    ("request.headers", '"x"'),
]


@pytest.mark.parametrize(("setting", "value"), MALFORMED)
def test_a_malformed_setting_of_the_request_is_an_error_with_a_hint(
    db: Db, setting: str, value: str
) -> None:
    db.run("select set_config(%s, %s, true)", setting, value)
    with pytest.raises(InvalidTextRepresentation) as caught, db.connection.transaction():
        db.update("subscriptions", ANN.subscription, status="paused")
    assert caught.value.diag.message_hint
