"""Nobody puts an object of their own in the way of a function that runs with its owner's rights.

A hostile schema first in the search path has a decoy for every function and operator that the
functions use; in pg_temp, a table stands before each of ours and a domain before each type that the
functions name. Each decoy that is reached raises.
"""

from contextlib import suppress

import psycopg
import pytest
from psycopg import sql
from psycopg.errors import InsufficientPrivilege, RaiseException
from psycopg.sql import SQL, Identifier

from components.authorization import SERVICES
from tests.support.customers import ANN, NEWCOMER, Db, key_hash
from tests.support.platforms import Platform

EVENT = """{"id": "evt_1", "type": "customer.subscription.updated", "created": 4000000000,
            "data": {"object": {"id": "sub_1", "customer": "cus_1", "created": 4000000000,
            "status": "active", "metadata": {"account_id": "%s", "tier": "enterprise"},
            "items": {"data": [{"price": {"id": "price_1"}}]}}}}"""

# No operator and no function of their own: the path is the attacker's for these, too.
STATEMENTS = [
    f"insert into auth.users (id, email) values ('{NEWCOMER.account}', 'new@customers.example')",
    f"select public.track_usage('{ANN.instance}', 'ada', 'search', 'matrix')",
    f"""select public.record_usage('{ANN.instance}', '[{{"id": "a", "type": "sent", "agent": "ada",
          "tool": "search", "platform": "matrix", "at": "2026-01-01T00:00:00Z"}}]')""",
    f"select public.provision_instance('{ANN.subscription}')",
    f"select public.update_instance_health('{ANN.instance}', 'critical')",
    f"select public.calculate_storage_usage('{ANN.instance}')",
    "update public.usage_metrics set usage_date = '2026-01-01', limit_exceeded = true",
    "select public.reset_daily_usage()",
    "select public.auto_pause_inactive_instances()",
    "select public.follow_subscriptions()",
    "select public.cleanup_expired_data()",
    f"""insert into public.instances (account_id, subscription_id, app_name, subdomain)
        values ('{ANN.account}', '{ANN.subscription}', 'a', 'a')""",
    f"""insert into public.instances (account_id, subscription_id, app_name, subdomain, status)
        values ('{ANN.account}', '{ANN.subscription}', 'b', 'b', 'running')""",
    "update public.instances set status = 'stopped'",
    """update public.instances set config = '{"agents": {"a": {}}}'""",
    f"select pg_catalog.set_config('mindroom.start_instance', '{ANN.instance}', true)",
    "update public.instances set config = '{}'",
    "update public.subscriptions set tier = 'enterprise'",
    f"select public.handle_stripe_event('{EVENT % ANN.account}')",
    f"select public.handle_stripe_event('{EVENT.replace('evt_1', 'evt_2') % ANN.account}')",
    """select public.handle_stripe_object(
          '{"object": "customer", "id": "cus_1", "livemode": true}', '2100-01-01')""",
    "update public.accounts set stripe_customer_id = id",
    f"""insert into public.support_tickets (account_id, subject, description, priority)
        values ('{ANN.account}', 'a', 'b', 'high')""",
    "update public.support_tickets set status = 'closed'",
    f"""insert into public.instance_backups (account_id, instance_id)
        values ('{ANN.account}', '{ANN.instance}')""",
    f"""insert into public.api_keys (account_id, name, key_prefix, key_hash)
        values ('{ANN.account}', 'a', 'mr_12345', '{key_hash("a")}')""",
    f"select public.verify_api_key('{key_hash('a')}', '{ANN.instance}', 'read')",
    f"select public.verify_api_key('{key_hash('b')}', '{ANN.instance}', 'read')",
    f"select public.instance_of_token('{key_hash('a')}')",
    "update public.api_keys set is_active = false",
    "update public.api_keys set is_active = true",
    f"select public.export_account('{ANN.account}')",
    f"select public.deprovision_instance('{ANN.instance}', 'the end')",
    "update public.instances set status = 'deprovisioning'",
    "update public.instances set status = 'deprovisioned'",
    f"""insert into private.instance_secrets (instance_id, name, value)
        values ('{ANN.instance}', 'a', 'b')""",
    "update private.instance_secrets set value = 'c'",
    "delete from public.instances",
    "update public.subscriptions set status = 'cancelled'",
    "delete from public.subscriptions",
    f"select public.erase_account('{ANN.account}')",
]
"""Together they call every function that runs with its owner's rights and every trigger, and none
of the former only through another one, whose path it would have."""

