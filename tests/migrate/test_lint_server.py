"""A server does with SQL what the linter says of it."""

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from postgast import parse, wrap
from postgast import pg_query_pb2 as postgres

from embedded.postgres import Server
from migrate.__main__ import main
from migrate.files import VERSIONED, File
from migrate.lint import _locks as locks
from migrate.lint import default_privileges, lint
from migrate.lint._nodes import lock_mode
from migrate.lint._reader import Reader
from tests.support.linting import BEFORE, NEW, NEXT_FILE, NO_TRANSACTION, cases, found, written


@pytest.fixture(scope="session")
def before(tmp_path_factory: pytest.TempPathFactory) -> list[File]:
    return written(tmp_path_factory.mktemp("before"), BEFORE)


@pytest.fixture(scope="module")
def connection(server: Server) -> Iterator[psycopg.Connection]:
    """A database with what is there before, and a row in each table."""
    name = f"lint_{secrets.token_hex(6)}"
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(f"create database {name}".encode())
    with psycopg.connect(server.url(name), autocommit=True) as connection:
        connection.execute(BEFORE.encode())
        connection.execute("insert into other values (1)")
        connection.execute("insert into parted values (1), (2)")
        connection.execute("insert into t (id, a, x, w, proved) values (1, 1, '1', 'w', 'yes')")
        with api_role(connection):
            yield connection


@contextmanager
def api_role(connection: psycopg.Connection) -> Iterator[None]:
    """A role of an API, for as long as these tests run."""
    if ask(connection, "select to_regrole('anon')"):
        yield
        return
    connection.execute("create role anon")
    yield
    connection.execute("drop role anon")


def in_transaction(*rules: str) -> list[tuple[str, str, bool]]:
    return [case for case in cases(*rules) if not case[1].startswith(NO_TRANSACTION)]


def ask(connection: psycopg.Connection, query: str) -> object:
    row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


@pytest.mark.parametrize(
    ("rule", "text", "hurts"),
    in_transaction("column-rewrite", "type-rewrite", "type-narrowing", "table-rewrite"),
)
def test_a_rewrite_gives_the_table_another_file(
    connection: psycopg.Connection, rule: str, text: str, hurts: bool
) -> None:
    file = "select pg_relation_filenode('t')"
    with connection.transaction(force_rollback=True):
        before = ask(connection, file)
        connection.execute(text.encode())
        assert (ask(connection, file) != before) == hurts, rule


@pytest.mark.parametrize(
    ("rule", "text", "hurts"),
    [
        case
        for case in in_transaction("set-not-null", "constraint-scan", "constraint-index")
        if not case[1].startswith((NEW, "create domain", "alter domain"))
    ],
)
def test_a_scan_reads_the_table(
    connection: psycopg.Connection, rule: str, text: str, hurts: bool
) -> None:
    *first, last = text.split(";")
    notices: list[str] = []

    def note(notice: psycopg.errors.Diagnostic) -> None:
        notices.append(notice.message_primary or "")

    with connection.transaction(force_rollback=True):
        connection.execute(";".join(first).encode())
        connection.execute("set local client_min_messages = debug1")
        connection.add_notice_handler(note)
        connection.execute(last.encode())
        connection.remove_notice_handler(note)
    reads = re.compile('verifying table "t"|validating foreign key|building index .* on table "t"')
    assert any(map(reads.match, notices)) == hurts, (rule, notices)


@pytest.mark.parametrize(
    ("checked", "reads"),
    [
        ([], {"apart", "parted_rest"}),
        (["apart"], {"parted_rest"}),
        (["parted_rest"], {"apart"}),
        (["apart", "parted_rest"], set()),
    ],
)
def test_attaching_reads_what_no_check_speaks_for(
    connection: psycopg.Connection, tmp_path: Path, checked: list[str], reads: set[str]
) -> None:
    conditions = {"apart": "id = 5", "parted_rest": "id <> 5"}
    checks = [f"alter table {name} add check ({conditions[name]})" for name in checked]
    attach = "alter table parted attach partition apart for values in (5)"
    texts = written(tmp_path, BEFORE, *checks, attach)
    told = [finding.message.split()[3] for finding in lint(texts[-1:], texts[:-1])]
    assert {name.removeprefix("public.") for name in told} == reads
    verified: list[str] = []

    def note(notice: psycopg.errors.Diagnostic) -> None:
        verified.extend(re.findall('verifying table "(.+)"', notice.message_primary or ""))

    with connection.transaction(force_rollback=True):
        for check in checks:
            connection.execute(check.encode())
        connection.execute("set local client_min_messages = debug1")
        connection.add_notice_handler(note)
        connection.execute(attach.encode())
        connection.remove_notice_handler(note)
    assert set(verified) == reads


