"""Crash safety: a run is cut off at every step, and the next one makes it whole.

A step is a message that a run sends to the server.  The run is a process of its own and speaks to
the server through `drive`, which knows where each message and its answer ends: so no step is
missed, however the engine sends it.  Left out are those that leave open a transaction which was
open before: the server rolls it back, to what its first message left, which is no step less.

Exactly once holds for every statement that commits together with the note that it is done.  Those
that refuse a transaction, or may have one of their own (DO, CALL), are noted afterwards: cut off
in between, they are carried out again.
"""

import os
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, LiteralString

import psutil  # type: ignore[import-untyped]
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from embedded.postgres import Server
from migrate import __main__ as cli
from migrate import catalog, files, ledger, run, verify
from migrate.connection import connect
from migrate.session import Connection
from tests.support.platforms import own_server

# --- a run that is cut off -------------------------------------------------------------------

SENT = "when it is sent"
ANSWERED = "when it is answered, but the answer not read"


@dataclass
class Outcome:
    """How a run ended.

    Attributes:
        code: its exit code; negative when a signal ended it.
        text: what it printed.
        sent: the SQL of each of its messages, the one included at which it was cut off.
        open: whether a transaction was open after each of them.
    """

    code: int = 0
    text: str = ""
    sent: list[str] = field(default_factory=list)
    open: list[bool] = field(default_factory=list)


class Stream:
    """One end of a connection, as whole messages of PostgreSQL's protocol."""

    def __init__(self, end: socket.socket) -> None:
        self.end = end
        self.end.settimeout(60)
        self._data = bytearray()

    def message(self, type_bytes: int = 1) -> bytes:
        while len(self._data) < (length := self._length(type_bytes)):
            received = self.end.recv(1 << 16)
            if not received:
                raise EOFError
            self._data += received
        message = bytes(self._data[:length])
        del self._data[:length]
        return message

    def _length(self, type_bytes: int) -> int:
        if len(self._data) < type_bytes + 4:
            return type_bytes + 4
        return type_bytes + int(struct.unpack_from("!i", self._data, type_bytes)[0])

    def messages_to(self, *last: bytes) -> list[bytes]:
        """All messages to the first of one of these types."""
        found = [self.message()]
        while found[-1][:1] not in last:
            found.append(self.message())
        return found

    def send(self, *messages: bytes) -> None:
        self.end.sendall(b"".join(messages))


def sql_of(message: bytes) -> str:
    """The SQL of a Query or a Parse."""
    parts = message[5:].split(b"\0")
    return parts[0 if message[:1] == b"Q" else 1].decode()


def start(url: str, directory: Path, output: Path) -> int:
    """Start `python -m migrate up` as a fork of this process; its pid."""
    if pid := os.fork():
        return pid
    code = 70
    try:
        with output.open("w") as sys.stdout:
            sys.stderr = sys.stdout
            try:
                code = cli.main(["up", "--directory", str(directory), "--database-url", url])
            except BaseException:
                traceback.print_exc()
    finally:
        os._exit(code)


def drive(
    url: str,
    directory: Path,
    output: Path,
    step: int = -1,
    moment: str = "",
    cut: Callable[[int], None] = lambda pid: os.kill(pid, signal.SIGKILL),
) -> Outcome:
    """Run through a wire that is watched, and cut it off at a moment of a step, counted from 0.

    `cut` gets the pid of the run, and kills it or the server.  Afterwards the wire is cut.
    """
    outcome = Outcome()
    place = conninfo_to_dict(url)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(30)
        through = make_conninfo(url, port=listener.getsockname()[1], gssencmode="disable")
        pid = start(through, directory, output)
        accepted, _ = listener.accept()
    client = Stream(accepted)
    server = Stream(socket.create_connection((str(place["host"]), int(str(place["port"])))))

    def at(now: str) -> bool:
        if (len(outcome.sent) - 1, moment) != (step, now):
            return False
        cut(pid)
        return True

    with client.end, server.end, suppress(EOFError, ConnectionError):
        server.send(client.message(type_bytes=0))
        while True:  # the server asks for the password, in messages of type R, and is then ready
            *others, last = server.messages_to(b"R", b"Z")
            client.send(*others, last)
            if last[:1] == b"Z":
                break
            if last[5:9] in (b"\0\0\0\x0a", b"\0\0\0\x0b"):
                server.send(client.message())
        while True:
            asked = client.messages_to(b"Q", b"S", b"X")
            if asked[0][:1] == b"X":
                break
            outcome.sent.append(sql_of(asked[0]))
            server.send(*asked)
            if at(SENT):
                break
            answer = server.messages_to(b"Z")
            outcome.open.append(answer[-1][5:] != b"I")
            if at(ANSWERED):
                break
            client.send(*answer)
    _, status = os.waitpid(pid, 0)
    outcome.code = os.waitstatus_to_exitcode(status)
    outcome.text = output.read_text()
    return outcome


