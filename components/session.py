"""The administrator's way to the database, and the dynamic providers' one session on it."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from pulumi.dynamic import ConfigureRequest, ResourceProvider

from migrate.errors import MigrateError

# Whatever needs psycopg is imported in the methods that run in the provider process, so that the
# program, which declares only, does not spend a fifth of a second on it.
if TYPE_CHECKING:
    from migrate.connection import Connection as Session

_lock = threading.Lock()
_open: dict[str, "Session"] = {}


@dataclass(frozen=True)
class Connection:
    """How to reach the database as its administrator.

    Attributes:
        sslrootcert: path of the CA certificate; empty where the sslmode needs none.
    """

    host: str
    port: int
    database: str
    user: str
    password: str
    sslmode: str
    sslrootcert: str

    @classmethod
    def read(cls, get: Callable[[str], Any]) -> "Connection":
        """From a getter of stack config values, as a dynamic provider's `configure` has one."""
        return cls(
            get("databaseHost"),
            int(get("databasePort")),
            get("databaseName"),
            get("databaseUser"),
            get("databasePassword"),
            get("databaseSslmode"),
            get("databaseSslrootcert") or "",
        )

    @property
    def role(self) -> str:
        """The administrator's role; behind Supabase's pooler `user` is `ROLE.PROJECT`."""
        return self.user.partition(".")[0]

    def url(self) -> str:
        """The administrator's connection URL, password included."""
        return self.url_for(self.role, self.password)

    def url_for(self, role: str, password: str) -> str:
        """A role's connection URL, password included, by the same way as the administrator's."""
        tenant = self.user[len(self.role) :]
        options = {"sslmode": self.sslmode}
        if self.sslrootcert:
            options["sslrootcert"] = self.sslrootcert
        host = f"[{self.host}]" if ":" in self.host else quote(self.host, safe="")
        login = f"{quote(role + tenant, safe='')}:{quote(password, safe='')}"
        return (
            f"postgresql://{login}@{host}:{self.port}/{quote(self.database, safe='')}"
            f"?{urlencode(options, quote_via=quote)}"  # libpq takes a + literally
        )

    def __repr__(self) -> str:
        """Without the password."""
        return f"Connection({self.user}@{self.host}:{self.port}/{self.database})"


class DatabaseProvider(ResourceProvider):
    """A dynamic provider that works on the stack's database.

    The connection comes from stack config by `configure`, so it is in no resource's state and a
    rotated password is no diff.  State refers to a provider by its module and class: neither may
    be renamed.
    """

    serialize_as_secret_always = False

    connection: Connection

    def configure(self, req: ConfigureRequest) -> None:
        """Remember the connection; called once in the provider process."""
        # The host reports an exception with its traceback; the message alone is for operators.
        sys.tracebacklimit = 0
        self.connection = Connection.read(req.config.get)

    @contextmanager
    def session(self) -> Iterator["Session"]:
        """The process's connection, for one thread at a time.

        Raises:
            UnreachableError: the database cannot be reached.
            MigrateError: whatever the engine has to say, as the operator will read it.
        """
        from migrate.connection import connect
        from migrate.failure import readable

        url = self.connection.url()
        with _lock:
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
