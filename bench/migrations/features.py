"""What each tool can do, every cell of the table found out by running the tool.

A check gets a tool, an empty directory and an empty database, and returns what it saw.  Where a
tool can do something only with an option, `OPTIONS` has it: the check runs once more with it.
"""

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psycopg

from bench.migrations import STATE
from bench.migrations.measures import Bench
from bench.migrations.process import Command, Ran, Running
from bench.migrations.server import Database, Row, fresh
from bench.migrations.tools import (
    Alembic,
    Dbmate,
    Flyway,
    Graphile,
    Migration,
    Ours,
    Sqitch,
    Tool,
    Yoyo,
)

YES, PARTLY, NO, UNKNOWN = "yes", "partly", "no", "?"

_PAID = "in its paid edition only"

PATIENCE = 40.0
"""Seconds after which a command counts as one that hangs."""


@dataclass(frozen=True)
class Verdict:
    """What a check saw.

    Attributes:
        note: what the table's reader has to know beside it.
        evidence: the words of the tool, or what the database held.
    """

    answer: str
    note: str = ""
    evidence: str = ""


@dataclass
class Case:
    """One check of one tool."""

    bench: Bench
    tool: Tool
    database: Database
    directory: Path
    options: Sequence[str] = ()

    def layout(self, *migrations: Migration) -> None:
        """Write these files, and no others."""
        self.tool.layout(self.directory, migrations)

    def file(self, migration: Migration) -> Path:
        """Where a migration is kept."""
        return self.tool.file(self.directory, migration)

    def up(self, *options: str, timeout: float = PATIENCE) -> Ran:
        """Apply what is pending."""
        return self.start(*options).end(timeout)

    def applied(self, *migrations: Migration) -> None:
        """Write these files and apply them, which has to work."""
        self.layout(*migrations)
        ran = self.up()
        if ran.code != 0:
            raise RuntimeError(f"cannot apply {migrations[-1].full_name}: {ran.output[-500:]}")

    def start(self, *options: str) -> Running:
        """Start to apply what is pending."""
        command = self.tool.up(self.directory, self.database.url, *self.options, *options)
        return Running(command, self.bench.environment)

    def run(self, *arguments: str) -> Ran:
        """Run another command of the tool."""
        command = self.tool.command(self.directory, self.database.url, *arguments)
        return self.bench.run(command, PATIENCE)

    def looks(self) -> dict[str, Ran]:
        """What the commands say that change nothing."""
        return {" ".join(look): self.run(*look) for look in self.tool.looks}

    def query(self, query: str) -> list[Row]:
        """The rows of a query."""
        return self.database.query(query)

    def exists(self, table: str) -> bool:
        """Whether there is such a table or index."""
        return self.query(f"select to_regclass('{table}') is not null") == [(True,)]

    def sleeping(self) -> list[int]:
        """The server sessions that run a migration's `pg_sleep`."""
        rows = self.query(
            "select pid from pg_stat_activity where datname = current_database() "
            "and query ~ 'pg_sleep' and state = 'active' and pid <> pg_backend_pid()"
        )
        return [int(str(pid)) for (pid,) in rows]

    @contextmanager
    def asleep(self) -> Iterator[Running]:
        """A run that has come to the `pg_sleep` of its migration."""
        running = self.start()
        try:
            _wait_until(lambda: bool(self.sleeping()), PATIENCE)
            yield running
        finally:
            running.end(0)


Check = Callable[[Case], Verdict]


@dataclass(frozen=True)
class Feature:
    """One row of the table.

    Attributes:
        key: its name on the command line.
        title: the promise, which is kept or not.
    """

    key: str
    title: str
    check: Check


def table(number: int, name: str, more: str = "") -> Migration:
    """A migration that makes a table."""
    return Migration(number, name, f"create table {name} (id int);{more}")


ONE, TWO, THREE = table(1, "one"), table(2, "two"), table(3, "three")


# --- files -----------------------------------------------------------------------------------


def edited(case: Case) -> Verdict:
    """Edit what was applied, add a file, and run."""

    def edit() -> None:
        file = case.file(ONE)
        file.write_text(file.read_text().replace("id int", "id bigint"))

    case.applied(ONE, TWO)
    before = case.looks()
    edit()
    noticed = _noticed(before, case.looks())
    case.layout(ONE, TWO, THREE)
    edit()
    return _refuses(case, case.up(), "three", noticed)


