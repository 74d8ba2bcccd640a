"""Whether what a tool says is so: checks of what public reports of bugs are about.

Each check has files and a database where an answer is easily wrong, and judges by what the database
holds afterwards and by what was said before.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from urllib.parse import urlsplit

import psycopg

from bench.migrations.features import (
    NO,
    ONE,
    PARTLY,
    REHEARSALS,
    TWO,
    YES,
    Case,
    Feature,
    Verdict,
    outcome,
    table,
)
from bench.migrations.process import Ran
from bench.migrations.server import Database
from bench.migrations.tools import Goose, Migration, Ours
from tests.support.pooler import SmallPooler

_IN_DATABASE = "do $$ begin execute format('alter database %I {}', current_database()); end $$;"

_DRIFTS = {
    "partition": (
        "alter table parted detach partition parted_1",
        "alter table parted attach partition parted_1 for values in (1)",
    ),
    "publication": (
        "alter publication changes drop table one",
        "alter publication changes add table one",
    ),
    "replica identity": (
        "alter table one replica identity full",
        "alter table one replica identity default",
    ),
    "storage parameter": (
        "alter table one set (fillfactor = 70)",
        "alter table one reset (fillfactor)",
    ),
}
"""What is changed by hand, and how that is taken back."""

_RECORDED = table(
    1,
    "one",
    "\ncreate publication changes for table one;\n"
    "create table parted (a int) partition by list (a);\n"
    "create table parted_1 partition of parted for values in (1);",
)


def _found(before: Mapping[str, Ran], after: Mapping[str, Ran]) -> list[str]:
    """The looks that found nothing wrong before, and do now."""
    return [look for look in before if before[look].code == 0 and after[look].code not in (0, None)]


def drift_of_any_kind(case: Case) -> Verdict:
    """Somebody changes what is no column, and takes it back before the next change."""
    case.applied(_RECORDED)
    before = case.looks()
    missed = []
    for kind, (change, back) in _DRIFTS.items():
        case.query(change)
        if not _found(before, case.looks()):
            missed.append(kind)
            break
        case.query(back)
    return Verdict(NO if missed else YES, "", f"missed: {missed}")


def drift_under_settings(case: Case) -> Verdict:
    """The database is set to write values otherwise: nothing has changed, and a change is told."""
    text = "create table one (id int, at timestamptz default '2026-01-01 00:00:00+00');"
    case.applied(Migration(1, "one", text))
    before = case.looks()
    name = case.database.name
    for setting in ("timezone = 'Asia/Tokyo'", "datestyle = 'German'", "intervalstyle = iso_8601"):
        case.query(f"alter database {name} set {setting}")
    if wrong := _found(before, case.looks()):
        return Verdict(NO, "tells a drift that is none", ", ".join(wrong))
    case.query("alter table one add column by_hand int")
    return Verdict(YES if _found(before, case.looks()) else NO, "", "a column by hand")


def drift_by_design(case: Case) -> Verdict:
    """A job makes partitions; a comment in the file says that it does."""
    case.applied(
        Migration(
            1,
            "one",
            "-- migrate: leave partitions of public.parted: a job makes them\n"
            "create table parted (day date) partition by range (day);",
        )
    )
    before = case.looks()
    case.query(
        "create table p1 partition of parted for values from ('2026-01-01') to ('2027-01-01')"
    )
    if _found(before, case.looks()):
        return Verdict(NO, "", "the partition is drift")
    case.query("alter table parted add column by_hand int")
    return Verdict(YES if _found(before, case.looks()) else NO, "", "a column by hand")


def adoption(case: Case) -> Verdict:
    """The table is there, by hand and as something else; the file makes it if it is not there."""
    case.query("create table one (id text)")
    case.layout(Migration(1, "one", "create table if not exists one (id int);"))
    ran = case.up()
    return Verdict(NO if ran.code == 0 else YES, "", outcome(ran))


def foreign_file(case: Case) -> Verdict:
    """A file has another tool's sections: what undoes the change must not run with it."""
    down = "-- migrate:down" if isinstance(case.tool, Goose) else "-- +goose Down"
    case.layout(replace(ONE, sql=f"{ONE.sql}\n{down}\ndrop table one;"))
    ran = case.up()
    if ran.code == 0 and not case.exists("one"):
        return Verdict(NO, "", f"it was dropped again: {outcome(ran)}")
    return Verdict(YES, "", outcome(ran))


