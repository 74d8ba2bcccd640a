"""The administrator's way to the database, and the dynamic providers' one session on it."""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

import pulumi
from pulumi.dynamic import ConfigureRequest, ResourceProvider

from components.providers import roles
from migrate.connection import Connection, connect, readable
from migrate.errors import MigrateError

_exclusive = threading.Lock()
_open: dict[str, Connection] = {}


@dataclass(frozen=True)
class DatabaseTarget:
    """How to reach the database as its administrator.

    Attributes:
        role: the administrator's role.
        tenant: the project's reference behind Supabase's pooler, where a login is `ROLE.TENANT`.
        sslrootcert: path of the CA certificate; empty where the sslmode needs none.
    """

    host: str
    port: int
    database: str
    role: str
    tenant: str
    password: str
    sslmode: str
    sslrootcert: str

    @classmethod
    def read(cls, get: Callable[[str], Any]) -> "DatabaseTarget":
        """From a getter of stack config values, as a dynamic provider's `configure` has one."""
        role, tenant = get("databaseUser"), ""
        if get("platform") == "supabase":
            role, _, tenant = role.partition(".")
        return cls(
            get("databaseHost"),
            int(get("databasePort")),
            get("databaseName"),
            role,
            tenant,
            get("databasePassword"),
            get("databaseSslmode"),
            get("databaseSslrootcert") or "",
        )

    def login(self, role: str) -> str:
        """The user name by which a role logs in."""
        return f"{role}.{self.tenant}" if self.tenant else role

    def url(self) -> str:
        """The administrator's connection URL for this machine, password included."""
        server = endpoint(self.host, self.port)
        url = replace(self, port=server["port"]).url_for(self.role, self.password)
        url += f"&hostaddr={server['hostaddr']}" if "hostaddr" in server else ""
        # Not urlencode's +, which libpq takes literally.
        return url + (f"&sslrootcert={quote(self.sslrootcert)}" if self.sslrootcert else "")

    def url_for(self, role: str, password: str) -> str:
        """A role's connection URL for any machine, password included.

        It names no CA file, which is elsewhere on each machine: that is for PGSSLROOTCERT to say.
        """
        host = f"[{self.host}]" if ":" in self.host else quote(self.host, safe="")
        login = quote(self.login(role), safe="") + (
            f":{quote(password, safe='')}" if password else ""
        )
        return (
            f"postgresql://{login}@{host}:{self.port}/{quote(self.database, safe='')}"
            f"?sslmode={self.sslmode}"
        )

    def __repr__(self) -> str:
        """Without the password."""
        return f"DatabaseTarget({self.login(self.role)}@{self.host}:{self.port}/{self.database})"


def endpoint(host: str, port: int) -> dict[str, Any]:
    """The parameters by which libpq finds a server: itself, or the near end of bin/tunnel to it.

    The host stays the server's own, whose name the certificate has.
    """
    near, _, target = os.environ.get("DATABASE_TUNNEL", "").partition(":")
    if target == f"{host}:{port}":
        return {"host": host, "hostaddr": "127.0.0.1", "port": int(near)}
    return {"host": host, "port": port}


@dataclass(frozen=True)
class ServerInventory:
    """Names of the databases and roles that a server has before a run.

    They are declared with `import_`: what the engine's state does not know of them, because it was
    lost or a run was killed, is taken over and made as declared.
    """

    databases: frozenset[str] = frozenset()
    roles: frozenset[str] = frozenset()


def existing_on_server(to: DatabaseTarget) -> ServerInventory:
    """What is there.  A preview goes on without, and the resources warn of what is not known.

    Raises:
        pulumi.RunError: an `up` cannot reach the server, and else would find nothing to do.
    """
    try:
        with connect(to.url()) as connection:
            return ServerInventory(*roles.on_server(connection))
    except MigrateError as error:
        if pulumi.runtime.is_dry_run():
            return ServerInventory()
        raise pulumi.RunError(str(error)) from None


class DatabaseProvider(ResourceProvider):
    """A dynamic provider that works on the stack's database.

    The connection comes from stack config by `configure`, so it is in no resource's state and a
    rotated password is no diff.  State refers to a provider by its module and class: neither may
    be renamed.
    """

    serialize_as_secret_always = False

    connection: DatabaseTarget

    def configure(self, req: ConfigureRequest) -> None:
        """Remember the connection; called once in the provider process, by one thread."""
        # The host reports an exception with its traceback; the message alone is for operators.
        sys.tracebacklimit = 0
        self.connection = DatabaseTarget.read(req.config.get)

    @contextmanager
    def session(self) -> Iterator[Connection]:
        """The process's connection, for one thread at a time.

        Raises:
            UnreachableError: the database cannot be reached.
            MigrateError: whatever the engine has to say, as the operator will read it.
        """
        with _exclusive:
            url = self.connection.url()
            try:
                session = _open.get(url)
                if session is None or session.closed:
                    session = _open[url] = connect(url)
                with readable():
                    yield session
            except MigrateError as error:
                error.__cause__ = None  # it says all there is to say
                raise

    def delete(self, _id: str, _props: dict[str, Any]) -> None:
        """Touch nothing: what was applied to a database is never taken back by a destroy."""
