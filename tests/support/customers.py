"""Two customers and an administrator's connection, for tests of tables and of functions.

What is done is done as the role that would do it, in a transaction that is rolled back;
`customer_of_its_own` is for what several connections have to see.
"""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import Any
from uuid import NAMESPACE_OID, UUID, uuid4, uuid5

import psycopg
import pytest
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from tests.support.platforms import Platform
from tests.support.samples import Row, insert, sample_rows, tables_of

TODAY = "(now() at time zone 'utc')::date"
NOBODY = "00000000-0000-4000-8000-000000000000"

ZONES = ("UTC", "Pacific/Kiritimati", "Etc/GMT+12")
"""At any time of day one of them is in another day than UTC."""

LIMITS = (
    "max_messages_per_day",
    "max_storage_gb",
    "max_agents",
    "max_platforms",
    "max_team_members",
)

TIERS = ("free", "starter", "professional", "enterprise")

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


@dataclass(frozen=True)
class Customer:
    """A customer of the tests."""

    name: str
    tier: str

    def id(self, thing: str) -> UUID:
        return uuid5(NAMESPACE_OID, f"{thing} of {self.name}")

    @property
    def account(self) -> UUID:
        return self.id("account")

    @property
    def subscription(self) -> UUID:
        return self.id("subscription")

    @property
    def instance(self) -> UUID:
        return self.id("instance")

    @property
    def email(self) -> str:
        return f"{self.name}@customers.example"


ANN, BOB = Customer("ann", "professional"), Customer("bob", "starter")
NEWCOMER = Customer("newcomer", "")