# --- what is run, and what is to be whole afterwards -----------------------------------------

PIECES = "".join(
    f"-- A piece that is longer than a block: {'x' * 60}\n"
    f"insert into log values ('0003 {n}');\ncreate table t{n} (a int);\n"
    for n in range(3)
)

FIRST = {
    "migrations/0001_base.sql": """
        create schema other;
        create table log (entry text);
        create table t (a int);
        insert into t select generate_series(1, 100);
        insert into log values ('0001');
    """,
    "migrations/0002_index.sql": """-- migrate: no-transaction
        insert into log values ('0002 first');
        create unique index concurrently t_a on t (a);
        do $$ begin insert into log values ('0002 do'); end $$;
        set search_path = other, public;
        create table u (a int);
        insert into log values ('0002 last');
    """,
    "migrations/0003_pieces.sql": PIECES,
    "repeatable/a.sql": "create or replace view v as select 1 as a; insert into log values ('a');",
    "repeatable/b.sql": "create or replace view w as select 2 as a; insert into log values ('b');",
}

SHORT = {
    "migrations/0001_base.sql": FIRST["migrations/0001_base.sql"],
    "migrations/0002_index.sql": """-- migrate: no-transaction
        create unique index concurrently t_a on t (a);
        insert into log values ('0002');
        do $$ begin insert into log values ('0002 do'); end $$;
    """,
    "repeatable/a.sql": FIRST["repeatable/a.sql"],
}

LATER = {
    "migrations/0004_more.sql": "alter table t add column b int; insert into log values ('0004');",
    "repeatable/a.sql": "create or replace view v as select 3 as a; insert into log values ('a');",
    "repeatable/c.sql": """-- migrate: no-transaction
        create index concurrently if not exists t_b on t (b);
        insert into log values ('c');
    """,
}

CASES: dict[str, tuple[Mapping[str, str], Mapping[str, str], set[str]]] = {
    # what was applied before, what is written then, what is removed then
    "first run": ({}, FIRST, set()),
    "later run": (FIRST, LATER, {"repeatable/b.sql"}),
    "short run": ({}, SHORT, set()),
}

RESET = "drop schema if exists public, other, migrate cascade; create schema public"
LOG = "select entry, count(*) from log group by entry"
LEFTOVERS: LiteralString = """
    select 'progress of ' || name from migrate.progress
    union all select 'invalid index ' || indexrelid::regclass from pg_index where not indisvalid
    union all select 'a run under way' from migrate.catalog where in_progress is not null
"""


def write(directory: Path, contents: Mapping[str, str]) -> None:
    for name, text in contents.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(text)


def query(url: str, statement: LiteralString) -> list[Any]:
    with psycopg.connect(url, autocommit=True) as session:
        cursor = session.execute(statement)
        return cursor.fetchall() if cursor.description else []


@dataclass(frozen=True)
class State:
    """All that the runs so far have left; the objects are as recorded, or it is not verified."""

    log: Mapping[str, int]
    applied: Mapping[str, str]
    recorded: ledger.RecordedCatalog | None
    leftovers: Sequence[Any]

    @classmethod
    def of(cls, session: Connection, directory: Path) -> "State":
        assert verify.check(session, files.read_tree(directory)) == 0
        return cls(
            dict(session.execute(LOG).fetchall()),
            dict(session.execute("select name, sha256 from migrate.ledger").fetchall()),
            ledger.recorded_catalog(session),
            session.execute(LEFTOVERS).fetchall(),
        )

    def wrong(self, expected: "State") -> list[str]:
        return [
            f"{name} is {vars(self)[name]}, not {right}"
            for name, right in vars(expected).items()
            if vars(self)[name] != right
        ]


def up(session: Connection, directory: Path) -> list[str]:
    return [file.label for file in run.up(session, files.read_tree(directory))]


