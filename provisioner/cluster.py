"""The API server: the objects of instances, and the records that Helm keeps of its releases."""

import asyncio
import base64
import gzip
import hashlib
import json
import logging
import time
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, NamedTuple

import httpx2
import msgspec
import structlog
from lightkube import ApiError, AsyncClient
from lightkube.core.exceptions import ConfigError
from lightkube.core.resource import NamespacedResource
from lightkube.core.selector import build_selector
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.apps_v1 import Deployment, ReplicaSet, StatefulSet
from lightkube.resources.core_v1 import (
    ConfigMap,
    Node,
    PersistentVolumeClaim,
    Pod,
    Secret,
    Service,
)
from lightkube.resources.networking_v1 import Ingress, NetworkPolicy
from lightkube.utils.quantity import parse_quantity

from provisioner.health import CANNOT_GROW_LABEL, COMPONENT_LABEL, TRIAL_LABEL
from provisioner.settings import Settings

log = structlog.get_logger()

INSTANCE_LABEL = "mindroom.chat/instance"
"""The label of every object of an instance: the id of its row."""

DELETE_AFTER = "mindroom.chat/delete-after"
"""The annotation of a volume that outlives its instance: until when it is kept."""

ACCOUNT_LABEL = "mindroom.chat/account"
CONFIG = "config"
"""The component of the ConfigMaps with the customer's config."""

FIELD_MANAGER = "instance-provisioner"
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
WORKLOADS = (Deployment, StatefulSet)
POD_KINDS: tuple[type[NamespacedResource], ...] = (ReplicaSet, Pod)
"""What controllers make of the workloads; it ends with them, and not before it has gone."""

INTERRUPTED = ("pending-install", "pending-upgrade", "pending-rollback", "uninstalling")
"""Helm's statuses of a revision whose run was interrupted, and that blocks further runs."""

KEPT_REVISIONS = 3
"""How many of Helm's records of a release stay, beside that of what ran before."""

ADDRESS_TYPES = ("InternalIP", "ExternalIP", "InternalDNS", "Hostname")
"""Of a node's addresses, the first of these is asked."""

KUBELET_PORT = 10250
METADATA_ONLY = {"Accept": "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"}
TIMEOUT = httpx2.Timeout(10)
POLL_SECONDS = 0.5
LONGEST_POLL_SECONDS = 5.0
TRIAL_POLL_SECONDS = 0.1
TRIAL_SECONDS = 10.0

CLUSTER_ERRORS = (httpx2.HTTPError, ConfigError)
"""The exceptions of the client: the API server cannot be reached, or refuses a request."""


class NotGoneError(Exception):
    """Objects that were deleted are still there; the message names them and their finalizers."""


class Metadata(msgspec.Struct, frozen=True):
    """The metadata of an object, as far as it is used."""

    name: str
    uid: str
    resourceVersion: str  # noqa: N815 - Kubernetes' own spelling
    generation: int = 0
    deletionTimestamp: str | None = None  # noqa: N815
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    finalizers: list[str] = []


class _Item(msgspec.Struct):
    metadata: Metadata


class _List(msgspec.Struct):
    items: list[_Item] | None


@dataclass(frozen=True)
class KubernetesObject:
    """The kind and metadata of an object."""

    kind: type[NamespacedResource]
    metadata: Metadata

    @property
    def identity(self) -> str:
        """Text that changes when the object is replaced or its content is changed."""
        version: object = self.metadata.generation or self.metadata.resourceVersion
        if self.kind is PersistentVolumeClaim:
            version = ""  # binding a claim changes its version
        return f"{self.kind.__name__} {self.metadata.name} {self.metadata.uid} {version}"

    def __str__(self) -> str:
        """Kind and name, with the finalizers that a deletion waits for."""
        text = f"{self.kind.__name__} {self.metadata.name}"
        if not (finalizers := self.metadata.finalizers):
            return text
        return f"{text} (finalizer{'s' * (len(finalizers) > 1)} {', '.join(finalizers)})"

    @property
    def is_config(self) -> bool:
        """Whether it is a ConfigMap with a config of the customer."""
        return self.kind is ConfigMap and self.metadata.labels.get(COMPONENT_LABEL) == CONFIG

    @property
    def delete_after(self) -> datetime | None:
        """Until when the volume of a removed instance is kept; None without a valid annotation."""
        try:
            until = datetime.fromisoformat(self.metadata.annotations.get(DELETE_AFTER, ""))
        except ValueError:
            return None
        return until if until.tzinfo else until.replace(tzinfo=UTC)