def removed(case: Case) -> Verdict:
    """Remove what was applied, add a file, and run."""
    case.applied(ONE, TWO)
    before = case.looks()
    case.file(ONE).unlink()
    noticed = _noticed(before, case.looks())
    case.layout(ONE, TWO, THREE)
    case.file(ONE).unlink()
    return _refuses(case, case.up(), "three", noticed)


def late(case: Case) -> Verdict:
    """Somebody else's second file arrives after the third one was applied."""
    last = replace(THREE, after=1)
    case.layout(ONE, last)
    if case.up().code != 0:  # a tool that allows no gap: then both are the second
        last = replace(THREE, number=2, name="two_of_mine")
        case.applied(ONE, last)
    case.layout(ONE, replace(TWO, after=1), last)
    ran = case.up()
    if ran.code != 0 and not case.exists("two"):
        return Verdict(YES, evidence=outcome(ran))
    what = "it is applied, after the later one" if case.exists("two") else "it is skipped silently"
    return Verdict(NO, what, outcome(ran))


def syntax(case: Case) -> Verdict:
    """The second of two pending files has a syntax error."""
    _trace(case, "create tabel three (id int);")
    noticed = next((name for name, ran in case.looks().items() if "syntax" in ran.output), "")
    ran = case.up()
    if ran.code != 0 and not _traced(case):
        return Verdict(YES, evidence=outcome(ran))
    return Verdict(
        PARTLY if noticed else NO, f"only by `{noticed}`" if noticed else "", outcome(ran)
    )


def not_utf8(case: Case) -> Verdict:
    """The second of two pending files is in Latin-1."""
    file = _trace(case, "create table three (id int); comment on table three is 'gruen';")
    file.write_bytes(file.read_bytes().replace(b"gruen", b"gr\xfcn"))
    ran = case.up()
    if ran.code != 0 and not _traced(case):
        named = file.name in ran.output
        return Verdict(YES if named else PARTLY, "" if named else "names no file", outcome(ran))
    note = "" if ran.code else "the text is stored with other characters"
    return Verdict(NO, note, outcome(ran))


def _trace(case: Case, broken: str) -> Path:
    """A file that leaves a trace even when it is rolled back or reverted, and a broken one."""
    first = table(1, "one", "\ncreate sequence trace;")
    case.applied(first)
    last = Migration(3, "three", broken)
    case.layout(first, Migration(2, "two", "select nextval('trace');"), last)
    return case.file(last)


def _traced(case: Case) -> bool:
    return case.query("select is_called from trace") == [(True,)]


def commit_inside(case: Case) -> Verdict:
    """A file with a stray COMMIT fails at its end."""
    case.applied(ONE)
    case.layout(ONE, replace(TWO, sql="create table two (id int);\ncommit;\nselect 1/0;"))
    ran = case.up()
    if case.exists("two"):
        return Verdict(NO, "", f"half of the file stays: {outcome(ran)}")
    return Verdict(YES, evidence=outcome(ran))


def literal(case: Case) -> Verdict:
    """A string literal holds `; --`."""
    more = "\ncreate table text (a text);\ninsert into text values ('a; -- b'),\n  ('c');"
    case.layout(table(1, "one", more))
    ran = case.up()
    right = ran.code == 0 and case.query("select a from text") == [("a; -- b",), ("c",)]
    return Verdict(YES if right else NO, evidence=outcome(ran))


def function_body(case: Case) -> Verdict:
    """A function's body holds semicolons, and the file no markers."""
    body = "begin\n  perform 1;\n  return 2;\nend;"
    function = f"create function two() returns int language plpgsql as $$\n{body}\n$$;"
    case.layout(Migration(1, "two", function, marked=False))
    ran = case.up()
    right = ran.code == 0 and case.query("select two()") == [(2,)]
    return Verdict(YES if right else NO, "" if right else "needs markers", outcome(ran))


# --- running ---------------------------------------------------------------------------------


def same_transaction(case: Case) -> Verdict:
    """The ledger refuses the row of a file: the file's work must not stay."""
    case.applied(ONE)
    case.query(f"alter table {case.tool.ledger} add constraint full_up check (false) not valid")
    case.layout(ONE, TWO)
    ran = case.up()
    if ran.code == 0:
        return Verdict(UNKNOWN, "the ledger took the row all the same", outcome(ran))
    return Verdict(NO if case.exists("two") else YES, evidence=outcome(ran))


