"""The engine beside small models of it: any file set, any ledger, any edit, any split."""

import hashlib
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from migrate import catalog, files, ledger, plan, run, script, verify
from migrate.connection import connect
from migrate.errors import FilesError
from migrate.session import Connection

MARK = b"\xef\xbb\xbf"

# hypothesis runs all examples with one database; each of them begins by emptying it.
ONE_DATABASE = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


def write(directory: Path, contents: Mapping[str, bytes]) -> files.Tree:
    for label, content in contents.items():
        (directory / label).parent.mkdir(parents=True, exist_ok=True)
        (directory / label).write_bytes(content)
    return files.read_tree(directory)


# --- any file set, any ledger: the plan is exact or a refusal --------------------------------


@dataclass(frozen=True)
class Content:
    """What a file holds, and whether the parser takes it."""

    data: bytes
    sound: bool = True

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data.removeprefix(MARK).replace(b"\r\n", b"\n")).hexdigest()


Contents = dict[str, Content]


def sound(number: int) -> Content:
    return Content(f"-- Zeile {number};\nselect {number}, 'für ;\n';\n".encode())


HUGE = Content(b"".join(b"select %d, ';\n';\n" % n for n in range(13_000)))
BROKEN = {
    "empty": b"",
    "only a comment": b"-- nothing;\n",
    "syntax error": b"select 1;\ncreate tabel x ();\n",
    "late syntax error": HUGE.data + b"select 'open;\n",
    "not UTF-8": b"select '\xfc';\n",
    "late byte that is not UTF-8": HUGE.data + b"select '\xfc';\n",
    "zero byte": b"select 1;\0\n",
    "transaction control": b"select 1;\ncommit;\n",
    "meta-command": b"\\set x\n",
}
REPLACED = {kind: Content(data, sound=False) for kind, data in BROKEN.items()} | {"huge": HUGE}
MISNAMED = ("1_a.sql", "00001_a.sql", "0001-a.sql", "0001_A.sql", "0001_.SQL.sql", "a.sql", ".sql")

Edit = Callable[[Contents, str], None]


def _put(label: str, content: Content) -> Edit:
    def edit(present: Contents, _: str) -> None:
        present[label] = content

    return edit


def _change(change: Callable[[Content], Content]) -> Edit:
    def edit(present: Contents, label: str) -> None:
        if label in present:
            present[label] = change(present[label])

    return edit


def _move(new: str) -> Edit:
    def edit(present: Contents, label: str) -> None:
        if label in present:
            present[f"migrations/{new}"] = present.pop(label)

    return edit


def _crlf(content: Content) -> Content:
    return replace(content, data=content.data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))


def _marked(content: Content) -> Content:
    return replace(content, data=MARK + content.data.removeprefix(MARK))


NAMES = st.builds("{:04d}_{}.sql".format, st.integers(0, 8), st.sampled_from("abm"))
EDITS: st.SearchStrategy[Edit] = st.one_of(
    st.builds(lambda name, n: _put(f"migrations/{name}", sound(n)), NAMES, st.integers(20, 22)),
    st.builds(lambda name: _put(f"repeatable/{name}.sql", sound(30)), st.sampled_from("abc")),
    st.just(lambda present, label: present.pop(label, None)),
    NAMES.map(_move),
    st.sampled_from(MISNAMED).map(_move),
    st.integers(40, 42).map(lambda n: _change(lambda _: sound(n))),
    st.just(_change(_crlf)),
    st.just(_change(_marked)),
    st.sampled_from(sorted(REPLACED)).map(lambda kind: _change(lambda _: REPLACED[kind])),
    st.just(_put("migrations/README.md", Content(b"\xfc no SQL", sound=False))),
)


