"""What the HTTP API reads and writes: rows, and nothing but rows."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from provisioner.database import Database

# Two requests for one subscription take turns, so that the second finds what the first has made.
TAKE_TURNS = "select pg_advisory_xact_lock(hashtextextended('provision ' || %s::text, 0))"

PLAN = """
select tier, coalesce(live_until > now(), false) as live
  from public.subscriptions
 where id = %s and account_id = %s
"""

PRESENT = """
select id, status
  from public.instances
 where subscription_id = %s and status not in ('deprovisioning', 'deprovisioned')
 order by created_at desc
 limit 1
"""

PROVISION_AGAIN = """
update public.instances
   set status = 'provisioning', error_message = null
 where id = %s and status = 'failed'
"""

LIMITS = """
update public.instances
   set cpu_limit = coalesce(%(cpu_limit)s, cpu_limit),
       memory_limit_mb = coalesce(%(memory_limit_mb)s, memory_limit_mb),
       storage_limit_gb = coalesce(%(storage_limit_gb)s, storage_limit_gb)
 where id = %(instance_id)s and status not in ('deprovisioning', 'deprovisioned')
"""

INSTANCES = """
select instance.id as instance_id, instance.account_id as customer_id, instance.subscription_id,
       instance.app_name, instance.status, instance.frontend_url, instance.api_url,
       instance.matrix_url, instance.cpu_limit::float, instance.memory_limit_mb,
       instance.storage_limit_gb, instance.health_status, instance.health_details,
       instance.last_health_check, instance.error_message, instance.created_at,
       instance.updated_at, work.due_at is null as settled
  from public.instances as instance
  join private.provisioning as work on work.instance_id = instance.id
 where instance.id = any(%s)
 order by instance.created_at, instance.id
"""


@dataclass(frozen=True)
class Row:
    """An instance as callers see it.

    Attributes:
        customer_id: the account that it belongs to.
        app_name: the Helm release.
        settled: whether the cluster is as the row wants it, or the service has given up.
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
    settled: bool


class RefusedError(Exception):
    """What is wrong with a request, and the HTTP status that says so."""

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
    """The instance of a subscription: a new one, or the one it has; if that failed, once more."""
    async with database.transaction() as connection:
        await connection.execute(TAKE_TURNS, [subscription_id])
        plan = await (await connection.execute(PLAN, [subscription_id, account_id])).fetchone()
        if plan is None:
            raise RefusedError(404, f"account {account_id} has no subscription {subscription_id}")
        actual_tier, live = plan
        if tier is not None and tier != actual_tier:
            raise RefusedError(
                409,
                f"subscription {subscription_id} is of the tier {actual_tier}, not {tier}: "
                "only Stripe's events change a tier",
            )
        present = await (await connection.execute(PRESENT, [subscription_id])).fetchone()
        if present and present[1] != "failed":
            return uuid.UUID(str(present[0]))
        if not live:
            raise RefusedError(
                409,
                f"subscription {subscription_id} is not live: it must be active or trialing, and "
                "not past its period or trial",
            )
        if present:
            await connection.execute(PROVISION_AGAIN, [present[0]])
            return uuid.UUID(str(present[0]))
        new = await (
            await connection.execute(
                "select public.provision_instance(%s, %s)", [subscription_id, Jsonb(config)]
            )
        ).fetchone()
        assert new is not None  # noqa: S101 - a function returns a row
        return uuid.UUID(str(new[0]))


async def deprovision(
    database: Database,
    instance_id: uuid.UUID | None,
    customer_id: uuid.UUID | None,
    reason: str | None,
) -> list[uuid.UUID]:
    """Start the removal of one instance, or of all that a customer has left; which ones."""
    async with database.transaction() as connection:
        ids = [instance_id]
        if customer_id is not None:
            cursor = await connection.execute(
                "select id from public.instances where account_id = %s order by id",
                [customer_id],
            )
            ids = [each for [each] in await cursor.fetchall()]
            if not ids:
                raise RefusedError(404, f"customer {customer_id} has no instance")
        for each in ids:
            await connection.execute("select public.deprovision_instance(%s, %s)", [each, reason])
        return [uuid.UUID(str(each)) for each in ids]


async def set_limits(
    database: Database,
    instance_id: uuid.UUID,
    cpu_limit: float | None,
    memory_limit_mb: int | None,
    storage_limit_gb: int | None,
) -> None:
    """Give an instance other resources than its tier's, until the tier changes."""
    async with database.transaction() as connection:
        cursor = await connection.execute(
            LIMITS,
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


async def read(database: Database, instance_ids: Sequence[uuid.UUID]) -> list[Row]:
    """Instances as they are now.

    Raises:
        RefusedError: none of them exists.
    """
    async with database.transaction() as connection:
        cursor = connection.cursor(row_factory=class_row(Row))
        await cursor.execute(INSTANCES, [list(instance_ids)])
        rows = await cursor.fetchall()
    if not rows:
        raise RefusedError(404, f"no instance {instance_ids[0]}")
    return rows