def at_once(case: Case) -> Verdict:
    """Two runs start together."""
    case.applied(ONE)
    case.layout(ONE, Migration(2, "two", "insert into one values (7);\nselect pg_sleep(2);"))
    runs = [case.start(), case.start()]
    ended = [running.end(PATIENCE) for running in runs]
    (count,) = case.query("select count(*) from one")[0]
    codes = [ran.code for ran in ended]
    said = f"exit codes {codes}, rows {count}: {outcome(max(ended, key=lambda ran: ran.code or 0))}"
    if count != 1:
        return Verdict(
            NO, "the file is applied twice, both succeed" if codes == [0, 0] else "", said
        )
    if codes == [0, 0]:
        return Verdict(YES, evidence=said)
    return Verdict(PARTLY, "one of the two fails", said)


def holder(case: Case) -> Verdict:
    """A second run gives up waiting: its message names the process that it waited for."""
    case.applied(ONE)
    case.layout(ONE, Migration(2, "two", "select pg_sleep(14);"))
    with case.asleep() as first:
        pids = [str(first.pid), *map(str, case.sleeping())]
        ran = case.up(*HURRY.get(type(case.tool), ()), timeout=25)
    named = ran.code != 0 and any(re.search(rf"\b{pid}\b", ran.output) for pid in pids)
    return Verdict(YES if named else NO, evidence=outcome(ran))


def killed(case: Case) -> Verdict:
    """Kill a run in the middle of a file, and run again at once."""
    case.applied(ONE)
    statements = "insert into one values (7);\nselect pg_sleep(3);\ninsert into one values (8);"
    case.layout(ONE, Migration(2, "two", statements))
    with case.asleep() as first:
        first.kill()
        ran = case.up()
        _wait_until(lambda: not case.sleeping(), PATIENCE)
    later = case.up() if ran.code else ran
    rows = sorted(case.query("select id from one"))
    said = f"exit codes {ran.code}, {later.code}, rows {rows}: {outcome(ran)} / {outcome(later)}"
    if rows == [(7,), (8,)] and later.code == 0:
        note = "not before the server has ended the statement" if ran.code else ""
        return Verdict(PARTLY if note else YES, note, said)
    twice = rows.count((7,)) > 1
    return Verdict(NO, "the file is applied twice" if twice else "the next runs fail", said)


def server_stops(case: Case) -> Verdict:
    """Kill a run: the server must not go on with its statement."""
    case.applied(ONE)
    case.layout(ONE, Migration(2, "two", "select pg_sleep(15);"))
    with case.asleep() as running:
        running.kill()
        stopped = _wait_until(lambda: not case.sleeping(), 6)
    return Verdict(YES if stopped else NO, evidence=f"ended within 6 s: {stopped}")


def concurrently(case: Case) -> Verdict:
    """An index made concurrently, with the tool's directive for files without a transaction."""
    index = "create index concurrently one_id on one (id);"
    case.applied(ONE)
    case.layout(ONE, Migration(2, "two", index, transaction=False))
    ran = case.up(timeout=20)
    valid = case.query("select indisvalid from pg_index where indexrelid = to_regclass('one_id')")
    if ran.code == 0 and valid == [(True,)]:
        return Verdict(YES, evidence=outcome(ran))
    return Verdict(NO, "hangs" if ran.code is None else "fails", outcome(ran))


def invalid_index(case: Case) -> Verdict:
    """An index that failed half-way is left invalid: `if not exists` takes it for done."""
    index = "create unique index concurrently if not exists one_id on one (id);"
    case.applied(table(1, "one", "\ninsert into one values (1), (1);"))
    case.layout(
        table(1, "one", "\ninsert into one values (1), (1);"),
        Migration(2, "two", index, transaction=False),
    )
    first = case.up(timeout=20)
    case.query("delete from one where ctid = '(0,1)'")
    second = case.up(timeout=20)
    valid = case.query("select indisvalid from pg_index where indexrelid = to_regclass('one_id')")
    if first.code is None or second.code is None:
        return Verdict(NO, "hangs", "CREATE INDEX CONCURRENTLY hangs")
    if second.code == 0:
        right = valid == [(True,)]
        note = "" if right else "succeeds, the index stays invalid"
        return Verdict(YES if right else NO, note, outcome(second))
    named = "one_id" in second.output and "invalid" in second.output.lower()
    return Verdict(
        YES if named else NO, "" if named else "fails, without a remedy", outcome(second)
    )


