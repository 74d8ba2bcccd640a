"""What is told of a database: all that a migration can make or change, under whatever settings."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest

from embedded.postgres import Server, embedded_bin
from migrate import catalog
from migrate.catalog._objects import SQL
from migrate.connection import connect
from tests.support.migrating import (
    ABSENT,
    drifts,
    dump,
    objects,
    psql,
    query,
    up,
    write,
)
from tests.support.platforms import sql_files

# --- every column of the system catalogs -------------------------------------------------------

BY_FUNCTION = {
    "pg_get_constraintdef": {
        "pg_constraint": "condeferrable condeferred confrelid confupdtype confdeltype confmatchtype"
        " confkey confdelsetcols conexclop conbin conenforced conperiod",
        "pg_index": "indimmediate",
    },
    "pg_get_indexdef": {
        "pg_index": "indnatts indnkeyatts indisunique indnullsnotdistinct indkey indcollation"
        " indclass indoption indexprs indpred"
    },
    "pg_get_functiondef": {
        "pg_proc": "prolang procost prorows provariadic prosupport prosecdef proleakproof"
        " proisstrict proretset provolatile pronargs pronargdefaults prorettype proargtypes"
        " proallargtypes proargmodes proargnames proargdefaults protrftypes prosrc probin"
        " prosqlbody proconfig"
    },
    "pg_get_triggerdef": {
        "pg_trigger": "tgconstrrelid tgdeferrable tginitdeferred tgnargs tgattr tgargs tgqual"
        " tgoldtable tgnewtable"
    },
    "pg_get_ruledef": {"pg_rewrite": "ev_type is_instead ev_qual ev_action"},
    "pg_get_statisticsobjdef": {"pg_statistic_ext": "stxrelid stxkeys stxkind stxexprs"},
    "regoperator": {"pg_operator": "oprname oprkind oprleft oprright"},
}
"""Function that tells columns of a catalog, where the query does not name them."""

LEFT_OUT = {
    "follows from the other columns": {
        "pg_amop": "amopmethod",
        "pg_attribute": "attlen attbyval attalign atthasdef",
        "pg_class": "reltype relhasindex relisshared relnatts relchecks relhasrules"
        " relhastriggers relhassubclass",
        "pg_constraint": "conindid conpfeqop conppeqop conffeqop",
        "pg_database": "dathasloginevt",
        "pg_extension": "extrelocatable extconfig extcondition",
        "pg_index": "indisprimary indisexclusion",
        "pg_init_privs": "privtype",
        "pg_trigger": "tgparentid tgconstrindid",
        "pg_user_mapping": "umserver",
    },
    "means nothing to PostgreSQL, which keeps it as it was written": {
        "pg_attribute": "attndims",
        "pg_type": "typndims",
    },
    "is how and where the rows are kept, or how many": {
        "pg_attribute": "attcacheoff atthasmissing attmissingval",
        "pg_class": "relfilenode relpages reltuples relallvisible relallfrozen relispopulated"
        " relrewrite relfrozenxid relminmxid",
        "pg_database": "datfrozenxid datminmxid",
        "pg_index": "indcheckxmin indisready indislive",
    },
    "is the version of a library on the server": {
        "pg_collation": "collversion",
        "pg_database": "datcollversion",
    },
    "was decided before there was a ledger, by whoever made the database": {
        "pg_database": "datlocprovider datistemplate datallowconn datconnlimit dattablespace"
        " datcollate datctype daticulocale datlocale daticurules",
        "pg_tablespace": "spcowner spcacl spcoptions",
    },
    "holds secrets, and is readable by few": {
        "pg_subscription": "subconninfo",
        "pg_user_mapping": "umoptions",
    },
    "is dumped only together with the database, and not restored into another": {
        "pg_database": "datdba datacl"
    },
    "changes while it works": {"pg_subscription": "subskiplsn"},
}
"""Why columns are not told. Nor is the name that a NOT NULL has from 18 on, which depends on how
the database came to 18; nor who granted a privilege, which decides only who may revoke it."""

NOT_READ = {
    "pg_partitioned_table": "pg_get_partkeydef tells it, and the bound of the default partition",
    "pg_shdepend": "who owns an object and has privileges on it is told with the object",
    "pg_auth_members": "roles are the cluster's",
    "pg_authid": "roles are the cluster's",
    "pg_parameter_acl": "settings are the cluster's",
    "pg_replication_origin": "the cluster's",
    "pg_shdescription": "dumped only together with the database, and the cluster's",
    "pg_shseclabel": "dumped only together with the database, and the cluster's",
    "pg_largeobject": "rows",
    "pg_largeobject_metadata": "rows",
    "pg_statistic": "of rows",
    "pg_statistic_ext_data": "of rows",
    "pg_subscription_rel": "how far the rows are",
}
"""Why a catalog is not read at all."""


def test_each_column_of_the_system_catalogs_is_told_or_left_out_for_a_reason(
    server: Server,
) -> None:
    """So that a new major version cannot bring a blind spot."""
    named = set(re.findall(r"\w+", SQL))
    accounted = {
        (name, column)
        for reasons in (BY_FUNCTION, LEFT_OUT)
        for catalogs in reasons.values()
        for name, columns in catalogs.items()
        for column in columns.split()
    }
    columns = query(
        server.url(),
        """select relname, attname from pg_class c join pg_attribute on attrelid = c.oid
           where relnamespace = 'pg_catalog'::regnamespace and relkind = 'r'
             and attnum > 0 and not attisdropped""",
    )
    assert [
        f"{name}.{column}"
        for name, column in columns
        if name not in NOT_READ and column not in named and (name, column) not in accounted
    ] == []
    assert [entry for entry in accounted if entry[1] in named] == []
    assert BY_FUNCTION.keys() <= named
    assert not NOT_READ.keys() & named


# --- every kind of object ----------------------------------------------------------------------

SCHEMA = """
create schema app;
create table app.t (id int primary key, name text not null, at timestamptz default '2026-01-01Z');
create table app.log (day date not null, msg text) partition by range (day);
create table app.log_2026 partition of app.log for values from ('2026-01-01') to ('2027-01-01');
create table app.child (c int) inherits (app.t);
create table app.r (id int primary key, t int references app.t);
create unique index t_name on app.t (name);
create index t_lower on app.t (lower(name));
create view app.v as select id from app.t;
create materialized view app.m as select id from app.t;
create sequence app.s;
create function app.guard() returns event_trigger language plpgsql as 'begin end';
create function app.g() returns trigger language plpgsql as 'begin return new; end';
create function app.f(a int) returns int language sql as 'select 1';
create function app.eq(app.t, app.t) returns bool language sql as 'select true';
create function app.text_of(app.t) returns text language sql as 'select null';
create procedure app.p() language sql as 'select 1';
create event trigger guard on ddl_command_end execute function app.guard();
create rule r as on insert to app.log do also select 1;
create publication changes for table app.t;
create type app.mood as enum ('sad', 'glad');
create type app.pair as (a int, b text);
create type app.span as range (subtype = int);
create domain app.short as text check (length(value) < 9);
create cast (app.t as text) with function app.text_of(app.t);
create operator app.=== (leftarg = app.t, rightarg = app.t, function = app.eq);
create operator family app.fam using btree;
create aggregate app.total (int) (sfunc = int4pl, stype = int, initcond = '0');
create collation app.c (provider = libc, locale = 'C');
create conversion app.conv for 'LATIN1' to 'UTF8' from iso8859_1_to_utf8;
create text search dictionary app.d (template = simple);
create text search configuration app.ts (parser = default);
alter text search configuration app.ts add mapping for word with app.d;
create foreign data wrapper w;
create server remote foreign data wrapper w options (host 'a', password 'hush');
create foreign table app.ft (a int) server remote options (name 'x');
create statistics app.st on id, name from app.t;
create policy p on app.t for select to pg_monitor using (true);
create trigger g before insert on app.t for each row execute function app.g();
alter default privileges in schema app grant select on tables to pg_monitor;
create subscription sub connection 'host=nowhere' publication p
  with (connect = false, slot_name = none);
