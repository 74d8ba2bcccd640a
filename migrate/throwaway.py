"""A PostgreSQL server for as long as something is tried out in it."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from embedded.errors import UserError
from embedded.postgres import Server, embedded_bin
from migrate.errors import NoRehearsalError

_SETTINGS = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}
"""A database that is thrown away need not survive a crash."""


@contextmanager
def throwaway() -> Iterator[str]:
    """A new server for as long as it is needed; its superuser's URL.

    Raises:
        NoRehearsalError: it does not come up.
    """
    with tempfile.TemporaryDirectory(prefix="throwaway-") as directory:
        try:
            server = Server(Path(directory, "server"), embedded_bin(), settings=_SETTINGS)
            server.start()
        except UserError as error:
            raise NoRehearsalError(f"not rehearsed: {error.problem}", error.remedy) from error
        try:
            yield server.url()
        finally:
            server.destroy()
