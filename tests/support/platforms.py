"""Whole platforms for the tests: a stack's config, an in-process run of it, a Supabase stand-in."""

import atexit
import json
import multiprocessing
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from components import ROOT
from components.authorization import SERVICES
from dev import in_process
from embedded.postgres import Server
from ops import committed_config
from tests.support.pooler import RESERVED, TENANT, Pooler

SECRETS = ("databasePassword", "servicePasswords", "provisionerApiToken")
PRINTABLE = "".join(map(chr, range(32, 127)))
"""Every printable character of ASCII."""

PASSWORDS = {role: f"%20{PRINTABLE}{role}" for role in SERVICES}
TOKEN = "an-api-token-of-some-length"
MADE = "made"
"""A copy of the platform's database as the run left it, to be copied again: nobody enters it."""

COPIED = (
    "__main__.py",
    "Pulumi.yaml",
    "Pulumi.dev.yaml",
    "bin",
    "components",
    "migrate",
    "policies",
    "sql",
    "charts",
    "dev",
    "embedded",
    "ops",
    "provisioner",
)

HALF_WRITTEN = shutil.ignore_patterns("*.pyc.*")
"""What a copy leaves out, of what Python compiles meanwhile: what it has compiled is copied."""


def copy_project(directory: Path) -> None:
    """The program in another directory, for a test that edits it; tools are shared."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, directory / name, ignore=HALF_WRITTEN)
        else:
            shutil.copy(ROOT / name, directory / name)
    for name in (".venv", ".tools"):
        (directory / name).symlink_to(ROOT / name)


def stack_config(url: str, render: Path, **changes: Any) -> dict[str, Any]:
    """The dev stack's config on the database of a URL, keyed as in Pulumi.yaml."""
    to = conninfo_to_dict(url)
    return (
        committed_config("dev")
        | {
            "databaseHost": to["host"],
            "databasePort": int(str(to["port"])),
            "databaseUser": to["user"],
            "databasePassword": to["password"],
            "databaseName": to["dbname"],
            "servicePasswords": PASSWORDS,
            "provisionerApiToken": TOKEN,
            "renderDirectory": str(render),
        }
        | changes
    )


FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([__name__])
"""Forks of a process that has imported the SDK, and run nothing yet."""


def run(config: dict[str, Any]) -> in_process.Result:
    """Run the program in-process, in a process of its own: the SDK is good for one run each."""
    plain = {k: v if isinstance(v, str) else json.dumps(v) for k, v in config.items()}
    with ProcessPoolExecutor(1, FORKS) as pool:
        return pool.submit(_run, plain, dict(os.environ)).result(timeout=120)


def _run(config: dict[str, str], environment: dict[str, str]) -> in_process.Result:
    os.environ.clear()
    os.environ.update(environment)
    return in_process.run(config, SECRETS, "dev")


@dataclass(frozen=True)
class Platform:
    """A platform that an in-process run made.

    Attributes:
        url: the administrator's URL.
        config: what it was made with.
        result: what the run said.
    """

    url: str
    config: dict[str, Any]
    result: in_process.Result

    def service_url(self, role: str) -> str:
        """A service role's URL, from the stack outputs."""
        return str(self.result.outputs["service_database_urls"][role])

    def copied(self, server: Server, name: str) -> "Platform":
        """The platform as the run left it, in another database of its server."""
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute(f"create database {name} template {MADE}".encode())
            # The privileges on a database itself are not copied.
            connection.execute(f"revoke temporary on database {name} from public".encode())
        before = self.config["databaseName"]
        urls = {
            role: url.replace(f"/{before}", f"/{name}")
            for role, url in self.result.outputs["service_database_urls"].items()
        }
        outputs = self.result.outputs | {"service_database_urls": urls}
        config = self.config | {"databaseName": name}
        return Platform(server.url(name), config, replace(self.result, outputs=outputs))


def sql_files(folder: str) -> list[Path]:
    """The files of a folder of sql/ in name order."""
    return sorted((ROOT / "sql" / folder).glob("*.sql"))


def emulate_supabase(server: Server, *, grants_all: bool) -> str:
    """Make a server's `postgres` database like a new hosted project's; the URL of its `postgres`.

    Roles, ownerships and default privileges are those of Supabase's public repositories and
    documentation.  The server's superuser has to be `supabase_admin`.

    Args:
        server: a new server.
        grants_all: the default privileges of projects made before 2026-05-30; of newer ones, the
            least that is known to remain with the API roles.
    """
    assert server.superuser == "supabase_admin"
    password = f"{PRINTABLE}%20"
    with psycopg.connect(server.url(), autocommit=True) as connection:
        for path in sql_files("platform"):
            connection.execute(path.read_bytes())
        connection.execute(
            sql.SQL(
                "create role postgres nosuperuser createdb createrole login replication bypassrls"
                " password {}"
            ).format(password)
        )
        admin = " with admin option" if server_major(connection) >= 16 else ""
        present = {name for (name,) in connection.execute("select rolname from pg_roles")}
        for statement in (
            *(f"create role {role}" for role in RESERVED if role not in present),
            "alter role authenticator login",
            f"grant anon, authenticated, service_role, authenticator to postgres{admin}",
            "alter database postgres owner to postgres",
            "grant usage on schema auth to postgres with grant option",
            "grant create, usage on schema auth to supabase_auth_admin",
            *(
                f"alter {kind} owner to supabase_auth_admin"
                for kind in (
                    "table auth.users",
                    "function auth.uid()",
                    "function auth.role()",
                    "function auth.email()",
                    "function auth.jwt()",
                )
            ),
            "grant all on auth.users to postgres",
            "grant all on schema extensions to postgres with grant option",
            "create publication supabase_realtime",
            "alter publication supabase_realtime owner to postgres",
        ):
            connection.execute(statement.encode())
        for kind, left in (
            ("tables", "truncate, references, trigger"),
            ("functions", ""),
            ("sequences", ""),
        ):
            if given := "all" if grants_all else left:
                connection.execute(
                    f"alter default privileges for role postgres in schema public grant {given} "
                    f"on {kind} to anon, authenticated, service_role".encode()
                )
    login = f"postgres:{quote(password, safe='')}"
    return server.url().replace(f"supabase_admin:{server.password}", login)


