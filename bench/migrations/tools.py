"""The tools that are compared: how each wants its files, and how it is called.

A migration is plain SQL here; each tool's class writes it as that tool's documentation says, one
transaction a file.
"""

import hashlib
import re
import shutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

from bench.migrations import ROOT, install
from bench.migrations.process import Command, Running


@dataclass(frozen=True)
class Migration:
    """One migration.

    Attributes:
        number: its place in the order.
        after: the number before it; None for that of the file before it.
        transaction: False where it cannot run in one.
        marked: False to leave out the markers that a tool may want around a statement.
        undo: what takes it back.
    """

    number: int
    name: str
    sql: str
    after: int | None = None
    transaction: bool = True
    marked: bool = True
    undo: str = "select 1;"

    @property
    def full_name(self) -> str:
        """Number and name."""
        return f"{self.number:04d}_{self.name}"


class Tool(ABC):
    """A tool that applies migrations.

    Creating one installs it, and raises `MissingError` where that cannot be done.

    Attributes:
        title: its name in the tables.
        ledger: the table in which it keeps what is applied.
        version_of: arguments that print the version.
        apply: arguments that apply what is pending.
        looks: arguments of the commands that look at files and database and change nothing.
        undo: arguments that take the last migration back, where it can.
        json: arguments of a look that prints JSON, where it can.
        help: arguments that list its commands.
    """

    title: ClassVar[str]
    ledger: ClassVar[str]
    version_of: ClassVar[Sequence[str]] = ("--version",)
    apply: ClassVar[Sequence[str]]
    looks: ClassVar[Sequence[Sequence[str]]]
    undo: ClassVar[Sequence[str]] = ()
    json: ClassVar[Sequence[str]] = ()
    help: ClassVar[Sequence[str]] = ("--help",)

    @abstractmethod
    def file(self, directory: Path, migration: Migration) -> Path:
        """Where a migration is kept."""

    @abstractmethod
    def text(self, migration: Migration) -> str:
        """What its file holds."""

    @abstractmethod
    def command(self, directory: Path, url: str, *arguments: str) -> Command:
        """A call of the tool."""

    def layout(self, directory: Path, migrations: Sequence[Migration]) -> None:
        """Write all files; what was there before goes."""
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        before = 0
        for migration in migrations:
            file = self.file(directory, migration)
            file.parent.mkdir(parents=True, exist_ok=True)
            ordered = replace(
                migration, after=before if migration.after is None else migration.after
            )
            file.write_text(self.text(ordered))
            before = migration.number

    def up(self, directory: Path, url: str, *options: str) -> Command:
        """Apply what is pending."""
        return self.command(directory, url, *self.apply, *options)

    def version(self, environment: Mapping[str, str]) -> str:
        """As the tool itself tells."""
        command = self.command(ROOT, "postgresql://u:p@127.0.0.1:1/d", *self.version_of)
        found = re.search(r"\d+(\.\d+)+", Running(command, environment).end(60).output)
        return found[0] if found else "?"


class Psql(Tool):
    """The floor: one session of psql, each file in a transaction with its row in a ledger."""

    title = "psql"
    ledger = "ledger"
    apply = ("--file", "run.sql")
    looks = (("--command", "select 1"),)

    def file(self, directory: Path, migration: Migration) -> Path:  # noqa: D102
        return directory / f"{migration.full_name}.sql"

    def text(self, migration: Migration) -> str:  # noqa: D102
        return migration.sql + "\n"

    def layout(self, directory: Path, migrations: Sequence[Migration]) -> None:
        """Beside the files, a script that runs them all."""
        super().layout(directory, migrations)
        lines = ["create table ledger (name text primary key, at timestamptz default now());"]
        for migration in migrations:
            name = migration.full_name
            lines += ["begin;", f"\\i {name}.sql", f"insert into ledger values ('{name}');"]
            lines += ["commit;"]
        (directory / "run.sql").write_text("\n".join(lines))

    def command(self, directory: Path, url: str, *arguments: str) -> Command:  # noqa: D102
        options = ["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1"]
        return Command(["psql", url, *options, *arguments], directory)


