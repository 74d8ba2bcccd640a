"""What is done for an instance: it is made to be there, or to be gone."""

import asyncio
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from provisioner import helm
from provisioner.cluster import Cluster, fingerprint
from provisioner.database import Database, Instance, Outcome, checksum
from provisioner.settings import Settings

SECRETS = ("MINDROOM_API_TOKEN", "MATRIX_REGISTRATION_SHARED_SECRET")
"""What every instance has; what else private.instance_secrets names is added to its environment."""


@dataclass(frozen=True)
class Parts:
    """What the handlers work with."""

    settings: Settings
    database: Database
    cluster: Cluster


async def present(parts: Parts, instance: Instance) -> Outcome:
    """Make the release be there as the row wants it; a stopped one without pods."""
    wanted = {name: secrets.token_urlsafe(32) for name in SECRETS}
    content = await parts.database.secrets(instance.id, wanted)
    secret_name, _ = await asyncio.gather(
        parts.cluster.write_secret(
            instance.app_name, str(instance.id), str(instance.account_id), content
        ),
        parts.cluster.forget_unfinished(instance.app_name),
    )
    chart_values = values(parts.settings, instance, secret_name, checksum(content))
    await helm.upgrade(
        parts.settings,
        instance.app_name,
        chart_values,
        roll_back=instance.provisioned_at is not None,
    )
    objects = await parts.cluster.objects(str(instance.id))
    base = f"https://{chart_values['host']}"
    matrix = chart_values.get("matrix", {}).get("enabled")
    return Outcome(
        before=instance.status,
        after="running" if instance.status == "provisioning" else instance.status,
        urls={"frontend": base, "api": f"{base}/api", "matrix": base if matrix else None},
        applied=applied(checksum(content), fingerprint(objects[str(instance.id)])),
    )


async def absent(parts: Parts, instance: Instance) -> Outcome:
    """Remove the release; its volumes stay for as long as its plan says."""
    await undo(parts, instance)
    return Outcome(before=instance.status, after="deprovisioned")


async def undo(parts: Parts, instance: Instance) -> None:
    """Remove all there is of a release; what never ran has no volumes worth keeping."""
    await parts.cluster.forget_unfinished(instance.app_name)
    await helm.uninstall(parts.settings, instance.app_name)
    retention = instance.volume_retention_days if instance.provisioned_at else 0
    await parts.cluster.remove_rest(str(instance.id), retention)


def values(
    settings: Settings, instance: Instance, secret_name: str, secret_checksum: str
) -> Mapping[str, Any]:
    """The chart's values: those of every instance, then the row's own, then what is not theirs."""
    return _merge(
        _merge(settings.instance_values, instance.app_config),
        {
            "instanceId": str(instance.id),
            "accountId": str(instance.account_id),
            "host": f"{instance.subdomain}.{settings.base_domain}",
            "paused": instance.status == "stopped",
            "resources": {
                "cpu": instance.cpu_limit,
                "memoryMb": instance.memory_limit_mb,
                "storageGb": instance.storage_limit_gb,
            },
            "config": instance.config,
            "secretName": secret_name,
            "secretChecksum": secret_checksum,
        },
    )


def applied(secret_checksum: str, objects: str) -> str:
    """What is compared later: an instance's secrets, and its objects as the cluster has them."""
    return f"{secret_checksum} {objects}"


def _merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for name, value in over.items():
        below = merged.get(name)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            value = _merge(below, value)
        merged[name] = value
    return merged


ACTIONS = {
    "provisioning": present,
    "running": present,
    "stopped": present,
    "deprovisioning": absent,
}
"""Status of a row -> what is done for it; nothing for any other."""
