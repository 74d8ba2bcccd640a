"""The secrets of instances, `private.instance_secrets`."""

import hashlib
import uuid
from collections.abc import Mapping

from provisioner.database import Database


async def add_missing(
    database: Database, instance_id: uuid.UUID, defaults: Mapping[str, str]
) -> dict[str, str]:
    """Add the defaults whose names an instance lacks; returns all of its secrets."""
    async with database.connection() as connection:
        cursor = await connection.execute(
            """
            with added as (
              insert into private.instance_secrets (instance_id, name, value)
              select %(instance_id)s, defaults.name, defaults.value
                from unnest(%(names)s::text[], %(values)s::text[]) as defaults (name, value)
              on conflict do nothing
              returning name, value
            )
            select name, value from added
            union all
            select name, value from private.instance_secrets where instance_id = %(instance_id)s
            """,
            {
                "instance_id": instance_id,
                "names": list(defaults),
                "values": list(defaults.values()),
            },
        )
        return dict(await cursor.fetchall())


def checksum(secrets: Mapping[str, str]) -> str:
    """A digest of an instance's secrets, the same as `instances.recorded_states` computes in SQL.

    It is a value of the chart, so that changed secrets restart the pods.
    """
    lines = [f"{name}={value}" for name, value in sorted(secrets.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