def unread_file(case: Case) -> Verdict:
    """A file's name ends otherwise: it is named, or run."""
    case.applied(ONE)
    case.layout(ONE, TWO)
    file = case.file(TWO)
    unread = file.rename(file.with_suffix(file.suffix.upper()))
    outputs = [*case.looks().values(), case.up()]
    told = any(unread.name in ran.output for ran in outputs)
    return Verdict(YES if told or case.exists("two") else NO, "", outcome(outputs[-1]))


def missing_extension(case: Case) -> Verdict:
    """A rehearsal where the files need what the machine lacks: that is said, and no file blamed."""
    case.layout(Migration(1, "one", "create extension postgis;"))
    offline = [("plan", "--offline", "--rehearse")] if isinstance(case.tool, Ours) else []
    said = []
    for command in [*offline, *REHEARSALS.get(type(case.tool), ()), *case.tool.looks]:
        ran = case.run(*command)
        said.append(outcome(ran))
        if ran.code == 0 and re.search(r"not rehearsed|(lacks?|missing) .*postgis", ran.output):
            return Verdict(YES, "", said[-1])
    return Verdict(NO, "", "; ".join(said))


_DANGERS = {
    "volatile default": "alter table one add column token text default short_id();",
    "cascade": "drop type mood cascade;",
    "domain": "alter domain word add check (value <> '');",
    "view's rights": "create or replace view seen as select id from one;",
}


def lint_of_dangers(case: Case) -> Verdict:
    """What rewrites, drops, scans or exposes, and does not look so."""
    before = (
        "\ncreate type mood as enum ('sad');\ncreate domain word as text;\n"
        "alter table one add column m mood, add column w word;\n"
        "create view seen with (security_invoker) as select id from one;\n"
        "create function short_id() returns text language sql volatile as 'select ''a''';"
    )
    case.applied(table(1, "one", before))
    told = []
    for kind, text in _DANGERS.items():
        case.layout(table(1, "one", before), Migration(2, "two", text))
        words = r"(?i)rewrit|depends|dropped|every row|rights"
        if any(re.search(words, ran.output) for ran in case.looks().values()):
            told.append(kind)
    return Verdict(
        YES if len(told) == len(_DANGERS) else PARTLY if told else NO, "", f"told: {told}"
    )


def lint_of_default_privileges(case: Case) -> Verdict:
    """By default privileges an API role may execute a new function with its owner's rights."""
    with suppress(psycopg.errors.DuplicateObject):
        case.query("create role anon nologin")
    case.query("alter default privileges in schema public grant execute on functions to anon")
    case.applied(ONE)
    text = (
        "create function reveal() returns int language sql security definer\n"
        "set search_path = pg_catalog, pg_temp as $$ select 1 $$;\n"
        "revoke execute on function reveal() from public;"
    )
    case.layout(ONE, Migration(2, "two", text))
    told = any(re.search(r"\banon\b", ran.output) for ran in case.looks().values())
    return Verdict(YES if told else NO, "", "")


def subscription(case: Case) -> Verdict:
    """The second of two pending files is a CREATE SUBSCRIPTION in a transaction."""
    text = "create subscription s connection 'host=127.0.0.1 port=1 dbname=x' publication p;"
    case.applied(ONE)
    case.layout(ONE, TWO, Migration(3, "three", text))
    ran = case.up(timeout=20)
    return Verdict(NO if ran.code == 0 or case.exists("two") else YES, "", outcome(ran))


def concurrently_on_partitions(case: Case) -> Verdict:
    """CREATE INDEX CONCURRENTLY on a partitioned table, with the directive for it."""
    first = table(1, "one", "\ncreate table parted (a int) partition by range (a);")
    case.applied(first)
    index = Migration(3, "three", "create index concurrently i on parted (a);", transaction=False)
    case.layout(first, TWO, index)
    told = [look for look, ran in case.looks().items() if "artition" in ran.output]
    ran = case.up(timeout=20)
    return Verdict(
        YES if told else NO, "hangs" if ran.code is None else "", f"{told}: {outcome(ran)}"
    )


