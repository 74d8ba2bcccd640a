"""What an account may do is one answer, whoever asks and whatever changes the plan.

Most tests are rolled back; those that need several connections make customers of their own.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg.errors import CheckViolation, ObjectNotInPrerequisiteState, UniqueViolation

from tests.support.customers import (
    ANN,
    BOB,
    Db,
    add_instance,
    agents,
    catalogue,
    customer_of_its_own,
    wait_until_blocked,
)
from tests.support.platforms import Platform, sql_files

RESOURCES = ("cpu_limit", "memory_limit_mb", "storage_limit_gb")


def in_force(db: Db) -> dict[str, Any]:
    """Ann's plan, by the rule as docs/reference.md has it."""
    plans = db.run("select to_jsonb(s) from subscriptions s where account_id = %s", ANN.account)
    found = [plan for [plan] in plans if plan["status"] != "cancelled"] or sorted(
        (plan for [plan] in plans), key=lambda plan: str(plan["cancelled_at"]), reverse=True
    )
    return dict(found[0])


def answers(db: Db) -> dict[str, Any]:
    """What each that asks is told of Ann's plan."""
    given = db.run("select to_jsonb(l) from check_usage_limits(%s) l", ANN.instance)[0][0]
    db.run(
        """insert into usage_metrics (account_id, instance_id, messages_sent)
            values (%s, %s, %s)
            on conflict (usage_date, instance_id) do update
              set messages_sent = excluded.messages_sent, messages_received = 0""",
        ANN.account,
        ANN.instance,
        max(given["messages_limit"] - 1, 0),
    )
    within = [db.one("select track_usage(%s)", ANN.instance) for _ in range(2)]
    resources = db.run(f"select {', '.join(RESOURCES)} from instances where id = %s", ANN.instance)
    backup = db.insert("instance_backups", account_id=ANN.account, instance_id=ANN.instance)
    with db.connection.transaction(force_rollback=True):
        db.update("instances", ANN.instance, created_at="2026-01-01", last_active_at=None)
        paused = db.run("select auto_pause_inactive_instances()") == [(ANN.instance,)]
    try:
        with db.connection.transaction(force_rollback=True):
            db.update("instances", ANN.instance, config={"agents": agents(200)})
        refused = None
    except CheckViolation as error:
        refused = str(error).splitlines()[0].rpartition(" ")[2]
    [follows] = db.run("select subscription_id from instances where id = %s", ANN.instance)
    users = db.run("select tier, features from get_user_instance(%s)", ANN.account)
    return {
        "follows": follows,
        "messages": given["messages_limit"],
        "within": within,
        "storage": given["storage_limit_gb"],
        "agents": given["agents_limit"],
        "refused": refused,
        "resources": resources[0],
        "backup": backup["retention_days"],
        "paused": paused,
        "users": users,
        "active": db.one("select has_active_subscription(%s)", ANN.account),
        "sso": db.one("select check_user_permission(%s, 'sso')", ANN.account),
    }


def expected(db: Db) -> dict[str, Any]:
    plan = in_force(db)
    columns = (*RESOURCES, "backup_retention_days", "pause_after_idle_days")
    *resources, kept, idle = catalogue(db, plan["tier"], columns)
    live = plan["status"] in ("active", "trialing")
    return {
        "follows": (UUID(plan["id"]),),
        "messages": plan["max_messages_per_day"],
        "within": [True, plan["max_messages_per_day"] == -1],
        "storage": plan["max_storage_gb"],
        "agents": plan["max_agents"],
        "refused": None if plan["max_agents"] == -1 else str(plan["max_agents"]),
        "resources": tuple(resources),
        "backup": kept,
        "paused": idle is not None,
        "users": [(plan["tier"], plan["features"])] if live else [],
        "active": live,
        "sso": live and plan["features"]["sso"],
    }


def check(db: Db) -> None:
    with db.connection.transaction(force_rollback=True):
        assert answers(db) == expected(db)
    marked = db.run("select id from subscriptions where in_force and account_id = %s", ANN.account)
    assert [str(key) for [key] in marked] == [in_force(db)["id"]]


