"""The rules of instances: statuses, names, resources, agents, no secret."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import product
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg.errors import (
    CheckViolation,
    ForeignKeyViolation,
    InsufficientPrivilege,
    UniqueViolation,
)

from tests.support.customers import (
    ANN,
    BOB,
    NEWCOMER,
    STATUSES,
    TIERS,
    Db,
    add_instance,
    agents,
    catalogue,
    customer_of_its_own,
    wait_until_blocked,
)
from tests.support.platforms import Platform

RESOURCES = ("cpu_limit", "memory_limit_mb", "storage_limit_gb")


@pytest.mark.parametrize(("old", "new"), list(product(STATUSES, STATUSES)))
def test_an_instance_changes_its_status_only_along_legal_transitions(
    db: Db, old: str, new: str
) -> None:
    instance = add_instance(db, ANN, "another", status=old)["id"]
    with db.acting("instance_provisioner"):
        if new == old or new in STATUSES[old].split():
            db.update("instances", instance, status=new)
        else:
            with db.refused(CheckViolation, f"cannot go from {old} to {new}"):
                db.update("instances", instance, status=new)


@pytest.mark.parametrize("column", ["app_name", "subdomain"])
def test_app_name_and_subdomain_are_unique_over_all_customers(db: Db, column: str) -> None:
    with db.acting("instance_provisioner"), db.refused(UniqueViolation, column):
        add_instance(db, BOB, "another", **{column: ANN.name})


@pytest.mark.parametrize("column", ["app_name", "subdomain"])
@pytest.mark.parametrize("name", ["", "Abc", "-a", "a-", "a_b", "a.b", "ä", "a\n", "x" * 64])
def test_app_name_and_subdomain_are_dns_labels(db: Db, column: str, name: str) -> None:
    with db.refused(CheckViolation, column):
        add_instance(db, ANN, "another", **{column: name})


@pytest.mark.parametrize("status", [each for each in STATUSES if "provision" not in each])
def test_a_new_instance_is_provisioning_unless_the_owner_moves_one_here(
    db: Db, status: str
) -> None:
    with db.acting("service_role"):
        add_instance(db, ANN, "usual", status="provisioning")
        add_instance(db, ANN, "history", status="deprovisioned")
        with db.refused(CheckViolation, f"is provisioning, not {status}"):
            add_instance(db, ANN, "another", status=status)
    with db.acting("instance_provisioner"), db.refused(InsufficientPrivilege):
        add_instance(db, ANN, "another", status=status)
    add_instance(db, ANN, "another", status=status)


@pytest.mark.parametrize("role", ["instance_provisioner", "service_role", None])
def test_a_reserved_subdomain_is_no_instances_new_one_and_stays_where_it_is(
    db: Db, role: str | None
) -> None:
    taken = add_instance(db, ANN, "taken")["id"]
    db.run("insert into private.reserved_subdomains values ('taken')")
    with db.acting(role) if role else nullcontext():
        with db.refused(CheckViolation, "the subdomain www is reserved"):
            add_instance(db, ANN, "another", subdomain="www")
        with db.refused(CheckViolation, "the subdomain www is reserved"):
            db.update("instances", ANN.instance, subdomain="www")
        db.update("instances", taken, subdomain="taken", error_message="none")


def give_up(db: Db, how: str, instance: UUID) -> None:
    """Ann's instance, which is on its way out, gives its subdomain up."""
    if how == "renamed":
        db.update("instances", instance, subdomain="eve")
        return
    db.update("instances", instance, status="deprovisioned")
    if how == "removed with its account":
        db.update("instances", ANN.instance, status="deprovisioned")
        db.run("delete from auth.users where id = %s", ANN.account)


@pytest.mark.parametrize("how", ["renamed", "removed", "removed with its account"])
def test_a_subdomain_that_was_given_up_is_another_customers_after_a_while(db: Db, how: str) -> None:
    ada = add_instance(db, ANN, "ada", status="deprovisioning")["id"]
    db.update("instances", ANN.instance, status="deprovisioning")
    give_up(db, how, ada)
    [[free_at]] = db.run(
        """select to_char((released_at + interval '90 days') at time zone 'utc',
                          'YYYY-MM-DD HH24:MI') from private.released_subdomains
           where subdomain = 'ada'"""
    )
    message = f"the subdomain ada was another customer's and is free again at {free_at} UTC"
    with db.acting("instance_provisioner"):
        with db.refused(UniqueViolation, message):
            add_instance(db, BOB, "another", subdomain="ada")
        with db.refused(UniqueViolation, message):
            db.update("instances", BOB.instance, subdomain="ada")
    db.run("update private.retention set keep_days = 7 where table_name = 'released_subdomains'")
    db.run("update private.released_subdomains set released_at = now() - interval '7 days 1 min'")
    with db.acting("instance_provisioner"):
        db.update("instances", BOB.instance, subdomain="ada")
        with db.refused(UniqueViolation, "instances_subdomain_key"):
            add_instance(db, BOB, "another", subdomain="ada")


