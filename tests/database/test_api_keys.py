"""The rules of api_keys: only hashes, and permissions within the plan."""

import pytest
from psycopg.errors import CheckViolation, InsufficientPrivilege, UniqueViolation

from tests.support.customers import ANN, BOB, TIERS, Db, add_key, key_hash

SERVICE_ROLES = ("stripe_handler", "instance_provisioner", "admin_dashboard")


def test_only_the_hash_of_a_key_is_stored_and_nobody_reads_it(db: Db) -> None:
    with db.acting("authenticated", ANN):
        row = add_key(db, "new")
        assert row["key_hash"] is None
        assert db.run("select key_hash from api_keys") == [(None,)]
    db.run("set constraints all immediate")
    assert db.run("select * from private.api_key_hashes") == [(row["id"], key_hash("new"))]
    for role in ("anon", "authenticated", "service_role", *SERVICE_ROLES):
        with db.acting(role, ANN), db.refused(InsufficientPrivilege):
            db.run("select key_hash from private.api_key_hashes")
    with db.refused(CheckViolation):
        db.update("api_keys", row["id"], key_hash=key_hash("other"))
    db.run("delete from api_keys where id = %s", row["id"])
    assert db.run("select * from private.api_key_hashes") == []


@pytest.mark.parametrize(
    "given", [None, "", "mr_12345_the_key_itself", key_hash("new").upper(), key_hash("new") + "0"]
)
def test_what_is_no_hash_is_refused_and_not_told(db: Db, given: str | None) -> None:
    with pytest.raises(CheckViolation) as caught, db.connection.transaction():
        add_key(db, "", account_id=ANN.account, key_hash=given)
    assert not given or given not in f"{caught.value} {caught.value.diag.message_detail}"


def test_a_key_is_registered_once_over_all_customers(db: Db) -> None:
    add_key(db, "new", account_id=BOB.account)
    with pytest.raises(UniqueViolation) as caught, db.connection.transaction():
        add_key(db, "new", account_id=ANN.account)
    assert key_hash("new") not in f"{caught.value} {caught.value.diag.message_detail}"


@pytest.mark.parametrize("tier", TIERS)
def test_what_a_user_grants_is_bounded_by_the_plan_and_admin_is_the_services(
    db: Db, tier: str
) -> None:
    db.update("subscriptions", ANN.subscription, tier=tier)
    with db.acting("authenticated", ANN):
        if tier == "free":
            with db.refused(InsufficientPrivilege, "API access"):
                add_key(db, "new", permissions=["read"])
        else:
            add_key(db, "new", permissions=["read", "write", "execute"])
        with db.refused(InsufficientPrivilege, "admin"):
            add_key(db, "admin", permissions=["read", "admin"])
    with db.acting("service_role"):
        add_key(db, "admin", account_id=ANN.account, permissions=["read", "admin"])


def test_a_user_cannot_widen_a_key_and_a_revoked_one_stays_revoked(db: Db) -> None:
    with db.acting("authenticated", ANN):
        key = add_key(db, "new")["id"]
        with db.refused(InsufficientPrivilege, "permission denied"):
            db.update("api_keys", key, permissions=["write"])
        db.update("api_keys", key, is_active=False)
        db.update("api_keys", key, is_active=False, name="old")
        with db.refused(InsufficientPrivilege, "stays revoked"):
            db.update("api_keys", key, is_active=True)
    with db.acting("service_role"):
        db.update("api_keys", key, is_active=True)
