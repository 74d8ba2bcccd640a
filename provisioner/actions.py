"""What is done for an instance, by the status of its row; each action can safely be repeated."""

import asyncio
import secrets
from collections.abc import Mapping
from typing import Any

from provisioner import helm, instance_secrets
from provisioner.cluster import fingerprint
from provisioner.context import Context
from provisioner.instances import Instance
from provisioner.leases import Outcome
from provisioner.settings import Settings

TOKENS = ("MINDROOM_API_TOKEN", "MATRIX_REGISTRATION_SHARED_SECRET")
"""The secrets that are generated for every instance; operators may add more to the table."""


async def ensure_present(context: Context, instance: Instance) -> Outcome:
    """Install or upgrade the release so that it matches the row; a stopped one has no pods."""
    content = await instance_secrets.add_missing(
        context.database, instance.id, {name: secrets.token_urlsafe(32) for name in TOKENS}
    )
    checksum = instance_secrets.checksum(content)
    secret_name, _ = await asyncio.gather(
        context.cluster.write_secret(
            instance.app_name, str(instance.id), str(instance.account_id), content
        ),
        context.cluster.delete_interrupted_revisions(instance.app_name),
    )
    values = chart_values(context.settings, instance, secret_name, checksum)
    await helm.upgrade(
        context.settings,
        instance.app_name,
        values,
        roll_back=instance.provisioned_at is not None,
    )
    objects = await context.cluster.objects(str(instance.id))
    base = f"https://{values['host']}"
    has_matrix = values.get("matrix", {}).get("enabled")
    return Outcome(
        old_status=instance.status,
        new_status="running" if instance.status == "provisioning" else instance.status,
        urls={"frontend": base, "api": f"{base}/api", "matrix": base if has_matrix else None},
        applied=applied_state(checksum, fingerprint(objects[str(instance.id)])),
    )


async def ensure_absent(context: Context, instance: Instance) -> Outcome:
    """Remove the release; its volumes are kept for as long as its tier says."""
    await remove(context, instance)
    return Outcome(old_status=instance.status, new_status="deprovisioned")


async def remove(context: Context, instance: Instance) -> None:
    """Remove a release and its objects; an instance that never ran has no volumes to keep.

    Raises:
        NotGoneError: some of the objects are still there.
    """
    await context.cluster.delete_interrupted_revisions(instance.app_name)
    await helm.uninstall(context.settings, instance.app_name)
    retention_days = instance.volume_retention_days if instance.provisioned_at else 0
    await context.cluster.delete_remaining_objects(str(instance.id), retention_days)
    await context.cluster.wait_until_gone(
        str(instance.id),
        context.settings.helm_timeout_seconds,
        except_volumes=retention_days > 0,
    )


ACTIONS = {
    "provisioning": ensure_present,
    "running": ensure_present,
    "stopped": ensure_present,
    "deprovisioning": ensure_absent,
}
"""Status of a row -> its action; none for any other status."""


def chart_values(
    settings: Settings, instance: Instance, secret_name: str, secrets_checksum: str
) -> Mapping[str, Any]:
    """Values of the chart: INSTANCE_VALUES, overridden by app_config, overridden by the row."""
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
            "secretChecksum": secrets_checksum,
        },
    )


def applied_state(secrets_checksum: str, objects_fingerprint: str) -> str:
    """The recorded result of an attempt: the resync repairs an instance when this has changed."""
    return f"{secrets_checksum} {objects_fingerprint}"


def _merge(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in overrides.items():
        overridden = merged.get(name)
        if isinstance(overridden, Mapping) and isinstance(value, Mapping):
            value = _merge(overridden, value)
        merged[name] = value
    return merged
