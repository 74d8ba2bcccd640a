"""What the linter says of SQL, where it says it, and how that is acknowledged."""

import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from postgast import nodes, parse, wrap
from postgast import pg_query_pb2 as postgres

from components import ROOT
from migrate.files import REPEATABLE, VERSIONED, File, read
from migrate.lint import _locks as locks
from migrate.lint import _nodes as node_module
from migrate.lint import _reader as reader
from migrate.lint import lint
from migrate.lint._privileges import Default
from migrate.lint._rules import NOT_ACKNOWLEDGEABLE, Finding
from migrate.parser import Statement
from tests.support.linting import (
    BEFORE,
    HURTS,
    NEXT_FILE,
    NO_TRANSACTION,
    cases,
    found,
    rules_of,
    written,
)


@pytest.fixture(scope="session")
def before(tmp_path_factory: pytest.TempPathFactory) -> list[File]:
    return written(tmp_path_factory.mktemp("before"), BEFORE)


# --- what is found, and what is not ----------------------------------------------------------


@pytest.mark.parametrize(("rule", "text", "hurts"), cases())
def test_a_rule_finds_what_hurts_and_nothing_else(
    tmp_path: Path, before: list[File], rule: str, text: str, hurts: bool
) -> None:
    rules = {finding.rule for finding in found(tmp_path, text, before) if not finding.reason}
    assert rules == ({rule} if hurts else set())


def test_what_there_was_before_is_not_judged(tmp_path: Path) -> None:
    everything = written(
        tmp_path, *(part for _, text, _ in cases() for part in text.split(NEXT_FILE))
    )
    assert lint([], everything) == []


def test_what_no_file_tells_of_is_there_and_full(tmp_path: Path) -> None:
    assert rules_of(found(tmp_path, "create index i on t (a); alter table t drop column b")) == [
        "create-index",
        "drop",
    ]


def test_a_change_from_an_unknown_type_is_told_with_its_doubt(tmp_path: Path) -> None:
    (finding,) = found(tmp_path, "alter table t alter a type text")
    assert finding.rule == "type-rewrite"
    assert "public.t.a to text (unless the old type is stored alike)" in finding.message


def test_a_change_of_time_zone_is_told_with_its_doubt(tmp_path: Path, before: list[File]) -> None:
    (finding,) = found(tmp_path, "alter table t alter stamp type timestamptz", before)
    assert "from timestamp to timestamptz (unless TimeZone is UTC)" in finding.message


def test_a_table_that_moves_is_named_without_where_to(tmp_path: Path) -> None:
    (finding,) = found(tmp_path, "alter table t set tablespace elsewhere")
    assert finding.message.startswith("SET TABLESPACE of public.t rewrites all of it")


def test_an_unqualified_name_is_looked_up_where_the_file_says(tmp_path: Path) -> None:
    text = "create schema s; set search_path = s, public; create table c (a int);"
    secured = "alter table s.c enable row level security; create index i on c (a);"
    assert found(tmp_path, text + secured) == []
    (finding,) = found(tmp_path, text + secured + NEXT_FILE + "create index i on c (a)")
    assert finding.message.startswith("nobody can write to public.c ")


def test_work_under_a_lock_is_found_once_a_table(tmp_path: Path) -> None:
    text = "alter table t add c int;\n" + "update t set c = 1 where a = 2;\n" * 5
    (finding,) = found(tmp_path, text)
    assert (finding.line, finding.rule) == (2, "work-under-lock")
    assert finding.message.endswith("line 1 locked it until the transaction ends")


def test_names_that_need_quotes(tmp_path: Path) -> None:
    text = 'create table "new one" ("a b" int); alter table "new one" enable row level security;'
    assert found(tmp_path, text + 'create index on public."new one" ("a b")') == []