def lock_timeout(case: Case) -> Verdict:
    """A long reader holds a table that a file alters: other readers must get through."""
    case.applied(ONE)
    case.layout(ONE, Migration(2, "two", "alter table one add column more int;"))
    with psycopg.connect(case.database.url) as long_reader:
        long_reader.execute("select * from one")
        running = case.start()
        altering = _wait_until(
            lambda: bool(
                case.query(
                    "select 1 from pg_stat_activity where datname = current_database() "
                    "and wait_event_type = 'Lock'"
                )
            ),
            PATIENCE,
        )
        with psycopg.connect(case.database.url) as reader:
            reader.execute("set statement_timeout = '8s'")
            through = True
            try:
                reader.execute("select * from one")
            except psycopg.errors.QueryCanceled:
                through = False
    ran = running.end(PATIENCE)
    done = ran.code == 0 and case.query("select more from one") == []
    said = (
        f"waited: {altering}, other reader: {through}, altered in the end: {done}: {outcome(ran)}"
    )
    if through and done:
        return Verdict(YES, evidence=said)
    return Verdict(NO, "" if done else "and the run fails", said)


def repeatable(case: Case) -> Verdict:
    """A function in a file that is edited in place."""
    write = REPEATABLES.get(type(case.tool))
    if write is None:
        return _absent(case, r"(?i)repeatable", "no such kind of file")
    counter = Migration(1, "counter", "create table runs (id int);")
    version = "insert into runs values ({0}); create or replace function now_at() returns int\n"
    version += "language sql as 'select {0}';"
    counts = []
    ran = None
    # Last comes an edit together with another file.
    for number, others in ((1, []), (1, []), (2, []), (3, [TWO])):
        case.layout(counter, *others)
        write(case, version.format(number))
        ran = case.up()
        with suppress(psycopg.Error):
            counts.append(case.query("select count(*), now_at() from runs")[0])
    said = f"(runs, result): {counts}: {outcome(ran)}" if ran else ""
    if counts == [(1, 1), (1, 1), (2, 2), (3, 3)]:
        return Verdict(YES, evidence=said)
    if counts[-1:] == [(2, 3)]:
        return Verdict(PARTLY, "applied by every run that applies another file, and no other", said)
    return Verdict(NO, "", said)


# --- failing ---------------------------------------------------------------------------------

_BROKEN = """\
-- Shops, and what they were before.
create table shop (id int);

insert into shop
select id
from shopp
where id > 0;"""


def place(case: Case) -> Verdict:
    """A relation is missing in the middle of a statement: the message has file and line."""
    migration, ran = _broken(case)
    lines = case.file(migration).read_text().splitlines()
    first, right, last = (
        next(number for number, line in enumerate(lines, 1) if part in line)
        for part in ("insert into", "from shopp", "where id > 0")
    )
    name = case.file(migration).name
    named = name in ran.output
    # Not the lines of the tool's own source in a traceback.
    output = "\n".join(
        line for line in ran.output.splitlines() if name in line or 'File "' not in line
    )
    told = [int(each) for each in re.findall(r"(?i)(?:\bline *:? |\.sql:)(\d+)\b", output)]
    said = f"line {right}: {ran.output[-600:]}"
    if named and right in told:
        return Verdict(YES, evidence=said)
    if named and any(first <= line <= last for line in told):
        return Verdict(PARTLY, "a line of the statement, not that of the error", said)
    note = f"names line {told[-1]} where {right} is right" if told else "names no line"
    return Verdict(NO, note if named or not told else f"names another file: {note}", said)


def caret(case: Case) -> Verdict:
    """The same, and the message shows the place within the line."""
    _, ran = _broken(case)
    found = re.search(r"(?m)^[^\w\n]*\^\s*$", ran.output) or re.search(
        r"(?i)col(umn)?:? 6\b|:6\b", ran.output
    )
    return Verdict(YES if found else NO, evidence=ran.output[-600:])


def details(case: Case) -> Verdict:
    """An error with SQLSTATE, DETAIL and HINT."""
    given = {"errcode": "ZZ001", "detail": "only three are left", "hint": "order some more"}
    # In two parts, lest a tool that prints the statement is taken for one that prints the error.
    using = ", ".join(f"{key} = '{each[:2]}' || '{each[2:]}'" for key, each in given.items())
    raised = f"do $$ begin raise exception 'not enough' using {using}; end $$;"
    case.applied(ONE)
    case.layout(ONE, Migration(2, "two", raised))
    ran = case.up()
    names = {"errcode": "SQLSTATE", "detail": "DETAIL", "hint": "HINT"}
    missing = [names[key] for key, value in given.items() if value not in ran.output]
    answer = PARTLY if missing and len(missing) < len(given) else NO if missing else YES
    return Verdict(answer, f"without {', '.join(missing)}" if missing else "", ran.output[-600:])


