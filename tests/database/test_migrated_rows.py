"""What the versioned files of sql/ do to the rows that were there before them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.types.json import Jsonb

from migrate.files import PLATFORM, VERSIONED
from tests.support.migrating import up
from tests.support.platforms import sql_files

REGAINED = {
    "custom_agents": ("professional", "enterprise"),
    "advanced_memory": ("starter", "professional", "enterprise"),
    "voice_messages": ("starter", "professional", "enterprise"),
    "file_uploads": ("starter", "professional", "enterprise"),
    "team_collaboration": ("professional", "enterprise"),
}
"""Feature that plans had before the tier catalogue -> the tiers that have it."""


def link(directory: Path, folder: str, before: str = "~") -> None:
    """Put the files of a folder that come before a name into a directory."""
    (directory / folder).mkdir(parents=True, exist_ok=True)
    for path in sql_files(folder):
        there = directory / folder / path.name
        if path.name < before and not there.exists():
            there.symlink_to(path)


@contextmanager
def migrated(database: str, directory: Path, name: str) -> Iterator[psycopg.Connection]:
    """A database as it was before a versioned file; afterwards all of them are applied."""
    folders = (PLATFORM, VERSIONED)
    link(directory, PLATFORM)
    link(directory, VERSIONED, before=name)
    up(database, directory, names=folders)
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection
    link(directory, VERSIONED)
    assert name in up(database, directory, names=folders)


def sign_up(connection: psycopg.Connection, email: str) -> UUID:
    """A user and the account, without the triggers of the repeatable files."""
    user = uuid4()
    for table in ("auth.users", "public.accounts"):
        connection.execute(
            f"insert into {table} (id, email) values (%s, %s)".encode(), [user, email]
        )
    return user


@pytest.mark.parametrize("tier", ["free", "starter", "professional", "enterprise"])
def test_a_plan_with_its_tiers_features_regains_the_originals_and_another_keeps_its_own(
    database: str, tmp_path: Path, tier: str
) -> None:
    own = {"sso": True}
    with migrated(database, tmp_path, "0017_more_features.sql") as connection:
        for email, features in (("usual@x.example", None), ("own@x.example", Jsonb(own))):
            connection.execute(
                """insert into public.subscriptions
                     (account_id, tier, max_messages_per_day, max_storage_gb, max_agents,
                      max_platforms, max_team_members, features)
                   select %s, tier, 1, 1, 1, 1, 1, coalesce(%s, features)
                     from private.tiers where tier = %s""",
                [sign_up(connection, email), features, tier],
            )
        [[before]] = connection.execute(
            "select features from private.tiers where tier = %s", [tier]
        )
    after = before | {name: tier in tiers for name, tiers in REGAINED.items()}
    with psycopg.connect(database) as connection:
        found: dict[str, Any] = dict(
            connection.execute(
                """select email, features from public.subscriptions
                     join public.accounts on accounts.id = account_id"""
            ).fetchall()
        )
        catalogue = connection.execute("select features from private.tiers where tier = %s", [tier])
        assert catalogue.fetchall() == [(after,)]
    assert found == {"usual@x.example": after, "own@x.example": own}


def test_numbers_that_were_none_are_replaced(database: str, tmp_path: Path) -> None:
    with migrated(database, tmp_path, "0019_numbers_and_subdomains.sql") as connection:
        account = sign_up(connection, "a@x.example")
        connection.execute(
            """insert into public.subscriptions
                 (account_id, tier, max_messages_per_day, max_storage_gb, max_agents,
                  max_platforms, max_team_members, features, storage_used_gb)
               values (%s, 'starter', 1, 1, 1, 1, 1, '{}', 'NaN')""",
            [account],
        )
        connection.execute(
            """insert into public.instances
                 (account_id, subscription_id, app_name, subdomain, cpu_limit, memory_limit_mb,
                  storage_limit_gb, cpu_used, storage_used_gb)
               select account_id, id, name, name, cpu, 1, 1, used, used
                 from public.subscriptions,
                      (values ('none', numeric 'NaN', numeric 'NaN'), ('www', 3, 2))
                        as given (name, cpu, used)"""
        )
        connection.execute(
            """insert into public.usage_metrics (account_id, instance_id, storage_used_gb)
               select account_id, id, storage_used_gb from public.instances"""
        )
    with psycopg.connect(database) as connection:
        found = connection.execute(
            """select subdomain, cpu_limit::float, cpu_used::float, i.storage_used_gb::float,
                      u.storage_used_gb::float, s.storage_used_gb::float
                 from public.instances i
                 join public.usage_metrics u on u.instance_id = i.id
                 join public.subscriptions s on s.id = i.subscription_id
                order by subdomain"""
        )
        assert found.fetchall() == [("none", 1, 0, 0, 0, 0), ("www", 3, 2, 2, 2, 0)]


def test_usage_that_was_there_gets_ids(database: str, tmp_path: Path) -> None:
    with migrated(database, tmp_path, "0022_usage_id.sql") as connection:
        account = sign_up(connection, "a@x.example")
        connection.execute(
            """insert into public.subscriptions
                 (account_id, tier, max_messages_per_day, max_storage_gb, max_agents,
                  max_platforms, max_team_members, features)
               values (%s, 'starter', 1, 1, 1, 1, 1, '{}')""",
            [account],
        )
        connection.execute(
            """insert into public.instances
                 (account_id, subscription_id, app_name, subdomain, cpu_limit, memory_limit_mb,
                  storage_limit_gb)
               select account_id, id, 'a', 'a', 1, 1, 1 from public.subscriptions"""
        )
        connection.execute(
            """insert into public.usage_metrics (account_id, instance_id, usage_date)
               select account_id, id, date '2026-01-01' + day
                 from public.instances, generate_series(1, 300) as day"""
        )
    with psycopg.connect(database) as connection:
        query = "select count(distinct id), count(*) from public.usage_metrics"
        assert connection.execute(query).fetchall() == [(300, 300)]


def test_subdomains_of_removed_instances_are_kept_for_who_had_them(
    database: str, tmp_path: Path
) -> None:
    with migrated(database, tmp_path, "0026_released_subdomains.sql") as connection:
        account = sign_up(connection, "a@x.example")
        connection.execute(
            """insert into public.subscriptions
                 (account_id, tier, max_messages_per_day, max_storage_gb, max_agents,
                  max_platforms, max_team_members, features)
               values (%s, 'starter', 1, 1, 1, 1, 1, '{}')""",
            [account],
        )
        connection.execute(
            """insert into public.instances
                 (account_id, subscription_id, app_name, subdomain, cpu_limit, memory_limit_mb,
                  storage_limit_gb, status, deprovisioned_at)
               select account_id, id, name, name, 1, 1, 1, given.status, removed
                 from public.subscriptions,
                      (values ('ada', 'running', null),
                              ('bob', 'deprovisioned', timestamptz '2026-11-01'))
                        as given (name, status, removed)"""
        )
    with psycopg.connect(database) as connection:
        found = connection.execute(
            """select subdomain, account_id, released_at = '2026-11-01'
                 from private.released_subdomains"""
        )
        assert found.fetchall() == [("bob", account, True)]


def test_keys_and_users_that_were_there_are_brought_within_the_bounds(
    database: str, tmp_path: Path
) -> None:
    with migrated(database, tmp_path, "0015_bounds.sql") as connection:
        first = sign_up(connection, "same@x.example")
        connection.execute("alter table auth.users drop constraint users_email_key")
        second = uuid4()
        for user, email in ((second, "SAME@x.example"), (uuid4(), None)):
            connection.execute("insert into auth.users (id, email) values (%s, %s)", [user, email])
        connection.execute(
            """insert into public.api_keys (account_id, name, key_prefix, permissions, expires_at)
               values (%s, 'a', '12345678', '{write,read,write}', 'infinity'),
                      (%s, 'b', '12345678', '{write,read}', '2126-01-01')""",
            [first, first],
        )
    with psycopg.connect(database) as connection:
        keys = "select name, permissions, expires_at::date::text from public.api_keys order by name"
        assert connection.execute(keys).fetchall() == [
            ("a", ["read", "write"], None),
            ("b", ["write", "read"], "2126-01-01"),
        ]
        accounts: dict[UUID, str] = dict(
            connection.execute("select id, email from public.accounts").fetchall()
        )
    assert accounts == {first: "same@x.example", second: f"{second}@duplicate.invalid"}


def test_what_stripe_said_is_kept_but_for_invoices(database: str, tmp_path: Path) -> None:
    with migrated(database, tmp_path, "0021_stripe_snapshots.sql") as connection:
        account, other = (sign_up(connection, f"{name}@x.example") for name in ("a", "b"))
        connection.execute(
            "update public.accounts set stripe_customer_id = 'cus_b' where id = %s", [other]
        )
        connection.execute(
            """insert into private.stripe_objects
                 (kind, id, customer_id, account_id, final, object_created, said_at, step, event_id,
                  status, begun, tier)
               select kind, id, 'cus_a', %s, false, '2026-01-01Z', '2026-01-02Z', 1, 'evt_1',
                      status, true, 'starter'
                 from (values ('customer', 'cus_a', null), ('subscription', 'sub_a', 'past_due'),
                              ('invoice', 'sub_a', 'failed')) as object (kind, id, status)""",
            [account],
        )
    with psycopg.connect(database) as connection:
        customers = """select customer_id, account_id, created_at::date::text, deleted
                         from private.stripe_customers"""
        assert sorted(connection.execute(customers).fetchall()) == [
            ("cus_a", account, "2026-01-01", False),
            ("cus_b", other, None, False),
        ]
        subscriptions = """select subscription_id, customer_id, status, tier, event_id,
                                  observed_at::date::text
                             from private.stripe_subscriptions"""
        assert connection.execute(subscriptions).fetchall() == [
            ("sub_a", "cus_a", "past_due", "starter", "evt_1", "2026-01-02")
        ]
