"""Whose token it is, and what an API key may do: what the instance gateway asks the database."""

import json
from hashlib import sha256
from itertools import product
from typing import Any

import psycopg
import pytest
from psycopg.errors import InvalidParameterValue, NullValueNotAllowed, UniqueViolation

from tests.support.customers import (
    ANN,
    BOB,
    NOBODY,
    Db,
    add_instance,
    add_key,
    at_once,
    customer_of_its_own,
    key_hash,
    said,
)
from tests.support.platforms import Platform

TOKEN = "PLATFORM_USAGE_TOKEN"
INDEX = "instance_secrets_usage_token_key"


def give(db: Db, value: str, instance: object = ANN.instance, name: str = TOKEN) -> None:
    db.run(
        """insert into private.instance_secrets (instance_id, name, value) values (%s, %s, %s)
           on conflict (instance_id, name) do update set value = excluded.value""",
        instance,
        name,
        value,
    )


def owner(db: Db, token: str) -> Any:
    with db.acting("instance_gateway"):
        return db.one("select instance_of_token(%s)", sha256(token.encode()).hexdigest())


def verify(
    db: Db, key: str = "new", instance: object = ANN.instance, permission: str = "read"
) -> tuple[Any, ...]:
    with db.acting("instance_gateway"):
        [answer] = db.run(
            "select * from verify_api_key(%s, %s, %s)", key_hash(key), instance, permission
        )
    return answer


# ---- tokens


@pytest.mark.parametrize("token", ["a", "ünïcode ✓", r"\x41", r"back\slash\\", "'", "\n"])
def test_a_token_is_known_by_the_sha256_of_its_utf8(db: Db, token: str) -> None:
    give(db, token)
    give(db, "of another", BOB.instance)
    assert owner(db, token) == ANN.instance
    assert owner(db, token + "?") is None


def test_a_rotated_token_is_known_at_once_and_the_old_one_no_more(db: Db) -> None:
    give(db, "old")
    give(db, "new")
    assert (owner(db, "old"), owner(db, "new")) == (None, ANN.instance)


def test_no_other_secret_is_a_token(db: Db) -> None:
    give(db, "secret", name="MINDROOM_API_TOKEN")
    assert owner(db, "secret") is None


def test_the_token_of_a_removed_instance_is_none(db: Db) -> None:
    give(db, "token")
    db.update("instances", ANN.instance, status="deprovisioning")
    assert owner(db, "token") == ANN.instance
    db.update("instances", ANN.instance, status="deprovisioned")
    assert owner(db, "token") is None


def test_no_two_instances_have_the_same_token(db: Db) -> None:
    give(db, "token")
    with db.refused(UniqueViolation):
        give(db, "token", BOB.instance)


def test_a_token_is_found_by_an_index(db: Db) -> None:
    body = db.one("select prosrc from pg_proc where proname = 'instance_of_token'")
    query = body[body.index("select instance.id") : body.index("\n  );")]
    db.run("set local enable_seqscan = off")
    plan = db.one("explain (format json) " + query.replace("token_hash", f"'{key_hash('a')}'"))
    assert INDEX in json.dumps(plan)


# ---- keys


def test_a_valid_key_gets_its_account_and_scopes(db: Db) -> None:
    add_key(db, "new", account_id=ANN.account, permissions=["read", "write"])
    valid = (True, ANN.account, ["read", "write"], None)
    assert verify(db, permission="write") == (*valid, None)
    give(db, "of MindRoom", name="OPENAI_COMPAT_API_KEYS")
    give(db, "another's", BOB.instance, name="OPENAI_COMPAT_API_KEYS")
    assert verify(db, permission="write") == (*valid, "of MindRoom")
    assert said(db, "api_key.refused") == []


def test_every_state_of_a_key_is_judged_and_refused_for_one_reason(db: Db) -> None:
    """All of them, against what the contract says of each."""
    plans: dict[str, dict[str, object]] = {
        "good": {"tier": "professional", "status": "active"},
        "without access": {"tier": "free", "status": "active"},
        "ended": {"tier": "professional", "status": "cancelled"},
    }
    key = add_key(db, "new", account_id=ANN.account, permissions=["read"])["id"]
    bobs = BOB.instance
    for instance in (ANN.instance, bobs):
        give(db, "of MindRoom", instance, name="OPENAI_COMPAT_API_KEYS")
    for plan, active, expiry, mine, permission in product(
        plans,
        (True, False),
        (None, "1 day", "-1 day"),
        (True, False),
        ("read", "write", "unknown"),
    ):
        db.update("subscriptions", ANN.subscription, **plans[plan])
        db.update("api_keys", key, is_active=active)
        db.run(
            """update api_keys set created_at = now() - interval '2 days',
               expires_at = now() + %s::interval where id = %s""",
            expiry,
            key,
        )
        wrong = [
            (not mine, "account"),
            (expiry == "-1 day", "expired"),
            (not active, "revoked"),
            (plan != "good", "plan"),
            (permission != "read", "scope"),
        ]
        reason = next((reason for is_so, reason in wrong if is_so), None)
        wanted: tuple[Any, ...] = (False, None, None, reason, None)
        if not reason:
            wanted = (True, ANN.account, ["read"], None, "of MindRoom")
        asked = verify(db, instance=ANN.instance if mine else bobs, permission=permission)
        assert asked == wanted, (plan, active, expiry, mine, permission)


@pytest.mark.parametrize("instance", [ANN.instance, NOBODY])
def test_an_unknown_key_is_refused(db: Db, instance: object) -> None:
    assert verify(db, "never made", instance) == (False, None, None, "unknown", None)