class Ours(Tool):
    """The engine of this repository, by its command line."""

    title = "python -m migrate"
    ledger = "migrate.ledger"
    apply = ("up",)
    looks = (("plan",), ("verify",), ("status",))
    json = ("plan", "--json")

    def file(self, directory: Path, migration: Migration) -> Path:  # noqa: D102
        return directory / "migrations" / f"{migration.full_name}.sql"

    def text(self, migration: Migration) -> str:  # noqa: D102
        header = "" if migration.transaction else "-- migrate: no-transaction\n"
        return f"{header}{migration.sql}\n"

    def command(self, directory: Path, url: str, *arguments: str) -> Command:  # noqa: D102
        where = ["--directory", str(directory), "--database-url", url]
        return Command([sys.executable, "-m", "migrate", *where, *arguments], ROOT)

    def version(self, environment: Mapping[str, str]) -> str:  # noqa: ARG002, D102
        return "of this repository"


class Goose(Tool):
    """A Go program; statements that hold a semicolon need markers."""

    title = "goose"
    ledger = "goose_db_version"
    apply = ("up",)
    looks = (("status",), ("validate",))
    undo = ("down",)
    help = ("-h",)

    def __init__(self) -> None:
        self._program = install.go() / "goose"

    def file(self, directory: Path, migration: Migration) -> Path:  # noqa: D102
        return directory / f"{migration.full_name}.sql"

    def text(self, migration: Migration) -> str:  # noqa: D102
        header = "" if migration.transaction else "-- +goose NO TRANSACTION\n"
        body = migration.sql
        if "$$" in body and migration.marked:
            body = f"-- +goose StatementBegin\n{body}\n-- +goose StatementEnd"
        return f"{header}-- +goose Up\n{body}\n-- +goose Down\n{migration.undo}\n"

    def command(self, directory: Path, url: str, *arguments: str) -> Command:  # noqa: D102
        if arguments[0].startswith("-"):
            return Command([str(self._program), *arguments], directory)
        where = ["-dir", str(directory)]
        if arguments[0] != "validate":  # which asks no database
            where += ["postgres", url]
        return Command([str(self._program), *where, *arguments], directory)


class Dbmate(Tool):
    """A Go program, from its npm package, which brings the binary."""

    title = "dbmate"
    ledger = "schema_migrations"
    apply = ("migrate",)
    looks = (("status", "--exit-code"),)
    undo = ("rollback",)

    def __init__(self) -> None:
        found = list((install.npm() / "@dbmate").glob("*/bin/dbmate"))
        if not found:
            raise install.MissingError("not installable: its npm package has no binary for here")
        self._program = found[0]

    def file(self, directory: Path, migration: Migration) -> Path:  # noqa: D102
        return directory / "db" / "migrations" / f"{migration.full_name}.sql"

    def text(self, migration: Migration) -> str:  # noqa: D102
        option = "" if migration.transaction else " transaction:false"
        return f"-- migrate:up{option}\n{migration.sql}\n\n-- migrate:down\n{migration.undo}\n"

    def command(self, directory: Path, url: str, *arguments: str) -> Command:  # noqa: D102
        where = ["--url", url, "--migrations-dir", str(directory / "db" / "migrations")]
        return Command([str(self._program), *where, "--no-dump-schema", *arguments], directory)


class Sqitch(Tool):
    """A Perl program that calls psql; each script says its own `begin` and `commit`."""

    title = "sqitch"
    ledger = "sqitch.changes"
    apply = ("deploy",)
    looks = (("status",), ("check",), ("verify",))
    undo = ("revert", "-y", "--to", "@HEAD^")
    help = ("help",)

    def __init__(self) -> None:
        self._program = install.debian("sqitch", "sqitch")

    def file(self, directory: Path, migration: Migration) -> Path:  # noqa: D102
        return directory / "deploy" / f"{migration.full_name}.sql"

    def text(self, migration: Migration) -> str:  # noqa: D102
        return _in_transaction(migration.sql) if migration.transaction else migration.sql + "\n"

    def layout(self, directory: Path, migrations: Sequence[Migration]) -> None:
        """Beside the files, the plan that orders them and the scripts that take them back."""
        super().layout(directory, migrations)
        (directory / "sqitch.conf").write_text("[core]\n\tengine = pg\n")
        plan = ["%syntax-version=1.0.0", "%project=bench", ""]
        (directory / "revert").mkdir()
        for migration in migrations:
            name = migration.full_name
            plan.append(f"{name} 2026-01-01T00:00:00Z Bench <bench@localhost> # {name}")
            (directory / "revert" / f"{name}.sql").write_text(_in_transaction(migration.undo))
        (directory / "sqitch.plan").write_text("\n".join(plan) + "\n")

    def command(self, directory: Path, url: str, *arguments: str) -> Command:  # noqa: D102
        without = ("bundle", "help", "--version")
        target = [] if arguments[0] in without else ["--target", f"db:{url}"]
        return Command(
            [str(self._program), arguments[0], *target, *arguments[1:]],
            directory,
            {"SQITCH_FULLNAME": "Bench", "SQITCH_EMAIL": "bench@localhost"},
        )