def model(present: Contents, recorded: Mapping[str, str]) -> tuple[list[str], set[str]]:
    """What is pending, and which files are wrong."""
    ours = sorted(each for each in present if each.endswith(".sql") and "/." not in each)
    versioned = [label for label in ours if label.startswith("migrations/")]
    pending = [label for label in ours if recorded.get(label) != present[label].sha256]
    wrong = {label for label in pending if not present[label].sound}
    numbers: set[int] = set()
    for label in versioned:
        named = re.fullmatch(r"migrations/(\d{4})_[a-z0-9_]+\.sql", label)
        number = int(named[1]) if named else 0
        if number in numbers or (number != 1 and number - 1 not in numbers):
            wrong.add(label)
        if named:
            numbers.add(number)
    past = [label for label in recorded if label.startswith("migrations/")]
    wrong |= {label for label in past if label not in ours or label in pending}
    wrong |= {label for label in versioned if label not in past and label < max(past, default="")}
    return pending, wrong


def record(session: Connection, recorded: Mapping[str, str]) -> None:
    with session.transaction():
        session.execute(ledger.CREATE.encode())
        session.execute("truncate migrate.ledger")
        for label, sha256 in recorded.items():
            session.execute(
                """insert into migrate.ledger (folder, name, sha256, duration_ms, engine_version)
                   values (%s, %s, %s, 0, '')""",
                [*label.split("/"), sha256],
            )


@settings(max_examples=150, suppress_health_check=ONE_DATABASE)
@given(
    total=st.integers(0, 5),
    applied=st.integers(0, 5),
    repeatables=st.sets(st.sampled_from("abc")),
    edits=st.lists(st.tuples(EDITS, st.integers(0, 9)), max_size=4),
)
def test_the_plan_is_the_exact_rest_or_names_every_wrong_file(
    total: int,
    applied: int,
    repeatables: set[str],
    edits: Sequence[tuple[Edit, int]],
    database: str,
) -> None:
    present = {f"migrations/{n:04d}_m.sql": sound(n) for n in range(1, total + 1)}
    past = dict(list(present.items())[:applied])
    for name in sorted(repeatables):
        past[f"repeatable/{name}.sql"] = present[f"repeatable/{name}.sql"] = sound(10)
    recorded = {label: content.sha256 for label, content in past.items()}
    for edit, which in edits:
        labels = sorted(present)
        edit(present, labels[which % len(labels)] if labels else "")
    pending, wrong = model(present, recorded)
    with tempfile.TemporaryDirectory() as directory, connect(database) as session:
        record(session, recorded)
        tree = write(Path(directory), {label: each.data for label, each in present.items()})
        try:
            planned = [file.label for file in plan.check(session, tree).pending]
        except FilesError as error:
            named = [re.search(r"(migrations|repeatable)/[^:/]*\.sql", p) for p in error.problems]
            assert {each and each[0] for each in named} == wrong
        else:
            assert wrong == set()
            assert planned == pending


# --- any split of a file set into runs gives the same catalog --------------------------------

BASE = b"""
create schema other;
create type mood as enum ('low', 'high');
create table t0 (id int primary key, a text, owner text default current_user);
insert into t0 values (1, 'x'), (2, 'y');
"""

# {n} is the number of the file, {m} that of a file before it, both of which make a table.
STEPS = (
    "alter table t{m} add column c{n} int default 0;",
    "alter table t{m} alter column a set default 'for {n}';",
    "alter table t{m} add constraint check_{n} check (a <> 'refused {n}');",
    "create index on t{m} (a, id);",
    "create view v{n} as select id, a from t{m};",
    "create function f{n}() returns int language sql as 'select count(*)::int from t{m}';",
    "alter table t{m} enable row level security; create policy p{n} on t{m} using (id > {n});",
    "grant select on t{m} to pg_monitor;",
    "revoke all on t{m} from pg_monitor;",
    "create trigger g{n} before update on t{m} for each row"
    " execute function suppress_redundant_updates_trigger();",
    "set search_path = other; create table u{n} (a int);",
    "set local search_path = other, public; create table w{n} as select a from t{m};",
    "comment on table t{m} is 'by {n}'; create sequence s{n} owned by t{m}.id;",
    "insert into t{m} (id, a) select max(id) + 1, 'by {n}' from t{m};",
    "do $$ begin execute 'alter table t{m} add column d{n} mood'; end $$;",
    "set role pg_monitor; reset role; create table x{n} ();",
    "-- migrate: no-transaction\ncreate index concurrently i{n} on t{m} (a);",
    "-- migrate: no-transaction\nvacuum t{m}; set search_path = other; create table y{n} ();",
)
REPEATABLE = {
    "function.sql": "create or replace function r() returns int return {n};",
    "policy.sql": "drop policy if exists r on t0; create policy r on t0 using (id > {n});",
    "grants.sql": "revoke all on t0 from pg_monitor; grant select on t0 to pg_monitor; select {n};",
    "index.sql": "-- migrate: no-transaction\ndrop index concurrently if exists r;\n"
    "create index concurrently r on t0 ((length(a) + {n}));",
}