def what_stands(case: Case) -> Verdict:
    """The second of three files fails: what is committed, what is rolled back?"""
    failing = replace(TWO, sql="create table two (id int);\nselect 1/0;")
    case.layout(replace(ONE, undo="drop table one;"), failing, THREE)
    ran = case.up()
    name = re.escape(case.file(TWO).stem)
    said = ran.output[-600:]
    if re.search(rf"(?im)^\s*(applied|ok)\b.*{name}", ran.output):
        return Verdict(NO, "says of the file that failed that it is applied", said)
    if not case.exists("one"):
        return Verdict(NO, "the first file's work is gone, too", said)
    told = re.search(r"(?i)roll(ed|ing)? ?back", ran.output)
    return Verdict(YES if told else NO, evidence=said)


def password(case: Case) -> Verdict:
    """Errors of a connection, of a statement, and of a URL that cannot be parsed."""
    secret = case.database.server.password
    case.layout(replace(ONE, sql="select 1/0;"))
    port = case.database.server.port
    urls = {
        "a failing statement": case.database.url,
        "a refused connection": case.database.url.replace(f":{port}/", ":1/"),
        "a wrong password": case.database.url.replace(secret, f"{secret}x"),
        "a malformed URL": case.database.url.replace(secret, f"{secret}%zz"),
    }
    shown = []
    for situation, url in urls.items():
        ran = case.bench.run(case.tool.up(case.directory, url), PATIENCE)
        if secret in ran.output:
            shown.append(situation)
    return Verdict(NO if shown else YES, f"shown after {', '.join(shown)}" if shown else "")


# --- knowing ---------------------------------------------------------------------------------


def exit_code(case: Case) -> Verdict:
    """Whether a look's exit code tells that files are pending."""
    case.layout(ONE)
    states = [case.looks()]
    wrote = case.query("select count(*) from pg_class where oid >= 16384") != [(0,)]
    case.up()
    states.append(case.looks())
    case.layout(ONE, TWO)
    states.append(case.looks())
    for look in states[0]:
        codes = [state[look].code for state in states]
        if codes[0] != 0 and codes[1] == 0 and codes[2] != 0:
            note = f"`{look}`"
            if wrote:
                return Verdict(PARTLY, f"{note}, which makes the tool's own tables", str(codes))
            return Verdict(YES, "", f"{note} {codes}")
    return Verdict(NO, evidence=str([[ran.code for ran in state.values()] for state in states]))


def lint(case: Case) -> Verdict:
    """A pending file makes an index in the way that blocks all writers."""
    case.applied(ONE)
    case.layout(ONE, Migration(2, "two", "create index one_id on one (id);"))
    for look, ran in case.looks().items():
        if re.search(r"(?i)concurrently", ran.output):
            return Verdict(YES, "", f"`{look}`: {ran.output[-600:]}")
    return Verdict(NO, evidence=", ".join(case.looks()))


def drift(case: Case) -> Verdict:
    """Somebody adds a column by hand."""
    case.applied(ONE)
    note = ""
    if isinstance(case.tool, Alembic):
        _models(case)
        note = "tables and columns, where there are SQLAlchemy models to compare with"
    before = case.looks()
    case.query("alter table one add column by_hand int")
    for look, ran in case.looks().items():
        if before[look].code == 0 and ran.code != 0 and "by_hand" in ran.output:
            return Verdict(PARTLY if note else YES, note, f"`{look}`: {ran.output[-600:]}")
    return Verdict(NO, evidence=", ".join(before))


def rehearsal(case: Case) -> Verdict:
    """A pending file parses, and cannot work: is that found without touching the database?"""
    cannot = "do $$ begin perform nextval('trace'); perform 1 / (select count(*) from one); end $$;"
    first = table(1, "one", "\ncreate sequence trace;")
    case.applied(first)
    if isinstance(case.tool, Graphile):
        (case.directory / "migrations" / "current.sql").write_text(f"{cannot}\n")
    else:
        case.layout(first, Migration(2, "two", cannot))
    said = []
    for arguments in [*REHEARSALS.get(type(case.tool), ()), *case.tool.looks]:
        ran = case.run(*arguments)
        command = " ".join(arguments)
        said.append(f"`{command}`: {outcome(ran)}")
        if _traced(case):
            return Verdict(NO, f"`{command}` applies it to the database itself", said[-1])
        if ran.code != 0 and "division by zero" in ran.output:
            note = "on a second database that it must be given" if arguments == ("commit",) else ""
            return Verdict(PARTLY if note else YES, note, said[-1])
    return Verdict(NO, evidence="; ".join(said))