def _elsewhere(case: Case, create: str, name: str) -> Case:
    """The same case on a database that is created otherwise."""
    case.query(f"drop database if exists {name} with (force)")
    case.query(f"create database {name} {create}")
    return replace(case, database=Database(case.database.server, name))


def sql_ascii(case: Case) -> Verdict:
    """A database in SQL_ASCII: two runs work, or nothing is applied."""
    other = _elsewhere(
        case, "encoding 'SQL_ASCII' locale 'C' template template0", "bench_sql_ascii"
    )
    other.layout(table(1, "one", "\ncomment on table one is 'Straße';"))
    first, second = other.up(), other.up()
    looks = other.looks() if first.code == 0 else {}
    applied, said = other.exists("one"), f"{outcome(first)} / {outcome(second)}"
    case.query("drop database bench_sql_ascii with (force)")
    if first.code == 0 == second.code:
        broken = [look for look, ran in looks.items() if "Error" in ran.output]
        return Verdict(NO if broken else YES, "", f"{broken} {said}")
    return Verdict(NO if applied else YES, "", said)


def invalid_index_of_others(case: Case) -> Verdict:
    """An invalid index of somebody else does not stop a file without a transaction."""
    case.applied(ONE)
    case.query("create schema theirs")
    case.query("create table theirs.fact as select 1 as a from generate_series(1, 2)")
    with suppress(psycopg.errors.UniqueViolation):
        case.query("create unique index concurrently fact_a on theirs.fact (a)")
    index = "create index concurrently one_id on one (id);"
    case.layout(ONE, Migration(2, "two", index, transaction=False))
    ran = case.up(timeout=20)
    note = "hangs" if ran.code is None else ""
    return Verdict(YES if ran.code == 0 else NO, note, outcome(ran))


def owner_by_setting(case: Case) -> Verdict:
    """A login takes the role that owns the database by `alter role ... set role`."""
    login, owner = "bench_login", "bench_owner"
    for role in (login, owner):
        with suppress(psycopg.errors.UndefinedObject):
            case.query(f"drop owned by {role}")
        case.query(f"drop role if exists {role}")
    case.query(f"create role {owner} nologin")
    case.query(f"create role {login} login noinherit password 'x' in role {owner}")
    case.query(f"alter role {login} set role = {owner}")
    case.query(f"alter database {case.database.name} owner to {owner}")
    parts = urlsplit(case.database.url)
    url = f"postgresql://{login}:x@{parts.hostname}:{parts.port}{parts.path}?{parts.query}"
    index = "create index concurrently one_id on one (id);"
    case.layout(ONE, Migration(2, "two", index, transaction=False))
    ran = case.bench.run(case.tool.up(case.directory, url, *case.options), 20)
    whose = case.query(
        "select relowner::regrole::text from pg_class where oid = to_regclass('one')"
    )
    right = ran.code == 0 and case.exists("one_id") and whose == [(owner,)]
    note = "hangs" if ran.code is None else ""
    case.query(f"alter database {case.database.name} owner to current_user")
    for role in (login, owner):
        case.query(f"drop owned by {role} cascade")
        case.query(f"drop role {role}")
    return Verdict(YES if right else NO, note, f"{whose} {outcome(ran)}")


def pooler(case: Case) -> Verdict:
    """Behind a pooler in transaction mode: refused, or no lock and no setting is left behind."""
    behind = SmallPooler(case.database.url, 3, idle="in turn")
    parts = urlsplit(case.database.url)
    url = f"postgresql://{parts.username}@127.0.0.1:{behind.port}{parts.path}?sslmode=disable"
    case.layout(ONE, TWO)
    try:
        ran = case.bench.run(case.tool.up(case.directory, url), 15)
        locks = case.query(
            "select 1 from pg_locks where locktype = 'advisory' and database ="
            " (select oid from pg_database where datname = current_database())"
        )
    finally:
        behind.close()
    said = f"locks left: {len(locks)}; {outcome(ran)}"
    if ran.code not in (0, None) and "pool" in ran.output and not case.exists("one"):
        return Verdict(YES, "", said)
    if locks:
        return Verdict(NO, "its lock stays behind", said)
    if "prepared statement" in ran.output:
        return Verdict(NO, "fails, by its prepared statements", said)
    return Verdict(NO, "hangs" if ran.code is None else "" if ran.code else "it runs", said)


