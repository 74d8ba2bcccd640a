"""plpgsql_check, which is Debian's package for PostgreSQL 15, finds nothing in the functions."""

import pytest

from tests.support.customers import Db

pytestmark = pytest.mark.postgres("15")

FINDINGS = """
    select p.oid::regprocedure::text, c.*
      from pg_proc p
      join pg_language l on l.oid = p.prolang and l.lanname = 'plpgsql'
      left join lateral (
        select tgrelid from pg_trigger where tgfoid = p.oid and not tgisinternal
        order by tgrelid::regclass::text
      ) t on true
     cross join lateral plpgsql_check_function(
       p.oid, coalesce(t.tgrelid, 0),
       oldtable => null, newtable => null, performance_warnings => true,
       extra_warnings => true, security_warnings => true
     ) c
     where p.pronamespace in ('public'::regnamespace, 'private'::regnamespace)
"""
"""A trigger function is looked at with each of its tables."""


@pytest.fixture
def checker(db: Db) -> Db:
    db.run("create extension plpgsql_check")
    return db


def test_nothing_is_found(checker: Db) -> None:
    assert checker.run(FINDINGS) == []


@pytest.mark.parametrize(
    "body",
    [
        "select count(distinct jsonb_object_keys(agent_counts)) from public.usage_metrics;",
        "perform id from public.instances where no_such_column;",
        "declare a int; begin end;",
        "perform name from public.accounts, public.api_keys where id = id;",
    ],
)
def test_a_mistake_is_found(checker: Db, body: str) -> None:
    checker.run(
        f"create function private.made() returns void language plpgsql as $$ begin {body} end $$"
    )
    assert {found[0] for found in checker.run(FINDINGS)} == {"private.made()"}