RULE = "create rule r as on update to t do also select 1;"
FOREIGN = (
    "create foreign data wrapper w; create server s foreign data wrapper w;"
    "create foreign table i (a int) server s;"
)

LOCKS = [
    "alter table t add column c int",
    "alter table t alter a set default 5",
    "alter table t alter a set statistics 50",
    "alter table t alter b drop not null",
    "alter table t alter x set storage main",
    "alter table t alter a set (n_distinct = 5)",
    "alter table t alter a reset (n_distinct)",
    "alter table t set (fillfactor = 80)",
    "alter table t reset (fillfactor)",
    "alter table t cluster on t_key",
    "alter table t set without cluster",
    "alter table t enable row level security",
    "alter table t force row level security",
    "alter table t owner to current_user",
    "alter table t replica identity full",
    "alter table t disable trigger user",
    "alter table t enable trigger all",
    "alter table t drop constraint proved_known",
    "alter table t validate constraint proved_known",
    "alter table t add constraint k check (b >= 0) not valid",
    "alter table t add constraint k foreign key (big) references other not valid",
    "alter table t add column c int, alter a set statistics 50",
    "alter table t rename column a to c",
    "lock table t in row share mode",
    "lock table t in row exclusive mode",
    "lock table t in share update exclusive mode",
    "lock table t in share mode",
    "lock table t in share row exclusive mode",
    "lock table t in exclusive mode",
    "lock table t in access exclusive mode",
    "truncate t",
    "cluster t using t_key",
]


def hindered(connection: psycopg.Connection) -> str | None:
    """What another session cannot do to the table while this transaction lasts."""

    def waits(statement: bytes) -> bool:
        try:
            with other.transaction(force_rollback=True):
                other.execute(statement)
        except psycopg.errors.LockNotAvailable:
            return True
        return False

    password = connection.info.password
    with psycopg.connect(connection.info.dsn, password=password, autocommit=True) as other:
        other.execute("set lock_timeout = '20ms'")
        if waits(b"select from t"):
            return "read or write"
        return "write to" if waits(b"update t set b = 1 where false") else None


@pytest.mark.parametrize("text", LOCKS)
def test_a_lock_hinders_others_from_what_is_said(
    connection: psycopg.Connection, tmp_path: Path, before: list[File], text: str
) -> None:
    work = "; update other set id = 2 where id = 1"
    findings = found(tmp_path, text + work, before)
    told = [finding.message for finding in findings if finding.rule == "work-under-lock"]
    said = re.search("nobody can (read or write|write to)", "".join(told))
    with connection.transaction(force_rollback=True):
        connection.execute(text.encode())
        hinders = hindered(connection)
    assert (said and said[1]) == hinders


