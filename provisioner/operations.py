"""The operations of the HTTP API on the database."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from provisioner.database import Database


@dataclass(frozen=True)
class Row:
    """An instance as the API shows it.

    Attributes:
        customer_id: the account that it belongs to.
        app_name: the Helm release.
        cpu_limit: cores.
        held: whether the last change stopped it and did not start, so that it runs as before, and
            the change is not tried again until something of it changes, or somebody asks for it.
        settled: whether nothing is left to do: the cluster matches the row, or the service has
            given up.
    """

    instance_id: uuid.UUID
    customer_id: uuid.UUID
    subscription_id: uuid.UUID
    app_name: str
    status: str
    frontend_url: str | None
    api_url: str | None
    matrix_url: str | None
    cpu_limit: float
    memory_limit_mb: int
    storage_limit_gb: int
    health_status: str
    health_details: dict[str, Any]
    last_health_check: datetime | None
    error_message: str | None
    created_at: datetime
    updated_at: datetime
    held: bool
    settled: bool


class RefusedError(Exception):
    """A request that cannot be granted.

    Attributes:
        status: the HTTP status of the response.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


async def provision(
    database: Database,
    subscription_id: uuid.UUID,
    account_id: uuid.UUID,
    tier: str | None,
    config: Mapping[str, Any],
) -> uuid.UUID:
    """Provision the instance of a subscription, unless it has one; retried if that one failed.

    Returns:
        The id of the instance.

    Raises:
        RefusedError: there is no such subscription, it is of another tier, or it is not live.
    """
    async with database.transaction() as connection:
        await _lock_subscription(connection, subscription_id)
        is_live = await _check_subscription(connection, subscription_id, account_id, tier)
        existing = await _existing_instance(connection, subscription_id)
        if existing and existing[1] != "failed":
            return existing[0]
        if not is_live:
            raise RefusedError(
                409,
                f"subscription {subscription_id} is not live: it must be active or trialing, and "
                "not past its period or trial",
            )
        if existing:
            await connection.execute(
                """
                update public.instances
                   set status = 'provisioning', error_message = null
                 where id = %s and status = 'failed'
                """,
                [existing[0]],
            )
            return existing[0]
        cursor = await connection.execute(
            "select public.provision_instance(%s, %s)", [subscription_id, Jsonb(config)]
        )
        [[instance_id]] = await cursor.fetchall()
        return uuid.UUID(str(instance_id))


async def _lock_subscription(connection: AsyncConnection, subscription_id: uuid.UUID) -> None:
    """Let concurrent requests for one subscription wait: the second finds the first's instance."""
    await connection.execute(
        "select pg_advisory_xact_lock(hashtextextended('provision ' || %s::text, 0))",
        [subscription_id],
    )


async def _check_subscription(
    connection: AsyncConnection,
    subscription_id: uuid.UUID,
    account_id: uuid.UUID,
    tier: str | None,
) -> bool:
    """Check a subscription's account and, if given, tier; returns whether it is live."""
    cursor = await connection.execute(
        """
        select tier, coalesce(live_until > now(), false) as is_live
          from public.subscriptions
         where id = %s and account_id = %s
        """,
        [subscription_id, account_id],
    )
    subscription = await cursor.fetchone()
    if subscription is None:
        raise RefusedError(404, f"account {account_id} has no subscription {subscription_id}")
    actual_tier, is_live = subscription
    if tier is not None and tier != actual_tier:
        raise RefusedError(
            409,
            f"subscription {subscription_id} is of the tier {actual_tier}, not {tier}: "
            "only Stripe's events change a tier",
        )
    return bool(is_live)


async def _existing_instance(
    connection: AsyncConnection, subscription_id: uuid.UUID
) -> tuple[uuid.UUID, str] | None:
    """The id and status of a subscription's instance, if it has one."""
    cursor = await connection.execute(
        """
        select id, status
          from public.instances
         where subscription_id = %s and status not in ('deprovisioning', 'deprovisioned')
         order by created_at desc
         limit 1
        """,
        [subscription_id],
    )
    existing = await cursor.fetchone()
    return existing and (existing[0], existing[1])