def test_a_deleted_key_is_unknown(db: Db) -> None:
    key = add_key(db, "new", account_id=ANN.account)["id"]
    db.run("set constraints all immediate")
    db.run("delete from api_keys where id = %s", key)
    assert verify(db)[3] == "unknown"


def test_use_is_noted_at_most_once_a_minute(db: Db) -> None:
    key = add_key(db, "new", account_id=ANN.account)["id"]
    noted = "select now() - last_used_at from api_keys"
    assert db.one(noted) is None
    verify(db)
    assert db.one(noted).total_seconds() == 0
    for ago, seconds in (("59 seconds", 59), ("1 minute", 0)):
        db.run("update api_keys set last_used_at = now() - %s::interval", ago)
        verify(db)
        assert db.one(noted).total_seconds() == seconds
    db.update("api_keys", key, last_used_at=None, is_active=False)
    verify(db)
    assert db.one(noted) is None


def test_running_agents_is_a_message_until_the_limit(db: Db) -> None:
    add_key(db, "new", account_id=ANN.account, permissions=["read", "execute"])
    db.update("subscriptions", ANN.subscription, max_messages_per_day=2)
    counted = "select messages_received::int from usage_metrics where instance_id = %s"
    for count in (1, 2):
        assert verify(db, permission="execute")[0]
        assert verify(db, permission="read")[0]
        assert db.one(counted, ANN.instance) == count
    assert verify(db, permission="execute") == (False, None, None, "limit", None)
    assert verify(db, "never made", permission="execute")[3] == "unknown"
    assert verify(db, permission="read")[0]
    assert db.one(counted, ANN.instance) == 2


def test_refusals_are_counted_in_one_row_a_day(db: Db) -> None:
    key = add_key(db, "new", account_id=ANN.account, permissions=["read"])["id"]
    for _ in range(3):
        verify(db, permission="write")
    verify(db, "never made")
    [(detail, resource, success)] = db.run(
        """select details, resource_id, success from audit_logs
           where action = 'api_key.refused' and resource_type = 'api_key'"""
    )
    assert (detail["reason"], detail["count"], resource, success) == ("scope", 3, key, False)
    assert sorted((row["reason"], row["count"]) for row in said(db, "api_key.refused")) == [
        ("scope", 3),
        ("unknown", 1),
    ]
    db.run("update audit_logs set id = gen_random_uuid()")  # as if of another day
    verify(db, permission="write")
    assert len(said(db, "api_key.refused")) == 3


def test_nobody_learns_that_a_key_is_anothers(db: Db) -> None:
    add_key(db, "new", account_id=ANN.account)
    for key in ("new", "never made"):
        verify(db, key, BOB.instance)
    assert said(db, "api_key.refused") == []
    [noted] = said(db, "api_key.refused", BOB)
    assert (noted["reason"], noted["count"], noted["instance"]) == (
        "unknown",
        2,
        str(BOB.instance),
    )
    [resource] = db.run(
        "select resource_type, resource_id from audit_logs where action = 'api_key.refused'"
    )
    assert resource == ("instance", BOB.instance)


def test_an_unknown_instance_leaves_no_row(db: Db) -> None:
    add_key(db, "new", account_id=ANN.account)
    before = db.one("select count(*) from audit_logs")
    assert verify(db, instance=NOBODY) == (False, None, None, "account", None)
    assert db.one("select count(*) from audit_logs") == before


def test_a_key_opens_every_instance_of_its_account(db: Db) -> None:
    add_key(db, "new", account_id=ANN.account)
    second = add_instance(db, ANN, "second", status="running")["id"]
    assert verify(db, instance=second)[0] is True


@pytest.mark.parametrize(
    ("hashed", "instance", "permission", "error"),
    [
        (None, NOBODY, "read", NullValueNotAllowed),
        (key_hash("a"), None, "read", NullValueNotAllowed),
        (key_hash("a"), NOBODY, None, NullValueNotAllowed),
        ("the key itself", NOBODY, "read", InvalidParameterValue),
        (key_hash("a").upper(), NOBODY, "read", InvalidParameterValue),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_hint_and_not_told(
    db: Db,
    hashed: str | None,
    instance: str | None,
    permission: str | None,
    error: type[psycopg.Error],
) -> None:
    with pytest.raises(error) as caught, db.connection.transaction():
        db.run("select verify_api_key(%s, %s, %s)", hashed, instance, permission)
    assert caught.value.diag.message_hint
    assert not hashed or hashed not in str(caught.value)


@pytest.mark.parametrize("hashed", [None, "", "the token itself", key_hash("a") + "0"])
def test_what_is_no_hash_of_a_token_is_refused(db: Db, hashed: str | None) -> None:
    with pytest.raises(InvalidParameterValue) as caught, db.connection.transaction():
        db.run("select instance_of_token(%s)", hashed)
    assert caught.value.diag.message_hint
    assert not hashed or hashed not in str(caught.value)


def test_refusals_at_once_are_all_counted(platform: Platform) -> None:
    with customer_of_its_own(platform) as (db, _, instance):
        call: tuple[str, list[object]] = (
            "select reason from verify_api_key(%s, %s, 'read')",
            [key_hash("never made"), instance],
        )
        assert set(at_once(platform, [call] * 8, times=5)) == {"unknown"}
        counts = db.run(
            """select details -> 'count' from audit_logs
               where action = 'api_key.refused' and details ->> 'instance' = %s""",
            str(instance),
        )
        assert counts == [(40,)]
