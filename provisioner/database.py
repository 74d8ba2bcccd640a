"""The database: who works on which instance, and what came of it.

Nothing here decides anything; every statement is of the role instance_provisioner.
"""

import hashlib
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import psycopg
from psycopg.rows import class_row
from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from provisioner.settings import Settings

CHANNEL = "instances"
CONNECTIONS = 5
"""Most of one process beside the listening one: two replicas and a third one during a rollout stay
below the role's limit."""

CONNECT_SECONDS = 5.0

Unreachable = (psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout)
"""What is raised while the server is away."""

CHECKSUM = """(
  select encode(sha256(convert_to(
           coalesce(string_agg(name || '=' || value, chr(10) order by name collate "C"), ''),
           'UTF8')), 'hex')
    from private.instance_secrets where instance_id = instance.id
)"""
"""What `checksum` gives, in SQL."""

CLAIM = """
with next as (
  select instance_id
    from private.provisioning
   where due_at <= now() and (leased_until is null or leased_until <= now())
   order by due_at
   limit 1
     for update skip locked
)
update private.provisioning as work
   set lease = gen_random_uuid(),
       leased_by = %(worker)s,
       leased_until = now() + make_interval(secs => %(seconds)s),
       attempts = attempts + 1
  from next
 where work.instance_id = next.instance_id
returning work.instance_id, work.lease, work.revision, work.attempts as attempt,
          extract(epoch from now() - work.due_at)::float as waited
"""

SECRETS = """
with added as (
  insert into private.instance_secrets (instance_id, name, value)
  select %(instance_id)s, wanted.name, wanted.value
    from unnest(%(names)s::text[], %(values)s::text[]) as wanted (name, value)
  on conflict do nothing
  returning name, value
)
select name, value from added
union all
select name, value from private.instance_secrets where instance_id = %(instance_id)s
"""

# A statement of its own, after the claim: the claim sees the newest revision, but of other tables
# only what was there when it began.
READ = """
select instance.id, instance.account_id, instance.app_name, instance.app_config,
       instance.subdomain, instance.status, instance.config::text as config,
       instance.cpu_limit::float, instance.memory_limit_mb, instance.storage_limit_gb,
       instance.provisioned_at, tiers.volume_retention_days
  from public.instances as instance
  join public.subscriptions as plan on plan.id = instance.subscription_id
  join private.tiers using (tier)
 where instance.id = %s
"""

PENDING = """
select count(*)::int as length,
       extract(epoch from min(greatest(due_at, leased_until)) - now())::float as seconds
  from private.provisioning
 where due_at is not null
"""

RENEW = """
update private.provisioning
   set leased_until = now() + make_interval(secs => %(seconds)s)
 where instance_id = %(instance_id)s and lease = %(lease)s
returning revision
"""

# The row of instances first, as everybody does whose change of it asks for work.
LOCK = "select from public.instances where id = %(instance_id)s for no key update"

# Work that was asked for in the meantime stays due.
FINISH = """
update private.provisioning
   set lease = null, leased_by = null, leased_until = null,
       due_at = case when revision <> %(revision)s then due_at
                     else now() + make_interval(secs => %(again_in)s) end,
       attempts = case when revision <> %(revision)s or %(again_in)s::float is null then 0
                       else attempts end,
       applied = coalesce(%(applied)s, applied)
 where instance_id = %(instance_id)s and lease = %(lease)s
"""

RELEASE = """
update private.provisioning
   set lease = null, leased_by = null, leased_until = null,
       due_at = case when revision <> %(revision)s then due_at
                     else now() + make_interval(secs => %(again_in)s) end,
       attempts = greatest(attempts - 1, 0)
 where instance_id = %(instance_id)s and lease = %(lease)s
"""

URLS = """
update public.instances
   set frontend_url = %(frontend)s, api_url = %(api)s, matrix_url = %(matrix)s
 where id = %(instance_id)s
   and (frontend_url, api_url, matrix_url) is distinct from (%(frontend)s, %(api)s, %(matrix)s)
"""

