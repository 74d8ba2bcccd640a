"""The functions as their callers know them: by name, on UTC days, whatever is passed to them."""

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg.errors import CheckViolation, DataError, IntegrityError
from psycopg.types.json import Jsonb

from components.authorization import FUNCTIONS
from tests.support.customers import ANN, TODAY, ZONES, Db

PING = '{"id": "evt_1", "type": "ping", "created": 1, "data": {"object": {}}}'
CUSTOMER = '{"id": "cus_1", "object": "customer", "created": 1}'

CALLS = {
    "get_user_instance(user_id => %(ann)s)": (
        "id subdomain frontend_url api_url matrix_url status tier config features"
    ),
    "get_all_user_instances(user_id => %(ann)s)": "instances tier subscription_status",
    "has_active_subscription(user_id => %(ann)s)": "boolean",
    "check_user_permission(user_id => %(ann)s, permission => 'sso')": "boolean",
    "track_usage(instance_id => %(instance)s)": "boolean",
    "track_usage(instance_id => %(instance)s, agent => 'a', tool => 't', platform => 'p',"
    " message_type => 'received')": "boolean",
    "record_usage(instance_id => %(instance)s, events => '[]')": (
        "counted duplicates within_limits messages_remaining resets_at"
    ),
    "check_usage_limits(instance_id => %(instance)s)": (
        "within_limits messages_used messages_remaining messages_limit storage_used_gb"
        " storage_limit_gb agents_used agents_limit"
    ),
    "get_billing_metrics(account_id => %(ann)s, start_date => '2026-01-01',"
    " end_date => '2026-01-31')": (
        "total_messages messages_sent messages_received peak_storage_gb distinct_agents"
        " distinct_tools active_days average_messages_per_active_day"
    ),
    "provision_instance(subscription_id => %(subscription)s)": "uuid",
    "provision_instance(subscription_id => %(subscription)s, config => '{}')": "uuid",
    "deprovision_instance(instance_id => %(instance)s)": "boolean",
    "deprovision_instance(instance_id => %(instance)s, reason => 'asked for')": "boolean",
    "update_instance_health(instance_id => %(instance)s, status => 'healthy')": "void",
    "update_instance_health(instance_id => %(instance)s, status => 'healthy', details => '{}')": (
        "void"
    ),
    "update_instance_health(instance_id => %(instance)s, status => 'critical', details => '{}',"
    " error_message => 'no answer')": "void",
    "reset_daily_usage()": "integer",
    "calculate_storage_usage(instance_id => %(instance)s)": "numeric",
    "cleanup_expired_data()": "jsonb",
    "auto_pause_inactive_instances()": "uuid",
    "instance_of_token(token_hash => %(hash)s)": "uuid",
    "verify_api_key(key_hash => %(hash)s, instance_id => %(instance)s, permission => 'read')": (
        "valid account_id scopes reason upstream_key"
    ),
    "export_account(account_id => %(ann)s)": "jsonb",
    "erase_account(account_id => %(ann)s)": "jsonb",
    "start_instance(instance_id => %(instance)s)": "boolean",
    "follow_subscriptions()": "jsonb",
    "handle_stripe_event(event => %(event)s)": "text",
    "handle_stripe_object(object => %(object)s, observed_at => now())": "text",
}
"""A call with what may be left out, or with all, as PostgREST makes it -> the type that it returns,
or the names of its columns, `instances` for all of that table."""


@pytest.mark.parametrize("call", CALLS)
def test_names_of_functions_parameters_and_columns_are_the_contract(db: Db, call: str) -> None:
    ids: dict[str, object] = {
        "ann": ANN.account,
        "subscription": ANN.subscription,
        "instance": ANN.instance,
        "hash": "0a" * 32,
    }
    cursor = db.connection.execute(
        f"select * from {call}".encode(), ids | {"event": PING, "object": CUSTOMER}
    )
    names = [column.name for column in cursor.description or []]
    if CALLS[call].startswith("instances "):
        columns = db.connection.execute("select * from instances").description or []
        assert names == [column.name for column in columns] + CALLS[call].split()[1:]
    elif " " in CALLS[call]:
        assert names == CALLS[call].split()
    else:
        [column] = cursor.description or []
        kind = db.one("select format_type(%s, null)", column.type_code)
        assert (column.name, kind) == (call.partition("(")[0], CALLS[call])


def test_every_function_is_called() -> None:
    assert {call.partition("(")[0] for call in CALLS} == set(FUNCTIONS)


# ---- days


