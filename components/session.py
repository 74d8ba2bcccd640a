"""The dynamic providers' one session on the database, and what the server has before a run."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pulumi
from pulumi.dynamic import ConfigureRequest, ResourceProvider

from components.database_target import DatabaseTarget
from components.providers import roles
from migrate.connection import connect
from migrate.errors import MigrateError
from migrate.session import Connection, translated_errors

_exclusive = threading.Lock()
_open: dict[str, Connection] = {}


@dataclass(frozen=True)
class ServerInventory:
    """Names of the databases and roles that a server has before a run.

    They are declared with `import_`: what Pulumi's state does not know of them, because it was
    lost or a run was killed, is taken over and made as declared.
    """

    databases: frozenset[str] = frozenset()
    roles: frozenset[str] = frozenset()


def existing_on_server(to: DatabaseTarget) -> ServerInventory:
    """Read the names.  A preview continues without, and the resources warn of what is unknown.

    Raises:
        pulumi.RunError: an `up` cannot reach the server, and would otherwise find nothing to do.
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
    rotated password makes no diff.  State refers to a provider by its module and class: neither may
    be renamed.
    """

    serialize_as_secret_always = False

    target: DatabaseTarget

    def configure(self, req: ConfigureRequest) -> None:
        """Remember the connection; called once in the provider process, by one thread."""
        # The host reports an exception with its traceback; the message alone is for operators.
        sys.tracebacklimit = 0
        self.target = DatabaseTarget.read(req.config.get)

    @contextmanager
    def session(self) -> Iterator[Connection]:
        """The process's connection, for one thread at a time.

        Raises:
            UnreachableError: the database cannot be reached.
            MigrateError: what migrate refuses, as the operator will read it.
        """
        with _exclusive:
            url = self.target.url()
            try:
                session = _open.get(url)
                if session is None or session.closed:
                    session = _open[url] = connect(url)
                with translated_errors():
                    yield session
            except MigrateError as error:
                error.__cause__ = None  # it says all there is to say
                raise

    def delete(self, _id: str, _props: dict[str, Any]) -> None:
        """Touch nothing: what was applied to a database is never taken back by a destroy."""