# A status that somebody else changed in the meantime stays.
ANSWER = """
update public.instances
   set error_message = %(error)s,
       status = case when status = %(before)s then %(after)s else status end
 where id = %(instance_id)s
   and (status = %(before)s and status <> %(after)s or error_message is distinct from %(error)s)
"""

NOTIFY = f"select pg_notify('{CHANNEL}', %(instance_id)s::text)"

STATE = """
select instance.id, instance.app_name, instance.status, instance.health_status,
       work.applied, work.due_at is not null as due, %s as checksum
  from public.instances as instance
  join private.provisioning as work on work.instance_id = instance.id
 where instance.runtime = 'kubernetes' and instance.status <> 'deprovisioned'
""".replace("%s", CHECKSUM)

REPAIR = """
update private.provisioning
   set due_at = now(), attempts = 0
 where instance_id = %s and due_at is null and applied is not distinct from %s
"""

HEALTH = """
select public.update_instance_health(id, %(status)s, %(details)s)
  from public.instances
 where id = %(id)s
   and status in ('provisioning', 'running', 'stopped', 'maintenance')
   and (health_status, health_details) is distinct from (%(status)s, %(details)s)
"""


@dataclass(frozen=True)
class Claim:
    """The right to work on an instance for as long as the lease is renewed.

    Attributes:
        attempt: 1 for the first at this revision.
        waited: seconds since the work was due.
    """

    instance_id: uuid.UUID
    lease: uuid.UUID
    revision: int
    attempt: int
    waited: float


@dataclass(frozen=True)
class Instance:
    """What a row wants.

    Attributes:
        config: the customer's, as JSON text.
        app_config: values of the chart.
        provisioned_at: when it ran for the first time.
        volume_retention_days: of its plan.
    """

    id: uuid.UUID
    account_id: uuid.UUID
    app_name: str
    app_config: dict[str, Any]
    subdomain: str
    status: str
    config: str
    cpu_limit: float
    memory_limit_mb: int
    storage_limit_gb: int
    provisioned_at: datetime | None
    volume_retention_days: int


@dataclass(frozen=True)
class State:
    """What the database says of an instance, to be compared with the cluster."""

    id: uuid.UUID
    app_name: str
    status: str
    health_status: str
    applied: str | None
    due: bool
    checksum: str


@dataclass(frozen=True)
class Outcome:
    """What came of the work on an instance.

    Attributes:
        before: the status that the work began with.
        after: the status that it leads to.
        error: what failed, for people; None when nothing did.
        again_in: seconds until it is due again; None when there is no more to do.
        urls: frontend, api and matrix; None leaves them as they are.
        applied: what the cluster has now; None where that is not known.
    """

    before: str
    after: str
    error: str | None = None
    again_in: float | None = None
    urls: Mapping[str, str | None] | None = None
    applied: str | None = None


class LeaseLostError(Exception):
    """Somebody else has taken the instance over, or its row is gone: nothing was written."""