ALTERS: dict[str, str] = {
    "AddColumn": "alter table t add column c int",
    "AddConstraint": "alter table t add check (b >= 0)",
    "AddIdentity": "alter table t alter id add generated always as identity",
    "AddInherit": "create table i () inherits (other); alter table i no inherit other;"
    "alter table i inherit other",
    "AddOf": "create table i (a integer, b integer); alter table i of pair",
    "AlterColumnGenericOptions": f"{FOREIGN} alter foreign table i alter a options (x 'y')",
    "AlterColumnType": "alter table t alter a type bigint",
    "AlterConstraint": "create table i (a bigint references other); "
    "alter table i alter constraint i_a_fkey deferrable",
    "AttachPartition": "alter table parted detach partition parted_1;"
    "alter table parted attach partition parted_1 for values in (1)",
    "ChangeOwner": "alter table t owner to pg_monitor",
    "ClusterOn": "alter table t cluster on t_key",
    "ColumnDefault": "alter table t alter a set default 5",
    "DetachPartition": "alter table parted detach partition parted_1",
    "DetachPartitionFinalize": "",
    "DisableRowSecurity": "alter table t disable row level security",
    "DisableRule": f"{RULE} alter table t disable rule r",
    "DisableTrig": "alter table t disable trigger noting",
    "DisableTrigAll": "alter table t disable trigger all",
    "DisableTrigUser": "alter table t disable trigger user",
    "DropCluster": "alter table t set without cluster",
    "DropColumn": "alter table t drop column day",
    "DropConstraint": "alter table t drop constraint proved_known",
    "DropExpression": "create table i (a int, b int generated always as (a) stored);"
    "alter table i alter b drop expression",
    "DropIdentity": "create table i (a int generated always as identity);"
    "alter table i alter a drop identity",
    "DropInherit": "create table i () inherits (other); alter table i no inherit other",
    "DropNotNull": "alter table t alter b drop not null",
    "DropOf": "create table i of pair; alter table i not of",
    "DropOids": "alter table t set without oids",
    "EnableAlwaysRule": f"{RULE} alter table t enable always rule r",
    "EnableAlwaysTrig": "alter table t enable always trigger noting",
    "EnableReplicaRule": f"{RULE} alter table t enable replica rule r",
    "EnableReplicaTrig": "alter table t enable replica trigger noting",
    "EnableRowSecurity": "alter table t enable row level security",
    "EnableRule": f"{RULE} alter table t enable rule r",
    "EnableTrig": "alter table t enable trigger noting",
    "EnableTrigAll": "alter table t enable trigger all",
    "EnableTrigUser": "alter table t enable trigger user",
    "ForceRowSecurity": "alter table t force row level security",
    "GenericOptions": f"{FOREIGN} alter foreign table i options (x 'y')",
    "NoForceRowSecurity": "alter table t no force row level security",
    "ReplicaIdentity": "alter table t replica identity full",
    "ResetOptions": "alter table t alter a reset (n_distinct)",
    "ResetRelOptions": "alter table t reset (fillfactor)",
    "SetAccessMethod": "create access method ours type table handler heap_tableam_handler;"
    "alter table t set access method ours",
    "SetCompression": "alter table t alter x set compression pglz",
    "SetExpression": "create table i (a int, b int generated always as (a) stored);"
    "alter table i alter b set expression as (a + 1)",
    "SetIdentity": "create table i (a int generated always as identity);"
    "alter table i alter a set generated by default",
    "SetLogged": "create unlogged table i (); alter table i set logged",
    "SetNotNull": "alter table t alter a set not null",
    "SetOptions": "alter table t alter a set (n_distinct = 5)",
    "SetRelOptions": "alter table t set (fillfactor = 80)",
    "SetStatistics": "alter table t alter a set statistics 50",
    "SetStorage": "alter table t alter x set storage main",
    "SetTableSpace": "alter table t set tablespace pg_default",
    "SetUnLogged": "alter table t set unlogged",
    "ValidateConstraint": "alter table t validate constraint proved_known",
}
"""Subcommand of ALTER TABLE -> an example of it; FINALIZE has none that runs in a transaction."""

OPTIONS = [
    ("alter table t set (user_catalog_table = true)", "t"),
    ("alter table t set (autovacuum_enabled = false, fillfactor = 70)", "t"),
    ("alter view v set (security_barrier = true)", "v"),
    ("alter view v reset (security_invoker)", "v"),
    ("alter materialized view m set (fillfactor = 80)", "m"),
    ("alter table t add foreign key (big) references other not valid", "t"),
    ("alter table t add foreign key (big) references other not valid", "other"),
]

MODES = {
    "ShareUpdateExclusiveLock": 4,
    "ShareLock": 5,
    "ShareRowExclusiveLock": 6,
    "ExclusiveLock": 7,
    "AccessExclusiveLock": 8,
}