create language lang handler plpgsql_call_handler;
create access method am type index handler bthandler;
comment on column app.t.name is 'of it';
"""

KINDS: dict[LiteralString, str] = {
    # 01, the issue's own
    "alter table app.log detach partition app.log_2026": "table app.log_2026",
    "alter table app.log detach partition app.log_2026; alter table app.log attach partition"
    " app.log_2026 for values from ('2026-01-01') to ('2028-01-01')": "table app.log_2026",
    "alter event trigger guard disable": "event trigger guard",
    "drop event trigger guard": "event trigger guard",
    "drop publication changes": "publication changes",
    "alter publication changes drop table app.t": "table app.t in publication changes",
    "alter publication changes add table app.r": "table app.r in publication changes",
    "alter publication changes set table app.t (id)": "table app.t in publication changes",
    "alter publication changes set table app.t where (id > 1)": (
        "table app.t in publication changes"
    ),
    "alter publication changes add tables in schema app": "schema app in publication changes",
    "alter publication changes set (publish = 'insert')": "publication changes",
    "alter table app.t replica identity full": "table app.t",
    "alter table app.t replica identity using index t_name": "index app.t_name",
    # tables
    "alter table app.r set unlogged": "table app.r",
    "alter table app.r set (fillfactor = 50)": "table app.r",
    "alter table app.t set (toast.autovacuum_enabled = off)": "table app.t",
    "alter table app.child no inherit app.t": "table app.child",
    "alter table app.t force row level security": "table app.t",
    "alter table app.t cluster on t_name": "index app.t_name",
    "alter table app.t disable trigger all": "triggers of constraint r_t_fkey on app.r",
    "alter table app.log disable rule r": "rule r on app.log",
    "alter table app.t enable always trigger g": "trigger g on app.t",
    "alter table app.r alter constraint r_t_fkey deferrable": "constraint r_t_fkey on app.r",
    "alter table app.r add foreign key (id) references app.t not valid": (
        "constraint r_id_fkey on app.r"
    ),
    "alter foreign table app.ft options (set name 'y')": "table app.ft",
    # columns
    'alter table app.t alter name type text collate "C"': "column app.t.name",
    "alter table app.t alter name set storage external": "column app.t.name",
    "alter table app.t alter name set compression pglz": "column app.t.name",
    "alter table app.t alter name set statistics 7": "column app.t.name",
    "alter table app.t alter name set (n_distinct = 7)": "column app.t.name",
    "alter table app.r alter id add generated always as identity": "column app.r.id",
    "alter table app.r drop t; alter table app.r add t int": "constraint r_t_fkey on app.r",
    "alter table app.t drop name cascade; alter table app.t add name text not null": (
        "column order of app.t"
    ),
    "alter index app.t_lower alter column 1 set statistics 9": "index app.t_lower",
    "alter view app.v alter id set default 1": "column app.v.id",
    "alter foreign table app.ft alter a options (add b 'c')": "column app.ft.a",
    # views
    "alter view app.v set (security_barrier)": "view app.v",
    "alter materialized view app.m set (fillfactor = 50)": "view app.m",
    # sequences
    "alter sequence app.s owned by app.t.id": "sequence app.s",
    "alter sequence app.s set unlogged": "sequence app.s",
    # types
    "alter type app.mood rename value 'sad' to 'low'": "type app.mood",
    "alter type app.mood owner to pg_monitor": "type app.mood",
    "revoke usage on type app.mood from public": "privileges of public on type app.mood",
    "alter domain app.short set not null": "type app.short",
    "drop type app.span; create type app.span as range (subtype = int, multirange_type_name ="
    " app.spans)": "type app.span",
    'drop type app.pair; create type app.pair as (a int, b text collate "C")': "type app.pair",
    "create type app.shell": "type app.shell",
    # functions
    "alter function app.f(int) immutable": "function app.f(a integer)",
    "alter function app.f(int) cost 7": "function app.f(a integer)",
    "alter function app.f(int) parallel safe": "function app.f(a integer)",
    "alter function app.f(int) leakproof": "function app.f(a integer)",
    "alter function app.f(int) strict": "function app.f(a integer)",
    "alter function app.f(int) set search_path = app": "function app.f(a integer)",
    "alter function app.f(int) owner to pg_monitor": "function app.f(a integer)",
    "alter function app.f(int) depends on extension plpgsql": (
        "dependence of function app.f(a integer) on extension plpgsql"
    ),
    "alter procedure app.p() security definer": "function app.p()",
    "create or replace aggregate app.total (int) (sfunc = int4pl, stype = int, initcond = '0',"
    " combinefunc = int4pl, parallel = safe)": "aggregate app.total(integer)",
    # in no table
    "drop cast (app.t as text)": "cast (app.t as text)",
    "drop operator app.=== (app.t, app.t)": "operator app.===(app.t,app.t)",
    "alter operator app.=== (app.t, app.t) set (restrict = eqsel)": (
        "operator app.===(app.t,app.t)"
    ),
    "alter operator family app.fam using btree add operator 1 = (int, int), function 1 (int, int)"
    " btint4cmp(int, int)": (
        "operator =(integer,integer) (integer, integer) of family app.fam using btree"
    ),
    "create operator class app.oc for type int using btree family app.fam as operator 1 <,"
    " function 1 btint4cmp(int, int)": "operator class app.oc using btree",
    "drop collation app.c": "collation app.c",
    "drop conversion app.conv": "conversion app.conv",
    "alter text search dictionary app.d (stopwords = english)": "text search dictionary app.d",
    "alter text search configuration app.ts drop mapping for word": (
        "text search configuration app.ts"
    ),
    "create text search parser app.tp (start = prsd_start, gettoken = prsd_nexttoken, end ="
    " prsd_end, lextypes = prsd_lextype)": "text search parser app.tp",
    "create text search template app.tt (lexize = dsimple_lexize)": "text search template app.tt",
    "alter foreign data wrapper w options (add a 'b')": "foreign-data wrapper w",
    "alter server remote options (set host 'b')": "server remote",
    "alter server remote version '2'": "server remote",
    "grant usage on foreign server remote to pg_monitor": (
        "privileges of pg_monitor on server remote"
    ),
    "create user mapping for public server remote": "user mapping of public for server remote",
    "alter subscription sub disable; alter subscription sub set (binary = true)": (
        "subscription sub"
    ),
    "drop language lang": "language lang",
    "drop access method am": "access method am",
    "drop extension plpgsql cascade": "extension plpgsql",
    "create transform for int language sql (from sql with function prsd_lextype(internal))": (
        "transform of integer for sql"
    ),
    # privileges
    "alter default privileges in schema app revoke select on tables from pg_monitor": (
        "default privileges of us in schema app on tables"
    ),
    "alter default privileges revoke execute on functions from public": (
        "default privileges of us on functions"
    ),
    "revoke insert on app.t from current_user": "privileges of us on table app.t",
    "revoke all on app.t from current_user": "privileges of us on table app.t",
    "grant select on app.t to pg_monitor with grant option": (
        "privileges of pg_monitor on table app.t"
    ),
    "grant usage on sequence app.s to pg_monitor": "privileges of pg_monitor on sequence app.s",
    "revoke usage on language plpgsql from public": (
        "privileges on language plpgsql of extension plpgsql"
    ),
    "revoke execute on function pg_catalog.pg_sleep(float8) from public": (
        "privileges on function pg_catalog.pg_sleep(double precision)"
    ),
    "alter schema app owner to pg_monitor": "schema app",
    # the rest
    "alter statistics app.st set statistics 7": "statistics app.st",
    "alter statistics app.st owner to pg_monitor": "statistics app.st",
    "comment on table app.t is 'hello'": "comment on table app.t",
    "comment on column app.t.name is null": "comment on column app.t.name",
    "comment on policy p on app.t is 'hello'": "comment on policy p on app.t",
    "comment on event trigger guard is 'hello'": "comment on event trigger guard",
    "comment on publication changes is 'hello'": "comment on publication changes",
    "do $$ begin execute format('alter database %I set statement_timeout = 9', "
    "current_database()); end $$": "setting statement_timeout of the database",
    "do $$ begin create role kinds; execute format('alter role kinds in database %I set work_mem ="
    " 99', current_database()); end $$": "setting work_mem of role kinds",
}
"""A change by hand -> an object that it changes."""


@contextmanager
def made(server: Server, name: str, text: str, directory: Path) -> Iterator[str]:
    """A database that a run has made of one file."""
    query(server.url(), f"create database {name}")
    up(server.url(name), write(directory, {"migrations/0001_a.sql": text}))
    yield server.url(name)
    query(server.url(name), "drop subscription if exists sub")
    query(server.url(), f"drop database {name} with (force)")


@pytest.fixture(scope="module")
def full(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A database with an object of each kind."""
    with made(server, "kinds", SCHEMA, tmp_path_factory.mktemp("full")) as url:
        yield url