def test_a_plan_replaced_by_hand_is_the_new_one_for_all_who_ask(db: Db) -> None:
    db.update("subscriptions", ANN.subscription, tier="free")
    check(db)
    db.update("subscriptions", ANN.subscription, status="cancelled")
    check(db)
    new = db.insert("subscriptions", account_id=ANN.account, tier="enterprise")["id"]
    check(db)
    gone = add_instance(db, ANN, "gone", subscription_id=ANN.subscription)
    assert gone["subscription_id"] == new
    db.update("subscriptions", new, status="cancelled")
    db.update("subscriptions", ANN.subscription, status="active")
    check(db)


def test_accounts_that_were_there_before_the_mark_are_brought_to_it(db: Db) -> None:
    db.update("subscriptions", ANN.subscription, status="cancelled")
    new = db.insert("subscriptions", account_id=ANN.account, tier="enterprise")["id"]
    db.run("set local session_replication_role = replica")
    db.run("update subscriptions set in_force = false")
    db.run(
        "update instances set subscription_id = %s where id = %s", ANN.subscription, ANN.instance
    )
    db.run("set local session_replication_role = origin")
    [file] = [path for path in sql_files("repeatable") if path.name == "21_subscriptions.sql"]
    db.connection.execute(file.read_bytes())
    query = "select id from subscriptions where in_force order by account_id = %s"
    assert db.run(query, ANN.account) == [(BOB.subscription,), (new,)]
    check(db)


def test_an_instance_that_is_removed_stays_with_the_plan_that_it_had(db: Db) -> None:
    removed = add_instance(db, ANN, "removed", status="deprovisioned")["id"]
    db.update("instances", ANN.instance, status="deprovisioning")
    db.update("subscriptions", ANN.subscription, status="cancelled")
    db.insert("subscriptions", account_id=ANN.account, tier="enterprise")
    query = "select distinct subscription_id from instances where id in (%s, %s)"
    assert db.run(query, removed, ANN.instance) == [(ANN.subscription,)]


def test_storage_is_known_from_the_first_moment_of_a_plan_and_summed_over_the_account(
    db: Db,
) -> None:
    db.update("instances", ANN.instance, storage_used_gb=2)
    db.update("instances", ANN.instance, status="deprovisioning")  # stays with the old plan
    add_instance(db, ANN, "second", storage_used_gb=3)
    db.update("subscriptions", ANN.subscription, status="cancelled")
    db.insert("subscriptions", account_id=ANN.account, tier="free")
    used = "select storage_used_gb, within_limits from check_usage_limits(%s)"
    assert db.run(used, ANN.instance) == [(5, False)]
    db.update("instances", ANN.instance, storage_used_gb=0.5)
    db.run("select calculate_storage_usage(%s)", ANN.instance)
    assert db.run(used, ANN.instance) == [(3.5, False)]


TIERS = st.sampled_from(["free", "starter", "professional", "enterprise"])
STATUSES = st.sampled_from(["active", "trialing", "past_due", "cancelled"])
WHICH = st.integers(0, 3)
CHANGES = st.lists(
    st.tuples(st.just("insert"), TIERS, STATUSES)
    | st.tuples(st.just("change"), WHICH, TIERS, STATUSES)
    | st.tuples(st.just("limits"), WHICH, st.integers(1, 90))
    | st.tuples(st.just("ended"), WHICH, st.integers(1, 28))
    | st.tuples(st.just("mark"), WHICH, st.booleans())
    | st.tuples(st.just("delete"), WHICH)
    | st.tuples(st.just("move"), WHICH),
    max_size=8,
)


def change(db: Db, number: int, what: tuple[Any, ...]) -> None:
    """By an operator's hand; what the tables refuse changes nothing."""
    kind, *values = what
    plans = db.run(
        "select id from subscriptions where account_id = %s order by created_at, id", ANN.account
    )
    key: UUID = plans[values[0] % len(plans)][0] if kind != "insert" else ANN.subscription
    match kind:
        case "insert":
            tier, status = values
            ended = f"2026-01-01T00:00:{number:02}Z" if status == "cancelled" else None
            row = {"tier": tier, "status": status, "cancelled_at": ended}
            db.insert("subscriptions", account_id=ANN.account, **row)
        case "change":
            db.update("subscriptions", key, tier=values[1], status=values[2])
            ended = f"2026-02-01T00:00:{number:02}Z"
            query = "update subscriptions set cancelled_at = %s where id = %s and status = %s"
            db.run(query, ended, key, "cancelled")
        case "limits":
            db.update("subscriptions", key, max_agents=values[1], max_messages_per_day=values[1])
        case "ended":
            query = "update subscriptions set cancelled_at = %s where id = %s and status = %s"
            db.run(query, f"2026-03-{values[1]:02}T00:00:{number:02}Z", key, "cancelled")
        case "mark":
            db.update("subscriptions", key, in_force=values[1])
        case "delete":
            db.run("delete from subscriptions where id = %s", key)
        case "move":
            db.update("instances", ANN.instance, subscription_id=key)


