"""What all dynamic providers share: one session on the database, in their own process."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pulumi.dynamic import ConfigureRequest, ResourceProvider

from components.database_target import DatabaseTarget
from migrate.connection import connect
from migrate.errors import MigrateError
from migrate.session import Connection, translated_errors

_exclusive = threading.Lock()
_open: dict[str, Connection] = {}


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