@given(st.integers(1, 9999), st.integers(1, 9999))
def test_a_varchar_may_grow(old: int, new: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        before = written(Path(folder, "before"), f"create table t (a varchar({old}))")
        findings = found(Path(folder), f"alter table t alter a type varchar({new})", before)
    assert rules_of(findings) == (["type-narrowing"] if new < old else [])


@given(st.tuples(st.integers(1, 99), st.integers(0, 20)), st.integers(-30, 30), st.integers(-9, 9))
def test_a_numeric_may_grow_before_the_point(
    old: tuple[int, int], precision: int, scale: int
) -> None:
    new = max(old[0] + precision, 1), max(old[1] + scale, 0)
    with tempfile.TemporaryDirectory() as folder:
        before = written(Path(folder, "before"), f"create table t (a numeric{old})")
        findings = found(Path(folder), f"alter table t alter a type numeric{new}", before)
    narrower = new[1] < old[1] or new[0] - new[1] < old[0] - old[1]
    expected = ["type-narrowing"] if narrower else ["type-rewrite"] if new[1] > old[1] else []
    assert rules_of(findings) == expected


def test_bulk_is_not_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = "insert into t values (1, 'one'), (2, 'two');\n" * 10_000
    long_select = "insert into t select * from (values " + "(1)," * 5_000 + "(1)) v;\n"
    (file,) = written(tmp_path, "alter table t add c int;\n" + rows + long_select)
    assert file.script.count
    parsed: list[str] = []

    def node(statement: Statement) -> Any:
        parsed.append(statement.text)
        tree: Any = wrap(parse(statement.text))
        return tree.stmts[0].stmt

    monkeypatch.setattr(Statement, "node", property(node))
    assert lint([file]) == []
    assert parsed == ["alter table t add c int"]


def test_a_deep_expression_is_looked_into(tmp_path: Path) -> None:
    deep = " || ".join(["'a'"] * 900)
    assert rules_of(found(tmp_path, f"update t set b = {deep};")) == ["missing-where"]


# --- what the grammar has ----------------------------------------------------------------------

INTERNAL = {
    "ALTER_TABLE_TYPE_UNDEFINED",
    "AddColumnToView",
    "AddIndex",
    "AddIndexConstraint",
    "CookedColumnDefault",
    "ReAddComment",
    "ReAddConstraint",
    "ReAddDomainConstraint",
    "ReAddIndex",
    "ReAddStatistics",
    "ReplaceRelOptions",
}
"""Subcommands of ALTER TABLE that the parser makes of no text."""

WITHIN = {"PLAssignStmt", "RawStmt", "ReplicaIdentityStmt", "ReturnStmt", "SetOperationStmt"}
"""What is no statement by itself."""


def test_every_subcommand_of_alter_table_is_known() -> None:
    known = {name.removeprefix("AT_") for name in postgres.AlterTableType.keys()}  # noqa: SIM118
    assert set(locks.ALTER_TABLE) | INTERNAL == known
    assert not set(locks.ALTER_TABLE) & INTERNAL


def test_every_statement_is_known_once() -> None:
    known = {name for name in dir(nodes) if name.endswith("Stmt")} - WITHIN
    visited = {node.__name__ for node in reader._VISITS}
    told = [*visited, *locks.LOCKS, *locks.HARMLESS]
    assert sorted(told) == sorted(known)


def test_every_kind_of_object_is_known() -> None:
    known = {name.removeprefix("OBJECT_") for name in postgres.ObjectType.keys()}  # noqa: SIM118
    assert set(locks.KINDS) == known - {"TYPE_UNDEFINED"}


@pytest.mark.parametrize(
    ("table", "name", "text", "told"),
    [
        ("ALTER_TABLE", "SetStorage", "alter table t alter x set storage main", "(SetStorage)"),
        ("KINDS", "COLLATION", "drop collation c", "collation"),
        ("HARMLESS", "CheckPointStmt", "checkpoint", "CheckPoint"),
        ("LOCKS", "CreateTrigStmt", "create trigger g after delete on t execute function f()", ""),
    ],
)
def test_what_is_not_known_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: str, name: str, text: str, told: str
) -> None:
    known = getattr(locks, table)
    for module in (locks, reader, node_module):
        if isinstance(known, dict):
            monkeypatch.delitem(known, name, raising=False)
        elif hasattr(module, table):
            monkeypatch.setattr(module, table, known - {name})
    (finding,) = found(tmp_path, text)
    assert finding.rule == "unknown-statement"
    assert told in finding.message


@pytest.mark.parametrize(
    ("text", "rules"),
    [
        ("alter table t alter constraint k enforced", ["constraint-scan"]),
        ("alter table t alter constraint k not enforced", []),
        ("alter table t alter constraint k deferrable", []),
        ("alter table t add constraint k check (b > 0) not enforced", []),
        ("alter table t add constraint k not null a not valid", []),
        ("alter table t add column c int generated always as (a) virtual", []),
        ("alter table t alter c set expression as (a + 1)", ["column-rewrite"]),
        ("alter foreign table f alter a type text, alter b set not null", []),
        ("alter foreign table f drop column a", ["drop"]),
        ("alter sequence s set logged", []),
        ("alter type pair alter attribute a type bigint cascade", ["type-rewrite"]),
        ("alter table all in tablespace a set tablespace b", ["table-rewrite"]),
        ("drop cast (int as text)", []),
    ],
)
def test_what_is_of_some_versions_or_objects_only(
    tmp_path: Path, text: str, rules: list[str]
) -> None:
    assert rules_of(found(tmp_path, text)) == rules