async def deprovision_instance(
    database: Database, instance_id: uuid.UUID, reason: str | None
) -> list[uuid.UUID]:
    """Start the removal of an instance; returns its id.

    Raises:
        psycopg.errors.NoDataFound: there is no such instance.
    """
    async with database.connection() as connection:
        await connection.execute(
            "select public.deprovision_instance(%s, %s)", [instance_id, reason]
        )
    return [instance_id]


async def deprovision_customer(
    database: Database, account_id: uuid.UUID, reason: str | None
) -> list[uuid.UUID]:
    """Start the removal of all instances of an account; returns their ids.

    Raises:
        RefusedError: the account has none.
    """
    async with database.connection() as connection:
        cursor = await connection.execute(
            """
            select id, public.deprovision_instance(id, %s)
              from public.instances
             where account_id = %s
             order by id
            """,
            [reason, account_id],
        )
        instance_ids = [row[0] for row in await cursor.fetchall()]
    if not instance_ids:
        raise RefusedError(404, f"customer {account_id} has no instance")
    return instance_ids


async def set_limits(
    database: Database,
    instance_id: uuid.UUID,
    cpu_limit: float | None,
    memory_limit_mb: int | None,
    storage_limit_gb: int | None,
) -> None:
    """Override the limits of an instance's tier until the tier changes; None leaves one unchanged.

    Raises:
        RefusedError: there is no such instance, or it is being removed.
    """
    async with database.connection() as connection:
        cursor = await connection.execute(
            """
            update public.instances
               set cpu_limit = coalesce(%(cpu_limit)s, cpu_limit),
                   memory_limit_mb = coalesce(%(memory_limit_mb)s, memory_limit_mb),
                   storage_limit_gb = coalesce(%(storage_limit_gb)s, storage_limit_gb)
             where id = %(instance_id)s and status not in ('deprovisioning', 'deprovisioned')
            """,
            {
                "instance_id": instance_id,
                "cpu_limit": cpu_limit,
                "memory_limit_mb": memory_limit_mb,
                "storage_limit_gb": storage_limit_gb,
            },
        )
    if cursor.rowcount == 0:
        [row] = await read(database, [instance_id])
        raise RefusedError(409, f"instance {instance_id} is {row.status}")


async def retry(database: Database, instance_id: uuid.UUID) -> None:
    """Have an instance worked on now, also if what its row wants is held.

    Raises:
        RefusedError: there is no such instance, or nothing is to be done in its status.
    """
    async with database.transaction() as connection:
        cursor = await connection.execute(
            """
            update private.provisioning as work
               set held = null, attempts = 0, due_at = now()
              from public.instances as instance
             where instance.id = work.instance_id and instance.id = %s
               and instance.runtime = 'kubernetes'
               and instance.status in ('provisioning', 'running', 'stopped', 'deprovisioning')
            """,
            [instance_id],
        )
        await connection.execute("select pg_notify('instances', %s)", [str(instance_id)])
    if cursor.rowcount == 0:
        [row] = await read(database, [instance_id])
        raise RefusedError(409, f"instance {instance_id} is {row.status}")


async def read(database: Database, instance_ids: Sequence[uuid.UUID]) -> list[Row]:
    """Instances as they are now, the oldest first.

    Raises:
        RefusedError: none of them exists.
    """
    async with database.connection() as connection:
        cursor = connection.cursor(row_factory=class_row(Row))
        await cursor.execute(
            """
            select instance.id as instance_id, instance.account_id as customer_id,
                   instance.subscription_id, instance.app_name, instance.status,
                   instance.frontend_url, instance.api_url, instance.matrix_url,
                   instance.cpu_limit::float, instance.memory_limit_mb, instance.storage_limit_gb,
                   instance.health_status, instance.health_details, instance.last_health_check,
                   instance.error_message, instance.created_at, instance.updated_at,
                   work.held is not null as held,
                   work.due_at is null
                     or work.held is not null and work.attempts > 0 and work.lease is null
                     as settled
              from public.instances as instance
              join private.provisioning as work on work.instance_id = instance.id
             where instance.id = any(%s)
             order by instance.created_at, instance.id
            """,
            [list(instance_ids)],
        )
        rows = await cursor.fetchall()
    if not rows:
        raise RefusedError(404, f"no instance {instance_ids[0]}")
    return rows