def _in_transaction(sql: str) -> str:
    return f"begin;\n\n{sql}\n\ncommit;\n"


class Flyway(Tool):
    """A Java program, from its jars."""

    title = "Flyway"
    ledger = "flyway_schema_history"
    apply = ("migrate",)
    looks = (("validate",), ("info",), ("check", "-drift"))
    undo = ("undo",)
    json = ("info", "-outputType=json")

    def __init__(self) -> None:
        self._jars = install.maven()

    def file(self, directory: Path, migration: Migration) -> Path:  # noqa: D102
        return directory / "sql" / f"V{migration.number:04d}__{migration.name}.sql"

    def text(self, migration: Migration) -> str:  # noqa: D102
        return migration.sql + "\n"

    def layout(self, directory: Path, migrations: Sequence[Migration]) -> None:
        """Beside a file without a transaction, the file that says so."""
        super().layout(directory, migrations)
        for migration in migrations:
            if not migration.transaction:
                file = self.file(directory, migration)
                file.with_name(f"{file.name}.conf").write_text("executeInTransaction=false\n")

    def command(self, directory: Path, url: str, *arguments: str) -> Command:  # noqa: D102
        parts = urlsplit(url)
        where = [
            f"-url=jdbc:postgresql://{parts.hostname}:{parts.port}{parts.path}?{parts.query}",
            f"-user={parts.username}",
            f"-locations=filesystem:{directory / 'sql'}",
            "-skipCheckForUpdate",
        ]
        return Command(
            ["java", "-cp", f"{self._jars}/*", "org.flywaydb.commandline.Main", *where, *arguments],
            directory,
            {"FLYWAY_PASSWORD": parts.password or "", "REDGATE_DISABLE_TELEMETRY": "true"},
        )


class Alembic(Tool):
    """A Python program; a migration is a Python module, which holds the SQL as a string."""

    title = "Alembic"
    ledger = "alembic_version"
    apply = ("upgrade", "head")
    looks = (("current", "--check-heads"), ("history",), ("check",))
    undo = ("downgrade", "-1")

    ENVIRONMENT = '''\
"""As `alembic init` writes it, less the logging, with a transaction for each migration."""

import os

from alembic import context
from sqlalchemy import create_engine, pool

url = os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+psycopg2://")
if context.is_offline_mode():
    context.configure(url=url, literal_binds=True, transaction_per_migration=True)
    with context.begin_transaction():
        context.run_migrations()
else:
    with create_engine(url, poolclass=pool.NullPool).connect() as connection:
        context.configure(connection=connection, transaction_per_migration=True)
        with context.begin_transaction():
            context.run_migrations()
'''
    LONG = 1 << 20
    """Bytes above which the SQL is better kept beside the module."""

    def __init__(self) -> None:
        self._program = install.python() / "alembic"

    def file(self, directory: Path, migration: Migration) -> Path:  # noqa: D102
        return directory / "alembic" / "versions" / f"{migration.full_name}.py"

    def text(self, migration: Migration) -> str:  # noqa: D102
        before = repr(f"{migration.after:04d}") if migration.after else None
        call = f'op.execute(r"""\n{migration.sql}\n""")'
        if len(migration.sql) > self.LONG:
            call = "op.get_bind().exec_driver_sql(Path(__file__ + '.sql').read_text())"
        if not migration.transaction:
            call = f"with op.get_context().autocommit_block():\n        {call}"
        return (
            f'"""{migration.name}"""\n\nfrom pathlib import Path\n\nfrom alembic import op\n\n'
            f'revision = "{migration.number:04d}"\ndown_revision = {before}\n\n\n'
            f"def upgrade():\n    {call}\n\n\n"
            f'def downgrade():\n    op.execute(r"""{migration.undo}""")\n'
        )

    def layout(self, directory: Path, migrations: Sequence[Migration]) -> None:
        """Beside the files, Alembic's configuration and long SQL."""
        super().layout(directory, migrations)
        (directory / "alembic.ini").write_text("[alembic]\nscript_location = %(here)s/alembic\n")
        (directory / "alembic" / "env.py").write_text(self.ENVIRONMENT)
        for migration in migrations:
            if len(migration.sql) > self.LONG:
                file = self.file(directory, migration)
                file.with_name(f"{file.name}.sql").write_text(migration.sql)

    def command(self, directory: Path, url: str, *arguments: str) -> Command:  # noqa: D102
        return Command([str(self._program), *arguments], directory, {"DATABASE_URL": url})


