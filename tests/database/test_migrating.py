"""What docs/migrating.md names is there, and its statements reach rows under their roles."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import NamedTuple
from unittest.mock import Mock

import psycopg
import pytest
from psycopg.types.json import Jsonb

from components import ROOT
from components.authorization import AUTHORIZATION
from provisioner import api
from tests.support.customers import ANN, NEWCOMER, TODAY, Db, track

TIERS = ("free", "starter", "professional", "enterprise")
NAMES = ("original", "now", "")
FEATURES = ("feature", *TIERS)
STATEMENTS = ("original", "as", "now")
REQUESTS = ("request", "now", "")


class Row(NamedTuple):
    """A row of a table of the document."""

    heading: str
    columns: tuple[str, ...]
    cells: tuple[str, ...]


def read() -> Iterator[Row]:
    heading, columns = "", None
    for line in (ROOT / "docs" / "migrating.md").read_text().splitlines():
        if line.startswith("#"):
            heading = line.strip("# `")
        if not line.startswith("|"):
            columns = None
            continue
        cells = tuple(cell.strip() for cell in line[1:-1].split("|"))
        if columns is None:
            columns = cells
        elif not set(line) <= set("| -"):
            yield Row(heading, columns, cells)


ROWS = list(read())


def of(columns: tuple[str, ...]) -> list[Row]:
    return [row for row in ROWS if row.columns == columns]


def quoted(cell: str) -> list[str]:
    return re.findall("`([^`]+)`", cell)


def test_every_row_is_of_a_known_kind_and_whole() -> None:
    assert {row.columns for row in ROWS} == {NAMES, FEATURES, STATEMENTS, REQUESTS}
    assert [row for row in ROWS if len(row.cells) != len(row.columns)] == []
    assert [row for row in ROWS if not row.cells[0]] == []


CATALOG = """
with relations as (
  select oid, replace(relnamespace::regnamespace || '.' || relname, 'public.', '') as name
    from pg_class
   where relkind = 'r' and relnamespace in ('public'::regnamespace, 'private'::regnamespace)
)
select name from relations
union all
select name || '.' || attname
  from relations join pg_attribute on attrelid = oid
 where attnum > 0 and not attisdropped
union all
select proname || '.' || result
  from pg_proc cross join unnest(proargnames, proargmodes) as results (result, mode)
 where pronamespace = 'public'::regnamespace and mode in ('t', 'o')
union all
select proname || '.' || attname
  from pg_proc join pg_type on pg_type.oid = prorettype join pg_attribute on attrelid = typrelid
 where pronamespace = 'public'::regnamespace and attnum > 0 and not attisdropped
"""
"""Each table, column of a table and column of what a function returns."""

FUNCTIONS = """
select replace(pronamespace::regnamespace || '.' || proname, 'public.', ''),
       coalesce(proargnames[:pronargs], '{}')
  from pg_proc
 where pronamespace in ('public'::regnamespace, 'private'::regnamespace, 'auth'::regnamespace)
"""


def test_what_is_now_is_in_the_catalog(db: Db) -> None:
    catalog = {name for (name,) in db.run(CATALOG)}
    parameters = dict(db.run(FUNCTIONS))

    def there(name: str) -> bool:
        if call := re.fullmatch(r"([\w.]+)\((.*)\)", name):
            return set(call[2].split(", ")) - {""} <= set(parameters.get(call[1], ["no such"]))
        return name in catalog

    for row in of(NAMES):
        original, now, why = row.cells
        if now == "removed":
            assert why, row
            continue
        names = quoted(now)
        if now == "the same":
            within = "" if row.heading == "Tables" else f"{row.heading}."
            names = [within + name for name in quoted(original)]
        assert names, row
        assert [name for name in names if not there(name)] == [], row


@pytest.mark.parametrize("client", sorted({row.heading for row in of(STATEMENTS)}))
def test_statements_reach_rows_under_the_role_that_makes_them(db: Db, client: str) -> None:
    event = json.loads(
        (ROOT / "docs" / "examples" / "customer.subscription.created.json").read_text()
    )
    stripe = event["data"]["object"]
    stripe["metadata"] = {"account_id": str(ANN.account)}
    db.sign_up(NEWCOMER, NEWCOMER.email)
    db.update("accounts", ANN.account, stripe_customer_id=stripe["customer"])
    db.update("subscriptions", ANN.subscription, stripe_subscription_id=stripe["id"])
    track(db)
    values = {
        "account_id": ANN.account,
        "subscription_id": ANN.subscription,
        "instance_id": ANN.instance,
        "newcomer_id": NEWCOMER.account,
        "stripe_customer_id": stripe["customer"],
        "stripe_subscription_id": stripe["id"],
        "event": Jsonb(event),
        "object": Jsonb(stripe),
        "observed_at": datetime.now(UTC),
        "config": Jsonb({"agents": {}}),
        "today": db.one(f"select {TODAY}"),
        "start_date": db.one(f"select {TODAY} - 7"),
        "pattern": "%ann%",
        "full_name": "Ann",
        "company_name": "Example",
        "reason": "a test",
        "url": "https://a.example",
        "agent": "researcher",
    }

    def reached(role: str, statement: str) -> int:
        sent = re.sub(r"(?<!:):(\w+)", r"%(\1)s", statement)
        try:
            with db.acting(role, ANN):
                return db.connection.execute(sent.encode(), values).rowcount
        except psycopg.Error as error:
            error.add_note(f"{role}: {statement}")
            raise

    for row in of(STATEMENTS):
        _, role, now = row.cells
        statements = [each for each in quoted(now) if re.match("select|insert|update|delete", each)]
        assert now, row
        assert role or not statements, row
        assert statements or not role or "](#" in now, row
        if row.heading == client and role:
            [role] = quoted(role)
            assert role in AUTHORIZATION
            with db.connection.transaction(force_rollback=True):
                assert [each for each in statements if reached(role, each) < 1] == []


@pytest.mark.parametrize("tier", TIERS)
def test_a_plan_has_the_features_that_the_document_gives_it(db: Db, tier: str) -> None:
    db.update("subscriptions", ANN.subscription, tier=tier)
    said = {
        quoted(row.cells[0])[0]: {"yes": True, "no": False}[row.cells[row.columns.index(tier)]]
        for row in of(FEATURES)
    }
    with db.acting("authenticated", ANN):
        query = "select check_user_permission(%s, %s)"
        assert {name: db.one(query, ANN.account, name) for name in said} == said


def test_requests_are_the_provisioners() -> None:
    paths = api.create_app(Mock()).openapi()["paths"]
    served = {f"{method.upper()} {path}" for path in paths for method in paths[path]}
    for row in of(REQUESTS):
        now = quoted(row.cells[1])
        assert now or (row.cells[1] == "removed" and row.cells[2])
        assert set(now) <= served