@pytest.mark.parametrize("change", KINDS, ids=lambda text: text[:60])
def test_each_kind_of_change_is_named(full: str, change: LiteralString) -> None:
    with connect(full) as session, session.transaction(force_rollback=True):
        assert drifts(session) == {}
        session.execute(change)
        assert KINDS[change] in drifts(session)


# --- settings ----------------------------------------------------------------------------------

SETTINGS = {
    "TimeZone": "Europe/Berlin",
    "DateStyle": "German",
    "IntervalStyle": "iso_8601",
    "extra_float_digits": "-4",
    "bytea_output": "escape",
    "quote_all_identifiers": "on",
    "standard_conforming_strings": "off",
    "search_path": "app, public",
}

WRITTEN = """
create schema app;
create table app.offer (
  id int primary key,
  opens timestamptz not null default '2026-01-01 00:00:00+00',
  day date default '2026-02-01',
  pause interval not null default '1 day 02:00:00',
  ratio float8 default 0.1,
  raw bytea default '\\x00ff',
  path text default 'a\\b',
  check (opens >= '2020-06-01 00:00:00+00'::timestamptz)
) partition by list (id);
create table app.two partition of app.offer for values in (2);
create table app.by_day (at timestamptz) partition by range (at);
create table app.first partition of app.by_day for values from ('2026-01-01Z') to ('2026-02-01Z');
alter table app.offer enable row level security;
create policy open on app.offer using (opens < '2030-01-01 00:00:00+00'::timestamptz);
create index offer_late on app.offer (id) where opens > '2026-06-01 00:00:00+00'::timestamptz;
create view app.early as select id from app.offer where opens < '2026-01-01 00:00:00+00';
create function app.f(at timestamptz default '2026-01-01Z') returns date stable
begin atomic select '2026-02-01'::date; end;
create domain app.span as interval default '1 day 02:00:00';
create rule r as on insert to app.two where new.opens > '2026-01-01Z' do also select 1;
"""


