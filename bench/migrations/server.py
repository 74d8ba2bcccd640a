"""The PostgreSQL server of the comparison: its own, with the settings it comes with, fsync on."""

import itertools
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql

from bench.migrations import STATE
from bench.migrations.process import children, title
from embedded.postgres import Server, embedded_bin

Row = tuple[object, ...]

_NAMES = (f"bench_{number}" for number in itertools.count(1))


@dataclass(frozen=True)
class Database:
    """An empty database of the server."""

    server: Server
    name: str

    @property
    def url(self) -> str:
        """For any tool that takes a libpq URL."""
        return self.server.url(self.name)

    def query(self, query: str) -> list[Row]:
        """The rows of a query, run in a session of its own."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(query.encode())
            return cursor.fetchall() if cursor.description else []

    def sessions(self) -> list[int]:
        """The process ids of the server's sessions in this database."""
        postmaster = int((self.server.data / "postmaster.pid").read_text().split()[0])
        wanted = f" {self.name} "
        return [pid for pid in children(postmaster) if wanted in title(pid)]

    @contextmanager
    def counted(self) -> Iterator[dict[str, int]]:
        """Count the sessions and the queries of what runs inside, by the server's log."""
        counts = {"connections": 0, "queries": 0}
        log = self.server.directory / "server.log"
        self.query(f"alter database {self.name} set log_statement = 'all'")
        before = log.stat().st_size
        yield counts
        while self.sessions():
            time.sleep(0.05)
        with log.open(errors="replace") as file:
            file.seek(before)
            line = re.compile(rf"{self.name}\|(\d+)\|LOG:  (?:statement|execute)")
            found = [match[1] for match in map(line.match, file) if match]
        counts["queries"] = len(found)
        counts["connections"] = len(set(found))
        self.query(f"alter database {self.name} reset log_statement")


def start(bin_directory: Path | None) -> Server:
    """Start the server; it keeps its directory for the next time."""
    binaries = bin_directory or embedded_bin()
    major = re.sub(r"\D", "", binaries.parent.name)
    server = Server(STATE / f"server-{major}", binaries, settings={"log_line_prefix": "%d|%p|"})
    server.start()
    return server


@contextmanager
def fresh(server: Server) -> Iterator[Database]:
    """A new database, dropped afterwards."""
    name = next(_NAMES)
    with psycopg.connect(server.url(), autocommit=True) as connection:
        identifier = sql.Identifier(name)
        drop = sql.SQL("drop database if exists {} with (force)").format(identifier)
        connection.execute(drop)
        connection.execute(sql.SQL("create database {} template template0").format(identifier))
        connection.execute("checkpoint")  # nobody pays for what was written before
        try:
            yield Database(server, name)
        finally:
            connection.execute(drop)


def environment(server: Server) -> Mapping[str, str]:
    """All that a tool inherits: nobody's own settings, and psql of the server's version."""
    home = STATE / "home"
    home.mkdir(parents=True, exist_ok=True)
    return {
        "PATH": f"{server.bin}:{os.environ.get('PATH', os.defpath)}",
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "TZ": "UTC",
        "NO_COLOR": "1",
    }