class Case:
    """A state that a run begins with, what it leaves when nothing disturbs it, and its steps."""

    def __init__(self, name: str, url: str, tmp_path: Path) -> None:
        self.url = url
        self.output = tmp_path / "output"
        self.before, self.directory = tmp_path / "before", tmp_path / "sql"
        earlier, written, removed = CASES[name]
        for directory in (self.before, self.directory):
            directory.mkdir()
            write(directory, earlier)
        write(self.directory, written)
        for gone in removed:
            (self.directory / gone).unlink()
        self.reset()
        undisturbed = drive(url, self.directory, self.output)
        assert undisturbed.code == 0, undisturbed.text
        self.steps = undisturbed.sent
        open_before = [False, *undisturbed.open]
        self.lasting = [
            step
            for step, text in enumerate(self.steps)
            if text != "BEGIN"
            and not (open_before[step] and undisturbed.open[step : step + 1] == [True])
        ]
        """The steps that may leave something when they are the last."""
        print(name, len(self.steps), "steps,", len(self.lasting), "of them lasting")
        with connect(url) as session:
            self.whole = State.of(session, self.directory)
            objects = catalog.read(session)
        assert self.whole.recorded
        assert self.whole.recorded.objects == objects
        assert self.whole.recorded.drift_before is None
        assert self.whole.leftovers == []

    def reset(self) -> None:
        with connect(self.url) as session:
            session.execute(RESET)
            up(session, self.before)

    def cut(self, step: int, moment: str, **options: Any) -> Outcome:
        self.reset()
        outcome = drive(self.url, self.directory, self.output, step, moment, **options)
        assert len(outcome.sent) == step + 1, "the step was not reached"
        return outcome

    def finish(self, step: int, moment: str) -> list[str]:
        """What is wrong after the next run."""
        with connect(self.url) as session:
            up(session, self.directory)
            found = State.of(session, self.directory)
            again = up(session, self.directory)
        wrong = found.wrong(self.whole) + [f"applied again: {label}" for label in again]
        what = " ".join(self.steps[step].split())[:80]
        return [f"cut off at step {step}, {moment}: {what}\n    {each}" for each in wrong]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a file of some lines one of several pieces."""
    monkeypatch.setattr("migrate.script._PIECE_SIZE", 64)


# --- the process is killed -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["first run", "later run"])
def test_a_run_killed_at_any_step_is_finished_by_the_next(
    name: str, database: str, tmp_path: Path
) -> None:
    """What a step has left when it was sent is what there is before the next one, too."""
    case = Case(name, database, tmp_path)
    wrong = []
    for step in case.lasting:
        outcome = case.cut(step, SENT)
        assert outcome.code == -signal.SIGKILL
        wrong += case.finish(step, SENT)
    assert not wrong, "\n".join(wrong)


# --- the server is killed --------------------------------------------------------------------


def crash(server: Server) -> None:
    """Stop a server as `pg_ctl stop -m immediate` does."""
    postmaster = psutil.Process(int((server.data / "postmaster.pid").read_text().split()[0]))
    postmaster.send_signal(signal.SIGQUIT)
    postmaster.wait(60)


def is_clear(text: str) -> bool:
    """Whether a broken connection is told with what stands and what to do."""
    told = ("the connection broke: ", "committed in this run: ", "what to do: run again")
    return "Traceback" not in text and all(words in text for words in told)


def test_a_run_whose_server_is_killed_at_any_step_is_finished_by_the_next(
    postgres_bin: Path, tmp_path: Path
) -> None:
    wrong = []
    with own_server(tmp_path, postgres_bin) as server:
        case = Case("short run", server.url(), tmp_path)
        for step in range(len(case.steps)):
            if step in case.lasting:
                outcome = case.cut(step, ANSWERED, cut=lambda _: crash(server))
                server.start()
                wrong += case.finish(step, ANSWERED)
            else:
                outcome = case.cut(step, ANSWERED, cut=lambda _: None)
            if outcome.code != cli.ERROR or not is_clear(outcome.text):
                wrong.append(f"step {step}: exit code {outcome.code}\n{outcome.text}")
    assert not wrong, "\n".join(wrong)


# Words that the first message of a kind begins with, and what has to be said when it breaks there.
BROKEN = {
    "before anything is applied": ("create schema", "committed in this run: nothing"),
    "in a transaction": ("deallocate all;discard temp;close all;begin;", "0001_base.sql"),
    "without one": ("create table u", "not rolled back: 4 of the statements"),
    "after everything is applied": ("select pg_advisory_unlock", "0003_pieces.sql, a.sql, b.sql"),
}


def test_a_connection_that_breaks_is_told_with_what_stands_and_what_to_do(
    database: str, tmp_path: Path
) -> None:
    case = Case("first run", database, tmp_path)
    for place, (words, told) in BROKEN.items():
        step = next(n for n, text in enumerate(case.steps) if text.startswith(words))
        outcome = case.cut(step, ANSWERED, cut=lambda _: None)
        assert outcome.code == cli.ERROR, place
        assert is_clear(outcome.text), place
        assert told in outcome.text, place
