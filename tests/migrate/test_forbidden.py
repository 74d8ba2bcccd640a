"""What no file may hold."""

import pytest

from tests.support.files import problem_of, problems_of


@pytest.mark.parametrize(
    "command", [r"\i other.sql", r"\connect db", r"\set x 1", r"\copy t from x"]
)
def test_a_psql_meta_command_is_refused_with_its_place(command: str) -> None:
    assert problem_of(f"select 1;\n  {command}\nselect 2;\n") == (
        "m/0001_a.sql:2:3: psql meta-commands are not SQL and only psql runs them\n"
        "    1 | select 1;\n"
        f"    2 |   {command}\n"
        "      |   ^\n"
        "    3 | select 2;\n"
        "  what to do: remove the line"
    )


def test_a_meta_command_after_a_statement_is_refused() -> None:
    assert problem_of("select 1 \\gexec\n").startswith("m/0001_a.sql:1:10: psql meta-commands")


def test_a_backslash_in_a_string_is_no_meta_command() -> None:
    assert problem_of("select E'\\u12';\n").startswith("m/0001_a.sql:1:10: invalid Unicode escape")


@pytest.mark.parametrize(
    ("command", "called"),
    [
        ("begin", "BEGIN"),
        ("start transaction read only", "START TRANSACTION"),
        ("commit", "COMMIT"),
        ("end", "COMMIT"),
        ("rollback", "ROLLBACK"),
        ("abort", "ROLLBACK"),
        ("savepoint s", "SAVEPOINT"),
        ("release savepoint s", "RELEASE SAVEPOINT"),
        ("rollback to savepoint s", "ROLLBACK TO SAVEPOINT"),
        ("prepare transaction 'x'", "PREPARE TRANSACTION"),
        ("commit prepared 'x'", "COMMIT PREPARED"),
        ("rollback prepared 'x'", "ROLLBACK PREPARED"),
    ],
)
def test_transaction_control_is_refused_with_its_place(command: str, called: str) -> None:
    assert problem_of(f"select 1;\n{command};\nselect 2;\n") == (
        f"m/0001_a.sql:2:1: {called} inside a migration\n    2 | {command};\n      | ^\n"
        "  what to do: remove it, each file already runs in a transaction of its own"
    )


def test_every_transaction_command_of_a_file_is_told_at_once() -> None:
    assert [p.split(": ")[0] for p in problems_of("begin;\nselect 1;\ncommit;\n")] == [
        "m/0001_a.sql:1:1",
        "m/0001_a.sql:3:1",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "create function f() returns int language plpgsql as $$ begin return 1; end $$;",
        "create function f() returns int language sql begin atomic; select 1; end;",
        "select 'commit; rollback', $$begin;$$ -- begin;\n;",
        "comment on table t is E'it\\'s; \\\\i';",
    ],
)
def test_what_only_looks_like_control_is_let_through(text: str) -> None:
    assert problems_of(text) == []


@pytest.mark.parametrize("command", ["copy t from stdin", "copy (select 1) to stdout"])
def test_copy_from_or_to_the_client_is_refused(command: str) -> None:
    assert problem_of(f"select 1;\n{command};\n").startswith("m/0001_a.sql:2:1: COPY with STDIN")


def test_copy_from_a_file_of_the_server_is_let_through() -> None:
    assert problems_of("copy t from '/data/t.csv';") == []


PUBLISHER = "connection 'host=127.0.0.1 port=1' publication p"


ALONE = [
    ("create index concurrently i on t (a)", "CREATE INDEX CONCURRENTLY"),
    ("Create Unique Index /* so that */ Concurrently i on t (a)", "CREATE INDEX CONCURRENTLY"),
    ("drop index concurrently if exists i", "DROP INDEX CONCURRENTLY"),
    ("reindex index concurrently i", "REINDEX CONCURRENTLY"),
    ("reindex (concurrently) table t", "REINDEX CONCURRENTLY"),
    ("reindex schema s", "REINDEX of many tables"),
    ("reindex database", "REINDEX of many tables"),
    ("reindex system", "REINDEX of many tables"),
    ("vacuum", "VACUUM"),
    ("vacuum (analyze) t", "VACUUM"),
    ("cluster", "CLUSTER of all tables"),
    ("create database d", "CREATE DATABASE"),
    ("drop database d", "DROP DATABASE"),
    ("create tablespace s location '/x'", "CREATE TABLESPACE"),
    ("drop tablespace s", "DROP TABLESPACE"),
    ("alter system set work_mem = '1GB'", "ALTER SYSTEM"),
    ("alter table t detach partition p concurrently", "DETACH PARTITION CONCURRENTLY"),
    ("alter database d set tablespace s", "ALTER DATABASE ... SET TABLESPACE"),
    (f"create subscription s {PUBLISHER}", "CREATE SUBSCRIPTION that creates its slot"),
    (
        f"create subscription s {PUBLISHER} with (enabled = false)",
        "CREATE SUBSCRIPTION that creates its slot",
    ),
    ("drop subscription if exists s", "DROP SUBSCRIPTION that drops its slot"),
    ("alter subscription s refresh publication", "ALTER SUBSCRIPTION that asks the publisher"),
    ("alter subscription s set publication p", "ALTER SUBSCRIPTION that asks the publisher"),
    (
        "alter subscription s add publication p with (copy_data = false)",
        "ALTER SUBSCRIPTION that asks the publisher",
    ),
    ("alter subscription s set (failover = true)", "ALTER SUBSCRIPTION that asks the publisher"),
]


@pytest.mark.parametrize(("command", "called"), ALONE, ids=[command for command, _ in ALONE])
def test_what_refuses_a_transaction_is_refused_in_a_file_with_one(
    command: str, called: str
) -> None:
    assert problem_of(f"select 1;\n/* now */ {command};\nselect 2;\n") == (
        f"m/0001_a.sql:2:11: {called} cannot run inside a transaction\n"
        f"    2 | /* now */ {command};\n"
        "      |           ^\n"
        "  what to do: put it into a file of its own that begins with `-- migrate: no-transaction`"
    )
    assert problems_of(f"-- migrate: no-transaction\n{command};") == []


@pytest.mark.parametrize(
    "command",
    [
        "create index i on t (a)",
        "drop index i",
        "reindex table t",
        "reindex (concurrently false, verbose) table t",
        "analyze t",
        "cluster t using i",
        f"create subscription s {PUBLISHER} with (connect = false)",
        f"create subscription s {PUBLISHER} with (create_slot = false, slot_name = none)",
        "alter subscription s set publication p with (refresh = false)",
        "alter subscription s disable; alter subscription s set (slot_name = NONE); "
        "drop subscription s",
        "alter table t detach partition p",
        "create index concurrently_made on t (a)",
        "comment on index i is 'made concurrently'",
    ],
)
def test_what_runs_in_a_transaction_is_let_through(command: str) -> None:
    assert problems_of(f"{command};") == []


def test_an_index_that_is_built_concurrently_needs_a_name() -> None:
    told = problem_of("-- migrate: no-transaction\ncreate index concurrently on t (a);")
    assert told.startswith("m/0001_a.sql:2:1: CREATE INDEX CONCURRENTLY without a name, by which")
    assert told.endswith("\n  what to do: name the index")


def test_an_index_that_is_dropped_concurrently_needs_if_exists() -> None:
    told = problem_of("-- migrate: no-transaction\ndrop index concurrently i;")
    assert told.startswith("m/0001_a.sql:2:1: DROP INDEX CONCURRENTLY that cannot be repeated")
    assert told.endswith("\n  what to do: write DROP INDEX CONCURRENTLY IF EXISTS")