def verification(case: Case) -> Verdict:
    """A query proves the finished database; it fails when the promise is broken."""
    broken = "select id from one where id < 0"
    write = PROOFS.get(type(case.tool))
    if write is None:
        return _absent(case, r"(?i)\bverify\b|callback", "no such kind of file")
    case.applied(ONE)
    command = write(case, broken)
    kept = case.bench.run(command, PATIENCE)
    case.query("insert into one values (-1)")
    failed = case.bench.run(command, PATIENCE)
    if kept.code == 0 and failed.code == 0:
        case.layout(ONE, TWO)
        with_another = case.bench.run(write(case, broken), PATIENCE)
        if with_another.code not in (0, None):
            return Verdict(PARTLY, "only in a run that applies a file", outcome(with_another))
    right = kept.code == 0 and failed.code not in (0, None)
    return Verdict(YES if right else NO, "", f"{outcome(kept)} / {outcome(failed)}")


def machine(case: Case) -> Verdict:
    """What a look prints is JSON, on request."""
    case.layout(ONE)
    tried = [case.tool.json] if case.tool.json else [*case.tool.looks, case.tool.help]
    for arguments in tried:
        ran = case.run(*arguments)
        with suppress(ValueError):
            json.loads(ran.output)
            return Verdict(YES, "", f"`{' '.join(arguments)}`")
        if not case.tool.json and re.search(r"(?i)json", ran.output):
            return Verdict(UNKNOWN, "its help speaks of JSON", outcome(ran))
    return Verdict(NO, evidence=outcome(ran))


def script(case: Case) -> Verdict:
    """One script for psql makes the database, and the tool finds nothing left to do."""
    write = SCRIPTS.get(type(case.tool))
    if write is None:
        return _absent(case, r"(?im)^\s*(bundle|dump|script)\b", "")
    case.layout(ONE, TWO)
    text, problem = write(case)
    if not text:
        return Verdict(NO, _PAID if problem.startswith(_PAID) else "", problem)
    path = case.directory / "script.sql"
    path.write_text(text)
    with fresh(case.bench.server) as empty:
        psql = ["psql", empty.url, "--no-psqlrc", "--set=ON_ERROR_STOP=1", "--file", str(path)]
        filled = case.bench.run(Command(psql, case.directory), PATIENCE)
        ran = case.bench.run(case.tool.up(case.directory, empty.url), PATIENCE)
    right = filled.code == 0 and ran.code == 0
    return Verdict(YES if right else NO, "", f"{outcome(filled)} / {outcome(ran)}")


def undo(case: Case) -> Verdict:
    """The last file is taken back, by what was written for that."""
    if not case.tool.undo:
        return _absent(case, r"(?im)^\s*(undo|rollback|revert|down)\b", "")
    case.applied(ONE, replace(TWO, undo="drop table two;"))
    ran = case.run(*case.tool.undo)
    right = ran.code == 0 and not case.exists("two") and case.exists("one")
    paid = "Edition Required" in ran.output
    return Verdict(YES if right else NO, _PAID if paid else "", outcome(ran))


FEATURES: Sequence[Feature] = (
    Feature("edited", "An applied file that was edited stops the next run", edited),
    Feature("removed", "An applied file that was removed stops the next run", removed),
    Feature("late", "A file numbered before an applied one is refused", late),
    Feature("syntax", "A syntax error is found before anything is applied", syntax),
    Feature("utf8", "A file that is not UTF-8 is refused before anything is applied", not_utf8),
    Feature("commit", "A stray COMMIT in a file cannot break its transaction", commit_inside),
    Feature("literal", "A string literal may hold `; --`", literal),
    Feature("body", "A function's body needs no markers around it", function_body),
    Feature("atomic", "A file and its ledger row are one transaction", same_transaction),
    Feature("at-once", "Two runs at once: one applies, both succeed", at_once),
    Feature("holder", "A run that waits in vain names the process that holds the lock", holder),
    Feature("killed", "After SIGKILL in mid-file the next run completes the work", killed),
    Feature(
        "server-stops", "The server stops within seconds when the client is killed", server_stops
    ),
    Feature("concurrently", "CREATE INDEX CONCURRENTLY works, by a directive", concurrently),
    Feature("invalid", "An index left invalid is not taken for done", invalid_index),
    Feature("lock", "A blocked ALTER TABLE lets readers through, and succeeds later", lock_timeout),
    Feature("repeatable", "Functions are edited in place, applied again when changed", repeatable),
    Feature("place", "A failure shows the file and the true line", place),
    Feature("caret", "A failure shows the place within the line", caret),
    Feature("details", "A failure shows SQLSTATE, DETAIL and HINT", details),
    Feature("stands", "A failure says what was rolled back, truly", what_stands),
    Feature("password", "No error shows the password", password),
    Feature(
        "exit-code", "A read-only look tells by its exit code that files are pending", exit_code
    ),
    Feature("lint", "A look warns of what would block a live database", lint),
    Feature("drift", "A look names what was changed by hand", drift),
    Feature("rehearsal", "A file that cannot work is found on a throwaway database", rehearsal),
    Feature("verification", "Queries beside the files prove the finished database", verification),
    Feature("json", "JSON for machines", machine),
    Feature("script", "One script for psql, which fills the ledger too", script),
    Feature("undo", "The last file can be undone", undo),
)


