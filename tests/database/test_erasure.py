"""An account can be exported and erased, whole, whatever it has and whoever has to act first."""

import json
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from psycopg.errors import NoDataFound, NullValueNotAllowed, ObjectNotInPrerequisiteState
from psycopg.types.json import Jsonb

from tests.support.customers import (
    ANN,
    BOB,
    NOBODY,
    Db,
    add_key,
    at_once,
    customer_of_its_own,
    key_hash,
    one_row_of_each,
    said,
)
from tests.support.platforms import Platform

MARKER = "marker-of-a-person"
ADDRESS = "203.0.113.77"

OUR_OWN = {
    "private.tiers",
    "private.retention",
    "private.database_backups",
    "private.reserved_subdomains",
    "private.instance_status_transitions",
    "private.stripe_prices",
}
"""Tables that no customer's data comes into."""

KEPT = {"private.released_subdomains.subdomain"}
"""Emptied by private.retention; sql/verify/ has the reason."""


def erase(db: Db) -> tuple[str | None, list[str]]:
    """The step that a call came to, and what it waits for."""
    answer: dict[str, Any] = db.one("select erase_account(account_id => %s)", ANN.account)
    assert answer["erased"] is (answer["step"] is None)
    return answer["step"], answer["waiting_for"]


def remove_instances(db: Db) -> None:
    db.run("update instances set status = 'deprovisioned' where status = 'deprovisioning'")


def delete_volumes(db: Db) -> None:
    db.run("update private.erasures set volumes_deleted_at = now()")


def erase_all(db: Db) -> None:
    """As everybody does their part."""
    erase(db)
    db.run("update subscriptions set status = 'cancelled' where status <> 'cancelled'")
    erase(db)
    remove_instances(db)
    delete_volumes(db)
    assert erase(db) == (None, [])


def personal_columns(db: Db) -> dict[str, str]:
    """Column -> type, of all that is neither number, time, truth nor key and not our own."""
    rows = db.run(
        """select relnamespace::regnamespace || '.' || relname, attname, atttypid::regtype::text
             from pg_attribute as a
             join pg_class as c on c.oid = attrelid and relkind in ('r', 'p')
             join pg_type as t on t.oid = atttypid
            where relnamespace::regnamespace::text in ('public', 'private', 'auth')
              and attnum > 0 and not attisdropped and attgenerated = '' and attname <> 'tier'
              and typcategory not in ('B', 'D', 'N', 'T') and atttypid <> 'uuid'::regtype
            order by 1, attnum"""
    )
    return {f"{table}.{name}": kind for table, name, kind in rows if table not in OUR_OWN}


def plant(db: Db) -> None:
    """Write the marker into every column of every row that takes it."""
    db.run("set local session_replication_role = replica")  # past the triggers
    values = {"jsonb": Jsonb({MARKER: MARKER}), "inet": ADDRESS, "text[]": [MARKER]}
    for place, kind in personal_columns(db).items():
        table, _, column = place.rpartition(".")
        with suppress(psycopg.IntegrityError, psycopg.DataError), db.connection.transaction():
            db.run(f"update {table} set {column} = %s", values.get(kind, MARKER))
    db.run("set local session_replication_role = origin")


def planted(db: Db) -> set[str]:
    """The columns where that is found."""
    found = set()
    for place in personal_columns(db):
        table, _, column = place.rpartition(".")
        query = f"select exists (select from {table} where {column}::text ~ %s)"
        if db.one(query, f"{MARKER}|{ADDRESS}"):
            found.add(place)
    return found


def checked_columns(db: Db) -> set[str]:
    """Those that a check constraint holds to a list or a form."""
    rows = db.run(
        """select relnamespace::regnamespace || '.' || relname || '.' || attname
             from pg_constraint as con
             join pg_class as c on c.oid = conrelid
             join pg_attribute as a on attrelid = conrelid and attnum = any (conkey)
            where contype = 'c'"""
    )
    return {place for (place,) in rows}


@pytest.fixture
def everything(db: Db) -> Db:
    """Ann alone, with a row in every table that can have one of hers."""
    for status in ("deprovisioning", "deprovisioned"):
        db.update("instances", BOB.instance, status=status)
    db.run("delete from auth.users where id = %s", BOB.account)
    db.run("delete from audit_logs")
    db.run("delete from private.released_subdomains")
    db.run("delete from private.usage_events")
    db.update("instances", ANN.instance, subdomain="another")
    one_row_of_each(db, ANN)
    db.run("insert into private.instance_secrets values (%s, 'TOKEN', 'x')", ANN.instance)
    events = [{"id": "a", "type": "sent", "agent": "ada", "platform": "matrix"}]
    db.run("select record_usage(%s, %s)", ANN.instance, Jsonb(events))
    db.insert("private.stripe_customers", customer_id="cus_1", account_id=ANN.account)
    db.insert(
        "private.stripe_subscriptions",
        subscription_id="sub_1",
        customer_id="cus_1",
        created_at="2026-01-01",
        observed_at="2026-01-01",
        status="cancelled",
        begun=True,
    )
    customer = {"id": "cus_1", "object": "customer", "created": 1}
    event = {"id": "evt_1", "type": "customer.updated", "created": 1, "data": {"object": customer}}
    db.run("select handle_stripe_event(%s)", event)
    return db


