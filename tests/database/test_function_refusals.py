"""What the functions refuse, on a real server: calls that make no sense, and attacks.

Who may call which is test_authorization.py's.
"""

import psycopg
import pytest
from psycopg.errors import (
    CheckViolation,
    InsufficientPrivilege,
    InvalidParameterValue,
    NoDataFound,
    NullValueNotAllowed,
)

from tests.support.customers import ANN, BOB, NEWCOMER, NOBODY, Db, track, usage

# ---- what is refused

REFUSED = [
    ("get_user_instance(null)", NullValueNotAllowed),
    ("get_all_user_instances(null)", NullValueNotAllowed),
    ("has_active_subscription(null)", NullValueNotAllowed),
    ("check_user_permission({ann}, null)", NullValueNotAllowed),
    ("check_user_permission(null, 'sso')", NullValueNotAllowed),
    ("check_usage_limits(null)", NullValueNotAllowed),
    ("check_usage_limits({nobody})", NoDataFound),
    ("get_billing_metrics(null, '2026-01-01', '2026-01-01')", NullValueNotAllowed),
    ("get_billing_metrics({ann}, null, '2026-01-01')", NullValueNotAllowed),
    ("get_billing_metrics({ann}, '2026-01-01', null)", NullValueNotAllowed),
    ("get_billing_metrics({ann}, '2026-01-02', '2026-01-01')", InvalidParameterValue),
    ("get_billing_metrics({nobody}, '2026-01-01', '2026-01-01')", NoDataFound),
    ("track_usage(null)", NullValueNotAllowed),
    ("track_usage({nobody})", NoDataFound),
    ("track_usage({instance}, message_type => null)", InvalidParameterValue),
    ("track_usage({instance}, message_type => 'read')", InvalidParameterValue),
    ("track_usage({instance}, agent => '')", InvalidParameterValue),
    ("track_usage({instance}, tool => repeat('x', 101))", InvalidParameterValue),
    ("track_usage({instance}, 'a', platform => '')", InvalidParameterValue),
    ("provision_instance(null)", NullValueNotAllowed),
    ("provision_instance({subscription}, null)", NullValueNotAllowed),
    ("provision_instance({nobody})", NoDataFound),
    ("provision_instance({subscription}, '[]')", CheckViolation),
    ("start_instance(null)", NullValueNotAllowed),
    ("start_instance({nobody})", NoDataFound),
    ("deprovision_instance(null)", NullValueNotAllowed),
    ("deprovision_instance({nobody})", NoDataFound),
    ("update_instance_health(null, 'healthy')", NullValueNotAllowed),
    ("update_instance_health({nobody}, 'healthy')", NoDataFound),
    ("update_instance_health({instance}, 'fine')", InvalidParameterValue),
    ("update_instance_health({instance}, null)", InvalidParameterValue),
    ("update_instance_health({instance}, 'healthy', null)", NullValueNotAllowed),
    ("calculate_storage_usage(null)", NullValueNotAllowed),
    ("calculate_storage_usage({nobody})", NoDataFound),
]


@pytest.mark.parametrize("row", ["no row of the day", "a row of the day"])
@pytest.mark.parametrize(("call", "error"), REFUSED)
def test_what_makes_no_sense_is_an_error_with_a_hint(
    db: Db, call: str, error: type[psycopg.Error], row: str
) -> None:
    if row == "a row of the day":
        track(db)
    ids = {
        "ann": f"'{ANN.account}'",
        "subscription": f"'{ANN.subscription}'",
        "instance": f"'{ANN.instance}'",
        "nobody": f"'{NOBODY}'",
    }
    with pytest.raises(error) as caught, db.connection.transaction():
        db.run(f"select {call.format(**ids)}")
    assert caught.type is error
    assert caught.value.diag.message_hint


# ---- attacks