# --- what only some tools have ---------------------------------------------------------------

OPTIONS: Mapping[tuple[str, type[Tool]], Sequence[str]] = {
    ("late", Dbmate): ["--strict"],
    ("concurrently", Flyway): ["-postgresql.transactional.lock=false"],
    ("invalid", Flyway): ["-postgresql.transactional.lock=false"],
    ("others-index", Flyway): ["-postgresql.transactional.lock=false"],
    ("owner", Flyway): ["-postgresql.transactional.lock=false"],
}
"""What makes a check succeed that fails without it."""

HURRY: Mapping[type[Tool], Sequence[str]] = {
    Ours: ["--wait", "1"],
    Sqitch: ["--lock-timeout", "1"],
    Flyway: ["-lockRetryCount=1"],
}
"""How not to wait long for another run."""

REHEARSALS: Mapping[type[Tool], Sequence[Sequence[str]]] = {
    Ours: [("plan", "--rehearse")],
    Alembic: [("upgrade", "head", "--sql")],
    Graphile: [("commit",)],
}
"""Commands that may find out what would happen."""


def _repeatable_in(place: str) -> Callable[[Case, str], None]:
    def write(case: Case, sql: str) -> None:
        path = case.directory / place
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{sql}\n")

    return write


def _graphile_after_all(case: Case, sql: str) -> None:
    settings = {"afterAllMigrations": [{"_": "sql", "file": "after.sql"}]}
    (case.directory / ".gmrc").write_text(json.dumps(settings))
    (case.directory / "migrations" / "after.sql").write_text(f"{sql}\n")


REPEATABLES: Mapping[type[Tool], Callable[[Case, str], None]] = {
    Ours: _repeatable_in("repeatable/now_at.sql"),
    Flyway: _repeatable_in("sql/R__now_at.sql"),
    Yoyo: _repeatable_in("post-apply.sql"),
    Graphile: _graphile_after_all,
}
"""How a file is written that can be edited after it was applied."""


def _raising(query: str) -> str:
    return f"do $$ begin if exists ({query}) then raise exception 'broken promise'; end if; end $$;"


def _prove_ours(case: Case, query: str) -> Command:
    _repeatable_in("verify/promises.sql")(case, f"-- check: no id is negative\n{query};")
    return case.tool.command(case.directory, case.database.url, "verify")


def _prove_sqitch(case: Case, query: str) -> Command:
    _repeatable_in(f"verify/{ONE.full_name}.sql")(case, _raising(query))
    return case.tool.command(case.directory, case.database.url, "verify")


def _prove_flyway(case: Case, query: str) -> Command:
    _repeatable_in("sql/afterMigrate.sql")(case, _raising(query))
    return case.tool.up(case.directory, case.database.url)


def _prove_yoyo(case: Case, query: str) -> Command:
    _repeatable_in("post-apply.sql")(case, _raising(query))
    return case.tool.up(case.directory, case.database.url)


def _prove_graphile(case: Case, query: str) -> Command:
    _graphile_after_all(case, _raising(query))
    return case.tool.up(case.directory, case.database.url)


PROOFS: Mapping[type[Tool], Callable[[Case, str], Command]] = {
    Ours: _prove_ours,
    Sqitch: _prove_sqitch,
    Flyway: _prove_flyway,
    Yoyo: _prove_yoyo,
    Graphile: _prove_graphile,
}
"""How a query is kept that proves the database, and the command that runs it."""