def test_a_partitioned_table_is_refused_in_a_transaction(
    tmp_path: Path, before: list[File]
) -> None:
    for text, rule in (
        ("reindex table parted", "reindex"),
        ("reindex index parted_day", "reindex"),
        ("cluster parted using parted_day", "table-rewrite"),
    ):
        assert rules_of(found(tmp_path, text, before)) == ["partitioned", rule]
        assert rules_of(found(tmp_path, NO_TRANSACTION + text, before)) == [rule]


# --- default privileges of the database ----------------------------------------------------------

REVEAL = (
    "create function reveal() returns int language sql security definer "
    "set search_path = pg_catalog, pg_temp as 'select 1';"
    "revoke execute on function reveal() from public"
)
HOSTED: set[Default] = {
    (None, "functions", "PUBLIC"),
    ("public", "functions", "anon"),
    ("public", "functions", "authenticated"),
    ("public", "functions", "service_role"),
    ("public", "tables", "anon"),
}
MATVIEW = "create materialized view c as select 1 as a"


def test_what_a_database_gives_by_default_counts(tmp_path: Path) -> None:
    def told(text: str, defaults: Collection[Default]) -> list[str]:
        files = written(tmp_path, text)
        return [finding.message for finding in lint(files, defaults=defaults)]

    assert told(REVEAL, set()) == []
    assert told(REVEAL, HOSTED) == [
        "anon and authenticated, by default privileges, may execute public.reveal()"
    ]
    assert told(REVEAL + ", anon, authenticated", HOSTED) == []
    assert told(REVEAL + ", authenticated", HOSTED) == [
        "anon, by default privileges, may execute public.reveal()"
    ]
    assert told("create schema s;" + REVEAL.replace("reveal", "s.reveal"), HOSTED) == []
    assert told(MATVIEW, HOSTED) == [
        "anon may read all of public.c, by default privileges; it has no row-level security"
    ]
    assert told(MATVIEW + "; revoke all on c from anon", HOSTED) == []
    revoke = "alter default privileges in schema public revoke all on functions from "
    assert told(f"{revoke} anon, authenticated; {REVEAL}", HOSTED) == []


# --- the repository's own files --------------------------------------------------------------


def test_our_own_files_have_no_finding_that_is_not_acknowledged() -> None:
    versioned, repeatable = read(ROOT / "sql" / VERSIONED), read(ROOT / "sql" / REPEATABLE)

    def findings(pending: list[File], applied: Sequence[File] = ()) -> list[Finding]:
        return [each for each in lint(pending, applied) if each.reason is None]

    assert findings([*versioned, *repeatable]) == []
    assert findings(repeatable) == []
    for number, file in enumerate(versioned):
        assert findings([file], versioned[:number]) == []
    for file in repeatable:
        assert findings([file], versioned) == []


# --- places and acknowledgements -------------------------------------------------------------


def test_a_finding_stands_where_the_statement_begins(tmp_path: Path) -> None:
    text = "-- Größe\nselect 'é';  drop table a;\n\n/* two\n lines */\tdrop table b\n;"
    findings = found(tmp_path, text)
    assert [(f.line, f.column) for f in findings] == [(2, 14), (5, 11)]


def test_findings_come_in_the_order_of_files_and_lines(tmp_path: Path) -> None:
    text = "create table b (a int);\ndrop table c;\n" + NEXT_FILE + "drop table a;"
    places = [(f.path.name, f.line, f.rule) for f in found(tmp_path, text)]
    assert places == [
        ("0001_it.sql", 1, "no-row-security"),
        ("0001_it.sql", 2, "drop"),
        ("0002_it.sql", 1, "drop"),
    ]


def test_a_finding_says_what_to_do(tmp_path: Path) -> None:
    (finding,) = found(tmp_path, "truncate t")
    assert str(finding) == (
        f"{tmp_path}/pending/0001_it.sql:1:1: truncate: every row of public.t is lost, and nobody "
        "can read or write it until the transaction ends\n"
        "  what to do: delete what is no longer needed in batches"
    )


def test_an_acknowledged_finding_says_why(tmp_path: Path) -> None:
    (finding,) = found(tmp_path, "-- migrate: allow truncate: filled again tonight\ntruncate t")
    assert finding.reason == "filled again tonight"
    assert str(finding).endswith("\n  acknowledged: filled again tonight")


def test_several_rules_are_acknowledged_in_several_lines(tmp_path: Path) -> None:
    text = (
        "-- migrate: no-transaction\n"
        "-- migrate: allow drop: nobody reads a\n"
        "-- nor does anybody\n"
        "  -- migrate: allow set-not-null: t has five rows\n"
        "alter table t drop column a, alter b set not null, alter c set not null"
    )
    assert [(f.rule, f.reason) for f in found(tmp_path, text)] == [
        ("drop", "nobody reads a"),
        ("set-not-null", "t has five rows"),
        ("set-not-null", "t has five rows"),
    ]