class NodeAddress(NamedTuple):
    """A node and where its kubelet listens; an empty URL where that is not known."""

    name: str
    url: str


def _node_address(node: Any) -> NodeAddress:
    status = node.status
    addresses = {each.type: each.address for each in (status and status.addresses) or []}
    host = next((addresses[kind] for kind in ADDRESS_TYPES if kind in addresses), None)
    endpoint = status and status.daemonEndpoints and status.daemonEndpoints.kubeletEndpoint
    port = (endpoint and endpoint.Port) or KUBELET_PORT
    if host and ":" in host:
        host = f"[{host}]"
    return NodeAddress(node.metadata.name, f"https://{host}:{port}" if host else "")


ObjectsByInstance = Mapping[str, list[KubernetesObject]]
"""Instance id -> its objects."""


def fingerprint(objects: Iterable[KubernetesObject], config_name: str) -> str:
    """A digest that changes when an object is added, replaced, changed or removed.

    Of the ConfigMaps with configs only the one of this name counts: the others are not in use.
    """
    text = "\n".join(
        sorted(
            obj.identity
            for obj in objects
            if not (obj.is_config and obj.metadata.name != config_name)
        )
    )
    return hashlib.sha256(text.encode()).hexdigest()


def quantity(text: str | None) -> Decimal:
    """The number that a quantity stands for; 0 for none."""
    return parse_quantity(text) or Decimal(0)