def test_no_function_is_led_astray_by_objects_that_stand_in_its_way(db: Db) -> None:
    """A search_path with look-alikes first, as a caller could set it."""
    db.run("create schema evil")
    for table in ("usage_metrics", "instances", "subscriptions", "accounts", "audit_logs"):
        db.run(f"create table evil.{table} (like public.{table})")
    db.run(
        "create function evil.now() returns timestamptz language sql as 'select null::timestamptz'"
    )
    db.run(
        "create function evil.least(text) returns text language plpgsql as"
        " $$ begin raise 'hijacked'; end $$"
    )
    db.run("set local search_path = evil, pg_catalog, public")
    db.run("select public.track_usage(%s, 'a', 't', 'p')", ANN.instance)
    db.run("select public.update_instance_health(%s, 'critical')", ANN.instance)
    db.run("select public.calculate_storage_usage(%s)", ANN.instance)
    new = db.one("select public.provision_instance(%s)", ANN.subscription)
    db.run("select public.deprovision_instance(%s)", new)
    for job in (
        "reset_daily_usage",
        "cleanup_expired_data",
        "auto_pause_inactive_instances",
        "follow_subscriptions",
    ):
        db.run(f"select public.{job}()")
    db.run("set local search_path = public")
    assert usage(db, "messages_sent") == (1,)
    for table in ("usage_metrics", "instances", "audit_logs"):
        assert db.one(f"select count(*) from evil.{table}") == 0


ATTACKS = [
    "update subscriptions set max_messages_per_day = -1",
    "update subscriptions set tier = 'enterprise'",
    "update accounts set stripe_customer_id = 'cus_mine'",
    "update api_keys set permissions = '{admin}'",
    "update instances set account_id = auth.uid()",
    "insert into usage_metrics (account_id, instance_id) select account_id, id from instances",
    "insert into audit_logs (account_id, action, category) values (auth.uid(), 'a.b', 'c')",
    "truncate usage_metrics",
    "select * from private.instance_secrets",
    "select * from private.api_key_hashes",
    "select private.log_audit(null, 'a', 'b', null, null)",
    "select private.begin_usage_day('{ann}')",
    "select private.settle_message('{ann}', null, null, null, 'sent', true, true)",
    "select private.set_instance_status('{ann}', 'stopped', null)",
    "select track_usage('{ann}')",
    "select record_usage('{ann}', '[]')",
    f"select instance_of_token('{'0a' * 32}')",
    f"select verify_api_key('{'0a' * 32}', '{{ann}}', 'read')",
    "select provision_instance('{ann}')",
    "select deprovision_instance('{ann}')",
    "select cleanup_expired_data()",
    "select follow_subscriptions()",
    "select private.start_instance()",
    "select private.resume_instances('{ann}')",
    "update instances set status = 'running'",
]


@pytest.mark.parametrize("role", ["anon", "authenticated"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_refused(db: Db, role: str, attack: str) -> None:
    with db.acting(role, ANN), db.refused(InsufficientPrivilege):
        db.run(attack.replace("{ann}", str(ANN.instance)))


def test_another_customers_rows_are_out_of_reach(db: Db) -> None:
    with db.acting("authenticated", ANN):
        assert db.run("select 1 from audit_logs where account_id = %s", BOB.account) == []
        for query in ("get_all_user_instances(%s)", "get_user_instance(%s)"):
            assert db.run(f"select 1 from {query}", BOB.account) == []
        assert db.run("select 1 from check_usage_limits(%s)", BOB.instance) == []
        query = "select 1 from get_billing_metrics(%s, '2026-01-01', '2026-01-02')"
        assert db.run(query, BOB.account) == []
        with db.refused(InsufficientPrivilege):
            db.insert(
                "support_tickets", account_id=BOB.account, subject="help", description="please"
            )


def test_who_has_no_account_yet_asks_and_is_told_nothing(db: Db) -> None:
    with db.acting("authenticated", NEWCOMER):
        assert db.one("select has_active_subscription(%s)", NEWCOMER.account) is False