def test_an_acknowledgement_is_for_the_next_statement_only(tmp_path: Path) -> None:
    text = "-- migrate: allow truncate: tonight\ntruncate t;\ntruncate u;"
    assert [f.reason for f in found(tmp_path, text)] == ["tonight", None]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("create table c (a int)", "no-row-security"),
        ("create function f() returns int language sql as 'select 1'", "public-execute"),
        (
            "create function f() returns int language sql security definer as 'select 1';"
            "revoke all on function f() from public",
            "search-path",
        ),
    ],
)
def test_what_is_judged_at_the_end_is_acknowledged_at_its_creation(
    tmp_path: Path, text: str, rule: str
) -> None:
    text = f"select 1;\n-- migrate: allow {rule}: so it is\n{text};\n"
    (finding,) = found(tmp_path, text + NEXT_FILE + "select 2")
    assert (finding.line, finding.rule, finding.reason) == (3, rule, "so it is")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("-- migrate: allow truncat: a slip", "'truncat' is not a rule to acknowledge"),
        ("-- migrate: allow acknowledgement: x", "'acknowledgement' is not a rule to acknowledge"),
        ("-- migrate: allow truncate", "it gives no reason"),
        ("-- migrate: allow truncate:  ", "it gives no reason"),
        ("-- migrate: allow drop: another rule", "drop finds nothing in the statement"),
    ],
)
def test_a_slip_in_an_acknowledgement_is_found(tmp_path: Path, line: str, why: str) -> None:
    findings = found(tmp_path, f"select 1;\n\n  {line}\ntruncate t")
    assert [(f.rule, f.line, f.reason) for f in findings] == [
        ("acknowledgement", 3, None),
        ("truncate", 4, None),
    ]
    assert findings[0].column == 3
    assert findings[0].message == f"this acknowledges nothing: {why}"


EARLIER = "create table u (a int); alter table u enable row level security;"
INDEX = "create index i on u (a);"
SMALL = "-- migrate: allow create-index: u is small\n"


def test_apart_what_an_earlier_file_made_is_in_use(tmp_path: Path) -> None:
    def hurts(text: str) -> list[tuple[str, str | None]]:
        files = written(tmp_path / "pending", *text.split(NEXT_FILE))
        return [(finding.rule, finding.reason) for finding in lint(files, each_alone=True)]

    assert hurts(EARLIER + INDEX + NEXT_FILE + "select 1") == []
    assert hurts(EARLIER + NEXT_FILE + INDEX) == [("create-index", None)]
    assert hurts(EARLIER + NEXT_FILE + SMALL + INDEX) == [("create-index", "u is small")]
    assert hurts(EARLIER + SMALL + INDEX + NEXT_FILE + "select 1") == [("acknowledgement", None)]
    assert hurts("create table u (a int);" + NEXT_FILE + EARLIER[24:]) == []


def test_what_another_database_needs_acknowledged_is_no_slip(tmp_path: Path) -> None:
    assert found(tmp_path, EARLIER + NEXT_FILE + SMALL + INDEX) == []
    assert rules_of(found(tmp_path, EARLIER + SMALL + INDEX + NEXT_FILE + "select 1")) == [
        "acknowledgement"
    ]


LETTERS = st.characters(categories=["L", "N", "P"])
LINES = [
    text
    for rule, texts in HURTS.items()
    for text in texts
    if rule not in NOT_ACKNOWLEDGEABLE and NO_TRANSACTION not in text and NEXT_FILE not in text
]


@given(st.lists(st.sampled_from(LINES), min_size=1, max_size=8), st.text(LETTERS))
def test_whatever_is_found_can_be_acknowledged(lines: list[str], reason: str) -> None:
    parts = [part.strip() for line in lines for part in line.split(";") if part.strip()]
    reason = f"because {reason}".strip()
    with tempfile.TemporaryDirectory() as folder:
        findings = found(Path(folder), "".join(f"{part};\n" for part in parts))
        comments = [
            "".join(
                f"-- migrate: allow {rule}: {reason}\n"
                for rule in sorted({f.rule for f in findings if f.line == number})
            )
            for number in range(1, len(parts) + 1)
        ]
        pairs = zip(comments, parts, strict=True)
        again = found(Path(folder), "".join(f"{comment}{part};\n" for comment, part in pairs))
    assert rules_of(again) == rules_of(findings)
    assert {finding.reason for finding in again} == ({reason} if findings else set())