@dataclass(frozen=True)
class History:
    """Versioned files, and the states of the repeatable ones, one for each run."""

    versioned: Sequence[str]
    repeatables: Sequence[Mapping[str, int]]
    cuts: Sequence[int]

    def tree(self, directory: Path, number: int) -> files.Tree:
        """The files as they are for a run; the last run has them all."""
        upto = (*sorted(self.cuts), len(self.versioned))[number]
        contents = {"migrations/0001_base.sql": BASE}
        for n, step in enumerate(self.versioned[:upto], 2):
            made = f"create table t{n - 1} (id int, a text);"
            mark, _, rest = step.rpartition("no-transaction\n")
            text = f"{mark}no-transaction\n{made}\n{rest}" if mark else f"{made}\n{rest}"
            contents[f"migrations/{n:04d}_step.sql"] = text.encode()
        for name, version in self.repeatables[number].items():
            contents[f"repeatable/{name}"] = REPEATABLE[name].format(n=version).encode()
        return write(directory / str(number), contents)


@st.composite
def histories(draw: st.DrawFn) -> History:
    steps = draw(st.lists(st.sampled_from(STEPS), min_size=1, max_size=6))
    versioned = [
        step.replace("{n}", str(n)).replace("{m}", str(draw(st.integers(0, n))))
        for n, step in enumerate(steps, 1)
    ]
    cuts = draw(st.lists(st.integers(0, len(versioned)), min_size=1, max_size=3))
    # A file that is removed leaves what it made: the last run has all of them.
    names = draw(st.sets(st.sampled_from(sorted(REPEATABLE))))
    states = st.fixed_dictionaries({}, optional=dict.fromkeys(names, st.integers(1, 3)))
    last = dict.fromkeys(sorted(names), 1)
    return History(versioned, [*(draw(states) for _ in cuts), last], cuts)


def emptied(session: Connection) -> None:
    session.execute("drop schema if exists public, other, migrate cascade; create schema public")


@settings(max_examples=25, suppress_health_check=ONE_DATABASE)
@given(history=histories())
def test_any_split_into_runs_gives_the_same_catalog(history: History, database: str) -> None:
    last = len(history.cuts)
    with tempfile.TemporaryDirectory() as name, connect(database) as session:
        emptied(session)
        run.up(session, history.tree(Path(name), last))
        at_once = catalog.read(session)
        emptied(session)
        for number in range(last + 1):
            tree = history.tree(Path(name), number)
            run.up(session, tree)
            assert verify.check(session, tree) == 0
        assert catalog.read(session) == at_once


IN_A_SESSION = {
    "temporary table": "create temporary table a (b int);",
    "prepared statement": "prepare a as select 1;",
    "cursor": "declare a cursor with hold for select 1;",
}


@pytest.mark.parametrize("what", IN_A_SESSION)
def test_what_a_file_leaves_in_its_session_ends_with_it(what: str, database: str) -> None:
    contents = {f"migrations/{n:04d}_a.sql": IN_A_SESSION[what].encode() for n in (1, 2)}
    with tempfile.TemporaryDirectory() as directory, connect(database) as session:
        assert len(run.up(session, write(Path(directory), contents))) == 2


def test_what_a_file_leaves_in_its_session_is_there_until_its_commit(database: str) -> None:
    text = b"""
        create temporary table told (a int);
        create table t (a int);
        create function f() returns trigger language plpgsql
          as 'begin insert into told values (1); return null; end';
        create constraint trigger g after insert on t deferrable initially deferred
          for each row execute function f();
        insert into t values (1);"""
    with tempfile.TemporaryDirectory() as directory, connect(database) as session:
        assert run.up(session, write(Path(directory), {"migrations/0001_a.sql": text}))