def parsed(text: str) -> Any:
    tree: Any = wrap(parse(text))
    return tree.stmts[0].stmt


def held(connection: psycopg.Connection, relation: str) -> int:
    """The strongest lock of the transaction on a relation; 0 for what every write takes."""
    rows = connection.execute(
        "select mode from pg_locks where pid = pg_backend_pid() and relation = %s::regclass",
        [relation],
    )
    return max((MODES.get(mode, 0) for (mode,) in rows), default=0)


def test_there_is_an_example_of_every_subcommand() -> None:
    assert ALTERS.keys() == locks.ALTER_TABLE.keys()


@pytest.mark.parametrize(("subcommand", "text"), [each for each in ALTERS.items() if each[1]])
def test_a_subcommand_of_alter_table_locks_as_the_table_says(
    connection: psycopg.Connection, subcommand: str, text: str
) -> None:
    if subcommand == "SetExpression" and connection.info.server_version < 170000:
        with connection.transaction(force_rollback=True), pytest.raises(psycopg.Error):
            connection.execute(text.encode())  # 17 is the first that has it
        return
    *before, last = text.split(";")
    node = parsed(last)
    (command,) = node.cmds
    assert postgres.AlterTableType.Name(command.subtype) == f"AT_{subcommand}"
    with connection.transaction(force_rollback=True):
        for each in before:
            connection.execute(each.encode())
        connection.execute("savepoint before")
        relation = node.relation.relname
        fresh = bool(before) and held(connection, relation) == 8
        connection.execute(last.encode())
        if not fresh:  # what the transaction has made is locked by that
            assert held(connection, relation) == lock_mode(command)


@pytest.mark.parametrize(("text", "relation"), OPTIONS)
def test_what_a_subcommand_says_decides_its_lock(
    connection: psycopg.Connection, text: str, relation: str
) -> None:
    (command,) = parsed(text).cmds
    with connection.transaction(force_rollback=True):
        connection.execute(text.encode())
        assert held(connection, relation) == lock_mode(command)


@pytest.mark.parametrize(
    ("text", "relation", "lock"),
    [
        ("create policy p on t using (true)", "t", 8),
        ("alter policy everything on t using (false)", "t", 8),
        ("drop policy everything on t", "t", 8),
        ("alter policy everything on t rename to p", "t", 8),
        ("create rule r as on update to t do also select 1", "t", 8),
        ("create trigger g after insert on t for each row execute function noted()", "t", 6),
        ("drop trigger noting on t", "t", 8),
        ("alter trigger noting on t rename to n", "t", 8),
        ("alter sequence counter increment 2", "counter", 6),
        ("create or replace view v as select id from t where id > 0", "v", 8),
        ("alter view v rename to w", "w", 8),
        ("refresh materialized view m", "m", 8),
        ("create table parted_2 partition of parted for values in (5)", "parted", 8),
        ("create table parted_2 partition of parted for values in (5)", "parted_rest", 8),
        ("alter table parted attach partition apart for values in (5)", "apart", 8),
        ("alter table parted attach partition apart for values in (5)", "parted", 4),
        ("create table i (a bigint references other)", "other", 6),
        ("alter domain word add constraint k check (value <> 'x')", "t", 5),
        ("alter domain word set not null", "t", 5),
        ("alter domain word add constraint k check (value <> 'x') not valid", "t", 0),
        ("drop type mood cascade", "t", 8),
    ],
)
def test_a_statement_locks_as_is_said(
    connection: psycopg.Connection, text: str, relation: str, lock: int
) -> None:
    with connection.transaction(force_rollback=True):
        connection.execute(text.encode())
        assert held(connection, relation) == lock


def test_what_a_partitioned_table_refuses(connection: psycopg.Connection) -> None:
    for rule, text, hurts in cases("partitioned"):
        if NEXT_FILE in text:
            continue
        *first, last = text.removeprefix(NO_TRANSACTION).split(";")
        refused = False
        for each in first:
            connection.execute(each.encode())
        try:
            connection.execute(last.encode())
        except psycopg.errors.FeatureNotSupported:
            refused = True
        assert refused == hurts, (rule, text)
        connection.execute("drop index if exists i")


