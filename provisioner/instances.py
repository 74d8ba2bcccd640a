"""The rows of instances, as the service's background tasks read and write them."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from provisioner.config import PLATFORM, as_yaml
from provisioner.database import Database


@dataclass(frozen=True)
class Instance:
    """The desired state of an instance.

    Attributes:
        app_name: the Helm release.
        app_config: chart values of this instance alone.
        matrix_url: where its Matrix server was last; None without one.
        config: MindRoom's, as text that is JSON and YAML: the customer's with the platform's part.
        cpu_limit: cores.
        provisioned_at: when it ran for the first time; None if it never did.
        volume_retention_days: how long its tier keeps the volumes of a removed instance.
        applied: `releases.Applied`, what the last attempt left in the cluster; None before it.
        held: the digest of a change that is not tried again; None if nothing is held.
    """

    id: uuid.UUID
    account_id: uuid.UUID
    app_name: str
    app_config: dict[str, Any]
    subdomain: str
    matrix_url: str | None
    status: str
    config: str
    cpu_limit: float
    memory_limit_mb: int
    storage_limit_gb: int
    provisioned_at: datetime | None
    volume_retention_days: int
    error_message: str | None
    applied: str | None
    held: str | None


@dataclass(frozen=True)
class RecordedState:
    """What the database has on record of an instance, to be compared with the cluster.

    Attributes:
        app_name: the Helm release.
        applied: `releases.Applied`, what the last attempt left in the cluster; None before it.
        due: whether work is due, scheduled or in progress.
        held: whether a change of it is not tried again.
        secrets_checksum: `instance_secrets.checksum` of its secrets now.
    """

    id: uuid.UUID
    app_name: str
    status: str
    health_status: str
    applied: str | None
    due: bool
    held: bool
    secrets_checksum: str


@dataclass(frozen=True)
class Usage:
    """What an instance was measured to use.

    Attributes:
        cores: None leaves the last value.
        memory_mb: mebibytes; None leaves the last value.
        volumes: claim -> bytes, of those that were measured.
        claims: all that it has: what was known of any other is forgotten.
    """

    id: uuid.UUID
    cores: float | None
    memory_mb: int | None
    volumes: Mapping[str, int]
    claims: Sequence[str]


USAGES_AT_ONCE = 500
"""Written by one statement."""


async def read(database: Database, instance_id: uuid.UUID) -> Instance | None:
    """The desired state of an instance now; None if its row was deleted.

    Read after the claim commits: the claiming statement's snapshot may be older than a change of
    tier.
    """
    async with database.connection() as connection:
        cursor = connection.cursor(row_factory=class_row(Instance))
        await cursor.execute(
            """
            select instance.id, instance.account_id, instance.app_name, instance.app_config,
                   instance.subdomain, instance.matrix_url, instance.status,
                   (instance.config || %s)::text as config,
                   instance.cpu_limit::float, instance.memory_limit_mb, instance.storage_limit_gb,
                   instance.provisioned_at, tiers.volume_retention_days,
                   instance.error_message, work.applied, work.held
              from public.instances as instance
              join public.subscriptions as plan on plan.id = instance.subscription_id
              join private.tiers using (tier)
              join private.provisioning as work on work.instance_id = instance.id
             where instance.id = %s
            """,
            [Jsonb(PLATFORM), instance_id],
        )
        instance = await cursor.fetchone()
        return instance and replace(instance, config=as_yaml(instance.config))


async def recorded_states(database: Database) -> list[RecordedState]:
    """The recorded states of all instances that are not deprovisioned."""
    async with database.connection() as connection:
        cursor = connection.cursor(row_factory=class_row(RecordedState))
        await cursor.execute(
            """
            select instance.id, instance.app_name, instance.status, instance.health_status,
                   work.applied, work.due_at is not null as due,
                   work.held is not null as held,
                   (select encode(sha256(convert_to(
                             coalesce(string_agg(name || '=' || value, chr(10)
                                                 order by name collate "C"), ''),
                             'UTF8')), 'hex')
                      from private.instance_secrets
                     where instance_id = instance.id) as secrets_checksum
              from public.instances as instance
              join private.provisioning as work on work.instance_id = instance.id
             where instance.runtime = 'kubernetes' and instance.status <> 'deprovisioned'
            """
        )
        return await cursor.fetchall()


async def request_repair(database: Database, state: RecordedState) -> bool:
    """Make work on an instance due; False if it is due already or was done since `state`."""
    async with database.connection() as connection:
        cursor = await connection.execute(
            """
            update private.provisioning
               set due_at = now(), attempts = 0
             where instance_id = %s and due_at is null and applied is not distinct from %s
            """,
            [state.id, state.applied],
        )
        return cursor.rowcount == 1


async def accounts_to_erase(database: Database) -> set[str]:
    """The accounts whose kept volumes are to be deleted: `erase_account` waits for that."""
    async with database.connection() as connection:
        cursor = await connection.execute(
            """
            select account_id::text
              from private.erasures
             where erased_at is null
               and not exists (
                 select from public.instances
                  where instances.account_id = erasures.account_id and status <> 'deprovisioned'
               )
               and exists (
                 select from public.instances
                  where instances.account_id = erasures.account_id
                    and (volumes_deleted_at >= deprovisioned_at) is not true
               )
            """
        )
        return {account_id for (account_id,) in await cursor.fetchall()}


async def record_deleted_volumes(database: Database, account_id: str) -> None:
    """Record that no volume of an account is left."""
    async with database.connection() as connection:
        await connection.execute(
            "update private.erasures set volumes_deleted_at = now() where account_id = %s",
            [account_id],
        )


async def write_health(
    database: Database, instance_id: uuid.UUID, status: str, details: Mapping[str, Any]
) -> None:
    """Record the health of an instance, unless the row has just that.

    Its error message stays while something is left to do: what runs may well be healthy.
    """
    async with database.connection() as connection:
        await connection.execute(
            """
            select public.update_instance_health(
                     instance.id, %(status)s, %(details)s,
                     case when work.attempts > 0 then instance.error_message end)
              from public.instances as instance
              join private.provisioning as work on work.instance_id = instance.id
             where instance.id = %(id)s
               and status in ('provisioning', 'running', 'stopped', 'maintenance')
               and (health_status, health_details) is distinct from (%(status)s, %(details)s)
            """,
            {"id": instance_id, "status": status, "details": Jsonb(details)},
        )


async def write_usage(session: AsyncConnection, usages: Sequence[Usage]) -> None:
    """Write what was measured; an instance that is not among them uses no CPU and memory.

    Rows that somebody else holds keep their last values.
    """
    for first in range(0, len(usages), USAGES_AT_ONCE):
        await session.execute(
            """
            with given as (
              select *
                from jsonb_to_recordset(%s)
                       as given (
                         id uuid, cores numeric, memory_mb integer, volumes jsonb, claims jsonb
                       )
            ),
            free as (
              select instance.id
                from public.instances as instance
               where instance.id in (select id from given) and instance.status <> 'deprovisioned'
                 for no key update skip locked
            ),
            known as (
              update private.provisioning as work
                 set volumes = coalesce(
                       (
                         select jsonb_object_agg(key, value)
                           from jsonb_each(work.volumes || given.volumes)
                          where given.claims ? key
                       ),
                       '{}'
                     )
                from given
                join free using (id)
               where work.instance_id = given.id
              returning given.*, work.volumes as all_volumes
            )
            update public.instances as instance
               set cpu_used = coalesce(known.cores, instance.cpu_used),
                   memory_used_mb = coalesce(known.memory_mb, instance.memory_used_mb),
                   storage_used_gb = (
                     select coalesce(sum(value::numeric), 0) / 1073741824
                       from jsonb_each_text(known.all_volumes)
                   ),
                   measured_at = now()
              from known
             where instance.id = known.id
            """,
            [
                Jsonb(
                    [
                        asdict(usage) | {"id": str(usage.id)}
                        for usage in usages[first:][:USAGES_AT_ONCE]
                    ]
                )
            ],
        )
    await session.execute(
        """
        update public.instances
           set cpu_used = 0, memory_used_mb = 0
         where id in (
           select id
             from public.instances
            where (cpu_used, memory_used_mb) <> (0, 0) and id <> all (%s)
              for no key update skip locked
         )
        """,
        [[usage.id for usage in usages]],
    )
