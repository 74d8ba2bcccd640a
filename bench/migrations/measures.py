"""What is measured: many small files, nothing to do, one big file.

The tools take turns within each round, each run on a new database, so that what else the machine
does meets all of them alike; what counts is the ratio of the medians.
"""

import json
import re
import shutil
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.migrations import ROOT, STATE
from bench.migrations.process import Command, Ran, Running, watched
from bench.migrations.server import Database, fresh
from bench.migrations.tools import Migration, Ours, Psql, Tool
from embedded.postgres import Server

MANY, FEW = 1000, 10
"""Small files."""

BIG = 50_000_000
"""Bytes of the one big file."""

PATIENCE = 3600.0
"""Seconds that a run may take."""

SLOW = 10
"""A tool that took this many times the floor in the first round sits the others out."""

PSYCOPG = "python, psycopg, one query"

FILES = STATE / "files"


@dataclass(frozen=True)
class Bench:
    """What every measure works with."""

    server: Server
    environment: Mapping[str, str]
    tools: Sequence[Tool]
    rounds: int

    def run(self, command: Command, timeout: float = PATIENCE) -> Ran:
        """Run a command in the environment that all tools share."""
        return Running(command, self.environment).end(timeout)

    def tool(self, wanted: type[Tool]) -> Tool | None:
        """The tool of a class, if it takes part."""
        return next((tool for tool in self.tools if isinstance(tool, wanted)), None)


@dataclass
class Figures:
    """One tool's figures in one measure.

    Attributes:
        seconds: of each run.
        failure: why there are no more of them; empty when all went well.
        others: what else was measured, by its name in the table.
    """

    seconds: list[float] = field(default_factory=list)
    failure: str = ""
    others: dict[str, float] = field(default_factory=dict)


Measured = dict[str, Figures]
"""By the tool's title, the floor first."""


def many(bench: Bench) -> dict[str, Measured]:
    """1,000 small files on an empty database."""
    migrations = small(MANY)

    def once(tool: Tool, database: Database, directory: Path, figures: Figures) -> None:
        ran = bench.run(tool.up(directory, database.url))
        found = database.query("select count(*) from pg_class where relname like 'item\\_____'")
        if _went_well(ran, figures, found == [(MANY,)]):
            figures.seconds.append(ran.seconds)

    return {f"{MANY} small files": _rounds(bench, f"{MANY} small files", migrations, once)}


def big(bench: Bench) -> dict[str, Measured]:
    """One data migration of 50 MB, with one row and with 1,000 rows a statement."""
    found = {}
    for rows in (1000, 1):
        title = f"{BIG // 1_000_000} MB with {rows} row{'s'[: rows - 1]} a statement"
        migration, total = data(rows)

        def once(
            tool: Tool, database: Database, directory: Path, figures: Figures, total: int = total
        ) -> None:
            running = Running(tool.up(directory, database.url), bench.environment)
            with watched(running.pid, database.sessions) as memory:
                ran = running.end(PATIENCE)
            right = ran.code == 0 and database.query("select count(*) from reading") == [(total,)]
            if _went_well(ran, figures, right):
                figures.seconds.append(ran.seconds)
                for name, peak in (("client", memory.client), ("backend", memory.backend)):
                    figures.others[name] = max(figures.others.get(name, 0), peak)

        found[title] = _rounds(bench, title, [migration], once)
    return found


def nothing(bench: Bench) -> dict[str, Measured]:
    """The same command again with nothing to do."""
    figures = {tool.title: Figures() for tool in bench.tools}
    with ExitStack() as stack:
        commands: dict[str, Command] = {}
        for tool in bench.tools:
            for count in (FEW, MANY):
                database = stack.enter_context(fresh(bench.server))
                directory = FILES / f"nothing-{tool.title.replace(' ', '-')}-{count}"
                tool.layout(directory, small(count))
                _say(f"nothing to do: {tool.title}: applying {count} files")
                ran = bench.run(tool.up(directory, database.url))
                if not _went_well(ran, figures[tool.title], right=True):
                    break
                again = tool.up(directory, database.url)
                if isinstance(tool, Psql):
                    again = tool.command(directory, database.url, "--command", "select 1")
                with database.counted() as counts:
                    bench.run(again)
                for name, number in counts.items():
                    figures[tool.title].others[f"{name}, {count} files"] = number
                commands[tool.title] = again
        database = stack.enter_context(fresh(bench.server))
        code = f"import psycopg; psycopg.connect({database.url!r}).execute('select 1')"
        commands[PSYCOPG] = Command([sys.executable, "-c", code], ROOT)
        figures[PSYCOPG] = Figures()
        for number in range(bench.rounds * 3):
            for title, command in commands.items():
                if not figures[title].failure:
                    ran = bench.run(command)
                    if _went_well(ran, figures[title], right=True):
                        figures[title].seconds.append(ran.seconds)
            _say(f"nothing to do: round {number + 1} of {bench.rounds * 3}")
    shutil.rmtree(FILES, ignore_errors=True)
    return {"nothing to do": figures}


