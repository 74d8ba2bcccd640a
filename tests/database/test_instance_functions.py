"""The life of an instance, and what of it is the provisioner's work, on a real server.

Most tests are rolled back; those that need several connections make customers of their own.
"""

from typing import Any

import psycopg
import pytest
from psycopg.errors import CheckViolation

from tests.support.customers import (
    ANN,
    BOB,
    Db,
    add_instance,
    agents,
    at_once,
    catalogue,
    customer_of_its_own,
    said,
    usage,
)
from tests.support.platforms import Platform

# ---- instances


def test_a_new_instance_has_unique_names_and_the_tiers_resources(db: Db) -> None:
    with db.acting("instance_provisioner"):
        new = [
            db.one("select provision_instance(%s, %s)", ANN.subscription, {"a": 1})
            for _ in range(20)
        ]
    resources = ("cpu_limit", "memory_limit_mb", "storage_limit_gb")
    rows = db.run(
        f"""select app_name, subdomain, account_id, status, config, {", ".join(resources)}
            from instances where id = any(%s)""",
        new,
    )
    assert len({row[0] for row in rows}) == len({row[1] for row in rows}) == 20
    assert {row[2:4] for row in rows} == {(ANN.account, "provisioning")}
    assert all(row[4] == {"a": 1} for row in rows)
    assert {row[5:] for row in rows} == {catalogue(db, ANN.tier, resources)}
    assert len(said(db, "instance.created")) == 21


def test_more_agents_than_the_plan_allows_are_not_provisioned(db: Db) -> None:
    db.update("subscriptions", ANN.subscription, max_agents=2)
    with db.refused(CheckViolation, "the plan allows 2"):
        db.one("select provision_instance(%s, %s)", ANN.subscription, {"agents": agents(3)})


def test_removal_begins_once_and_says_why(db: Db) -> None:
    remove = "select deprovision_instance(%s, %s)"
    with db.acting("instance_provisioner"):
        assert db.one(remove, ANN.instance, "asked for") is True
        assert db.one(remove, ANN.instance, "asked again") is False
        db.update("instances", ANN.instance, status="deprovisioned")
        assert db.one(remove, ANN.instance, None) is False
    [first, second] = sorted(said(db, "instance.updated"), key=lambda each: each["new"]["status"])
    assert first["new"] == {"status": "deprovisioned"}
    assert "reason" not in first
    assert second["old"] == {"status": "running"}
    assert second["reason"] == "asked for"


@pytest.mark.parametrize("status", ["provisioning", "running", "stopped", "failed", "maintenance"])
def test_removal_begins_from_every_status(db: Db, status: str) -> None:
    instance = add_instance(db, ANN, "another", status=status)["id"]
    assert db.one("select deprovision_instance(%s)", instance) is True


HEALTH = ("unknown", "healthy", "degraded", "critical")


@pytest.mark.parametrize("old", HEALTH)
@pytest.mark.parametrize("new", HEALTH)
def test_health_is_audited_only_when_it_changes_to_or_from_critical(
    db: Db, old: str, new: str
) -> None:
    db.update("instances", ANN.instance, health_status=old)
    with db.acting("instance_provisioner"):
        for _ in range(2):
            db.run("select update_instance_health(%s, %s, %s)", ANN.instance, new, {"pods": 2})
    query = "select health_status, health_details, last_health_check = now() from instances"
    assert db.run(query + " where id = %s", ANN.instance) == [(new, {"pods": 2}, True)]
    audited = [{"old": old, "new": new}] if old != new and "critical" in (old, new) else []
    assert said(db, "instance.health_changed") == audited


def test_an_error_stays_until_another_one_comes_or_the_instance_is_healthy(db: Db) -> None:
    report = "select update_instance_health(%s, %s, error_message => %s)"
    told = [
        ("critical", "no answer", "no answer"),
        ("critical", None, "no answer"),
        ("degraded", "slow", "slow"),
        ("healthy", "a warning", "a warning"),
        ("healthy", None, None),
    ]
    with db.acting("instance_provisioner"):
        for status, given, stored in told:
            db.run(report, ANN.instance, status, given)
            query = "select error_message from instances where id = %s"
            assert db.one(query, ANN.instance) == stored


# ---- storage