@dataclass(frozen=True)
class Hosted:
    """A stand-in of a hosted Supabase project.

    Attributes:
        url: of its `postgres`, by the session pooler.
        superuser: of `supabase_admin`, whom only Supabase has, by the server itself.
    """

    url: str
    superuser: str

    def theirs(self) -> dict[str, list[Any]]:
        """All that is Supabase's, so that the least change of it is seen.

        Of roles and their settings even the transaction that wrote each, which tells of an ALTER
        that changes nothing.
        """
        with psycopg.connect(self.superuser) as connection:
            return {
                text: connection.execute(
                    text.encode(), {"reserved": [*RESERVED, "postgres"]}
                ).fetchall()
                for text in _THEIRS
            }


_THEIRS = (
    "select xmin::text, a.* from pg_authid a where rolname = any(%(reserved)s) order by rolname",
    """select m.* from pg_auth_members m join pg_roles r on r.oid = m.member
       where rolname = any(%(reserved)s) and rolname <> 'postgres' order by roleid, member""",
    """select s.xmin::text, s.* from pg_db_role_setting s left join pg_roles r on r.oid = setrole
       where rolname = any(%(reserved)s) or setrole = 0 order by setdatabase, setrole""",
    """select nspname, nspowner, nspacl::text from pg_namespace
       where nspname in ('auth', 'extensions') order by nspname""",
    """select relname, relowner, relacl::text, relrowsecurity, attname, atttypid, attacl::text
       from pg_class c join pg_attribute on attrelid = c.oid
       where relnamespace in ('auth'::regnamespace, 'extensions'::regnamespace)
       order by relname, attnum""",
    """select proname, proowner, proacl::text, prosrc from pg_proc
       where pronamespace in ('auth'::regnamespace, 'extensions'::regnamespace)
       order by proname""",
)


THROWAWAY = {"fsync": "off", "full_page_writes": "off"}
"""Settings of a server that survives a crash of its own, but none of the machine, for speed."""


@cache
def initialised(postgres_bin: Path, superuser: str) -> Path:
    """The directory of a stopped server, to be copied: initdb takes most of a first start."""
    directory = Path(tempfile.mkdtemp()) / "server"
    server = Server(directory, postgres_bin, superuser=superuser, settings=THROWAWAY)
    atexit.register(shutil.rmtree, directory.parent)
    server.start()
    server.stop()
    (directory / "port").unlink()
    return directory


@contextmanager
def own_server(
    directory: Path, postgres_bin: Path, superuser: str = "postgres", **settings: str
) -> Iterator[Server]:
    """A server for these tests alone, because roles belong to the server."""
    directory.mkdir(exist_ok=True)
    source = initialised(postgres_bin, superuser)
    subprocess.run(["cp", "-a", "--sparse=always", source, directory / "server"], check=True)
    server = Server(
        directory / "server", postgres_bin, superuser=superuser, settings=THROWAWAY | settings
    )
    try:
        server.start()
        yield server
    finally:
        server.destroy()


@contextmanager
def supabase(postgres_bin: Path, directory: Path, *, grants_all: bool) -> Iterator[Hosted]:
    """A Supabase stand-in of its own behind the session pooler: see `emulate_supabase`."""
    with own_server(directory, postgres_bin, "supabase_admin") as server:
        url = emulate_supabase(server, grants_all=grants_all)
        pooler = Pooler(server.port)
        login, port = "//postgres:", f":{server.port}/"
        assert login in url
        assert port in url
        url = url.replace(login, f"//postgres.{TENANT}:").replace(port, f":{pooler.port}/")
        yield Hosted(url, server.url())
        pooler.cut()


CRON_BIN = Path("/usr/lib/postgresql/15/bin")
"""Of the PostgreSQL for which Debian has pg_cron."""


@contextmanager
def cron_server(directory: Path, home: str, superuser: str = "postgres") -> Iterator[Server]:
    """A server whose pg_cron has its jobs in a database, and runs them without a password."""
    control = Path("/usr/share/postgresql/15/extension/pg_cron.control")
    if not control.exists():
        needed = "pg_cron is missing: install Debian's postgresql-15-cron"
        if os.environ.get("CI") == "true":
            pytest.fail(needed)
        pytest.skip(needed)
    settings = {
        "shared_preload_libraries": "pg_cron",
        "cron.database_name": home,
        "cron.use_background_workers": "on",
    }
    with own_server(directory, CRON_BIN, superuser, **settings) as server:
        yield server


def server_major(connection: psycopg.Connection) -> int:
    """The server's major version."""
    return connection.info.server_version // 10000