@pytest.mark.parametrize("place", ["session", "role", "database"])
def test_no_setting_shows(database: str, tmp_path: Path, place: str) -> None:
    up(database, write(tmp_path, {"migrations/0001_a.sql": WRITTEN}))
    before = objects(database)
    name = psycopg.conninfo.conninfo_to_dict(database)["dbname"]
    options = " ".join(f"-c {key}={value}".replace(", ", ",") for key, value in SETTINGS.items())
    changed = [f"set {key} = {value!r}" for key, value in SETTINGS.items()]
    if place == "session":
        url = psycopg.conninfo.make_conninfo(database, options=options)
    else:
        url = database
        for each in changed:
            whose = f"database {name}" if place == "database" else "role postgres"
            each = each.replace("search_path = 'app, public'", "search_path = app, public")
            query(database, f"alter {whose} {each}")
    try:
        with connect(url) as session:
            assert session.execute("show timezone").fetchone() == ("Europe/Berlin",)
            assert drifts(session) == {}
        found = objects(url)
        assert {name: found[name] for name in before} == before
        assert [name for name in found if name not in before] == (
            sorted(f"setting {key} of the database" for key in SETTINGS)
            if place == "database"
            else []
        )
    finally:
        query(database, "alter role postgres reset all")


def test_a_setting_that_a_file_makes_is_missed(database: str, tmp_path: Path) -> None:
    text = """do $$ begin execute format('alter database %I set search_path = app, public',
                                         current_database()); end $$;"""
    up(database, write(tmp_path, {"migrations/0001_a.sql": text}))
    name = psycopg.conninfo.conninfo_to_dict(database)["dbname"]
    query(database, f"alter database {name} reset search_path")
    with connect(database) as session:
        assert drifts(session) == {"setting search_path of the database": ("app, public", ABSENT)}