def test_storage_is_summed_over_all_instances_of_the_subscription(db: Db) -> None:
    db.update("instances", ANN.instance, storage_used_gb=1.5)
    add_instance(db, ANN, "stopped", status="stopped", storage_used_gb=2)
    add_instance(db, ANN, "gone", status="deprovisioned", storage_used_gb=64)
    db.update("instances", BOB.instance, storage_used_gb=128)
    calculate = "select calculate_storage_usage(%s)"
    for used, total in ((1.5, 3.5), (0.5, 2.5)):
        db.update("instances", ANN.instance, storage_used_gb=used)
        for _ in range(2):
            assert float(db.one(calculate, ANN.instance)) == used
            query = "select storage_used_gb from subscriptions where id = %s"
            assert float(db.one(query, ANN.subscription)) == total
    assert usage(db, "storage_used_gb::float, messages_sent") == (1.5, 0)  # the day's peak


# ---- the work of the instance-provisioner

ASKS_FOR_WORK = [
    ({"config": {"agents": {"a": {}}}}, True),
    ({"app_config": {"matrix": {"enabled": True}}}, True),
    ({"subdomain": "another"}, True),
    ({"memory_limit_mb": 1}, True),
    ({"status": "stopped"}, True),
    ({"status": "deprovisioning"}, True),
    ({"status": "maintenance"}, False),
    ({"status": "failed"}, False),
    ({"runtime": "dokku"}, False),
]


@pytest.mark.parametrize(("change", "due"), ASKS_FOR_WORK)
def test_what_the_provisioner_has_to_do_is_due_and_nothing_else(
    db: Db, change: dict[str, Any], due: bool
) -> None:
    work = "select {} from private.provisioning where instance_id = %s"
    db.run("update private.provisioning set due_at = null, attempts = 3")
    before = db.one(work.format("revision"), ANN.instance)
    db.update("instances", ANN.instance, **change)
    [row] = db.run(work.format("due_at is not null, attempts, revision"), ANN.instance)
    assert row == (due, 0, before + 1)


def test_what_the_provisioner_answers_is_no_new_work(db: Db) -> None:
    instance = add_instance(db, ANN, "new")["id"]
    work = "select due_at, revision from private.provisioning where instance_id = %s"
    before = db.run(work, instance)
    assert before[0][0]
    db.update("instances", instance, status="running", frontend_url="https://new.example")
    db.run("select update_instance_health(%s, 'healthy')", instance)
    db.run("select track_usage(%s)", instance)
    assert db.run(work, instance) == before


# ---- several at once


def test_two_removals_at_once_one_of_which_begins_it(platform: Platform) -> None:
    with customer_of_its_own(platform) as (_, _, instance):
        calls: list[tuple[str, list[object]]] = [
            ("select deprovision_instance(%s)", [instance]) for _ in range(8)
        ]
        assert sorted(at_once(platform, calls)) == [False] * 7 + [True]


def test_two_provisioners_at_once_get_an_instance_each(platform: Platform) -> None:
    with customer_of_its_own(platform) as (_, plan, _):
        calls: list[tuple[str, list[object]]] = [
            ("select provision_instance(%s)", [plan]) for _ in range(8)
        ]
        assert len(set(at_once(platform, calls))) == 8


def test_a_new_instance_and_each_change_of_what_is_wanted_wakes_the_provisioner_on_commit(
    platform: Platform,
) -> None:
    with (
        customer_of_its_own(platform) as (db, plan, instance),
        psycopg.connect(platform.url, autocommit=True) as listener,
        psycopg.connect(platform.url) as writer,
    ):
        listener.execute("listen instances")

        def heard() -> list[str]:
            return [each.payload for each in listener.notifies(timeout=0.2)]

        [new] = writer.execute("select provision_instance(%s)", [plan]).fetchone() or [None]
        assert heard() == []
        writer.commit()
        assert heard() == [str(new)]
        for quiet in ("track_usage(%s)", "update_instance_health(%s, 'critical')"):
            db.run(f"select {quiet}", instance)
        assert heard() == []
        db.update("instances", instance, config={"agents": {}})
        assert heard() == [str(instance)]
        db.update("subscriptions", plan, tier="starter")
        assert sorted(heard()) == sorted([str(instance), str(new)])
        db.run("select deprovision_instance(%s)", instance)
        assert heard() == [str(instance)]