def test_after_any_changes_by_hand_all_who_ask_are_told_of_the_one_plan(db: Db) -> None:
    @settings(max_examples=60)
    @given(CHANGES)
    def holds(changes: list[tuple[Any, ...]]) -> None:
        with db.connection.transaction(force_rollback=True):
            for number, what in enumerate(changes):
                try:
                    with db.connection.transaction():
                        change(db, number, what)
                except (UniqueViolation, psycopg.errors.ForeignKeyViolation):
                    continue
                check(db)

    holds()


# ---- two transactions at once


BEGIN_ANOTHER = """insert into subscriptions (account_id, tier)
                   select account_id, 'starter' from subscriptions where id = %s"""


def change_plan(db: Db, how: str, plan: UUID) -> None:
    if how == "of tier":
        db.update("subscriptions", plan, tier="starter")
    else:
        db.update("subscriptions", plan, status="cancelled")
        db.run(BEGIN_ANOTHER, plan)


def resources_of(db: Db, instance: UUID) -> tuple[Any, ...]:
    [row] = db.run(
        f"""select tier, in_force, {", ".join(f"i.{name}" for name in RESOURCES)}
              from instances i join subscriptions s on s.id = subscription_id where i.id = %s""",
        instance,
    )
    return row


HOW = ("of tier", "by another subscription")


@pytest.mark.parametrize("how", HOW)
def test_an_instance_that_is_being_provisioned_follows_a_change_of_plan_meanwhile(
    platform: Platform, how: str
) -> None:
    with (
        customer_of_its_own(platform) as (db, plan, _),
        psycopg.connect(platform.url) as provisioner,
        psycopg.connect(platform.url) as operator,
        ThreadPoolExecutor(1) as pool,
    ):
        new = Db(provisioner).one("select provision_instance(%s)", plan)
        changing = pool.submit(change_plan, Db(operator), how, plan)
        wait_until_blocked(db, operator, changing)
        provisioner.commit()
        changing.result()
        operator.commit()
        wanted = ("starter", True, *catalogue(db, "starter", RESOURCES))
        assert resources_of(db, new) == wanted


@pytest.mark.parametrize("how", HOW)
def test_an_instance_that_is_inserted_during_a_change_of_plan_gets_the_new_one(
    platform: Platform, how: str
) -> None:
    with (
        customer_of_its_own(platform) as (db, plan, _),
        psycopg.connect(platform.url) as operator,
        psycopg.connect(platform.url, autocommit=True) as provisioner,
        ThreadPoolExecutor(1) as pool,
    ):
        change_plan(Db(operator), how, plan)
        account = db.one("select account_id from subscriptions where id = %s", plan)
        inserting = pool.submit(
            Db(provisioner).insert,
            "instances",
            account_id=account,
            subscription_id=plan,
            app_name=f"j{account.hex[:12]}",
            subdomain=f"j{account.hex[:12]}",
        )
        wait_until_blocked(db, provisioner, inserting)
        operator.commit()
        wanted = ("starter", True, *catalogue(db, "starter", RESOURCES))
        assert resources_of(db, inserting.result()["id"]) == wanted


def test_an_instance_is_not_provisioned_for_a_plan_that_ends_meanwhile(platform: Platform) -> None:
    with (
        customer_of_its_own(platform) as (db, plan, _),
        psycopg.connect(platform.url) as operator,
        psycopg.connect(platform.url, autocommit=True) as provisioner,
        ThreadPoolExecutor(1) as pool,
    ):
        Db(operator).update("subscriptions", plan, status="cancelled")
        provisioning = pool.submit(Db(provisioner).one, "select provision_instance(%s)", plan)
        wait_until_blocked(db, provisioner, provisioning)
        operator.commit()
        with pytest.raises(ObjectNotInPrerequisiteState, match="is not live"):
            provisioning.result()
