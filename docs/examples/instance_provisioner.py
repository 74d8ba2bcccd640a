"""instance-provisioner: makes the cluster agree with the rows of `instances`."""

from collections.abc import Iterator, Mapping
from typing import Any
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb


def provision(connection: psycopg.Connection, subscription: UUID, config: Any) -> UUID:
    """A new instance; its id is notified to those who listen.

    Raises:
        psycopg.errors.ObjectNotInPrerequisiteState: the subscription is not live.
    """
    new: UUID
    [[new]] = connection.execute(
        "select provision_instance(subscription_id => %s, config => %s)",
        [subscription, Jsonb(config)],
    ).fetchall()
    return new


def deprovision(connection: psycopg.Connection, instance: UUID, reason: str) -> bool:
    """Begin the removal; False if it had begun before."""
    begun: bool
    [[begun]] = connection.execute(
        "select deprovision_instance(instance_id => %s, reason => %s)", [instance, reason]
    ).fetchall()
    return begun


def to_reconcile(listener: psycopg.Connection, resync: float = 60) -> Iterator[UUID]:
    """The instances to look at, for ever: what changed at once, all of them every `resync` seconds.

    Args:
        listener: a connection for this alone, in autocommit mode; not through a transaction pooler.
        resync: seconds; a notification that is lost costs no more than that.
    """
    listener.execute("listen instances")
    while True:
        every = listener.execute("select id from instances where status <> 'deprovisioned'")
        yield from [row[0] for row in every.fetchall()]
        for notification in listener.notifies(timeout=resync):
            yield UUID(notification.payload)


def deployed(
    connection: psycopg.Connection, instance: UUID, frontend_url: str, secrets: Mapping[str, str]
) -> None:
    """Record that it runs, and where, and its secrets, which no user can read."""
    with connection.transaction():
        connection.cursor().executemany(
            """insert into private.instance_secrets (instance_id, name, value) values (%s, %s, %s)
               on conflict (instance_id, name) do update set value = excluded.value""",
            [(instance, name, value) for name, value in secrets.items()],
        )
        connection.execute(
            "update instances set status = 'running', frontend_url = %s where id = %s",
            [frontend_url, instance],
        )


def observed(
    connection: psycopg.Connection, instance: UUID, health: str, reasons: Any, storage_gb: float
) -> None:
    """Record its health and how much it stores, which counts against the plan."""
    with connection.transaction():
        connection.execute(
            "select update_instance_health(instance_id => %s, status => %s, details => %s)",
            [instance, health, Jsonb(reasons)],
        )
        connection.execute(
            "update instances set storage_used_gb = %s where id = %s", [storage_gb, instance]
        )
        connection.execute("select calculate_storage_usage(instance_id => %s)", [instance])