class Cluster(AsyncClient):
    """A client of the instances' namespace; it reads a rotated token again."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(
            namespace=settings.instances_namespace, field_manager=FIELD_MANAGER, timeout=TIMEOUT
        )

    async def __aenter__(self) -> "Cluster":
        """Connect to nothing yet."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close all connections."""
        await self.close()

    async def is_reachable(self) -> bool:
        """Whether the API server grants a request at this moment."""
        try:
            await self.metadata(Secret, {INSTANCE_LABEL: "none"})
        except CLUSTER_ERRORS:
            return False
        return True

    async def write_secret(
        self, release: str, labels: Mapping[str, str], content: Mapping[str, str]
    ) -> str:
        """Create or replace the Secret of a release; returns its name."""
        name = f"{release}-secrets"
        data = {key: base64.b64encode(value.encode()).decode() for key, value in content.items()}
        await self.apply(Secret(metadata=self._metadata_of(name, labels), data=data), force=True)
        return name

    async def write_config(self, name: str, labels: Mapping[str, str], config: str) -> None:
        """Create the ConfigMap with a config, unless it is there: no other has this name.

        Created, not applied, which would read it as YAML: that has no room for some characters.
        """
        metadata = self._metadata_of(name, {**labels, COMPONENT_LABEL: CONFIG})
        try:
            await self.create(
                ConfigMap(metadata=metadata, data={"config.json": config}, immutable=True)
            )
        except ApiError as error:
            if error.status.code != HTTPStatus.CONFLICT:
                raise

    async def delete_configs(self, instance_id: str, *, all_but: Container[str]) -> None:
        """Delete the ConfigMaps with configs of an instance that have other names than these."""
        labels = {INSTANCE_LABEL: instance_id, COMPONENT_LABEL: CONFIG}
        for metadata in await self.metadata(ConfigMap, labels):
            if metadata.name not in all_but:
                await self.delete_object(KubernetesObject(ConfigMap, metadata))

    async def delete_interrupted_revisions(self, release: str) -> None:
        """Delete Helm's records of interrupted runs; the next run adopts their objects."""
        labels = {"owner": "helm", "name": release, "status": INTERRUPTED}
        for metadata in await self.metadata(Secret, labels):
            await self.delete_object(KubernetesObject(Secret, metadata))

    async def prune_revisions(self, release: str, *, but: int) -> int:
        """Delete Helm's old records of a release but one; returns the newest revision's number.

        It is 0 if there is none.
        """
        revisions = await self._revisions(release)
        newest = max(revisions, default=0)
        for number, record in revisions.items():
            if number <= newest - KEPT_REVISIONS and number != but:
                await self.delete_object(KubernetesObject(Secret, record))
        return newest

    async def newest_revision(self, release: str) -> int:
        """The number of the newest revision of a release; 0 if there is none."""
        return max(await self._revisions(release), default=0)

    async def revision(self, release: str, number: int) -> dict[str, Any] | None:
        """Helm's record of a revision, with its chart and values; None if there is none."""
        try:
            record = await self.get(Secret, f"sh.helm.release.v1.{release}.v{number}")
        except ApiError as error:
            if error.status.code == HTTPStatus.NOT_FOUND:
                return None
            raise
        encoded = base64.b64decode((record.data or {})["release"])
        return dict(json.loads(gzip.decompress(base64.b64decode(encoded))))

    async def try_to_write(self, obj: Any) -> tuple[Any | None, Any]:
        """An object as it is now, or None, and as it would be after it was written.

        Raises:
            ApiError: the API server would refuse it.
        """
        try:
            present = await self.get(type(obj), obj.metadata.name)
        except ApiError as error:
            if error.status.code != HTTPStatus.NOT_FOUND:
                raise
            return None, await self.create(obj, dry_run=True)
        return present, await self.replace(obj, dry_run=True)

    async def grow_volume(self, name: str, size: str) -> str | None:
        """Let a volume grow to a size, if it is there; the size that it has, if it cannot.

        In that case its label `CANNOT_GROW_LABEL` says so.
        """
        try:
            volume: Any = await self.get(PersistentVolumeClaim, name)
        except ApiError as error:
            if error.status.code == HTTPStatus.NOT_FOUND:
                return None
            raise
        present = volume.spec.resources.requests["storage"]
        is_labelled = CANNOT_GROW_LABEL in (volume.metadata.labels or {})
        is_enough = quantity(present) >= quantity(size)
        if is_enough and not is_labelled:
            return None
        none = {CANNOT_GROW_LABEL: None}
        change: dict[str, Any] = {"metadata": {"labels": none, "annotations": none}}
        if not is_enough:
            change["spec"] = {"resources": {"requests": {"storage": size}}}
        try:
            await self.patch(PersistentVolumeClaim, name, change)
        except ApiError as error:
            log.log(
                logging.DEBUG if is_labelled else logging.WARNING,
                "volume cannot grow",
                volume=name,
                size=size,
                error=str(error),
            )
            why = {
                "labels": {CANNOT_GROW_LABEL: size},
                "annotations": {CANNOT_GROW_LABEL: str(error)},
            }
            await self.patch(PersistentVolumeClaim, name, {"metadata": why})
            return str(present)
        log.info("volume has its size", volume=name, size=size)
        return None

    async def delete_trials(self, instance_id: str) -> None:
        """Delete what `preflight` has tried changes of an instance with; wait until it is gone.

        Pods that are still there would use up the quota of the next trial, or be taken for its own.
        On a node that does not answer they stay: they are not waited for any longer than a while.
        """
        labels = {INSTANCE_LABEL: instance_id, TRIAL_LABEL: None}
        deployments = await self.metadata(Deployment, labels)
        for metadata in deployments:
            await self.delete_object(KubernetesObject(Deployment, metadata))
        deadline = time.monotonic() + TRIAL_SECONDS
        while deployments and await self.metadata(Pod, labels):
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(TRIAL_POLL_SECONDS)

    async def objects(
        self,
        instance_id: str | None = None,
        kinds: Sequence[type[NamespacedResource]] = KINDS,
    ) -> ObjectsByInstance:
        """The objects of one instance or, by default, of all."""
        found = defaultdict(list)
        lists = await asyncio.gather(
            *(self.metadata(kind, {INSTANCE_LABEL: instance_id}) for kind in kinds)
        )
        for kind, items in zip(kinds, lists, strict=True):
            for metadata in items:
                found[metadata.labels[INSTANCE_LABEL]].append(KubernetesObject(kind, metadata))
        return found

    async def releases(self) -> set[str]:
        """The names of all Helm releases."""
        records = await self.metadata(Secret, {"owner": "helm"})
        return {record.labels["name"] for record in records}

    async def delete_remaining_objects(self, instance_id: str, retention_days: int) -> None:
        """Delete the objects of an instance that Helm left; its volumes after so many days."""
        for obj in (await self.objects(instance_id))[instance_id]:
            if obj.kind is not PersistentVolumeClaim or not retention_days:
                await self.delete_object(obj)
            elif not obj.delete_after:
                until = datetime.now(UTC) + timedelta(days=retention_days)
                annotation = {DELETE_AFTER: until.isoformat(timespec="seconds")}
                await self.patch(
                    PersistentVolumeClaim,
                    obj.metadata.name,
                    {"metadata": {"annotations": annotation}},
                )

    async def wait_until_gone(
        self, instance_id: str, seconds: float, *, except_volumes: bool
    ) -> None:
        """Wait until an instance has no object left, its pods included.

        Raises:
            NotGoneError: there are some after so many seconds.
        """
        deadline = time.monotonic() + seconds
        pause = POLL_SECONDS
        while True:
            found = await self.objects(instance_id, (*KINDS, *POD_KINDS))
            remaining = [
                obj
                for obj in found[instance_id]
                if not (except_volumes and obj.kind is PersistentVolumeClaim)
            ]
            if not remaining:
                return
            if time.monotonic() > deadline:
                names = ", ".join(sorted(map(str, remaining)))
                raise NotGoneError(f"deleted, but still there after {seconds:g} s: {names}")
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_POLL_SECONDS)

    async def delete_object(self, obj: KubernetesObject) -> None:
        """Delete an object, if it still exists."""
        try:
            await self.delete(obj.kind, obj.metadata.name)
        except ApiError as error:
            if error.status.code != HTTPStatus.NOT_FOUND:
                raise

    def _metadata_of(self, name: str, labels: Mapping[str, str]) -> ObjectMeta:
        managed = {"app.kubernetes.io/managed-by": FIELD_MANAGER}
        return ObjectMeta(name=name, namespace=self.namespace, labels={**labels, **managed})

    async def _revisions(self, release: str) -> dict[int, Metadata]:
        records = await self.metadata(Secret, {"owner": "helm", "name": release})
        return {int(record.labels["version"]): record for record in records}

    async def nodes(self) -> list[NodeAddress]:
        """All nodes."""
        return [_node_address(node) async for node in self.list(Node)]

    async def metadata(
        self,
        kind: type[NamespacedResource],
        labels: Mapping[str, Any],
        fields: Mapping[str, str] = MappingProxyType({}),
    ) -> list[Metadata]:
        """The metadata of all objects of a kind with these labels; None stands for any value.

        Fields are those that the kind can be selected by.

        Content is not requested: Helm's records of a thousand releases would be a hundred
        megabytes.
        """
        client: Any = self._client  # lightkube has no call for this; its inner client is untyped
        request = client.prepare_request(
            "list",
            kind,
            params={
                "labelSelector": build_selector(dict(labels)),
                "fieldSelector": ",".join(f"{name}={value}" for name, value in fields.items()),
            },
            headers=METADATA_ONLY,
        )
        response = await client.send(client.build_adapter_request(request))
        client.raise_for_status(response)
        listed = msgspec.json.decode(response.content, type=_List)
        return [item.metadata for item in listed.items or []]
