"""The rules that the tables themselves enforce, on a real server; each test is rolled back.

Who may do what is tests/database/test_authorization.py's. Here Ann (professional) and Bob (starter)
have a subscription and a running instance each, and what is done is done as the role that would
do it.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg.errors import CheckViolation, ForeignKeyViolation, RestrictViolation

from tests.support.customers import (
    ANN,
    BOB,
    LIMITS,
    STATUSES,
    Db,
    add_customer,
    add_instance,
    one_row_of_each,
)
from tests.support.platforms import Platform
from tests.support.samples import tables_of

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
    "instances.config": ["[]", '{"agents": "many"}', '{"limit": 1e400}', {"text": "x" * 2**20}],
    "instances.app_config": ["[]", '{"limit": 1e400}', {"text": "x" * 2**16}],
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