DECOYS = """
do $decoys$
declare
  decoy record;
  body constant text := $$begin raise exception 'hijacked'; end$$;
begin
  create schema attacker;
  for decoy in
    select p.proname as name, pg_get_function_identity_arguments(p.oid) as arguments,
           pg_get_function_result(p.oid) as result
      from pg_proc p
     where p.pronamespace = 'pg_catalog'::regnamespace and p.prokind = 'f'
       and not exists (
         select from pg_type t
          where t.oid = any (p.proargtypes::oid[] || p.prorettype) and t.typtype = 'p'
            and t.typname <> 'void'
       )
       and not coalesce(p.proargmodes, '{}') && '{o,b,v,t}'::"char"[]
       and exists (
         select from pg_proc ours
          where ours.pronamespace in ('public'::regnamespace, 'private'::regnamespace)
            and ours.prosrc ~ ('\\m' || p.proname || '\\M')
       )
  loop
    execute format('create function attacker.%I(%s) returns %s language plpgsql as %L',
                   decoy.name, decoy.arguments, decoy.result, body);
  end loop;
  for decoy in
    select o.oid, o.oprname as name, o.oprleft::regtype as l, o.oprright::regtype as r,
           o.oprresult::regtype as result
      from pg_operator o
     where o.oprnamespace = 'pg_catalog'::regnamespace
       and o.oprleft = any (array['uuid', 'text', 'jsonb', 'date', 'timestamptz', 'int4', 'int8',
                                  'numeric', 'interval', 'bool']::regtype[])
       and o.oprright = any (array['uuid', 'text', 'jsonb', 'date', 'timestamptz', 'int4', 'int8',
                                   'numeric', 'interval', 'bool', '_text']::regtype[])
       and o.oprname <> '=>'
  loop
    execute format('create function attacker.operator_%s(%s, %s) returns %s language plpgsql as %L',
                   decoy.oid, decoy.l, decoy.r, decoy.result, body);
    execute format('create operator attacker.%s'
                   '(leftarg = %s, rightarg = %s, function = attacker.operator_%s)',
                   decoy.name, decoy.l, decoy.r, decoy.oid);
  end loop;
  for decoy in
    select distinct relname from pg_class
     where relnamespace in ('public'::regnamespace, 'private'::regnamespace) and relkind = 'r'
  loop
    execute format('create temporary table %I () on commit drop', decoy.relname);
  end loop;
  create function attacker.hijack() returns boolean language plpgsql
  as $$begin raise exception 'hijacked'; end$$;
  for decoy in
    select t.typname from pg_type t
     where t.typnamespace = 'pg_catalog'::regnamespace and t.typtype = 'b'
       and exists (
         select from pg_proc ours
          where ours.pronamespace in ('public'::regnamespace, 'private'::regnamespace)
            and ours.prosrc ~ ('\\m' || t.typname || '\\M')
       )
  loop
    execute format('create domain pg_temp.%1$I as pg_catalog.%1$I check (attacker.hijack())',
                   decoy.typname);
  end loop;
  grant usage on schema attacker to public;
  for decoy in  -- a changed function is compiled again, and looks its types up again
    select p.oid::regprocedure as name from pg_proc p
     where p.pronamespace in ('public'::regnamespace, 'private'::regnamespace)
  loop
    execute format('alter function %s cost 100', decoy.name);
  end loop;
end
$decoys$
"""

