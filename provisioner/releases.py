"""The Helm release of an instance: changed, waited for, and put back as it was."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lightkube.codecs import AnyResource
from lightkube.resources.core_v1 import PersistentVolumeClaim

from provisioner import helm
from provisioner.cluster import CLUSTER_ERRORS, WORKLOADS, fingerprint, quantity
from provisioner.context import Context
from provisioner.helm import HelmError
from provisioner.instances import Instance
from provisioner.workers import Worker


class Applied(NamedTuple):
    """What an attempt left in the cluster: the text `private.provisioning.applied`.

    Attributes:
        secrets_checksum: that of `instance_secrets`.
        fingerprint: that of the objects; where it is another one now, the resync repairs them.
        revision: of the Helm release; 0 if unknown.
        config_name: of the ConfigMap with the customer's config; empty if there was none.
    """

    secrets_checksum: str
    fingerprint: str
    revision: int
    config_name: str

    def __str__(self) -> str:
        """As it is recorded."""
        return " ".join(map(str, self))

    @classmethod
    def parse(cls, text: str | None) -> "Applied":
        """What is recorded; nothing matches what was never recorded."""
        checksum, objects, revision, config, *_ = [*(text or "").split(), "", "", "", ""]
        return cls(checksum, objects, int(revision or 0), config)


class NotRecordedError(Exception):
    """Helm has no record of what ran before."""


class UpgradeError(Exception):
    """The pods of a release did not become ready, or Helm failed when it had changed something.

    Attributes:
        applied: what the cluster has now, if what ran before runs again; otherwise None.
        held: the digest of what is not to be tried again, as it interrupts a running instance.
    """

    def __init__(self, message: str, applied: str | None = None, held: str | None = None) -> None:
        super().__init__(message)
        self.applied = applied
        self.held = held


@dataclass(frozen=True)
class Release:
    """The release of an instance, and the worker that changes it."""

    context: Context
    instance: Instance
    worker: Worker

    async def upgrade(
        self, chart: Path, values: Mapping[str, Any], secrets_checksum: str
    ) -> Applied:
        """Install or upgrade it, and wait until its pods are ready.

        Raises:
            HelmError: Helm failed.
            UpgradeError: its pods were not ready in time.
        """
        seconds = self.context.settings.helm_timeout_seconds
        # Before, since what is attempted again and again may never be ready.
        ran = Applied.parse(self.instance.applied).revision
        await self.context.cluster.prune_revisions(self.instance.app_name, but=ran)
        await helm.upgrade(self.context.settings, self.instance.app_name, chart, values)
        instance_id = str(self.instance.id)
        objects = (await self.context.cluster.objects(instance_id))[instance_id]
        async with self.worker.waiting():
            is_ready = await self.context.health_watch.wait_until_ready(
                self.instance.id, objects, seconds
            )
        if not is_ready:
            raise UpgradeError(f"its pods were not ready within {seconds} s")
        revision = await self.context.cluster.newest_revision(self.instance.app_name)
        config_name = values.get("configName", "")
        return Applied(secrets_checksum, fingerprint(objects, config_name), revision, config_name)

    async def is_as(self, applied: Applied) -> bool:
        """Whether its objects are as they were left."""
        instance_id = str(self.instance.id)
        objects = (await self.context.cluster.objects(instance_id))[instance_id]
        return fingerprint(objects, applied.config_name) == applied.fingerprint

    async def generations(self) -> Mapping[str, int]:
        """Workload -> its generation, which is another one when its pods are."""
        instance_id = str(self.instance.id)
        objects = (await self.context.cluster.objects(instance_id, WORKLOADS))[instance_id]
        return {str(obj): obj.metadata.generation for obj in objects}

    async def restore(self, before: Applied) -> Applied:
        """Install again what ran before.

        Not by `helm rollback`, which applies the manifests of that time: a volume that has grown
        since refuses them. Rendered again, the chart asks for the size that the volume has.

        Raises:
            NotRecordedError: Helm has no record of it.
            HelmError: Helm failed.
            UpgradeError: its pods were not ready in time.
        """
        record = await self.context.cluster.revision(self.instance.app_name, before.revision)
        if record is None:
            raise NotRecordedError(f"Helm has no record of revision {before.revision}")
        with helm.recorded_chart(record) as chart:
            return await self.upgrade(chart, record.get("config") or {}, before.secrets_checksum)

    async def restored(self, before: Applied, error: Exception, held: str | None) -> UpgradeError:
        """The error of a failed upgrade, after what ran before was installed again.

        The upgrade, of which `held` is the digest, is not to be tried again, unless that is None.
        """
        message = f"{error}; not tried again until something of it changes" if held else str(error)
        try:
            applied = await self.restore(before)
        except NotRecordedError as restore_error:
            return UpgradeError(f"{error}; and what ran before was not restored: {restore_error}")
        except (HelmError, UpgradeError, *CLUSTER_ERRORS) as restore_error:
            message = f"{message}; and what ran before was not restored: {restore_error}"
            return UpgradeError(message, held=held)
        return UpgradeError(f"{message}; what ran before was restored", str(applied), held)

    async def grow_volumes(
        self, values: Mapping[str, Any], objects: Iterable[AnyResource]
    ) -> Mapping[str, Any]:
        """Let its volumes grow; these values, without a growth that the cluster refuses."""
        wanted = smallest = values["resources"]["storageGb"]
        for obj in objects:
            if isinstance(obj, PersistentVolumeClaim):
                spec: Any = obj.spec
                size = spec.resources.requests["storage"]
                name = str(obj.metadata and obj.metadata.name)
                if present := await self.context.cluster.grow_volume(name, size):
                    share = quantity(present) / quantity(size)
                    smallest = min(smallest, max(int(wanted * share), 1))
        return {**values, "resources": {**values["resources"], "storageGb": smallest}}
