"""Connections to the database, as the role instance_provisioner."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from psycopg import AsyncConnection, InterfaceError, OperationalError
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from provisioner.settings import Settings

MAX_CONNECTIONS = 5
"""Of one process, beside the listening one: two replicas, and a third during a rollout, stay below
the connection limit of the role."""

CONNECT_TIMEOUT_SECONDS = 5.0

UNREACHABLE_ERRORS = (OperationalError, InterfaceError, PoolTimeout)
"""The exceptions that are raised while the server cannot be reached."""


class Database(AsyncConnectionPool[AsyncConnection[TupleRow]]):
    """A pool of connections in autocommit mode.

    Entering it starts to connect, and does not wait: the server may be unreachable at that time.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(
            settings.database_url.get_secret_value(),
            kwargs={"autocommit": True, "application_name": "instance-provisioner"},
            min_size=1,
            max_size=MAX_CONNECTIONS,
            timeout=CONNECT_TIMEOUT_SECONDS,
            check=AsyncConnectionPool.check_connection,
            open=False,
        )
        self._url = settings.database_url.get_secret_value()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """A connection of the pool, in a transaction."""
        async with self.connection() as connection, connection.transaction():
            yield connection

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[AsyncConnection]:
        """A connection outside the pool that is notified of every changed instance."""
        async with await AsyncConnection.connect(
            self._url,
            autocommit=True,
            application_name="instance-provisioner-listener",
            connect_timeout=int(CONNECT_TIMEOUT_SECONDS),
        ) as connection:
            await connection.execute("listen instances")
            yield connection