# --- major versions ----------------------------------------------------------------------------

VIEWS = """
create table public.c (id bigint primary key, "E mail" text, at timestamptz, tags text[]);
create table public.p (id bigint, c bigint references public.c, day date, amount numeric);
create view public.v1 as select c.id, c."E mail" from public.c c;
create view public.v2 as select c.id from public.c where c."E mail" = 'new' and c.id > 1;
create view public.v3 as select c.id, sum(p.amount) as s from public.c left join public.p on p.c =
  c.id group by c.id;
create view public.v4 as with x as (select c.id from public.c) select x.id from x;
create view public.v5 as select extract(epoch from c.at) as e, c.tags[1] as t, coalesce(c."E mail",
  'x.y') as d, c as whole, (c.*)::text as row from public.c;
create view public.v6 as select c.id, (select max(p.amount) from public.p where p.c = c.id) as m
  from public.c where exists (select from public.p where p.c = c.id) order by c.at, c.id desc;
create view public.v7 as select c.id from public.c union select p.c from public.p order by 1;
create view public.v8 as select p.day, count(*) filter (where p.amount > 0) as n, rank() over
  (partition by p.day order by p.day desc) from public.p group by p.day having count(*) > 1;
create view public.v9 as select lower(c."E mail") as at from public.c order by c.at, at;
create view public.v10 as select distinct on (p.day) p.day, p.id from public.p order by p.day, p.id;
create view public.v11 as select x.a from generate_series(1, 3) as x (a) where x.a > 1 limit 2;
create view public.v12 as select s.id from (select c.id from public.c) s for update;
create view public.v13 as select x.* from (values (1, 'a'), (2, 'b')) as x (a, b);
create view public.v14 as select 'a.b' as "x.y", 1 as "p.id";
create view public.v15 as select "Q.t".id from public.c as "Q.t" where "Q.t".id in (select 1);
create materialized view public.m as select p.day, count(*) as n from public.p group by p.day;
create view public.v16 as select m.day from public.m tablesample system (5) where m.n = any
  (array[1]);
create rule r as on insert to public.v1 do instead insert into public.c (id) values (new.id);
create rule q as on update to public.p where old.id > 1 do also select old.id, c.id from public.c;
create function public.f(b text) returns table (id bigint) language sql stable
  begin atomic select c.id from public.c where c."E mail" = b; end;
create function public.g() returns trigger language plpgsql as 'begin return new; end';
create trigger g after update of at on public.c for each row when (new.at is not null)
  execute function public.g();
create policy own on public.p using (exists (select 1 from public.c where c.id = p.c));
grant all on public.c to pg_monitor;
grant all on public.p to pg_monitor with grant option;
create statistics public.st on id, c from public.p;
comment on table public.c is 'of it';
"""