@pytest.mark.parametrize(
    ("text", "hinders"),
    [
        ("create index i on t (a)", "write to"),
        ("create index i on only t (a)", "write to"),
        ("drop index t_a", "read or write"),
        ("reindex table t", "read or write"),
        ("reindex index t_a", "read or write"),
        ("alter table t add foreign key (big) references other", "write to"),
        ("alter table other add foreign key (id) references t", "write to"),
        ("alter table t add check (b >= 0)", "read or write"),
        ("alter table t add unique (a)", "read or write"),
        ("alter table t alter b set not null", "read or write"),
        ("alter table t alter a type bigint", "read or write"),
        ("alter table t disable trigger user", "write to"),
    ],
)
def test_what_is_found_hinders_others(
    connection: psycopg.Connection, text: str, hinders: str
) -> None:
    with connection.transaction(force_rollback=True):
        connection.execute(text.encode())
        assert hindered(connection) == hinders


@pytest.mark.parametrize(
    "text",
    ["reindex table parted", "reindex index parted_day", "cluster parted using parted_day"],
)
def test_a_partitioned_table_refuses_a_transaction(
    connection: psycopg.Connection, text: str
) -> None:
    with pytest.raises(psycopg.errors.ActiveSqlTransaction), connection.transaction():
        connection.execute(text.encode())


STATES = {
    "view-security": """
        select exists (select from pg_class where relkind = 'v' and relpersistence <> 't'
                       and relnamespace::regnamespace::text
                       not in ('pg_catalog', 'information_schema')
                       and not coalesce(array_to_string(reloptions, ',')
                                        ~ 'security_invoker=(true|on)', false))""",
    "no-row-security": """
        select exists (select from pg_class where relkind in ('r', 'p') and not relrowsecurity
                       and relpersistence <> 't' and relnamespace::regnamespace::text
                       not in ('pg_catalog', 'information_schema'))""",
    "search-path": """
        select exists (select from pg_proc where prosecdef and prosqlbody is null
                       and not coalesce(proconfig
                                        @> '{"search_path=pg_catalog, pg_temp"}', false))""",
    "public-execute": """
        select exists (select from pg_proc where pronamespace = 'public'::regnamespace
                       and prorettype <> 'trigger'::regtype
                       and has_function_privilege('public', oid, 'execute'))""",
}


@pytest.mark.parametrize(
    ("rule", "text", "hurts"),
    [case for case in in_transaction(*STATES) if "to anon" not in case[1]],
)
def test_a_server_is_left_as_is_said(
    connection: psycopg.Connection, rule: str, text: str, hurts: bool
) -> None:
    with connection.transaction(force_rollback=True):
        assert ask(connection, STATES[rule]) is False
        connection.execute(text.encode())
        assert ask(connection, STATES[rule]) is hurts


@pytest.mark.parametrize(("rule", "text", "hurts"), in_transaction("not-null-without-default"))
def test_a_column_without_values_is_refused(
    connection: psycopg.Connection, rule: str, text: str, hurts: bool
) -> None:
    with connection.transaction(force_rollback=True):
        try:
            connection.execute(text.encode())
        except psycopg.errors.NotNullViolation:
            refused = True
        else:
            refused = False
    assert refused == hurts, rule


@pytest.mark.parametrize(
    ("rule", "text", "hurts"),
    [case for case in in_transaction("new-enum-value") if NEXT_FILE not in case[1]],
)
def test_a_new_value_of_an_enum_is_refused(
    connection: psycopg.Connection, rule: str, text: str, hurts: bool
) -> None:
    if text.startswith("create type") and connection.info.server_version < 170000:
        hurts = True  # 17 is the first that knows that the type is new, too
    refused = False
    with connection.transaction(force_rollback=True):
        try:
            connection.execute(text.encode())
        except psycopg.errors.UnsafeNewEnumValueUsage:
            refused = True
    assert refused == hurts, rule


def test_nobody_can_call_a_trigger_function(connection: psycopg.Connection) -> None:
    with connection.transaction(force_rollback=True):
        connection.execute(
            "create function f() returns trigger language plpgsql as 'begin return new; end'"
        )
        with pytest.raises(psycopg.errors.FeatureNotSupported, match="only be called as triggers"):
            connection.execute("select f()")


