"""What is done for an instance, by the status of its row; each action can safely be repeated."""

import asyncio
import hashlib
import json
import secrets
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from provisioner import helm, instance_secrets, preflight
from provisioner.cluster import ACCOUNT_LABEL, INSTANCE_LABEL
from provisioner.context import Context
from provisioner.helm import HelmError
from provisioner.instances import Instance
from provisioner.leases import Outcome
from provisioner.releases import Applied, Release, UpgradeError
from provisioner.settings import Settings
from provisioner.workers import Worker

TOKENS = ("MINDROOM_API_TOKEN", "MATRIX_REGISTRATION_SHARED_SECRET")
"""The secrets that are generated for every instance; operators may add more to the table."""

MATRIX_SERVER_NAME = "MATRIX_SERVER_NAME"
"""Beside them, with a Matrix server: its name, which its database is bound to. It is given once,
and follows neither the subdomain nor BASE_DOMAIN."""


FORESEEABLE = ("FailedCreate", "ImagePullBackOff", "InvalidImageName", "Unschedulable")
"""Problems that `preflight` finds: a change that failed with one is held until it has been refused
and is no longer."""


async def ensure_present(context: Context, instance: Instance, worker: Worker) -> Outcome:
    """Install or upgrade the release so that it matches the row; a stopped one has no pods."""
    content = await instance_secrets.add_missing(
        context.database, instance.id, first_secrets(context.settings, instance)
    )
    checksum = instance_secrets.checksum(content)
    labels = {INSTANCE_LABEL: str(instance.id), ACCOUNT_LABEL: str(instance.account_id)}
    secret_name, _ = await asyncio.gather(
        context.cluster.write_secret(instance.app_name, labels, content),
        context.cluster.delete_interrupted_revisions(instance.app_name),
    )
    values = chart_values(
        context.settings, instance, secret_name, checksum, content.get(MATRIX_SERVER_NAME)
    )
    release = Release(context, instance, worker)
    before = Applied.parse(instance.applied)
    newest = await context.cluster.newest_revision(instance.app_name)
    if not before.revision:
        before = before._replace(revision=newest)
    change = _digest(context.settings, values)
    is_running = context.health_watch.is_running(instance.id)
    config_name = values["configName"]
    await context.cluster.write_config(config_name, labels, instance.config)
    if instance.provisioned_at is not None:
        await context.cluster.delete_trials(str(instance.id))
    if instance.held == change:
        if is_running and any(reason in (instance.error_message or "") for reason in FORESEEABLE):
            objects = await helm.render(context.settings, instance.app_name, values)
            await preflight.check(context, instance, worker, objects)
        return await _held(release, before)
    if instance.provisioned_at is not None:
        objects = await helm.render(context.settings, instance.app_name, values)
        if is_running and instance.status == "running":
            await preflight.check(context, instance, worker, objects)
        values = await release.grow_volumes(values, objects)
    generations = await release.generations()
    await context.cluster.delete_configs(
        str(instance.id), all_but=(config_name, before.config_name)
    )
    try:
        applied = await release.upgrade(context.settings.instance_chart, values, checksum)
    except (HelmError, UpgradeError) as error:
        if instance.provisioned_at is None or await release.is_as(before):
            raise
        was_stopped = is_running and generations != await release.generations()
        # An earlier attempt that was not finished may be what it does not run for.
        is_interruption = was_stopped or newest > before.revision
        held = change if is_interruption and instance.status == "running" else None
        raise await release.restored(before, error, held) from error
    base = f"https://{values['host']}"
    return Outcome(
        old_status=instance.status,
        new_status="running" if instance.status == "provisioning" else instance.status,
        urls={
            "frontend": base,
            "api": f"{base}/api",
            "matrix": base if has_matrix(values) else None,
        },
        applied=str(applied),
    )


async def _held(release: Release, before: Applied) -> Outcome:
    """Leave a change alone that failed; see that what ran before is as it was."""
    instance = release.instance
    applied = instance.applied
    if not await release.is_as(before):
        try:
            applied = str(await release.restore(before))
        except (HelmError, UpgradeError) as error:
            message = f"what ran before was not restored: {error}"
            raise UpgradeError(message, held=instance.held) from error
    return Outcome(
        old_status=instance.status,
        new_status=instance.status,
        error=instance.error_message,
        retry_in=release.context.settings.last_backoff_seconds,
        applied=applied,
        held=instance.held,
    )


async def ensure_absent(context: Context, instance: Instance, worker: Worker) -> Outcome:
    """Remove the release; its volumes are kept for as long as its tier says."""
    await remove(context, instance, worker)
    return Outcome(old_status=instance.status, new_status="deprovisioned")


async def remove(context: Context, instance: Instance, worker: Worker) -> None:
    """Remove a release and its objects; an instance that never ran has no volumes to keep.

    Raises:
        NotGoneError: some of the objects are still there.
    """
    await context.cluster.delete_interrupted_revisions(instance.app_name)
    await helm.uninstall(context.settings, instance.app_name)
    retention_days = instance.volume_retention_days if instance.provisioned_at else 0
    await context.cluster.delete_remaining_objects(str(instance.id), retention_days)
    async with worker.waiting():
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


def has_matrix(values: Mapping[str, Any]) -> bool:
    """Whether these values of the chart ask for a Matrix server."""
    matrix = values.get("matrix")
    return isinstance(matrix, Mapping) and matrix.get("enabled") is True


def first_secrets(settings: Settings, instance: Instance) -> dict[str, str]:
    """What an instance is given once, unless it has it already.

    The Matrix server that an earlier release of this service made is named after its host.
    """
    found = {name: secrets.token_urlsafe(32) for name in TOKENS}
    if has_matrix(_merge(settings.instance_values, instance.app_config)):
        host = urlsplit(instance.matrix_url or "").hostname
        found[MATRIX_SERVER_NAME] = host or f"{instance.app_name}.{settings.base_domain}"
    return found


def chart_values(
    settings: Settings,
    instance: Instance,
    secret_name: str,
    secrets_checksum: str,
    matrix_server_name: str | None,
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
            "configName": _config_name(instance),
            "secretName": secret_name,
            "secretChecksum": secrets_checksum,
        }
        | ({"matrix": {"serverName": matrix_server_name}} if matrix_server_name else {}),
    )


def _config_name(instance: Instance) -> str:
    """The name of the ConfigMap with an instance's config: another config is another ConfigMap.

    So pods roll, and what ran before a change that failed finds its own again.
    """
    digest = hashlib.sha256(instance.config.encode()).hexdigest()
    return f"{instance.app_name}-config-{digest[:16]}"


def _digest(settings: Settings, values: Mapping[str, Any]) -> str:
    """A digest of all that a release is made of."""
    text = json.dumps(values, sort_keys=True)
    return hashlib.sha256(f"{settings.chart_digest}\n{text}".encode()).hexdigest()


def _merge(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in overrides.items():
        overridden = merged.get(name)
        if isinstance(overridden, Mapping) and isinstance(value, Mapping):
            value = _merge(overridden, value)
        merged[name] = value
    return merged