TRIGGERS = """select distinct t.tgfoid::regprocedure::pg_catalog.text from pg_trigger t
              join pg_proc p on p.oid = t.tgfoid
              where p.pronamespace in ('public'::regnamespace, 'private'::regnamespace)"""
DEFINERS = """select p.oid::regprocedure::pg_catalog.text from pg_proc p
              where p.pronamespace in ('public'::regnamespace, 'private'::regnamespace)
                and p.prosecdef"""


TAKE_OVER = """
create function pg_temp.take_over(value pg_catalog.text) returns boolean language plpgsql as $$
begin
  if current_user <> session_user then
    raise exception 'running as %', current_user;
  end if;
  return true;
end
$$;
create domain pg_temp.text as pg_catalog.text check (pg_temp.take_over(value));
"""


@pytest.fixture
def hostile(db: Db) -> Db:
    db.run(DECOYS)
    return db


def act(db: Db) -> None:
    db.run("set local search_path = attacker, pg_catalog")
    for statement in STATEMENTS:
        db.connection.execute(statement.encode())
    db.run("set local search_path = pg_catalog")


def test_no_function_with_its_owners_rights_reaches_a_decoy(hostile: Db) -> None:
    hostile.run("set local track_functions = 'all'")
    act(hostile)
    called = "select funcid::regprocedure::pg_catalog.text from pg_stat_xact_user_functions"
    guarded = {*hostile.run(DEFINERS), *hostile.run(TRIGGERS)}
    assert guarded <= set(hostile.run(called))


def withstanding(db: Db, path: str) -> set[str]:
    """The functions that reach no decoy with another search_path."""
    withstanding = set()
    for [function] in db.run(DEFINERS):
        with suppress(RaiseException), db.connection.transaction(force_rollback=True):
            db.connection.execute(
                sql.SQL("alter function {} {}").format(sql.SQL(function), sql.SQL(path))
            )
            act(db)
            withstanding.add(function)
    return withstanding


def test_each_would_without_its_own_search_path(hostile: Db) -> None:
    """The attack is real: what withstands it is the path."""
    assert withstanding(hostile, "reset search_path") == {
        "private.keep_api_key_revoked()",  # does nothing unless a user asks
        "private.check_api_key_permissions()",
        "private.check_ticket_status()",
        "private.release_subdomain()",  # names nothing that is looked up
        "private.resume_instances_of_plan()",
    }


def test_an_empty_search_path_lets_temporary_types_in(hostile: Db) -> None:
    """The functions that name a type run its owner's code, as they did before pg_temp was last."""
    empty = withstanding(hostile, "set search_path = ''")
    assert "public.handle_stripe_event(jsonb)" not in empty
    assert "private.audit_change()" not in empty


def test_no_service_creates_temporary_objects(platform: Platform) -> None:
    for role in SERVICES:
        with (
            psycopg.connect(platform.service_url(role)) as connection,
            pytest.raises(InsufficientPrivilege, match="permission denied to create temporary"),
        ):
            connection.execute("create domain pg_temp.text as pg_catalog.text")


def test_a_service_with_temporary_objects_stays_what_it_is(platform: Platform, db: Db) -> None:
    """What was found: stripe_handler granted itself everything, through a domain named text."""
    name = Identifier(db.connection.info.dbname)
    grant = SQL("grant temporary on database {} to stripe_handler").format(name)
    revoke = SQL("revoke temporary on database {} from stripe_handler").format(name)
    with psycopg.connect(platform.url, autocommit=True) as admin:
        admin.execute(grant)
        try:
            with psycopg.connect(platform.service_url("stripe_handler")) as connection:
                connection.execute(TAKE_OVER)
                connection.execute(
                    """select public.handle_stripe_event(
                         '{"id": "evt_x", "type": "foo", "created": 1, "data": {"object": {}}}')"""
                )
                connection.rollback()
        finally:
            admin.execute(revoke)