def warm(bench: Bench) -> dict[str, Measured]:
    """Nothing to do in a warm process, beside a bare connection that runs one query."""
    figures: Measured = {}
    for count in (FEW, MANY):
        directory = FILES / "warm"
        tool = Ours()
        tool.layout(directory, small(count))
        with fresh(bench.server) as database:
            ran = bench.run(tool.up(directory, database.url))
            inside = Figures()
            figures[f"{count} files"] = inside
            if not _went_well(ran, inside, right=True):
                continue
            arguments = [sys.executable, "-m", "bench.migrations.warm"]
            ran = bench.run(Command([*arguments, str(directory), database.url], ROOT))
            if _went_well(ran, inside, right=True):
                inside.others.update(json.loads(ran.output))
    shutil.rmtree(FILES, ignore_errors=True)
    return {"nothing to do, in a warm process": figures}


def small(count: int) -> list[Migration]:
    """Migrations as most are: a table and a row."""
    return [
        Migration(
            number,
            f"item_{number:04d}",
            f"-- Items of kind {number}, and the first of them.\n"
            f"create table item_{number:04d} (\n"
            "  id bigint generated always as identity primary key,\n"
            "  name text not null,\n"
            "  created_at timestamptz not null default now()\n"
            ");\n\n"
            f"insert into item_{number:04d} (name) values ('first');",
        )
        for number in range(1, count + 1)
    ]


def data(rows: int) -> tuple[Migration, int]:
    """A data migration of `BIG` bytes with so many rows a statement, and its rows in all."""
    parts = ["create table reading (id bigint, account text, taken_at timestamptz, note text);\n"]
    size, total = len(parts[0]), 0
    while size < BIG:
        values = [
            f"({number}, 'account-{number % 997:04d}', '2026-01-01 00:00:00+00', "
            f"'reading {number}; as the meter''s owner told it')"
            for number in range(total + 1, total + rows + 1)
        ]
        parts.append(f"insert into reading values {','.join(values)};\n")
        size += len(parts[-1])
        total += rows
    return Migration(1, "reading", "".join(parts).strip()), total


def _rounds(
    bench: Bench,
    title: str,
    migrations: Sequence[Migration],
    once: Callable[[Tool, Database, Path, Figures], None],
) -> Measured:
    """Run each tool once a round, the floor first."""
    figures: Measured = {tool.title: Figures() for tool in bench.tools}
    for number in range(bench.rounds):
        for tool in bench.tools:
            mine = figures[tool.title]
            if mine.failure or _is_slow(figures, tool):
                continue
            tool.layout(FILES, migrations)
            with fresh(bench.server) as database:
                once(tool, database, FILES, mine)
            said = mine.failure or f"{mine.seconds[-1]:.2f} s"
            _say(f"{title}: round {number + 1} of {bench.rounds}: {tool.title}: {said}")
    shutil.rmtree(FILES, ignore_errors=True)
    return figures


def _is_slow(figures: Measured, tool: Tool) -> bool:
    floor, mine = figures.get(Psql.title), figures[tool.title]
    if floor is None or not floor.seconds or not mine.seconds:
        return False
    return mine.seconds[0] > SLOW * floor.seconds[0]


def _went_well(ran: Ran, figures: Figures, right: bool) -> bool:
    if ran.code == 0 and right:
        return True
    ending = "did not end" if ran.code is None else f"exit code {ran.code}"
    output = ran.output.replace(f"{ROOT}/", "")
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    told = [line for line in lines if re.search(r"(?i)error|exception", line)] or lines
    last = told[-1][:120] if told else ""
    figures.failure = f"failed: {ending}{'' if right else ', wrong result'}: {last}"
    return False


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def median(values: Sequence[float]) -> float:
    """Of at least one value."""
    return statistics.median(values)


def encode(measured: Mapping[str, Measured]) -> dict[str, Any]:
    """As JSON."""
    return {
        title: {name: vars(figures) for name, figures in each.items()}
        for title, each in measured.items()
    }


def decode(stored: Mapping[str, Any]) -> Iterator[tuple[str, Measured]]:
    """From JSON."""
    for title, each in stored.items():
        yield title, {name: Figures(**figures) for name, figures in each.items()}