def settings_of_the_database(case: Case) -> Verdict:
    """A file sets the database's search_path: the next one means the same in one run or in two."""
    first = Migration(
        1,
        "one",
        "create schema app;\n" + _IN_DATABASE.format("set search_path = app, public"),
    )
    where = "select nspname from pg_class c join pg_namespace n on n.oid = relnamespace"
    where += " where relname = 'two'"
    case.layout(first, TWO)
    together, one_by_one = case.up(), []
    found = case.query(where)
    other = _elsewhere(case, "template template0", "bench_settings")
    for files in ((first,), (first, TWO)):
        other.layout(*files)
        one_by_one.append(other.up())
    others = other.query(where)
    case.query("drop database bench_settings with (force)")
    said = f"{found}, {others}: {outcome(together)} / {outcome(one_by_one[-1])}"
    return Verdict(YES if found == others and found else NO, "", said)


def set_transaction(case: Case) -> Verdict:
    """A file begins with SET TRANSACTION."""
    text = "set transaction isolation level serializable;\ncreate table two (id int);"
    case.applied(ONE)
    case.layout(ONE, Migration(2, "two", text))
    ran = case.up()
    return Verdict(YES if ran.code == 0 and case.exists("two") else NO, "", outcome(ran))


def notices(case: Case) -> Verdict:
    """A file raises a warning."""
    case.layout(ONE, Migration(2, "two", "do $$ begin raise warning 'seven rows skipped'; end $$;"))
    ran = case.up()
    if "seven rows skipped" not in ran.output:
        return Verdict(NO, "", outcome(ran))
    line = next(line for line in ran.output.splitlines() if "seven rows skipped" in line)
    placed = case.file(Migration(2, "two", "")).name in line
    return Verdict(YES if placed else PARTLY, "" if placed else "without file and line", line)


def findings_of_what_fails(case: Case) -> Verdict:
    """A look at files that cannot work and would block: both are said, the failure once."""
    case.applied(ONE)
    case.layout(ONE, Migration(2, "two", "create index one_id on one (id);\nselect 1 / 0;"))
    said = []
    for command in [*REHEARSALS.get(type(case.tool), ()), *case.tool.looks]:
        ran = case.run(*command)
        said.append(outcome(ran))
        if "oncurrently" in ran.output.lower() and ran.output.count("division by zero") == 1:
            return Verdict(YES, "", said[-1])
    return Verdict(NO, "", "; ".join(said))


FEATURES: Sequence[Feature] = (
    Feature(
        "drift-kinds", "Drift of partitions, publications, storage is named", drift_of_any_kind
    ),
    Feature(
        "drift-settings",
        "No setting of the database makes drift, or hides it",
        drift_under_settings,
    ),
    Feature("drift-design", "What jobs make by design can be declared", drift_by_design),
    Feature(
        "adoption", "A table made by hand, as something else, is not taken for the file's", adoption
    ),
    Feature("foreign", "Another tool's section that undoes is not run with the rest", foreign_file),
    Feature("unread", "A file that is not read (`.SQL`) is named", unread_file),
    Feature("extension", "A rehearsal says what it could not show", missing_extension),
    Feature(
        "dangers", "A look warns of rewrites, CASCADE, domains, views' rights", lint_of_dangers
    ),
    Feature(
        "privileges", "A look warns of what default privileges give", lint_of_default_privileges
    ),
    Feature(
        "subscription", "CREATE SUBSCRIPTION is refused before anything is applied", subscription
    ),
    Feature(
        "partitioned",
        "So is CREATE INDEX CONCURRENTLY on a partitioned table",
        concurrently_on_partitions,
    ),
    Feature("encoding", "SQL_ASCII works, or is refused before anything is applied", sql_ascii),
    Feature("others-index", "Somebody else's invalid index stops nothing", invalid_index_of_others),
    Feature("owner", "A login that takes its owner's role by setting works", owner_by_setting),
    Feature("pooler", "A transaction pooler is refused, on any port", pooler),
    Feature(
        "database-set",
        "`alter database ... set` means the same in one run or two",
        settings_of_the_database,
    ),
    Feature("set-transaction", "A file may begin with SET TRANSACTION", set_transaction),
    Feature("notices", "Notices and warnings are shown, with file and line", notices),
    Feature(
        "findings",
        "A failed rehearsal shows what else was found, each once",
        findings_of_what_fails,
    ),
)
