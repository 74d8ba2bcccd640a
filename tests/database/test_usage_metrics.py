"""The rules of usage_metrics: whole numbers, one row per instance and UTC day."""

import json

import pytest
from psycopg.errors import CheckViolation, InsufficientPrivilege, NotNullViolation, UniqueViolation

from tests.support.customers import ANN, BOB, ZONES, Db

TOMORROW = "(now() at time zone 'utc')::date + 1"


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
