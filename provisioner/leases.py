"""The work queue, `private.provisioning`: a worker leases an instance and reports the outcome."""

import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from psycopg import AsyncConnection
from psycopg.rows import class_row

from provisioner.database import Database


@dataclass(frozen=True)
class Claim:
    """The exclusive right to work on an instance for as long as its lease is renewed.

    Attributes:
        revision: counts the changes of the instance's row that ask for work.
        attempt: 1 for the first attempt since work was last asked for.
        waited: seconds since the work became due.
    """

    instance_id: uuid.UUID
    lease: uuid.UUID
    revision: int
    attempt: int
    waited: float


@dataclass(frozen=True)
class Queue:
    """How much work there is.

    Attributes:
        length: instances whose work is due, scheduled or in progress.
        next_in: seconds until the next instance can be claimed; None if the queue is empty.
    """

    length: int
    next_in: float | None


@dataclass(frozen=True)
class Outcome:
    """The result of an attempt.

    Attributes:
        old_status: status of the row when the attempt started.
        new_status: the status that the attempt leads to.
        error: why it failed, for people; None if it succeeded.
        retry_in: seconds until the work is due again; None if there is no more to do.
        urls: the URLs "frontend", "api" and "matrix"; None leaves those of the row unchanged.
        applied: what the cluster has now (see `releases.Applied`); None if that is unknown.
        held: the digest of a change that is not tried again; None if nothing is held.
    """

    old_status: str
    new_status: str
    error: str | None = None
    retry_in: float | None = None
    urls: Mapping[str, str | None] | None = None
    applied: str | None = None
    held: str | None = None


class LeaseLostError(Exception):
    """Another worker has taken over the instance, or its row was deleted: nothing was written."""


async def claim(database: Database, worker: str, lease_seconds: float) -> Claim | None:
    """Lease the instance that has been due for longest; None if none is due.

    Args:
        database: the pool to use.
        worker: the name of this process, for people who read the table.
        lease_seconds: until other workers may take over, unless the lease is renewed.
    """
    async with database.connection() as connection:
        cursor = connection.cursor(row_factory=class_row(Claim))
        await cursor.execute(
            """
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
            """,
            {"worker": worker, "seconds": lease_seconds},
        )
        return await cursor.fetchone()


async def queue(database: Database) -> Queue:
    """How much work there is now."""
    async with database.connection() as connection:
        cursor = connection.cursor(row_factory=class_row(Queue))
        await cursor.execute(
            """
            select count(*)::int as length,
                   extract(epoch from min(greatest(due_at, leased_until)) - now())::float as next_in
              from private.provisioning
             where due_at is not null
            """
        )
        [row] = await cursor.fetchall()
    return row


async def renew(database: Database, claimed: Claim, lease_seconds: float) -> bool:
    """Extend a lease; False if the instance's row has changed since it was claimed.

    Args:
        database: the pool to use.
        claimed: the claim.
        lease_seconds: the new term, from now.

    Raises:
        LeaseLostError: another worker has taken over.
    """
    async with database.connection() as connection:
        cursor = await connection.execute(
            """
            update private.provisioning
               set leased_until = now() + make_interval(secs => %(seconds)s)
             where instance_id = %(instance_id)s and lease = %(lease)s
            returning revision
            """,
            asdict(claimed) | {"seconds": lease_seconds},
        )
        row = await cursor.fetchone()
    if row is None:
        raise LeaseLostError
    return bool(row[0] == claimed.revision)


async def finish(database: Database, claimed: Claim, outcome: Outcome) -> None:
    """Write the outcome of an attempt and end its lease, in one transaction.

    Raises:
        LeaseLostError: another worker has taken over.
    """
    values = asdict(claimed) | asdict(outcome)
    async with database.transaction() as connection:
        async with connection.pipeline():
            # The row of instances is locked first, as by all who change it and thereby ask for
            # work: no deadlock.
            await connection.execute(
                "select from public.instances where id = %(instance_id)s for no key update", values
            )
            # Work that was asked for in the meantime stays due: either starts the attempts again.
            ended = await connection.execute(
                """
                update private.provisioning
                   set lease = null, leased_by = null, leased_until = null,
                       due_at = case when attempts <> %(attempt)s then due_at
                                     else now() + make_interval(secs => %(retry_in)s) end,
                       attempts = case when attempts <> %(attempt)s
                                         or %(retry_in)s::float is null then 0
                                       else attempts end,
                       applied = coalesce(%(applied)s, applied),
                       held = case when attempts <> %(attempt)s then held else %(held)s end
                 where instance_id = %(instance_id)s and lease = %(lease)s
                """,
                values,
            )
            if outcome.urls is not None:
                await connection.execute(
                    """
                    update public.instances
                       set frontend_url = %(frontend)s, api_url = %(api)s, matrix_url = %(matrix)s
                     where id = %(instance_id)s
                       and (frontend_url, api_url, matrix_url)
                           is distinct from (%(frontend)s, %(api)s, %(matrix)s)
                    """,
                    values | dict(outcome.urls),
                )
            # A status that was changed in the meantime stays.
            await connection.execute(
                """
                update public.instances
                   set error_message = %(error)s,
                       status = case when status = %(old_status)s then %(new_status)s
                                     else status end
                 where id = %(instance_id)s
                   and (status = %(old_status)s and status <> %(new_status)s
                        or error_message is distinct from %(error)s)
                """,
                values,
            )
            await _notify(connection, claimed)
        if ended.rowcount == 0:
            raise LeaseLostError


async def release(database: Database, claimed: Claim, retry_in: float) -> None:
    """End a lease as if the attempt had never been made; due again in so many seconds."""
    async with database.connection() as connection:
        await connection.execute(
            """
            update private.provisioning
               set lease = null, leased_by = null, leased_until = null,
                   due_at = case when revision <> %(revision)s then due_at
                                 else now() + make_interval(secs => %(retry_in)s) end,
                   attempts = greatest(attempts - 1, 0)
             where instance_id = %(instance_id)s and lease = %(lease)s
            """,
            asdict(claimed) | {"retry_in": retry_in},
        )
        await _notify(connection, claimed)


async def _notify(connection: AsyncConnection, claimed: Claim) -> None:
    """Wake other workers, and requests that wait for the instance."""
    await connection.execute("select pg_notify('instances', %s)", [str(claimed.instance_id)])