def checksum(secrets: Mapping[str, str]) -> str:
    """A digest of an instance's secrets: their change reaches its pods."""
    lines = [f"{name}={value}" for name, value in sorted(secrets.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


class Database:
    """The service's connections."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._url = settings.database_url.get_secret_value()
        self._pool = AsyncConnectionPool(
            self._url,
            kwargs={"autocommit": True, "application_name": "instance-provisioner"},
            min_size=1,
            max_size=CONNECTIONS,
            timeout=CONNECT_SECONDS,
            check=AsyncConnectionPool.check_connection,
            open=False,
        )

    async def __aenter__(self) -> "Database":
        """Begin to connect; that the server is away is no error."""
        await self._pool.open(wait=False)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close all connections."""
        await self._pool.close()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[psycopg.AsyncConnection]:
        """A connection of its own, which hears of every change."""
        async with await psycopg.AsyncConnection.connect(
            self._url,
            autocommit=True,
            application_name="instance-provisioner-listener",
            connect_timeout=int(CONNECT_SECONDS),
        ) as connection:
            await connection.execute(f"listen {CHANNEL}")
            yield connection

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[psycopg.AsyncConnection]:
        """A connection in a transaction."""
        async with self._pool.connection() as connection, connection.transaction():
            yield connection

    async def claim(self) -> Claim | None:
        """The right to work on the instance that has been due longest, if there is one."""
        async with self._pool.connection() as connection:
            cursor = connection.cursor(row_factory=class_row(Claim))
            await cursor.execute(
                CLAIM,
                {"worker": self._settings.worker, "seconds": self._settings.lease_seconds},
            )
            return await cursor.fetchone()

    async def read(self, instance_id: uuid.UUID) -> Instance:
        """What the row wants now."""
        async with self._pool.connection() as connection:
            cursor = connection.cursor(row_factory=class_row(Instance))
            await cursor.execute(READ, [instance_id])
            instance = await cursor.fetchone()
        if instance is None:
            raise LeaseLostError  # the row was deleted, and the lease with it
        return instance

    async def pending(self) -> tuple[int, float | None]:
        """How many instances have work to do, and the seconds until the next can be claimed."""
        async with self._pool.connection() as connection:
            cursor = connection.cursor()
            await cursor.execute(PENDING)
            length, seconds = await cursor.fetchone() or (0, None)
        return length, seconds

    async def renew(self, claim: Claim) -> bool:
        """Hold the instance for another while; False when its row wants something else by now.

        Raises:
            LeaseLostError: it is somebody else's.
        """
        async with self._pool.connection() as connection:
            cursor = await connection.execute(
                RENEW,
                {
                    "seconds": self._settings.lease_seconds,
                    "instance_id": claim.instance_id,
                    "lease": claim.lease,
                },
            )
            row = await cursor.fetchone()
        if row is None:
            raise LeaseLostError
        return bool(row[0] == claim.revision)

    async def finish(self, claim: Claim, outcome: Outcome) -> None:
        """Write the outcome and let go of the instance, in one transaction.

        Raises:
            LeaseLostError: it is somebody else's.
        """
        values = asdict(claim) | asdict(outcome)
        async with self.transaction() as connection:
            async with connection.pipeline():
                await connection.execute(LOCK, values)
                held = await connection.execute(FINISH, values)
                if outcome.urls is not None:
                    await connection.execute(URLS, values | dict(outcome.urls))
                await connection.execute(ANSWER, values)
                await connection.execute(NOTIFY, values)
            if held.rowcount == 0:
                raise LeaseLostError

    async def release(self, claim: Claim, again_in: float) -> None:
        """Let go of the instance as if the attempt had never been made."""
        async with self._pool.connection() as connection:
            values = asdict(claim) | {"again_in": again_in}
            await connection.execute(RELEASE, values)
            await connection.execute(NOTIFY, values)

    async def secrets(self, instance_id: uuid.UUID, wanted: Mapping[str, str]) -> dict[str, str]:
        """All secrets of an instance, after those of the wanted that it lacks were added."""
        async with self._pool.connection() as connection:
            cursor = await connection.execute(
                SECRETS,
                {
                    "instance_id": instance_id,
                    "names": list(wanted),
                    "values": list(wanted.values()),
                },
            )
            return dict(await cursor.fetchall())

    async def states(self) -> Sequence[State]:
        """Every instance that is not deprovisioned."""
        async with self._pool.connection() as connection:
            cursor = connection.cursor(row_factory=class_row(State))
            await cursor.execute(STATE)
            return await cursor.fetchall()

    async def repair(self, state: State) -> bool:
        """Ask for work on an instance, unless there is some or was in the meantime."""
        async with self._pool.connection() as connection:
            cursor = await connection.execute(REPAIR, [state.id, state.applied])
            return cursor.rowcount == 1

    async def write_health(
        self, instance_id: uuid.UUID, status: str, details: Mapping[str, Any]
    ) -> None:
        """Record health, if it is news."""
        async with self._pool.connection() as connection:
            await connection.execute(
                HEALTH, {"id": instance_id, "status": status, "details": Jsonb(details)}
            )
