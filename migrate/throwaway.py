"""A PostgreSQL server for as long as something is tried out in it."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from embedded.errors import UserError
from embedded.postgres import Server, embedded_bin, installed_bin
from migrate.connection import connect
from migrate.errors import NoThrowawayError
from migrate.session import Connection

_SETTINGS = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}
"""A database that is thrown away need not survive a crash."""


@contextmanager
def throwaway(major: int | None = None) -> Iterator[Connection]:
    """An empty database on a new server, as its superuser, for as long as it is needed.

    Args:
        major: the major version that it has if this machine has one; otherwise the embedded one's.

    Raises:
        NoThrowawayError: it does not come up.
    """
    with tempfile.TemporaryDirectory(prefix="throwaway-") as directory:
        try:
            program = (major and installed_bin(major)) or embedded_bin()
            server = Server(Path(directory, "server"), program, settings=_SETTINGS)
            server.start()
        except UserError as error:
            raise NoThrowawayError(
                f"no throwaway PostgreSQL: {error.problem}", error.remedy
            ) from error
        try:
            with connect(server.url()) as connection:
                yield connection
        finally:
            server.destroy()
