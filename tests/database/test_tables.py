"""The rules that the tables themselves enforce, on a real server; each test is rolled back.

Who may do what is tests/database/test_authorization.py's. Here Ann (professional) and Bob (starter)
have a subscription and a running instance each, and what is done is done as the role that would
do it.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import product
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg.errors import (
    CheckViolation,
    ForeignKeyViolation,
    GeneratedAlways,
    InsufficientPrivilege,
    InvalidTextRepresentation,
    NotNullViolation,
    RestrictViolation,
    UniqueViolation,
)

from tests.support.customers import (
    ANN,
    BOB,
    NEWCOMER,
    ZONES,
    Db,
    add_customer,
    add_instance,
    add_key,
    agents,
    catalogue,
    key_hash,
    one_row_of_each,
)
from tests.support.platforms import Platform
from tests.support.samples import tables_of

LIMITS = (
    "max_messages_per_day",
    "max_storage_gb",
    "max_agents",
    "max_platforms",
    "max_team_members",
)
RESOURCES = ("cpu_limit", "memory_limit_mb", "storage_limit_gb")
PLAN = (*LIMITS, "features")
TIERS = ("free", "starter", "professional", "enterprise")
LIVE = ("trialing", "active", "past_due", "paused", "incomplete")
STATUSES = {
    "provisioning": "running stopped failed deprovisioning",
    "running": "stopped failed maintenance deprovisioning",
    "stopped": "running failed maintenance deprovisioning",
    "failed": "provisioning running stopped maintenance deprovisioning",
    "maintenance": "running stopped failed deprovisioning",
    "deprovisioning": "deprovisioned",
    "deprovisioned": "",
}
"""Status of an instance -> where it may go: removal, once begun, only goes on, and is final."""

SERVICE_ROLES = ("stripe_handler", "instance_provisioner", "admin_dashboard")

TOMORROW = "(now() at time zone 'utc')::date + 1"


def plan(db: Db, subscription: UUID) -> tuple[Any, ...]:
    [row] = db.run(f"select {', '.join(PLAN)} from subscriptions where id = %s", subscription)
    return row


# ---- what all tables have in common

WRONG: dict[str, list[object]] = {
    "accounts.email": [" "],
    **{f"subscriptions.{limit}": [-2] for limit in LIMITS},
    "subscriptions.status": ["canceled"],
    "subscriptions.tier": ["gold"],
    "subscriptions.features": ["[]"],
    "subscriptions.storage_used_gb": [-1, "NaN"],
    "subscriptions.current_period_end": ["2025-12-31"],
    "instances.cpu_limit": [0, "NaN"],
    "instances.memory_limit_mb": [0],
    "instances.storage_limit_gb": [0],
    "instances.cpu_used": [-1, "NaN"],
    "instances.memory_used_mb": [-1],
    "instances.storage_used_gb": [-1, "NaN"],
    "instances.subdomain": ["www", "api", "admin"],
    "instances.runtime": ["vm"],
    "instances.status": ["paused"],
    "instances.health_status": ["bad"],
    "instances.config": ["[]", '{"agents": "many"}'],
    "instances.app_config": ["[]"],
    "support_tickets.priority": ["asap"],
    "support_tickets.status": ["pending"],
    "support_tickets.subject": [" "],
    "support_tickets.description": [""],
    "instance_backups.backup_type": ["nightly"],
    "instance_backups.status": ["done"],
    "instance_backups.size_bytes": [-1],
    "instance_backups.retention_days": [0],
    "api_keys.name": [" "],
    "api_keys.key_prefix": ["1234567", "123456789"],
    "api_keys.permissions": [
        ["read", "root"],
        ["read", None],
        [None],
        [],
        ["read", "read"],
        ["read"] * 1_000_000,
        [["read"], ["write"]],
    ],
    "api_keys.expires_at": ["2026-01-01"],
}
"""Column -> values that it refuses, each."""


@pytest.mark.parametrize("column", WRONG)
def test_a_column_takes_no_value_that_is_unknown_or_makes_no_sense(db: Db, column: str) -> None:
    table, name = column.split(".")
    key = one_row_of_each(db, ANN)[table]["id"]
    db.update("subscriptions", ANN.subscription, current_period_start="2026-01-01")
    for value in WRONG[column]:
        with db.refused(CheckViolation):
            db.update(table, key, **{name: value})


BOUNDED = {
    "instances": ("config", "app_config", "health_details"),
    "subscriptions": ("features",),
    "audit_logs": ("details",),
    "private.tiers": ("features",),
}
"""Table -> what of it is written as jsonb by users, services and operators."""

HUGE = {
    "a number of many digits": ["1e131071"] * 3600,
    "a small number of many decimals": ["1e-16383"] * 3600,
    "a zero of many decimals": ["0e-16383"] * 3600,
    "a number deep inside": ['{"a": [[{"b": -1e131071}]]}'],
    "a long text": [json.dumps("x" * 2_000_000)],
    "many small things": ["0"] * 200_000,
}


@contextmanager
def little_memory(platform: Platform, *, megabytes: int) -> Iterator[Db]:
    """A session of its own, rolled back, that grows by no more than that."""

    def peak() -> int:
        status = Path(f"/proc/{connection.info.backend_pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) >> 10

    with psycopg.connect(platform.url) as connection:
        db = Db(connection)
        add_customer(db, ANN)
        before = peak()
        yield db
        assert peak() - before <= megabytes
        connection.rollback()


@pytest.mark.parametrize(
    ("table", "column"), [(table, column) for table in BOUNDED for column in BOUNDED[table]]
)
@pytest.mark.parametrize("kind", HUGE)
def test_jsonb_costs_no_more_than_its_size_deserves(
    platform: Platform, table: str, column: str, kind: str
) -> None:
    value = f'{{"a": [{",".join(HUGE[kind])}]}}'
    with little_memory(platform, megabytes=80) as db, pytest.raises(CheckViolation) as caught:
        db.run(f"update {table} set {column} = %s", value)
    assert caught.value.diag.message_hint
    assert column in str(caught.value)
    assert len(str(caught.value)) < 500


CALLS = {
    "config": ("instance_provisioner", "select provision_instance(%s, %s)", ANN.subscription),
    "health_details": (
        "instance_provisioner",
        "select update_instance_health(%s, 'healthy', %s)",
        ANN.instance,
    ),
    "config of a user": ("authenticated", "update instances set config = %s where id = %s", None),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_call_with_jsonb_costs_no_more_than_its_size_deserves(
    platform: Platform, call: str
) -> None:
    role, query, key = CALLS[call]
    value = f'{{"a": [{",".join(HUGE["a number of many digits"])}]}}'
    values = [key, value] if key else [value, ANN.instance]
    with little_memory(platform, megabytes=80) as db, db.acting(role, ANN):  # noqa: SIM117
        with db.refused(CheckViolation, call.partition(" ")[0]):
            db.run(query, *values)


NUMBERS = ["0", "-1.5", "1e100", "9007199254740993", "2.220446049250313e-16", "5e-324", "9e307"]


def test_a_number_that_a_double_holds_is_kept(db: Db) -> None:
    given = f'{{"numbers": [{", ".join(NUMBERS)}]}}'
    db.run("update instances set config = %s where id = %s", given, ANN.instance)
    query = "select config = %s::jsonb from instances where id = %s"
    assert db.one(query, given, ANN.instance) is True


@pytest.mark.parametrize("time", ["infinity", "-infinity", "10000-01-01", "0001-01-01 BC"])
def test_a_table_takes_no_time_that_a_client_cannot_read(db: Db, time: str) -> None:
    rows, tables = one_row_of_each(db, ANN), tables_of(db.connection)
    ticket = rows["support_tickets"]["id"]
    db.run("update support_tickets set status = 'resolved' where id = %s", ticket)
    for table, row in rows.items():
        shape = tables[f"public.{table}"]
        where = " and ".join(f"{name} = %s" for name in shape.key)
        key = [row[name] for name in shape.key]
        for column in shape.columns:
            if column.type not in ("timestamp with time zone", "date") or column.generated:
                continue
            if column.name == "updated_at" and table != "audit_logs":
                continue  # the trigger's
            with db.refused(CheckViolation):
                db.run(f"update {table} set {column.name} = %s where {where}", time, *key)


def test_an_inserted_updated_at_is_one_that_a_client_can_read(db: Db) -> None:
    with db.acting("stripe_handler"), db.refused(CheckViolation, "times_readable"):
        db.insert(
            "subscriptions", account_id=ANN.account, status="cancelled", updated_at="infinity"
        )


CHANGES = {
    "accounts": "full_name = 'Ann'",
    "subscriptions": "status = 'past_due'",
    "instances": "frontend_url = 'https://ann.example'",
    "support_tickets": "subject = 'more help'",
    "instance_backups": "status = 'in_progress'",
    "api_keys": "name = 'my key'",
}


def age(db: Db, table: str) -> None:
    """Make its rows look old, past the trigger."""
    db.run("set local session_replication_role = replica")
    db.run(f"update {table} set updated_at = '2026-01-01'")
    db.run("set local session_replication_role = origin")


@pytest.mark.parametrize(("table", "change"), CHANGES.items())
def test_updated_at_is_kept_by_the_database_whatever_the_writer_says(
    db: Db, table: str, change: str
) -> None:
    key = one_row_of_each(db, ANN)[table]["id"]
    for written in (change, f"{change}, updated_at = '1999-01-01'"):
        age(db, table)
        db.run(f"update {table} set {written} where id = %s", key)
        assert db.one(f"select updated_at = now() from {table} where id = %s", key)


@pytest.mark.parametrize(
    ("table", "column"), [("instances", "last_active_at"), ("api_keys", "last_used_at")]
)
def test_being_used_is_no_update(db: Db, table: str, column: str) -> None:
    key = one_row_of_each(db, ANN)[table]["id"]
    age(db, table)
    db.run(f"update {table} set {column} = now() where id = %s", key)
    assert db.one(f"select updated_at < now() from {table} where id = %s", key)
    db.run(
        f"update {table} set {column} = now() - interval '1 s', updated_at = now() where id = %s",
        key,
    )
    assert db.one(f"select updated_at < now() from {table} where id = %s", key)


@pytest.mark.parametrize(
    ("table", "change"),
    [
        ("instances", "last_active_at = now(), config = '{\"a\": 1}'"),
        ("api_keys", "last_used_at = now(), name = 'another'"),
    ],
)
def test_being_used_hides_no_update_of_the_same_statement(db: Db, table: str, change: str) -> None:
    key = one_row_of_each(db, ANN)[table]["id"]
    age(db, table)
    db.run(f"update {table} set {change} where id = %s", key)
    assert db.one(f"select updated_at = now() from {table} where id = %s", key)


@pytest.mark.parametrize("table", ["instances", "usage_metrics", "instance_backups"])
def test_account_id_cannot_part_from_what_the_row_belongs_to(db: Db, table: str) -> None:
    one_row_of_each(db, ANN)
    with db.refused(ForeignKeyViolation):
        db.run(
            f"update {table} set account_id = %s where account_id = %s", BOB.account, ANN.account
        )


@pytest.mark.parametrize(
    ("table", "columns"),
    [
        ("usage_metrics", {}),
        ("instance_backups", {}),
        ("support_tickets", {"subject": "help", "description": "please"}),
    ],
)
def test_a_row_names_no_instance_of_another_account(
    db: Db, table: str, columns: dict[str, object]
) -> None:
    with db.refused(ForeignKeyViolation):
        db.insert(table, account_id=BOB.account, instance_id=ANN.instance, **columns)
    db.insert(table, account_id=ANN.account, instance_id=ANN.instance, **columns)


# ---- accounts


def test_a_new_auth_user_gets_an_account_of_the_same_id(db: Db) -> None:
    db.sign_up(NEWCOMER, " New@x.example ", full_name=" New ", company_name="x" * 300)
    found = db.run("select * from accounts where id = %s", NEWCOMER.account)
    assert [row[1:5] for row in found] == [("New@x.example", "New", "x" * 200, None)]


def test_a_user_without_email_gets_an_account_with_the_first_and_it_follows(db: Db) -> None:
    db.sign_up(NEWCOMER, None)
    emails = "select email from accounts where id = %s"
    assert db.run(emails, NEWCOMER.account) == []
    for email in ("first@x.example", "second@x.example"):
        db.run("update auth.users set email = %s where id = %s", email, NEWCOMER.account)
        assert db.run(emails, NEWCOMER.account) == [(email,)]


def test_an_email_is_not_null_and_unique_whatever_its_case(db: Db) -> None:
    with db.refused(NotNullViolation):
        db.update("accounts", ANN.account, email=None)
    with db.refused(UniqueViolation, "accounts_email_key"):
        db.update("accounts", BOB.account, email=ANN.email.title())


def test_a_second_user_with_an_email_signs_up_and_the_first_account_keeps_the_email(
    db: Db,
) -> None:
    db.run("alter table auth.users drop constraint if exists users_email_key")  # as SSO may
    emails = "select email from accounts where id = %s"
    db.sign_up(NEWCOMER, ANN.email.upper(), full_name="New")
    duplicate = f"{NEWCOMER.account}@duplicate.invalid"
    found = db.run("select email, full_name from accounts where id = %s", NEWCOMER.account)
    assert found == [(duplicate, "New")]
    actions = [row[0] for row in db.audited(NEWCOMER).values()]
    assert actions == ["account.created"]
    for email, kept in (("own@x.example", "own@x.example"), (ANN.email, duplicate)):
        db.run("update auth.users set email = %s where id = %s", email, NEWCOMER.account)
        assert db.one(emails, NEWCOMER.account) == kept
    assert db.one(emails, ANN.account) == ANN.email


@pytest.mark.parametrize("table", ["accounts", "subscriptions"])
def test_a_stripe_id_is_unique_and_not_empty(db: Db, table: str) -> None:
    column = {"accounts": "stripe_customer_id", "subscriptions": "stripe_subscription_id"}[table]
    ann, bob = (each.account if table == "accounts" else each.subscription for each in (ANN, BOB))
    with db.acting("stripe_handler"):
        db.update(table, ann, **{column: "stripe_1"})
        with db.refused(UniqueViolation):
            db.update(table, bob, **{column: "stripe_1"})
        with db.refused(CheckViolation):
            db.update(table, bob, **{column: ""})
        db.update(table, bob, **{column: "stripe_2"})


# ---- subscriptions


@pytest.mark.parametrize("status", LIVE)
def test_an_account_has_at_most_one_live_subscription(db: Db, status: str) -> None:
    db.update("subscriptions", ANN.subscription, status=status)
    for second in LIVE:
        with db.acting("stripe_handler"), db.refused(UniqueViolation, "one_live_per_account"):
            db.insert("subscriptions", account_id=ANN.account, status=second)


def test_an_account_has_any_number_of_cancelled_subscriptions_beside_a_live_one(db: Db) -> None:
    with db.acting("stripe_handler"):
        for _ in range(3):
            db.insert("subscriptions", account_id=ANN.account, status="cancelled")
        db.update("subscriptions", ANN.subscription, status="cancelled")
        db.insert("subscriptions", account_id=ANN.account, status="active")
    assert db.counts(ANN)["public.subscriptions"] == 5


@pytest.mark.parametrize("tier", TIERS)
def test_limits_and_features_come_from_the_catalogue_on_insert(db: Db, tier: str) -> None:
    db.sign_up(NEWCOMER, NEWCOMER.email)
    db.run("update private.tiers set max_agents = 77 where tier = %s", tier)
    with db.acting("stripe_handler"):
        row = db.insert("subscriptions", account_id=NEWCOMER.account, tier=tier)
    assert tuple(row[name] for name in PLAN) == catalogue(db, tier, PLAN)
    assert row["max_agents"] == 77


@pytest.mark.parametrize(("old", "new"), [(a, b) for a, b in product(TIERS, TIERS) if a != b])
def test_limits_and_features_follow_a_change_of_tier(db: Db, old: str, new: str) -> None:
    db.update("subscriptions", ANN.subscription, tier=old)
    assert plan(db, ANN.subscription) == catalogue(db, old, PLAN)
    with db.acting("stripe_handler"):
        db.update("subscriptions", ANN.subscription, tier=new)
    assert plan(db, ANN.subscription) == catalogue(db, new, PLAN) != catalogue(db, old, PLAN)


@pytest.mark.parametrize("column", PLAN)
def test_what_the_writer_states_goes_before_the_catalogue(db: Db, column: str) -> None:
    db.sign_up(NEWCOMER, NEWCOMER.email)
    stated: object = {"sso": True} if column == "features" else 4242
    wanted = dict(zip(PLAN, catalogue(db, "free", PLAN), strict=True)) | {column: stated}
    with db.acting("stripe_handler"):
        row = db.insert(
            "subscriptions", account_id=NEWCOMER.account, tier="free", **{column: stated}
        )
        db.update("subscriptions", ANN.subscription, tier="free", **{column: stated})
    assert {name: row[name] for name in PLAN} == wanted
    assert plan(db, ANN.subscription) == tuple(wanted.values())
    db.update("subscriptions", ANN.subscription, tier="free", status="past_due")  # no change of it
    assert plan(db, ANN.subscription) == tuple(wanted.values())


def test_cancelled_at_says_when_and_goes_when_it_is_revived(db: Db) -> None:
    for status, said in (("cancelled", True), ("active", False)):
        db.update("subscriptions", ANN.subscription, status=status)
        query = "select cancelled_at = now() from subscriptions where id = %s"
        assert bool(db.one(query, ANN.subscription)) is said


# ---- instances


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


# ---- usage_metrics


COUNTED = "messages_sent messages_received error_count response_count response_time_ms"


def test_no_storage_of_usage_or_tiers_cpu_is_nan(db: Db) -> None:
    row = {"account_id": ANN.account, "instance_id": ANN.instance}
    with db.refused(CheckViolation, "gigabytes_finite"):
        db.insert("usage_metrics", **row, storage_used_gb="NaN")
    with db.refused(CheckViolation, "tiers_numbers_finite"):
        db.run("update private.tiers set cpu_limit = 'NaN'")


@pytest.mark.parametrize("column", [*COUNTED.split(), "storage_used_gb"])
def test_no_number_of_usage_is_negative(db: Db, column: str) -> None:
    row = {"account_id": ANN.account, "instance_id": ANN.instance}
    with db.refused(CheckViolation, "not_negative"):
        db.insert("usage_metrics", **row | {column: -1})
    db.insert("usage_metrics", **row)
    with db.refused(CheckViolation, "not_negative"):
        db.run(f"update usage_metrics set {column} = -1 where account_id = %s", ANN.account)


COUNTS = [
    "[]",
    '"a"',
    "1",
    '{"a": -1}',
    '{"a": 1.5}',
    '{"a": "1"}',
    '{"a": null}',
    '{"a": {}}',
    '{"a": 2147483647}',
    '{"a": 1e131071}',
    '{"": 1}',
    json.dumps({"x" * 101: 1}),
    json.dumps({str(number): 1 for number in range(10_001)}),
]


@pytest.mark.parametrize("column", ["agent_counts", "tool_counts"])
def test_no_count_is_stored_that_cannot_be_read_or_counted_up(db: Db, column: str) -> None:
    row = {"account_id": ANN.account, "instance_id": ANN.instance}
    with db.acting("service_role"):
        for wrong in COUNTS:
            with db.refused(CheckViolation, "no object of whole numbers"):
                db.insert("usage_metrics", **row, **{column: wrong})
        with db.refused(CheckViolation, "no list of names"):
            db.insert("usage_metrics", **row, platforms_active=[["a"], ["b"]])
        db.insert("usage_metrics", **row, **{column: '{"ada": 7, "bob": 1.0}'})
        for written in (f"{column} = '[]'", f"{column} = '{{}}'", "platforms_active = '{a}'"):
            with db.refused(InsufficientPrivilege):
                db.run(f"update usage_metrics set {written}")
    name = column.removesuffix("_counts")
    for who in ("ada", "bob"):
        db.run(f"select track_usage(%s, {name} => %s)", ANN.instance, who)
    assert db.one(f"select {column} from usage_metrics") == {"ada": 8, "bob": 2}


def test_a_row_of_usage_has_a_key_of_one_column(db: Db) -> None:
    row = {"account_id": ANN.account, "instance_id": ANN.instance}
    first = db.insert("usage_metrics", **row)["id"]
    other = db.insert("usage_metrics", **row, usage_date="2026-01-01")["id"]
    assert first != other
    with db.acting("service_role"):
        db.update("usage_metrics", other, error_count=3)
        with db.refused(UniqueViolation, "usage_metrics_id_key"):
            db.update("usage_metrics", other, id=first)
        with db.refused(NotNullViolation):
            db.update("usage_metrics", other, id=None)


def test_there_is_one_usage_row_per_instance_and_day(db: Db) -> None:
    row = {"account_id": ANN.account, "instance_id": ANN.instance}
    db.insert("usage_metrics", **row)
    with db.refused(UniqueViolation, "usage_metrics_pkey"):
        db.insert("usage_metrics", **row)
    db.insert("usage_metrics", **row | {"usage_date": "2026-01-01"})
    db.insert("usage_metrics", account_id=BOB.account, instance_id=BOB.instance)


@pytest.mark.parametrize("zone", ZONES)
def test_the_day_is_the_utc_day_whatever_the_sessions_time_zone_and_never_future(
    db: Db, zone: str
) -> None:
    db.run(f"set local timezone = '{zone}'")
    row = {"account_id": ANN.account, "instance_id": ANN.instance}
    tomorrow = db.one(f"select {TOMORROW}")
    with db.refused(CheckViolation, "cannot be recorded"):
        db.insert("usage_metrics", **row | {"usage_date": tomorrow})
    assert (tomorrow - db.insert("usage_metrics", **row)["usage_date"]).days == 1
    with db.refused(CheckViolation, "cannot be recorded"):
        db.run(f"update usage_metrics set usage_date = {TOMORROW}")


# ---- audit_logs

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


# ---- support_tickets


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


# ---- instance_backups


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


# ---- api_keys


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


# ---- deletion


@pytest.mark.parametrize("status", [each for each in STATUSES if each != "deprovisioned"])
def test_an_instance_is_not_deleted_before_it_is_deprovisioned(db: Db, status: str) -> None:
    instance = add_instance(db, ANN, "another", status=status)["id"]
    with db.acting("service_role"), db.refused(RestrictViolation, "not deprovisioned"):
        db.run("delete from instances where id = %s", instance)


def test_a_ticket_outlives_its_instance_and_stays_the_accounts(db: Db) -> None:
    removed = add_instance(db, ANN, "another", status="deprovisioned")["id"]
    row = {"account_id": ANN.account, "subject": "help", "description": "please"}
    ticket = db.insert("support_tickets", **row, instance_id=removed)["id"]
    db.run("delete from instances where id = %s", removed)
    found = db.run("select account_id, instance_id from support_tickets where id = %s", ticket)
    assert found == [(ANN.account, None)]


def test_a_subscription_that_is_billed_or_has_instances_is_not_deleted(db: Db) -> None:
    delete = "delete from subscriptions where id = %s"
    db.update("subscriptions", ANN.subscription, stripe_subscription_id="sub_1")
    with db.refused(RestrictViolation, "Stripe"):
        db.run(delete, ANN.subscription)
    db.update("subscriptions", ANN.subscription, status="cancelled")
    with db.refused(ForeignKeyViolation):
        db.run(delete, ANN.subscription)


def test_a_user_goes_with_everything_but_the_audit_log(db: Db) -> None:
    one_row_of_each(db, ANN)
    db.run("insert into private.instance_secrets values (%s, 'TOKEN', 'shh')", ANN.instance)
    delete, others = "delete from auth.users where id = %s", db.counts(BOB)
    assert set(db.counts(ANN).values()) == {1}
    with db.refused(RestrictViolation, "not deprovisioned"):
        db.run(delete, ANN.account)
    for status in ("deprovisioning", "deprovisioned"):
        db.update("instances", ANN.instance, status=status)
    db.update("subscriptions", ANN.subscription, stripe_subscription_id="sub_1")
    with db.refused(RestrictViolation, "Stripe"):
        db.run(delete, ANN.account)
    db.update("subscriptions", ANN.subscription, status="cancelled")
    before = db.audited(ANN)
    db.run(delete, ANN.account)
    assert set(db.counts(ANN).values()) == {0}
    assert db.counts(BOB) == others
    for table in ("instance_secrets", "api_key_hashes"):
        assert db.run(f"select from private.{table}") == []
    after = db.audited(ANN)
    assert before.items() <= after.items()
    deleted = sorted(row[0] for key, row in after.items() if key not in before)
    kinds = ("account", "api_key", "instance", "subscription")
    assert deleted == [f"{kind}.deleted" for kind in kinds]