@pytest.mark.parametrize("zone", ZONES)
def test_a_day_is_the_utc_day_to_every_function(db: Db, zone: str) -> None:
    today = db.one(f"select {TODAY}")
    db.run(f"set local timezone = '{zone}'")
    db.update("subscriptions", ANN.subscription, max_messages_per_day=0)
    db.update("instances", ANN.instance, storage_used_gb=1)
    db.run("select calculate_storage_usage(%s)", ANN.instance)
    db.run("select track_usage(%s)", ANN.instance)
    rows = "select usage_date, storage_used_gb::int, messages_sent, limit_exceeded"
    assert db.run(f"{rows} from usage_metrics") == [(today, 1, 1, True)]
    said = "select details ->> 'day' from audit_logs where action = 'usage.limit_exceeded'"
    assert db.run(said) == [(str(today),)]
    assert db.one("select messages_used from check_usage_limits(%s)", ANN.instance) == 1
    assert db.one("select reset_daily_usage()") == 0
    billed = "select total_messages, peak_storage_gb::int from get_billing_metrics(%s, %s, %s)"
    assert db.run(billed, ANN.account, today, today) == [(1, 1)]
    db.run(f"update usage_metrics set usage_date = {TODAY} - 1")
    assert db.one("select messages_used from check_usage_limits(%s)", ANN.instance) == 0
    assert db.one("select reset_daily_usage()") == 1


# ---- wide inputs

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=120)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


def test_any_name_is_counted_or_refused_with_a_hint(db: Db) -> None:
    @given(TEXT, TEXT)
    def holds(agent: str, tool: str) -> None:
        with db.connection.transaction(force_rollback=True):
            call = "select track_usage(%s, agent => %s, tool => %s)"
            if all(1 <= len(name) <= 100 for name in (agent, tool)):
                db.run(call, ANN.instance, agent, tool)
                counts = "select agent_counts, tool_counts from usage_metrics"
                assert db.run(counts) == [({agent: 1}, {tool: 1})]
            else:
                with pytest.raises(DataError) as caught:
                    db.run(call, ANN.instance, agent, tool)
                assert caught.value.diag.message_hint

    holds()


def test_any_config_is_kept_or_refused_with_a_hint(db: Db) -> None:
    @given(JSON | st.fixed_dictionaries({"agents": JSON}))
    def holds(config: Any) -> None:
        with db.connection.transaction(force_rollback=True):
            provision = "select provision_instance(%s, %s)"
            right = isinstance(config, dict) and not isinstance(
                config.get("agents"), bool | int | float | str
            )
            if right:
                new = db.one(provision, ANN.subscription, Jsonb(config))
                assert db.one("select config from instances where id = %s", new) == config
                used = db.one("select agents_used from check_usage_limits(%s)", new)
                assert used == len(config.get("agents") or [])
            else:
                with pytest.raises(CheckViolation) as caught:
                    db.one(provision, ANN.subscription, Jsonb(config))
                assert caught.value.diag.message_hint

    holds()


SUBSCRIPTION: dict[str, Any] = {
    "id": "evt_1",
    "type": "customer.subscription.updated",
    "created": 4_000_000_000,
    "data.object.id": "sub_1",
    "data.object.customer": "cus_1",
    "data.object.created": 4_000_000_000,
    "data.object.status": "active",
    "data.object.trial_start": None,
    "data.object.trial_end": None,
    "data.object.canceled_at": None,
    "data.object.ended_at": None,
    "data.object.metadata": {"account_id": str(ANN.account)},
    "data.object.metadata.tier": None,
    "data.object.items.data": [{"price": {"id": "price_1", "lookup_key": "starter"}}],
}
"""The parts of an event that are read, by their places."""


def event(parts: dict[str, Any]) -> Any:
    whole: dict[str, Any] = {}
    for place, value in parts.items():
        *path, name = place.split(".")
        into = whole
        for step in path:
            inner = into.setdefault(step, {})
            if not isinstance(inner, dict):
                break
            into = inner
        else:
            into[name] = value
    return whole


def test_any_event_is_handled_or_refused_as_wrong_data(db: Db) -> None:
    changes = st.dictionaries(st.sampled_from(list(SUBSCRIPTION)), JSON, max_size=3)

    @settings(max_examples=300)
    @given(changes)
    def holds(changed: dict[str, Any]) -> None:
        with suppress(DataError, IntegrityError), db.connection.transaction(force_rollback=True):
            outcome = db.one("select handle_stripe_event(%s)", event(SUBSCRIPTION | changed))
            assert outcome in ("applied", "unlinked", "ignored", "stale", "refused")
            db.one(
                "select handle_stripe_object(%s, now())",
                event(SUBSCRIPTION | changed)["data"]["object"] | {"object": "subscription"},
            )

    holds()
