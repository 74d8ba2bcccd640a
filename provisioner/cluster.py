"""The namespace of the instances, as far as Helm does not see to it."""

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import msgspec
from lightkube import ApiError, AsyncClient
from lightkube.core.exceptions import ConfigError
from lightkube.core.resource import NamespacedResource
from lightkube.core.selector import build_selector
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.apps_v1 import Deployment, StatefulSet
from lightkube.resources.core_v1 import (
    ConfigMap,
    PersistentVolumeClaim,
    Secret,
    Service,
)
from lightkube.resources.networking_v1 import Ingress, NetworkPolicy

from provisioner.settings import Settings

INSTANCE = "mindroom.chat/instance"
"""The label of every object that belongs to an instance: the id of its row."""

DELETE_AFTER = "mindroom.chat/delete-after"
"""The annotation of a volume whose instance was removed: until when it is kept."""

MANAGER = "instance-provisioner"
KINDS: tuple[type[NamespacedResource], ...] = (
    ConfigMap,
    PersistentVolumeClaim,
    Secret,
    Service,
    Deployment,
    StatefulSet,
    Ingress,
    NetworkPolicy,
)
UNFINISHED = ("pending-install", "pending-upgrade", "pending-rollback", "uninstalling")
"""Helm's own statuses of a release that it died over, and that it refuses to touch."""

METADATA_ONLY = {"Accept": "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"}
TIMEOUT = httpx2.Timeout(10)

ClusterError = (httpx2.HTTPError, ConfigError)
"""What the client raises, whether the cluster is away or refuses something."""


class Metadata(msgspec.Struct, frozen=True):
    """What is read of an object's metadata; the rest is skipped."""

    name: str
    uid: str
    resourceVersion: str  # noqa: N815 - Kubernetes' own spelling
    generation: int = 0
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class _Item(msgspec.Struct):
    metadata: Metadata


class _Listing(msgspec.Struct):
    items: list[_Item] | None


@dataclass(frozen=True)
class Object:
    """What is compared of an object of an instance."""

    kind: type[NamespacedResource]
    metadata: Metadata

    def __str__(self) -> str:
        """Says the same for as long as nobody changes it; a claim's binding is no change."""
        version: object = ""
        if self.kind is not PersistentVolumeClaim:
            version = self.metadata.generation or self.metadata.resourceVersion
        return f"{self.kind.__name__} {self.metadata.name} {self.metadata.uid} {version}"


Objects = Mapping[str, list[Object]]
"""Value of the label INSTANCE -> its objects."""


def fingerprint(objects: Iterable[Object]) -> str:
    """A digest that changes when any of the objects is made, changed or removed."""
    text = "\n".join(sorted(str(each) for each in objects))
    return hashlib.sha256(text.encode()).hexdigest()


def delete_after(each: Object) -> datetime | None:
    """Until when a volume of a removed instance is kept; None where nothing says so."""
    try:
        until = datetime.fromisoformat(each.metadata.annotations.get(DELETE_AFTER, ""))
    except ValueError:
        return None
    return until if until.tzinfo else until.replace(tzinfo=UTC)


class Cluster(AsyncClient):
    """A client of the instances' namespace; re-reads its token file when it was rotated."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(
            namespace=settings.instances_namespace, field_manager=MANAGER, timeout=TIMEOUT
        )

    async def __aenter__(self) -> "Cluster":
        """Nothing is asked yet."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close all connections."""
        await self.close()

    async def answers(self) -> bool:
        """Whether it can be worked with at this moment."""
        try:
            await self._metadata(Secret, {INSTANCE: "none"})
        except ClusterError:
            return False
        return True

    async def write_secret(
        self, release: str, instance_id: str, account_id: str, content: Mapping[str, str]
    ) -> str:
        """Make the release's Secret hold just this; its name."""
        name = f"{release}-secrets"
        labels = {
            INSTANCE: instance_id,
            "mindroom.chat/account": account_id,
            "app.kubernetes.io/managed-by": MANAGER,
        }
        await self.apply(
            Secret(
                metadata=ObjectMeta(name=name, namespace=self.namespace, labels=labels),
                stringData=dict(content),
            ),
            force=True,
        )
        return name

    async def forget_unfinished(self, release: str) -> None:
        """Remove the records of Helm runs that died; the next run adopts what they made."""
        labels = {"owner": "helm", "name": release, "status": UNFINISHED}
        for record in await self._metadata(Secret, labels):
            await self.remove(Object(Secret, record))

    async def objects(self, instance_id: str | None = None) -> Objects:
        """The objects of one instance, or of all."""
        found = defaultdict(list)
        listings = await asyncio.gather(
            *(self._metadata(kind, {INSTANCE: instance_id}) for kind in KINDS)
        )
        for kind, listing in zip(KINDS, listings, strict=True):
            for metadata in listing:
                found[metadata.labels[INSTANCE]].append(Object(kind, metadata))
        return found

    async def releases(self) -> set[str]:
        """The names of all Helm releases."""
        records = await self._metadata(Secret, {"owner": "helm"})
        return {record.labels["name"] for record in records}

    async def remove_rest(self, instance_id: str, retention_days: int) -> None:
        """Remove what Helm left of an instance; its volumes may be kept for a while."""
        for each in (await self.objects(instance_id))[instance_id]:
            if each.kind is not PersistentVolumeClaim or not retention_days:
                await self.remove(each)
            elif not delete_after(each):
                until = datetime.now(UTC) + timedelta(days=retention_days)
                annotation = {DELETE_AFTER: until.isoformat(timespec="seconds")}
                await self.patch(
                    PersistentVolumeClaim,
                    each.metadata.name,
                    {"metadata": {"annotations": annotation}},
                )

    async def remove(self, each: Object) -> None:
        """Delete an object, if it is still there."""
        try:
            await self.delete(each.kind, each.metadata.name)
        except ApiError as error:
            if error.status.code != 404:
                raise

    async def _metadata(
        self, kind: type[NamespacedResource], labels: Mapping[str, Any]
    ) -> list[Metadata]:
        """The metadata of all objects of a kind with these labels; any value where it is None.

        Without the content: Helm's records of a thousand releases would be a hundred megabytes.
        """
        client: Any = self._client  # untyped, for the most part
        request = client.prepare_request(
            "list",
            kind,
            params={"labelSelector": build_selector(dict(labels))},
            headers=METADATA_ONLY,
        )
        answer = await client.send(client.build_adapter_request(request))
        client.raise_for_status(answer)
        listing = msgspec.json.decode(answer.content, type=_Listing)
        return [item.metadata for item in listing.items or []]
