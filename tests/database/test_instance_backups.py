"""The rules of instance_backups: what a user may ask for, and how long one is kept."""

import pytest
from psycopg.errors import GeneratedAlways, InsufficientPrivilege

from tests.support.customers import ANN, TIERS, ZONES, Db, catalogue


def test_a_users_backup_is_manual_and_pending_and_the_rest_is_the_services_to_set(db: Db) -> None:
    with db.acting("authenticated", ANN):
        row = db.insert("instance_backups", instance_id=ANN.instance)
        for kind in ("automatic", "pre_upgrade"):
            with db.refused(InsufficientPrivilege, "row-level security"):
                db.insert("instance_backups", instance_id=ANN.instance, backup_type=kind)
        for stated in ({"status": "completed"}, {"location": "x"}, {"size_bytes": 1}):
            with db.refused(InsufficientPrivilege, "permission denied"):
                db.insert("instance_backups", instance_id=ANN.instance, **stated)
    wanted = {"account_id": ANN.account, "backup_type": "manual", "status": "pending"}
    wanted |= {"location": None, "size_bytes": None}
    assert {name: row[name] for name in wanted} == wanted


@pytest.mark.parametrize("tier", TIERS)
def test_a_backup_is_kept_as_long_as_the_tier_says_unless_stated(db: Db, tier: str) -> None:
    db.update("subscriptions", ANN.subscription, tier=tier)
    backup = {"account_id": ANN.account, "instance_id": ANN.instance}
    with db.acting("instance_provisioner"):
        kept = [
            db.insert("instance_backups", **backup | stated)["retention_days"]
            for stated in ({}, {"retention_days": 3})
        ]
    assert kept == [*catalogue(db, tier, ("backup_retention_days",)), 3]


@pytest.mark.parametrize("zone", [*ZONES, "Europe/Berlin"])  # a day of 23 hours there
def test_expires_at_follows_retention_days_to_the_hour_and_is_not_written(
    db: Db, zone: str
) -> None:
    db.run(f"set local timezone = '{zone}'")
    row = {"account_id": ANN.account, "instance_id": ANN.instance, "retention_days": 1}
    backup = db.insert("instance_backups", **row, created_at="2026-03-28T12:00Z")["id"]
    expires = "select extract(epoch from expires_at - created_at) / 3600 from instance_backups"
    assert db.one(expires) == 24
    db.update("instance_backups", backup, retention_days=60)
    assert db.one(expires) == 60 * 24
    with db.refused(GeneratedAlways):
        db.update("instance_backups", backup, expires_at="2126-01-01")