@pytest.mark.parametrize("how", ["renamed", "removed"])
def test_who_gave_a_subdomain_up_may_have_it_again_at_once(db: Db, how: str) -> None:
    ada = add_instance(db, ANN, "ada", status="deprovisioning")["id"]
    give_up(db, how, ada)
    with db.acting("instance_provisioner"):
        add_instance(db, ANN, "another", subdomain="ada")


def test_a_subdomain_that_is_given_up_meanwhile_is_refused(platform: Platform) -> None:
    with (
        customer_of_its_own(platform) as (db, _, leaving),
        customer_of_its_own(platform) as (_, _, staying),
        psycopg.connect(platform.url) as removing,
        psycopg.connect(platform.url, autocommit=True) as renaming,
        ThreadPoolExecutor(1) as pool,
    ):
        name = db.one("select subdomain from instances where id = %s", leaving)
        db.update("instances", leaving, status="deprovisioning")
        Db(removing).update("instances", leaving, status="deprovisioned")
        renamed = pool.submit(Db(renaming).update, "instances", staying, subdomain=name)
        wait_until_blocked(db, renaming, renamed)
        removing.commit()
        with pytest.raises(UniqueViolation, match="was another customer's and is free again"):
            renamed.result()


def test_an_instance_belongs_to_the_account_of_its_subscription(db: Db) -> None:
    for subscription in (BOB.subscription, NEWCOMER.subscription):
        with db.acting("instance_provisioner"), db.refused(ForeignKeyViolation):
            add_instance(db, ANN, "another", subscription_id=subscription)


@pytest.mark.parametrize("tier", TIERS)
def test_resources_come_from_the_tier_and_follow_it_until_removal(db: Db, tier: str) -> None:
    def resources(instance: UUID) -> tuple[Any, ...]:
        query = f"select {', '.join(RESOURCES)} from instances where id = %s"
        return db.run(query, instance)[0]

    removed = add_instance(db, ANN, "removed", status="deprovisioned")["id"]
    kept = resources(removed)
    db.update("subscriptions", ANN.subscription, tier=tier)
    with db.acting("instance_provisioner"):
        new = add_instance(db, ANN, "new")["id"]
        stated = add_instance(db, ANN, "stated", cpu_limit=3)["id"]
    wanted = catalogue(db, tier, RESOURCES)
    assert resources(ANN.instance) == resources(new) == wanted
    assert resources(stated) == (3, *wanted[1:])
    assert resources(removed) == kept == catalogue(db, ANN.tier, RESOURCES)


@pytest.mark.parametrize("listed", [False, True], ids=["by name", "list"])
def test_more_agents_than_the_plan_allows_are_refused(db: Db, listed: bool) -> None:
    def config(count: int) -> dict[str, object]:
        return {"agents": list(agents(count)) if listed else agents(count)}

    db.update("subscriptions", ANN.subscription, max_agents=2)
    with db.acting("authenticated", ANN):
        db.update("instances", ANN.instance, config=config(2))
        with db.refused(CheckViolation, "3 agents, the plan allows 2"):
            db.update("instances", ANN.instance, config=config(3))
    with db.acting("instance_provisioner"):
        add_instance(db, ANN, "two", config=config(2))
        with db.refused(CheckViolation, "3 agents, the plan allows 2"):
            add_instance(db, ANN, "three", config=config(3))


def test_what_is_over_a_smaller_plan_may_stay_or_shrink_and_not_grow(db: Db) -> None:
    def configure(count: int) -> None:
        db.update("instances", ANN.instance, config={"agents": agents(count)})

    db.update("subscriptions", ANN.subscription, max_agents=-1)
    configure(500)
    db.update("subscriptions", ANN.subscription, max_agents=3)
    with db.acting("instance_provisioner"):
        db.update("instances", ANN.instance, health_status="healthy", app_config={"a": 1})
    with db.acting("service_role"):
        db.update("instances", ANN.instance, config={"agents": agents(500), "rooms": {}})
    with db.acting("authenticated", ANN):
        for fewer in (10, 5):
            configure(fewer)
        with db.refused(CheckViolation, "6 agents, the plan allows 3"):
            configure(6)
        configure(3)
        with db.refused(CheckViolation, "4 agents, the plan allows 3"):
            configure(4)


def test_an_instance_holds_no_secret_and_only_the_provisioner_reads_them(db: Db) -> None:
    row = add_instance(db, ANN, "another")
    words = ("secret", "token", "password", "credential", "_key", "env")
    assert [name for name in row if any(word in name for word in words)] == []
    with db.acting("instance_provisioner"):
        db.run("insert into private.instance_secrets values (%s, 'TOKEN', 'shh')", ANN.instance)
        assert db.run("select value from private.instance_secrets") == [("shh",)]
    for role in ("anon", "authenticated", "service_role", "stripe_handler", "admin_dashboard"):
        with db.acting(role, ANN), db.refused(InsufficientPrivilege):
            db.run("select name from private.instance_secrets")