@pytest.mark.postgres("15")
def test_a_newer_major_version_shows_no_drift(
    database: str, postgres_bin: Path, server_of: Callable[[Path], Server], tmp_path: Path
) -> None:
    """Made on 15, dumped and restored into 18."""
    newer = server_of(embedded_bin())
    up(database, write(tmp_path, {"migrations/0001_a.sql": VIEWS}))
    query(newer.url(), "create database upgraded")
    try:
        text = dump(postgres_bin, database, "--no-sync")
        assert psql(embedded_bin(), newer.url("upgraded"), text, tmp_path) == (0, "")
        with connect(newer.url("upgraded")) as session:
            assert drifts(session) == {}
        query(newer.url(), "create database anew")
        assert psql(embedded_bin(), newer.url("anew"), VIEWS, tmp_path) == (0, "")
        assert objects(newer.url("anew")) == objects(database)
    finally:
        query(newer.url(), "drop database upgraded")
        query(newer.url(), "drop database if exists anew")


@pytest.mark.postgres("15")
def test_the_platform_is_the_same_on_each_major_version(
    database: str, postgres_bin: Path, server_of: Callable[[Path], Server], tmp_path: Path
) -> None:
    newer = server_of(embedded_bin())
    paths = [path for name in ("platform", "migrations", "repeatable") for path in sql_files(name)]
    script = "".join(path.read_text() for path in paths)
    query(newer.url(), "create database newer")
    try:
        assert psql(postgres_bin, database, script, tmp_path)[0] == 0
        assert psql(embedded_bin(), newer.url("newer"), script, tmp_path)[0] == 0
        assert objects(newer.url("newer")) == objects(database)
    finally:
        query(newer.url(), "drop database newer")