class Yoyo(Tool):
    """A Python program."""

    title = "yoyo"
    ledger = "_yoyo_migration"
    apply = ("apply",)
    looks = (("list",),)
    undo = ("rollback",)

    def __init__(self) -> None:
        self._program = install.python() / "yoyo"

    def file(self, directory: Path, migration: Migration) -> Path:  # noqa: D102
        return directory / f"{migration.number:04d}.{migration.name}.sql"

    def text(self, migration: Migration) -> str:  # noqa: D102
        header = "" if migration.transaction else "-- transactional: false\n"
        return f"{header}{migration.sql}\n"

    def layout(self, directory: Path, migrations: Sequence[Migration]) -> None:
        """Beside the files, those that take them back."""
        super().layout(directory, migrations)
        for migration in migrations:
            file = self.file(directory, migration)
            file.with_suffix(".rollback.sql").write_text(migration.undo)

    def version(self, environment: Mapping[str, str]) -> str:  # noqa: ARG002
        """It tells none: what is pinned."""
        pinned = (install.PINNED / "requirements.in").read_text()
        return pinned.partition("yoyo-migrations==")[2].split()[0]

    def command(self, directory: Path, url: str, *arguments: str) -> Command:  # noqa: D102
        if arguments[0].startswith("-"):
            return Command([str(self._program), *arguments], directory)
        where = ["--batch", "--no-config-file", "--database", url]
        return Command(
            [str(self._program), arguments[0], *where, *arguments[1:], str(directory)], directory
        )


class Graphile(Tool):
    """A program for Node; its committed files are chained by their hashes."""

    title = "graphile-migrate"
    ledger = "graphile_migrate.migrations"
    apply = ("migrate",)
    looks = (("status",),)

    def __init__(self) -> None:
        self._program = install.npm() / ".bin" / "graphile-migrate"
        install.debian("node", "nodejs")

    def file(self, directory: Path, migration: Migration) -> Path:  # noqa: D102
        name = f"{migration.number:06d}-{migration.name}.sql"
        return directory / "migrations" / "committed" / name

    def text(self, migration: Migration) -> str:  # noqa: D102
        header = "" if migration.transaction else "--! no-transaction\n"
        return f"{header}{migration.sql}".strip() + "\n"

    def layout(self, directory: Path, migrations: Sequence[Migration]) -> None:
        """With the header that chains them; `current.sql` stays empty."""
        super().layout(directory, migrations)
        (directory / ".gmrc").write_text("{}")
        (directory / "migrations" / "current.sql").write_text("-- Enter migration here\n")
        previous = ""
        for migration in migrations:
            file = self.file(directory, migration)
            body = self.text(migration)
            content = f"{previous}\n{body.strip()}".strip() + "\n"
            digest = f"sha1:{hashlib.sha1(content.encode(), usedforsecurity=False).hexdigest()}"
            file.write_text(f"--! Previous: {previous or '-'}\n--! Hash: {digest}\n\n{body}")
            previous = digest

    def command(self, directory: Path, url: str, *arguments: str) -> Command:  # noqa: D102
        root, _, rest = url.rpartition("/")
        _, _, query = rest.partition("?")
        urls = {
            "DATABASE_URL": url,
            "SHADOW_DATABASE_URL": f"{root}/{SHADOW}?{query}",
            "ROOT_DATABASE_URL": f"{root}/postgres?{query}",
        }
        return Command([str(self._program), *arguments], directory, urls)


SHADOW = "bench_shadow"
"""The database that graphile-migrate may drop and create."""

TOOLS: Sequence[type[Tool]] = (
    Psql,
    Ours,
    Goose,
    Dbmate,
    Sqitch,
    Flyway,
    Alembic,
    Yoyo,
    Graphile,
)
