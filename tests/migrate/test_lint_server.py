"""A server does with SQL what the linter says of it."""

import re
import secrets
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from embedded.postgres import Server
from migrate.files import File
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
        connection.execute("insert into t (id, a, x, proved) values (1, 1, '1', 'yes')")
        yield connection


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
        if not case[1].startswith(NEW)
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
    if "trigger" in text:
        hinders = None  # let through, since everybody can still read
    assert (said and said[1]) == hinders


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
    ],
)
def test_what_is_found_hinders_others(
    connection: psycopg.Connection, text: str, hinders: str
) -> None:
    with connection.transaction(force_rollback=True):
        connection.execute(text.encode())
        assert hindered(connection) == hinders


STATES = {
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


@pytest.mark.parametrize(("rule", "text", "hurts"), in_transaction(*STATES))
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


@pytest.mark.parametrize(
    "name", ["clock_timestamp", "gen_random_uuid", "nextval", "random", "timeofday", "uuidv7"]
)
def test_what_is_said_to_be_volatile_is(connection: psycopg.Connection, name: str) -> None:
    rows = connection.execute("select provolatile from pg_proc where proname = %s", [name])
    assert {volatile for (volatile,) in rows} <= {"v"}