# --- what is left to others --------------------------------------------------------------------

READINGS = """
create table public.reading (at timestamptz not null, v int) partition by range (at);
alter table public.reading enable row level security;
create index on public.reading (v);
create function public.make_partition(m date) returns void language plpgsql set search_path = ''
as $$
begin
  execute format('create table public.reading_%s partition of public.reading for values from (%L)'
    ' to (%L)', to_char(m, 'YYYYMM'), m, m + interval '1 month');
end $$;
select public.make_partition('2026-01-01');
"""

LEAVE = """
-- migrate: leave partitions of public.reading: a job makes and drops them
-- migrate: leave table public.scratch: analysts' own
select 1;
"""

JOB: LiteralString = """
select make_partition('2026-02-01');
drop table reading_202601;
alter table reading_202602 add primary key (at);
create policy p on reading_202602 using (true);
comment on table reading_202602 is 'February';
comment on column reading_202602.v is 'in mV';
grant select on reading_202602 to pg_monitor;
create statistics reading_both on at, v from reading_202602;
comment on statistics reading_both is 'both';
"""


def test_what_a_file_leaves_to_others_is_no_drift(database: str, tmp_path: Path) -> None:
    text = f"{READINGS}\n{LEAVE}"
    up(database, write(tmp_path, {"migrations/0001_a.sql": text}))
    query(database, JOB)
    query(
        database, "create table scratch (id serial primary key, b int); create index on scratch (b)"
    )
    with connect(database) as session:
        assert drifts(session) == {}
        session.execute("alter table reading add w int")
        assert drifts(session) == {"column public.reading.w": (ABSENT, "integer")}


def test_a_later_file_may_leave_what_has_drifted(database: str, tmp_path: Path) -> None:
    up(database, write(tmp_path, {"migrations/0001_a.sql": READINGS}))
    query(database, JOB)
    with connect(database) as session:
        drifted = drifts(session)
    assert {"table public.reading_202601", "table public.reading_202602"} <= drifted.keys()
    up(database, write(tmp_path, {"migrations/0002_b.sql": LEAVE}))
    with connect(database) as session:
        assert drifts(session) == {}
    query(database, "select make_partition('2026-03-01')")
    up(database, write(tmp_path, {"migrations/0003_c.sql": "select 1;"}))
    with connect(database) as session:
        assert drifts(session) == {}


MANY = """
do $$
begin
  for n in 1 .. 700 loop
    execute format('create table t%s (id int primary key, a text not null default now(), b int '
                   'check (b > 0), c jsonb)', n);
    execute format('create index on t%s (a, b)', n);
    execute format('create view v%1$s as select id, a from t%1$s where b > 1', n);
    execute format('create policy p on t%s using (a = current_user)', n);
    execute format('create function f%s(x int) returns int language sql as ''select x''', n);
    execute format('grant select on t%s to pg_monitor', n);
  end loop;
end $$;
"""


def test_ten_thousand_objects_are_read_within_a_second(database: str) -> None:
    query(database, MANY)
    seconds = []
    for _ in range(3):  # the least of three, on a busy machine
        with connect(database) as session:
            started = time.monotonic()
            found = catalog.read(session)
            seconds.append(time.monotonic() - started)
    assert len(found) > 10_000
    print(f"{len(found)} objects in {min(seconds):.2f} s")
    assert min(seconds) < 1