def _bundle(case: Case) -> tuple[str, str]:
    ran = case.run("bundle")
    return (ran.output, "") if ran.code == 0 else ("", outcome(ran))


def _offline_sql(case: Case) -> tuple[str, str]:
    ran = case.run("upgrade", "head", "--sql")
    return (ran.output, "") if ran.code == 0 else ("", outcome(ran))


def _dump(case: Case) -> tuple[str, str]:
    case.applied(ONE, TWO)
    path = case.directory / "schema.sql"
    ran = case.run("--schema-file", str(path), "dump")
    return (path.read_text(), "") if ran.code == 0 else ("", outcome(ran))


def _paid_dry_run(case: Case) -> tuple[str, str]:
    paid = re.search(r"dryRunOutput +\[teams\].*", case.run(*case.tool.help).output)
    return "", f"{_PAID}: {paid[0]}" if paid else "not in its help"


def _bundle_directory(case: Case) -> tuple[str, str]:
    case.run("bundle")
    found = sorted(path.name for path in (case.directory / "bundle").iterdir())
    return "", f"`bundle` makes a directory for the tool itself: {', '.join(found)}"


SCRIPTS: Mapping[type[Tool], Callable[[Case], tuple[str, str]]] = {
    Ours: _bundle,
    Sqitch: _bundle_directory,
    Alembic: _offline_sql,
    Dbmate: _dump,
    Flyway: _paid_dry_run,
}
"""How everything is had as one script: its text, or why there is none."""


def _models(case: Case) -> None:
    """Give Alembic a model of the table."""
    path = case.directory / "alembic" / "env.py"
    text = path.read_text().replace("context.configure(", "context.configure(target_metadata=m, ")
    model = "from sqlalchemy import Column, Integer, MetaData, Table\n\nm = MetaData()\n"
    model += 'Table("one", m, Column("id", Integer))\n\n'
    path.write_text(text.replace("url = os", f"{model}url = os"))


# --- judging ---------------------------------------------------------------------------------


def judge(bench: Bench, feature: Feature, tool: Tool) -> Verdict:
    """Run one check on one tool, once more with an option where it has one."""

    def once(options: Sequence[str]) -> Verdict:
        with fresh(bench.server) as database:
            case = Case(bench, tool, database, STATE / "case", options)
            try:
                return feature.check(case)
            except (RuntimeError, psycopg.Error, OSError) as error:
                return Verdict(UNKNOWN, "the check could not be run", str(error).strip())

    verdict = once(())
    options = OPTIONS.get((feature.key, type(tool)))
    if options is None or verdict.answer == YES:
        return verdict
    again = once(options)
    if again.answer != YES:
        return verdict
    without = f"; without it: {verdict.note}" if verdict.note else ""
    return Verdict(PARTLY, f"with `{' '.join(options)}`{without}", again.evidence)


def _noticed(before: Mapping[str, Ran], after: Mapping[str, Ran]) -> str:
    """The look that found nothing wrong before, and does now."""
    changed = [name for name in before if before[name].code == 0 and after[name].code != 0]
    return changed[0] if changed else ""


def _refuses(case: Case, ran: Ran, untouched: str, noticed: str) -> Verdict:
    if ran.code != 0 and not case.exists(untouched):
        return Verdict(YES, evidence=outcome(ran))
    if noticed:
        return Verdict(PARTLY, f"only `{noticed}` finds it", outcome(ran))
    return Verdict(NO, "", outcome(ran))


def _absent(case: Case, word: str, note: str) -> Verdict:
    """No, provided that the tool's help doesn't speak of it."""
    ran = case.run(*case.tool.help)
    if found := re.search(word, ran.output):
        return Verdict(UNKNOWN, "its help speaks of it", found[0])
    return Verdict(NO, note, f"not in `{' '.join(case.tool.help)}`")


def _broken(case: Case) -> tuple[Migration, Ran]:
    migration = Migration(2, "shops", _BROKEN)
    case.applied(ONE)
    case.layout(ONE, migration)
    return migration, case.up()


def outcome(ran: Ran) -> str:
    """How a command ended, and its last lines."""
    if ran.code is None:
        return f"did not end: {ran.output[-200:]}"
    lines = [line.strip() for line in ran.output.splitlines() if line.strip()]
    return f"exit code {ran.code}: {' | '.join(lines[-3:])[-300:]}"


def _wait_until(happened: Callable[[], bool], timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if happened():
            return True
        time.sleep(0.1)
    return False