@dataclass(frozen=True)
class Db:
    """A connection of the administrator's, in a transaction."""

    connection: psycopg.Connection

    def run(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        given = [Jsonb(value) if isinstance(value, dict) else value for value in values]
        cursor = self.connection.execute(query.encode(), given or None)
        return cursor.fetchall() if cursor.description else []

    def one(self, query: str, *values: object) -> Any:
        [[value]] = self.run(query, *values)
        return value

    def insert(self, table: str, **row: object) -> dict[str, Any]:
        names, values = ", ".join(row), ", ".join(["%s"] * len(row))
        given = [Jsonb(value) if isinstance(value, dict) else value for value in row.values()]
        query = f"insert into {table} ({names}) values ({values}) returning *"
        with self.connection.cursor(row_factory=dict_row) as cursor:
            inserted = cursor.execute(query.encode(), given).fetchone()
        assert inserted is not None
        return inserted

    def update(self, table: str, key: object, **changes: object) -> None:
        given = [Jsonb(value) if isinstance(value, dict) else value for value in changes.values()]
        query = f"update {table} set {', '.join(f'{name} = %s' for name in changes)} where id = %s"
        assert self.connection.execute(query.encode(), [*given, key]).rowcount == 1

    def sign_up(self, customer: Customer, email: str | None, **profile: str) -> None:
        self.run(
            "insert into auth.users (id, email, raw_user_meta_data) values (%s, %s, %s)",
            customer.account,
            email,
            profile,
        )

    @contextmanager
    def acting(self, role: str, customer: Customer | None = None) -> Iterator[None]:
        """As a service that logged in, or as a role that a request through the API takes."""
        with self.connection.transaction():
            claims = {"role": role, "sub": str(customer.account)} if customer else {}
            self.claim(json.dumps(claims))
            if role != "service_role":
                login = "customer_portal" if role in ("anon", "authenticated") else role
                self.run(f"set local session authorization {login}")
            if role in ("anon", "authenticated", "service_role"):
                self.run(f"set local role {role}")
            yield
            self.run("reset role")
            self.run("reset session authorization")
            self.claim("")

    def claim(self, claims: str) -> None:
        self.run("select set_config('request.jwt.claims', %s, true)", claims)

    @contextmanager
    def refused(self, error: type[psycopg.Error], match: str | None = None) -> Iterator[None]:
        with pytest.raises(error, match=match) as caught, self.connection.transaction():
            yield
        assert caught.type is error

    def audited(self, customer: Customer) -> dict[UUID, tuple[Any, ...]]:
        """Id of each of a customer's audit rows -> action, actor, resource and details."""
        rows = self.run(
            """select id, action, actor_role, actor_user_id, resource_id, details
               from audit_logs where account_id = %s""",
            customer.account,
        )
        return {key: tuple(row) for key, *row in rows}

    def counts(self, customer: Customer) -> dict[str, int]:
        """How many rows of each table are a customer's, of those that go with the account."""
        owned = {"public.accounts": "id"} | {
            table: "account_id"
            for table, shape in tables_of(self.connection).items()
            if table.startswith("public.")
            and any("account_id" in key.columns for key in shape.foreign_keys)
        }
        return {
            table: self.one(f"select count(*) from {table} where {owner} = %s", customer.account)
            for table, owner in owned.items()
        }


def add_instance(db: Db, customer: Customer, name: str, **columns: object) -> dict[str, Any]:
    row = {
        "account_id": customer.account,
        "subscription_id": customer.subscription,
        "app_name": name,
        "subdomain": name,
    }
    return db.insert("instances", **row | columns)


def add_customer(db: Db, customer: Customer) -> None:
    """With a subscription and a running instance."""
    db.sign_up(customer, customer.email)
    plan = {"id": customer.subscription, "account_id": customer.account, "tier": customer.tier}
    db.insert("subscriptions", **plan)
    add_instance(db, customer, customer.name, id=customer.instance, status="running")


def key_hash(key: str) -> str:
    return sha256(key.encode()).hexdigest()


def add_key(db: Db, key: str, **columns: object) -> dict[str, Any]:
    row = {"name": "a key", "key_prefix": "mr_12345", "key_hash": key_hash(key)}
    return db.insert("api_keys", **row | columns)


def one_row_of_each(db: Db, customer: Customer) -> dict[str, Row]:
    """A customer's row of each table of public; with a subscription and an instance already."""
    tables = tables_of(db.connection)
    rows = sample_rows(
        {table: shape for table, shape in tables.items() if table.startswith("public.")},
        customer.name,
        {
            "public.accounts": {"id": str(customer.account)},
            "public.subscriptions": {"id": str(customer.subscription), "tier": customer.tier},
            "public.instances": {"id": str(customer.instance)},
            "public.audit_logs": {"account_id": str(customer.account)},
            "public.api_keys": {"key_hash": key_hash("a key")},
        },
    )
    for table, row in rows.items():
        query, values = insert(table, row)
        db.connection.execute(query + b" on conflict do nothing", values)
    return {table.removeprefix("public."): row for table, row in rows.items()}


def catalogue(db: Db, tier: str, columns: tuple[str, ...]) -> tuple[Any, ...]:
    [row] = db.run(f"select {', '.join(columns)} from private.tiers where tier = %s", tier)
    return row


def agents(count: int) -> dict[str, dict[str, object]]:
    return {f"agent{number}": {} for number in range(count)}


def track(db: Db, customer: Customer = ANN, **given: object) -> bool:
    names = "".join(f", {name} => %s" for name in given)
    query = f"select track_usage(instance_id => %s{names})"
    return bool(db.one(query, customer.instance, *given.values()))


def usage(db: Db, columns: str, customer: Customer = ANN) -> tuple[Any, ...]:
    [row] = db.run(f"select {columns} from usage_metrics where instance_id = %s", customer.instance)
    return row


def said(db: Db, action: str, customer: Customer = ANN) -> list[dict[str, Any]]:
    """The details of what the audit log says of a customer."""
    return [row[4] for row in db.audited(customer).values() if row[0] == action]


@contextmanager
def customer_of_its_own(platform: Platform) -> Iterator[tuple[Db, UUID, UUID]]:
    """A committed customer with a subscription and a running instance, removed afterwards."""
    with psycopg.connect(platform.url, autocommit=True) as connection:
        db, account = Db(connection), uuid4()
        db.run(
            "insert into auth.users (id, email) values (%s, %s)", account, f"{account}@x.example"
        )
        plan = db.insert("subscriptions", account_id=account, tier="enterprise")["id"]
        name = f"i{account.hex[:12]}"
        instance = db.insert(
            "instances",
            account_id=account,
            subscription_id=plan,
            app_name=name,
            subdomain=name,
            status="running",
        )["id"]
        try:
            yield db, plan, instance
        finally:
            for status in ("deprovisioning", "deprovisioned"):
                db.run(
                    """update instances set status = %s where account_id = %s
                       and status not in ('deprovisioned', %s)""",
                    status,
                    account,
                    status,
                )
            db.run("delete from auth.users where id = %s", account)
            db.run("delete from audit_logs where account_id = %s", account)


def wait_until_blocked(
    db: Db, connection: psycopg.Connection, doing: Future[Any], seconds: float = 10
) -> None:
    """Until what a connection does waits for another's lock."""
    deadline = time.monotonic() + seconds
    query = "select cardinality(pg_blocking_pids(%s)) > 0"
    while not db.one(query, connection.info.backend_pid):
        assert not doing.done(), "it did not wait"
        assert time.monotonic() < deadline, "it neither waited nor ended"
        time.sleep(0.01)


def at_once(platform: Platform, calls: list[tuple[str, list[object]]], times: int = 1) -> list[Any]:
    """Each call on a connection of its own, all beginning together; their first values."""
    start = threading.Barrier(len(calls))

    def run(call: tuple[str, list[object]]) -> list[Any]:
        with psycopg.connect(platform.url, autocommit=True) as connection:
            start.wait()
            found = []
            for _ in range(times):
                row = connection.execute(call[0].encode(), call[1]).fetchone()
                found.append(row[0] if row else None)
            return found

    with ThreadPoolExecutor(len(calls)) as pool:
        return [value for each in pool.map(run, calls) for value in each]