def test_what_is_volatile_is_listed(connection: psycopg.Connection) -> None:
    rows = connection.execute(
        """select distinct proname, provolatile = 'v' from pg_proc
           where pronamespace = 'pg_catalog'::regnamespace and prokind = 'f' and not proretset
             and proname !~ '^(pg|binary_upgrade)_'
             and prorettype::regtype::text !~ 'void|trigger|internal|handler'"""
    ).fetchall()
    volatile = {name for name, is_volatile in rows if is_volatile}
    assert volatile - {"amvalidate"} <= locks.VOLATILE
    assert not locks.VOLATILE & {name for name, is_volatile in rows if not is_volatile} - volatile


def test_default_privileges_are_read_as_the_files_give_them(
    connection: psycopg.Connection, tmp_path: Path
) -> None:
    texts = [
        "select 1",
        "alter default privileges in schema lint_s grant execute on functions to anon",
        "alter default privileges revoke execute on functions from public",
        "alter default privileges grant select on tables to anon, public",
        "alter default privileges in schema lint_s revoke execute on functions from anon",
        "alter default privileges in schema lint_s grant insert on tables to anon",
    ]
    told = Reader()
    with connection.transaction(force_rollback=True):
        connection.execute("create role lint_owner; create schema lint_s authorization lint_owner")
        connection.execute("set local role lint_owner")
        for file in written(tmp_path, *texts):
            told.read(file)
            connection.execute(file.content)
            given = default_privileges(connection)
            assert {each for each in given if each[2] != "lint_owner"} == told.defaults


def test_plan_counts_what_the_database_gives_by_default(
    connection: psycopg.Connection,
    database: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert ask(connection, "select to_regrole('anon')")
    written(
        tmp_path / VERSIONED,
        "create function reveal() returns int language sql security definer "
        "set search_path = pg_catalog, pg_temp as 'select 1';"
        "revoke execute on function reveal() from public",
    )
    command = ["--database-url", database, "--directory", str(tmp_path), "plan"]
    assert main(command) == 2
    assert "public-execute" not in capsys.readouterr().out
    with psycopg.connect(database) as session:
        session.execute(
            "alter default privileges in schema public grant execute on functions to anon"
        )
    assert main(command) == 2
    told = "public-execute: anon, by default privileges, may execute public.reveal()"
    assert told in capsys.readouterr().out


MADE = """
create type feeling as enum ('calm', 'cross');
create domain label as text;
create table notes (id bigint, body text, feeling feeling, label label) partition by list (id);
create table notes_1 partition of notes for values in (1);
alter table notes enable row level security;
alter table notes_1 enable row level security;
create view titles with (security_invoker) as select id from notes;
create function token() returns text language sql volatile set search_path = ''
as 'select md5(random()::text)';
revoke execute on function token() from public;
"""
DANGEROUS = [
    ("column-rewrite", "alter table notes add column token text not null default token()"),
    ("cascade", "drop type feeling cascade"),
    ("constraint-scan", "alter domain label add constraint label_filled check (value <> '')"),
    ("view-security", "drop view titles;\ncreate view titles as select id from notes"),
    ("partitioned", "create index concurrently notes_body on notes (body)"),
]


@pytest.mark.parametrize(("rule", "text"), DANGEROUS)
def test_both_plans_name_a_danger_to_what_an_applied_file_has_made(
    database: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], rule: str, text: str
) -> None:
    command = ["--database-url", database, "--directory", str(tmp_path)]
    written(tmp_path / VERSIONED, MADE)
    assert main([*command, "plan", "--offline"]) == main([*command, "up"]) == 0
    opening = NO_TRANSACTION if "concurrently" in text else ""
    written(tmp_path / VERSIONED, MADE, opening + text)
    capsys.readouterr()
    for arguments, code in ((["plan"], 2), (["plan", "--offline"], 1)):
        assert main([*command, *arguments]) == code
        assert f": {rule}: " in capsys.readouterr().out
