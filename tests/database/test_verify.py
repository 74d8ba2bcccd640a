"""Every promise of sql/verify/ holds, and is shown to be found broken by what breaks it."""

import re

import pytest

from tests.support.customers import Db
from tests.support.platforms import sql_files

PROMISES = {
    promise: query
    for path in sql_files("verify")
    for promise, query in re.findall(
        r"^-- check: (.+)\n((?:.+\n|\n(?!-- check: ))+)", path.read_text(), re.MULTILINE
    )
}
"""Promise -> the query that finds what breaks it."""

OWN_TICKETS = 'alter policy "users read their own tickets" on public.support_tickets using'
FUNCTION = (
    "create function public.made() returns int language sql"
    " set search_path = pg_catalog, pg_temp return 1"
)

VIOLATIONS = [
    ("The tables of the contract", "drop table private.retention"),
    ("Row-level security is on", "alter table private.tiers disable row level security"),
    ("Row-level security is on", "alter table public.accounts force row level security"),
    ("Every table in public and private has a primary key", "create table private.made ()"),
    ("Every row of a customer", "alter table public.api_keys alter account_id drop not null"),
    ("Every row of a customer", "drop index public.api_keys_account_id_idx"),
    ("Every row of a customer", "create table public.made (account_id uuid)"),
    ("account_id is kept true", "alter table public.usage_metrics drop constraint %_instance_fkey"),
    ("account_id is kept true", "alter table public.api_keys drop constraint %_account_id_fkey"),
    (
        "The audit log outlives",
        "alter table public.audit_logs add foreign key (account_id) references public.accounts",
    ),
    ("created_at and updated_at", "alter table public.api_keys alter updated_at drop not null"),
    ("No table that users read", "alter table public.instances add api_token text"),
    ("Views in public", "create view public.made as select 1 as one"),
    ("Every table of ours", "comment on table public.accounts is null"),
    ("Every rule that a constraint", "alter table public.instances drop constraint %_status_known"),
    ("An email belongs to one account", "drop index public.subscriptions_one_live_per_account"),
    ("An email belongs to one account", "drop index public.subscriptions_in_force_key"),
    (
        "Every account with a subscription",
        "set local session_replication_role = replica;"
        "update public.subscriptions set in_force = false",
    ),
    (
        "An email belongs to one account",
        "drop index public.accounts_email_key;"
        "create unique index accounts_email_key on public.accounts (email)",
    ),
    (
        "A backup's expires_at",
        "alter table public.instance_backups alter expires_at drop expression",
    ),
    (
        "Clients can read every time",
        "alter table public.api_keys drop constraint api_keys_times_readable",
    ),
    ("Clients can read every time", "alter table public.accounts add made timestamptz"),
    (
        "No number is NaN",
        "alter table public.instances drop constraint instances_numbers_finite",
    ),
    ("No number is NaN", "alter domain private.gigabytes drop constraint gigabytes_finite"),
    ("What is written as jsonb", "alter table public.accounts add made jsonb"),
    (
        "What is written as jsonb",
        "alter table public.instances disable trigger instances_bound_config",
    ),
    ("Every rule that a trigger", "drop trigger mindroom_sync_account on auth.users"),
    ("Every rule that a trigger", "alter table public.accounts disable trigger accounts_audit"),
    ("updated_at is kept", "drop trigger accounts_set_updated_at on public.accounts"),
    ("No trigger of ours", "alter table public.accounts disable trigger all"),
    ("usage_metrics, written once", "create index on public.usage_metrics (messages_sent)"),
    (
        "usage_metrics, written once",
        "create trigger made after update on public.usage_metrics"
        " for each row execute function private.check_usage_day()",
    ),
    (
        "The tier catalogue",
        "delete from private.stripe_prices; delete from private.tiers where tier = 'enterprise'",
    ),
    (
        "The tier catalogue",
        "update private.tiers set features = features - 'sso' where tier = 'free'",
    ),
    ("The tier catalogue", "update private.tiers set features = features - 'voice_messages'"),
    ("Instance states lead", "delete from private.instance_status_transitions"),
    (
        "Instance states lead",
        "insert into private.instance_status_transitions values ('deprovisioned', 'running')",
    ),
    ("Realtime, where it exists", "create publication supabase_realtime"),
    ("The policies are exactly", "create policy made on public.accounts using (true)"),
    ("The policies are exactly", 'drop policy "users read their own account" on public.accounts'),
    ("A user's policy admits", f"{OWN_TICKETS} (true)"),
    ("No policy asks", f"{OWN_TICKETS} (account_id = auth.uid())"),
    ("No policy looks", f"{OWN_TICKETS} (account_id in (select id from public.accounts))"),
    (
        "A service appends",
        'alter policy "services append in their own name" on public.audit_logs with check (true)',
    ),
    ("The privileges of PUBLIC", "grant truncate on public.accounts to anon"),
    ("The privileges of PUBLIC", "grant update (tier) on public.subscriptions to authenticated"),
    ("The privileges of PUBLIC", "revoke select on public.accounts from authenticated"),
    ("The privileges of PUBLIC", "grant select on private.tiers to service_role"),
    ("The privileges of PUBLIC", "revoke delete on public.accounts from service_role"),
    (
        "service_role reads and writes",
        "grant update (agent_counts) on public.usage_metrics to service_role",
    ),
    ("service_role reads and writes", "revoke delete on public.accounts from service_role"),
    ("Nothing in private", "grant usage on schema private to service_role"),
    ("Nothing in private", "grant select (tier) on private.tiers to authenticated"),
    ("API roles use the schema", "grant create on schema public to authenticated"),
    ("API roles cannot log in", "alter role anon login"),
    ("API roles cannot log in", "alter role authenticated bypassrls"),
    ("The group of the services", "alter role platform_service login"),
    *(
        ("No role has a privilege", violation)
        for violation in (
            "grant service_role to platform_service",
            "grant select on public.accounts to platform_service",
            "alter role stripe_handler bypassrls",
        )
    ),
    (
        "What the owner of the tables",
        "alter default privileges in schema public grant select on tables to anon",
    ),
    (
        "What the owner of the tables",
        "alter default privileges grant execute on functions to public",
    ),
    ("The functions of public are exactly", FUNCTION),
    ("The functions of public are exactly", "drop function public.reset_daily_usage()"),
    (
        "The functions of public are exactly",
        "revoke execute on function public.handle_stripe_event from service_role",
    ),
    (
        "The functions of public are exactly",
        "revoke execute on function public.get_user_instance from authenticated",
    ),
    ("No API role, service_role", "grant execute on function private.log_audit to service_role"),
    ("No function that runs", "grant execute on function public.track_usage to authenticated"),
    *(
        ("Every function has the search_path", f"alter function public.track_usage {path}")
        for path in (
            "reset search_path",
            "set search_path = ''",
            "set search_path = pg_catalog",
            "set search_path = pg_temp, pg_catalog",
        )
    ),
    ("PUBLIC, anon and authenticated create", "grant temporary on database {database} to public"),
    ("PUBLIC, anon and authenticated create", "grant temporary on database {database} to anon"),
    ("Tables and functions have one owner", "alter function public.track_usage owner to anon"),
    ("Every function of ours", "comment on function public.track_usage is null"),
    ("Every foreign key is indexed", "drop index public.api_keys_account_id_idx"),
    ("No index is redundant", "create index on public.api_keys (account_id)"),
    ("A column that may hold personal data", "alter table private.erasures add note text"),
    (
        "A column that may hold personal data",
        "alter table private.released_subdomains add asked_for inet",
    ),
    (
        "A column that may hold personal data",
        "alter table private.stripe_customers drop constraint stripe_customers_account_id_fkey",
    ),
    (
        "Every index is valid",
        "update pg_index set indisvalid = false where indrelid = 'public.accounts'::regclass",
    ),
]
"""How a promise begins, and what breaks it; % is the name of the table."""


def broken(db: Db, begin: str = "") -> list[str]:
    """Of the promises that begin so, those that do not hold."""
    return [
        promise
        for promise, query in PROMISES.items()
        if promise.startswith(begin) and db.run(query)
    ]


def test_every_promise_holds(db: Db) -> None:
    assert broken(db) == []


def test_every_promise_is_shown_to_be_found_broken() -> None:
    count = sum(path.read_text().count("-- check: ") for path in sql_files("verify"))
    assert len(PROMISES) == count
    begins = tuple({begin for begin, _ in VIOLATIONS})
    assert [promise for promise in PROMISES if not promise.startswith(begins)] == []


@pytest.mark.parametrize(("begin", "violation"), VIOLATIONS)
def test_what_breaks_a_promise_is_found(db: Db, begin: str, violation: str) -> None:
    table = re.search(r"public\.(\w+)", violation)
    violation = violation.replace("{database}", db.connection.info.dbname)
    db.run(violation.replace("%", table[1] if table else ""))
    assert broken(db, begin)