# --- any statements, cut anywhere: they are split as they were joined ------------------------

STATEMENTS = (
    "select 1",
    "select ';\n', 'it''s;\n'",
    "select E'\\';\n'",
    "select U&'d\\0061t;\n'",
    'select 1 as ";\n"',
    "select 'a'\n  ';\n'",
    "select $$;\n$$",
    "select $a$ $$ ;\n $b$ ;\n$a$",
    "select $ü$;\n$ü$, '顧客;\n🙂'",
    "select /* ;\n /* nested ;\n */ ;\n */ 2",
    "select 1 -- it's ;\n  + 1",
    "do $$ begin\n  perform 1;\n  perform ';\n';\nend $$",
    "create function f() returns int begin atomic\n  select 1;\n  select 2;\nend",
    "create procedure p() begin atomic\n  insert into t values (case when true then 1 end);\nend",
    "create function g() returns int language sql as 'select 1;\n'",
    "create rule r as on insert to t do also (\n  insert into u values (1);\n  select 2;\n)",
    "create table t (\n  a int -- ;\n)",
    "insert into t values (1), (2) returning *",
)
ENDS = (
    ";",
    ";\n",
    " ;\n",
    "\n;\n",
    ";;\n",
    ";\n;\n\n",
    "; -- it's ;\n",
    ";/* ;\n ' */ ",
    ";\n\n\t",
)
STARTS = ("", "-- migrate;\n", "/* $$ ;\n */\n", "\n\n")


@contextmanager
def blocks_of(size: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("migrate.script._PIECE_SIZE", size)
        yield


def joined(start: str, parts: Sequence[tuple[str, str]]) -> tuple[str, list[tuple[str, str]]]:
    """A text, and each statement in it with its line:column."""
    text, placed = start, []
    for statement, end in parts:
        lines = text.split("\n")
        placed.append((statement, f"{len(lines)}:{len(lines[-1]) + 1}"))
        text += statement + end
    return text, placed


def assert_split(text: str, placed: Sequence[tuple[str, str]], data: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        (file,) = write(Path(directory), {"migrations/0001_a.sql": data})["migrations"]
        pieces = list(file.script.pieces())
        assert "".join(piece.text for piece in pieces) == text
        assert file.script.count == len(placed)
        found = list(file.script.statements())
    assert [(each.text, each.position()) for each in found] == placed
    assert [each.number for each in found] == list(range(1, len(placed) + 1))


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(
    start=st.sampled_from(STARTS),
    parts=st.lists(
        st.tuples(st.sampled_from(STATEMENTS), st.sampled_from(ENDS)), min_size=1, max_size=8
    ),
    closed=st.booleans(),
    windows=st.booleans(),
    size=st.integers(4, 150),
)
def test_joined_statements_are_split_as_they_were(
    start: str, parts: list[tuple[str, str]], *, closed: bool, windows: bool, size: int
) -> None:
    if not closed:
        parts[-1] = (parts[-1][0], "\n")
    text, placed = joined(start, parts)
    with blocks_of(size):
        data = text.encode()
        assert_split(text, placed, MARK + data.replace(b"\n", b"\r\n") if windows else data)


@pytest.mark.parametrize("border", [script._PIECE_SIZE, 2 * script._PIECE_SIZE])
def test_statements_across_the_border_of_two_blocks_are_whole(border: int) -> None:
    every = [(statement, ";\n") for statement in STATEMENTS]
    length = len(joined("", every)[0].encode())
    for shift in range(0, length, 7):
        padding = f";\n-- {'x' * (border - shift)}\n"
        text, placed = joined("", [("select 0", padding), *every, ("select 0", padding), *every])
        assert_split(text, placed, text.encode())


def test_a_comment_is_not_cut_by_the_border_of_two_blocks() -> None:
    text = "-- migrate: no-transaction\n-- ;\n" + "-- insert into old values (1);\n" * 3000
    data = f"{text}create index concurrently i on t (a);\n".encode()
    with tempfile.TemporaryDirectory() as directory:
        (file,) = write(Path(directory), {"migrations/0001_a.sql": data})["migrations"]
        (statement,) = file.script.statements()
    assert statement.comment == text