def test_nothing_of_an_erased_account_is_left_anywhere(everything: Db) -> None:
    plant(everything)
    assert set(personal_columns(everything)) - planted(everything) <= checked_columns(everything)
    erase_all(everything)
    assert planted(everything) - KEPT == set()


def test_what_is_left_says_that_and_when_and_not_who(everything: Db) -> None:
    erase_all(everything)
    assert everything.run(
        "select account_id from private.erasures where erased_at is not null"
    ) == [(ANN.account,)]
    assert erase(everything) == (None, [])
    assert everything.audited(ANN) == {}


def test_it_says_what_somebody_else_has_to_do_first(db: Db) -> None:
    db.update("subscriptions", ANN.subscription, stripe_subscription_id="sub_1")
    with db.acting("service_role"):
        assert erase(db) == ("subscriptions", ["sub_1"])
        assert erase(db) == ("subscriptions", ["sub_1"])
    assert db.one("select status from instances where id = %s", ANN.instance) == "running"
    db.update("subscriptions", ANN.subscription, status="cancelled")
    assert erase(db) == ("instances", [ANN.name])
    reasons = [details.get("reason") for details in said(db, "instance.updated")]
    assert reasons == ["the account is erased"]
    remove_instances(db)
    assert erase(db) == ("volumes", [ANN.name])
    delete_volumes(db)
    assert erase(db) == (None, [])
    assert db.run("select from accounts where id = %s", ANN.account) == []
    assert db.run("select from auth.users where id = %s", ANN.account) == []
    assert db.counts(BOB)["public.instances"] == 1


def test_it_has_no_key_and_gets_no_instance_from_the_first_call(db: Db) -> None:
    add_key(db, "a key", account_id=ANN.account)
    db.update("subscriptions", ANN.subscription, stripe_subscription_id="sub_1")
    erase(db)
    assert db.run("select is_active from api_keys") == [(False,)]
    for role in ("authenticated", "service_role"):
        with db.acting(role, ANN), db.refused(ObjectNotInPrerequisiteState, "is being erased"):
            add_key(db, "another key", account_id=ANN.account)
    with db.refused(ObjectNotInPrerequisiteState, "is being erased"):
        db.run("select provision_instance(%s)", ANN.subscription)


def test_volumes_count_as_deleted_for_instances_that_were_gone_by_then(db: Db) -> None:
    db.update("subscriptions", ANN.subscription, stripe_subscription_id="sub_1")
    erase(db)
    db.run("update private.erasures set volumes_deleted_at = now() - interval '1 minute'")
    db.update("subscriptions", ANN.subscription, status="cancelled")
    erase(db)
    remove_instances(db)
    assert erase(db) == ("volumes", [ANN.name])


def test_where_the_owner_may_not_delete_users_supabase_auth_has_to(db: Db) -> None:
    db.run(
        """create role owner_without_auth bypassrls;
           grant usage on schema public, private, auth to owner_without_auth;
           grant all on all tables in schema public, private to owner_without_auth;
           grant execute on all functions in schema private to owner_without_auth;
           grant select on auth.users to owner_without_auth;
           alter function erase_account owner to owner_without_auth"""
    )
    erase(db)
    remove_instances(db)
    delete_volumes(db)
    assert erase(db) == ("user", [str(ANN.account)])
    db.run("delete from auth.users where id = %s", ANN.account)
    assert erase(db) == (None, [])


def test_an_account_is_named(db: Db) -> None:
    for function in ("erase_account", "export_account"):
        with db.refused(NoDataFound, "no account"):
            db.run(f"select {function}(%s)", NOBODY)
        with db.refused(NullValueNotAllowed, "account_id must not be null"):
            db.run(f"select {function}(null)")


def test_two_that_erase_at_once_do_it_once(platform: Platform) -> None:
    with customer_of_its_own(platform) as (db, _, instance):
        account = db.one("select account_id from instances where id = %s", instance)
        answers = at_once(platform, [("select erase_account(%s)", [account])] * 4)
        assert {answer["step"] for answer in answers} == {"instances"}
        query = """select count(*) from audit_logs
                    where account_id = %s and action = 'account.erasure_requested'"""
        assert db.one(query, account) == 1
        db.run("delete from private.erasures where account_id = %s", account)


def test_an_export_has_every_row_and_no_secret(everything: Db) -> None:
    add_key(everything, "another key", account_id=ANN.account)
    exported = everything.one("select export_account(account_id => %s)", ANN.account)
    for table, count in everything.counts(ANN).items():
        assert len(exported[table.removeprefix("public.")]) == count, table
    assert exported["accounts"][0]["email"] == ANN.email
    assert [row["customer_id"] for row in exported["stripe_customers"]] == ["cus_1"]
    assert [row["subscription_id"] for row in exported["stripe_subscriptions"]] == ["sub_1"]
    assert [row["event_id"] for row in exported["stripe_events"]] == ["evt_1"]
    assert [row["event_id"] for row in exported["usage_events"]] == ["a"]
    assert key_hash("another key") not in json.dumps(exported)
    assert "TOKEN" not in json.dumps(exported)
    add_key(everything, "one more", account_id=ANN.account)
    assert json.loads(json.dumps(exported)) == exported
