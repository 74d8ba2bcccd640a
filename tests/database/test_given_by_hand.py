"""What a role was given by hand is found, and what is told to do takes just that back."""

import pytest

from components.by_hand import CHECK
from tests.support.customers import Db

READER = "create role reader login;"
GIVEN = {
    "stripe_handler: UPDATE (email) on table": "grant update (email) on accounts to stripe_handler",
    # The columns that it may update are its own.
    "stripe_handler: UPDATE on table": "grant update on accounts to stripe_handler",
    "stripe_handler: SELECT with grant option on table": (
        "grant select on accounts to stripe_handler with grant option"
    ),
    "stripe_handler: UPDATE (full_name) with grant option on table": (
        "grant update (full_name) on accounts to stripe_handler with grant option"
    ),
    "stripe_handler: EXECUTE on routine": (
        "grant execute on function provision_instance to stripe_handler"
    ),
    "customer_portal: USAGE on schema private": "grant usage on schema private to customer_portal",
    "stripe_handler: CREATE on database": "grant create on database {database} to stripe_handler",
    "stripe_handler: SET on parameter": (
        "grant set on parameter session_replication_role to stripe_handler"
    ),
    "stripe_handler: createrole createdb connection limit 3": (
        "alter role stripe_handler createrole createdb connection limit 3"
    ),
    "stripe_handler: superuser": "alter role stripe_handler superuser",
    "customer_portal: inherit": "alter role customer_portal inherit",
    "stripe_handler: membership in platform_service with admin option": (
        "grant platform_service to stripe_handler with admin option"
    ),
    "stripe_handler: membership in service_role": "grant service_role to stripe_handler",
    "stripe_handler: membership in pg_monitor": "grant pg_monitor to stripe_handler",
    "platform_service: membership in pg_monitor": "grant pg_monitor to platform_service",
    "platform_service: SELECT on table": "grant select on accounts to platform_service",
    "stripe_handler: setting work_mem": "alter role stripe_handler set work_mem = '1GB'",
    "stripe_handler: setting lock_timeout = 0": "alter role stripe_handler set lock_timeout = 0",
    "stripe_handler: setting lock_timeout = 5000 in database": (
        "alter role stripe_handler in database {database} set lock_timeout = 5000"
    ),
    "reader: SELECT on table private.instance_secrets": (
        f"{READER} grant select on private.instance_secrets to reader"
    ),
    "reader: EXECUTE on routine": f"{READER} grant execute on function track_usage to reader",
    "reader: USAGE on type": f"{READER} grant usage on type private.gigabytes to reader",
    "reader: SELECT on tables to come in schema private": (
        f"{READER} alter default privileges in schema private grant select on tables to reader"
    ),
    "reader: TEMPORARY on database": f"{READER} grant temporary on database {{database}} to reader",
    "reader: membership in platform_service": f"{READER} grant platform_service to reader",
    "reader: membership in stripe_handler": f"{READER} grant stripe_handler to reader",
    "reader: membership in authenticated": f"{READER} grant authenticated to reader",
    "reader: membership in pg_read_all_data": f"{READER} grant pg_read_all_data to reader",
    "reader: membership in postgres": f"{READER} grant postgres to reader",
    "reader: superuser bypassrls": f"{READER} alter role reader superuser bypassrls",
}
"""What is found -> who gave it how."""

FROM_16 = {
    "customer_portal: membership in anon inheriting": (
        "grant anon to customer_portal with inherit true"
    ),
    "stripe_handler: membership in platform_service without inheriting without set": (
        "grant platform_service to stripe_handler with inherit false, set false"
    ),
}
"""Options that memberships have from 16."""

STATE = (
    """select c.oid::regclass::text, '', a.* from pg_class c, aclexplode(relacl) a
       where relnamespace in ('public'::regnamespace, 'private'::regnamespace)
       union all
       select attrelid::regclass::text, attname, a.* from pg_attribute, aclexplode(attacl) a
       order by 1, 2, 3, 4, 5""",
    "select proname, a.* from pg_proc, aclexplode(proacl) a order by 1, 2, 3, 4",
    "select nspname, a.* from pg_namespace, aclexplode(nspacl) a order by 1, 2, 3, 4",
    "select datname, a.* from pg_database, aclexplode(datacl) a order by 1, 2, 3, 4",
    "select to_jsonb(m) - 'oid' from pg_auth_members m order by 1",
    "select * from pg_db_role_setting order by 1, 2",
    "select * from pg_roles where rolname <> 'reader' order by 1",
    "select * from pg_default_acl, aclexplode(defaclacl) a order by 1, 6, 7",
)
"""All that may be given."""


def found(db: Db) -> dict[str, str]:
    rows = db.connection.execute(CHECK.read_bytes()).fetchall()
    return {f"{role}: {has}": statement for role, has, statement in rows}


def state(db: Db) -> list[list[object]]:
    return [list(db.connection.execute(query.encode())) for query in STATE]


@pytest.mark.parametrize("begin", GIVEN)
def test_what_was_given_is_found_and_taken_back(db: Db, begin: str) -> None:
    give_and_take_back(db, begin, GIVEN[begin])


@pytest.mark.postgres("18")
@pytest.mark.parametrize("begin", FROM_16)
def test_an_option_of_a_membership_is_found_and_taken_back(db: Db, begin: str) -> None:
    give_and_take_back(db, begin, FROM_16[begin])


def give_and_take_back(db: Db, begin: str, given: str) -> None:
    before = state(db)
    assert found(db) == {}
    given = given.replace("{database}", db.connection.info.dbname)
    db.connection.execute(given.encode())
    told = found(db)
    assert [text.startswith(begin) for text in told] == [True], told
    (statement,) = told.values()
    db.connection.execute(statement.encode())
    assert found(db) == {}
    assert state(db) == before


def test_what_was_passed_on_is_taken_back_from_all(db: Db) -> None:
    before = state(db)
    db.connection.execute(
        b"create role reader login; grant select on instances to admin_dashboard with grant option;"
        b"set role admin_dashboard; grant select on instances to reader, stripe_handler;"
        b"reset role"
    )
    told = found(db)
    assert sorted(text.partition(":")[0] for text in told) == [
        "admin_dashboard",
        "reader",
        "stripe_handler",
    ]
    for statement in told.values():
        db.connection.execute(statement.encode())
    assert found(db) == {}
    assert state(db) == before


def test_administrators_are_named_by_the_data(db: Db) -> None:
    db.connection.execute(b"create role dashboard_user superuser login in role service_role")
    assert found(db) == {}
