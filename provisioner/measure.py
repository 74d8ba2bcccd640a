"""Measures what instances use: CPU, memory and volumes, as the kubelets tell."""

import asyncio
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Annotated

import httpx2
import msgspec
import psycopg
import structlog
from lightkube.config.client_adapter import user_auth, verify_cluster
from lightkube.config.models import User
from lightkube.resources.core_v1 import PersistentVolumeClaim, Pod
from msgspec import Meta
from psycopg import AsyncConnection

from provisioner import instances, metrics
from provisioner.cluster import CLUSTER_ERRORS, INSTANCE_LABEL, Cluster, Metadata, NodeAddress
from provisioner.context import Context
from provisioner.health import TRIAL_LABEL
from provisioner.instances import Usage

log = structlog.get_logger()

NODES_AT_ONCE = 16
NODE_SECONDS = 15.0
"""In which a kubelet has to have answered."""

LARGEST_ANSWER = 32 * 2**20
"""Bytes; a pod has about 4,000 in it."""

LOCK = "the instance-provisioner measures"

MOST_CORES = 9999.999
"""What the column holds."""

Bytes = Annotated[int, Meta(ge=0, le=2**50)]
NanoCores = Annotated[int, Meta(ge=0, le=10**12)]


class NodeError(Exception):
    """A kubelet did not answer, or not in a way that makes sense."""


class _Cpu(msgspec.Struct, rename="camel"):
    usage_nano_cores: NanoCores | None = None


class _Memory(msgspec.Struct, rename="camel"):
    working_set_bytes: Bytes | None = None


class _Claim(msgspec.Struct):
    name: str


class _Volume(msgspec.Struct, rename="camel"):
    used_bytes: Bytes | None = None
    pvc_ref: _Claim | None = None


class _PodRef(msgspec.Struct):
    uid: str


class _Pod(msgspec.Struct, rename="camel"):
    pod_ref: _PodRef
    cpu: _Cpu | None = None
    memory: _Memory | None = None
    volume: list[_Volume] = []


class _Summary(msgspec.Struct):
    pods: list[_Pod] | None


class Measure:
    """Measures all instances once per `measure_seconds`, in one replica.

    That is the one whose session holds an advisory lock, for as long as it lasts; what it measured
    is written in that session. The others ask for the lock as often.

    Attributes:
        failed: node -> why it was not measured in the last round.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self.failed: dict[str, str] = {}

    async def run(self) -> None:
        """Measure until cancelled."""
        settings = self._context.settings
        async with kubelet_client(self._context.cluster, settings.kubelet_ca) as kubelets:
            while True:
                with suppress(psycopg.Error):  # which others report
                    async with self._context.database.connection() as session:
                        try:
                            await self._measure_while_first(session, kubelets)
                        finally:
                            metrics.nodes.clear()
                            if not session.closed:
                                await _unlock(session)
                await asyncio.sleep(settings.measure_seconds)

    async def _measure_while_first(
        self, session: AsyncConnection, kubelets: httpx2.AsyncClient
    ) -> None:
        cursor = await session.execute(
            "select pg_try_advisory_lock(hashtextextended(%s, 0))", [LOCK]
        )
        if await cursor.fetchone() != (True,):
            return
        while True:
            began = time.monotonic()
            try:
                await self.round(session, kubelets)
            except CLUSTER_ERRORS as error:
                log.warning("not measured", error=str(error) or type(error).__name__)
            taken = time.monotonic() - began
            await asyncio.sleep(max(0, self._context.settings.measure_seconds - taken))

    async def round(self, session: AsyncConnection, kubelets: httpx2.AsyncClient) -> None:
        """Measure all instances once, and write it in a session.

        Raises:
            httpx2.HTTPError: the API server cannot be reached, or refuses a request.
            psycopg.Error: it was not written.
        """
        began = time.monotonic()
        cluster = self._context.cluster
        answers = await _ask(kubelets, await cluster.nodes())
        # Listed afterwards: one that has moved since a kubelet told of it has another id now.
        pods, claims = await asyncio.gather(
            cluster.metadata(Pod, {INSTANCE_LABEL: None}, {"status.phase": "Running"}),
            cluster.metadata(PersistentVolumeClaim, {INSTANCE_LABEL: None}),
        )
        self._report(answers)
        told = {
            pod.pod_ref.uid: pod
            for pods_of_node in answers.values()
            if not isinstance(pods_of_node, NodeError)
            for pod in pods_of_node
        }
        claims_of = _by_instance(claims)
        await instances.write_usage(
            session,
            [
                _usage(instance_id, [told.get(pod.uid) for pod in of_it], claims_of[instance_id])
                for instance_id, of_it in _by_instance(pods).items()
            ],
        )
        metrics.measure_time.set_to_current_time()
        log.debug("measured", seconds=round(time.monotonic() - began, 3), pods=len(pods))

    def _report(self, answers: Mapping[str, list[_Pod] | NodeError]) -> None:
        """Count the nodes, and log those that begin or cease to fail."""
        failed = {name: str(each) for name, each in answers.items() if isinstance(each, NodeError)}
        for name, error in failed.items():
            if self.failed.get(name) != error:
                log.warning("node not measured", node=name, error=error)
        for name in self.failed.keys() - failed.keys():
            log.info("node no longer fails to be measured", node=name)
        self.failed = failed
        metrics.nodes.labels("measured").set(len(answers) - len(failed))
        metrics.nodes.labels("failed").set(len(failed))


def kubelet_client(cluster: Cluster, ca: str) -> httpx2.AsyncClient:
    """A client of all kubelets, with the ServiceAccount's token, which is read again when rotated.

    Their certificates are checked against these CAs (PEM), by default the API server's.
    """
    config = cluster.config
    user = config.user or User()
    verify = verify_cluster(config.cluster, user, config.abs_file, trust_env=False)
    if ca:
        verify.load_verify_locations(cadata=ca)
    return httpx2.AsyncClient(
        verify=verify, auth=user_auth(user), timeout=NODE_SECONDS, trust_env=False
    )


async def _unlock(session: AsyncConnection) -> None:
    with suppress(psycopg.Error):
        await session.execute("select pg_advisory_unlock_all()")


async def _ask(
    kubelets: httpx2.AsyncClient, nodes: Iterable[NodeAddress]
) -> Mapping[str, list[_Pod] | NodeError]:
    """Node -> the pods that its kubelet tells of, or why there are none."""
    free = asyncio.Semaphore(NODES_AT_ONCE)

    async def ask(node: NodeAddress) -> list[_Pod] | NodeError:
        async with free:
            try:
                async with asyncio.timeout(NODE_SECONDS):
                    return await _pods_of(kubelets, node)
            except TimeoutError:
                return NodeError(f"no answer within {NODE_SECONDS:g} s")
            except (httpx2.HTTPError, httpx2.InvalidURL) as error:
                return NodeError(str(error) or type(error).__name__)
            except NodeError as error:
                return error

    nodes = list(nodes)
    return dict(
        zip((node.name for node in nodes), await asyncio.gather(*map(ask, nodes)), strict=True)
    )


async def _pods_of(kubelets: httpx2.AsyncClient, node: NodeAddress) -> list[_Pod]:
    if not node.url:
        raise NodeError("it has no address")
    content = bytearray()
    headers = {"Accept-Encoding": "identity"}
    async with kubelets.stream("GET", f"{node.url}/stats/summary", headers=headers) as response:
        if response.status_code != httpx2.codes.OK:
            raise NodeError(f"{response.status_code} {response.reason_phrase}")
        async for chunk in response.aiter_raw():
            content += chunk
            if len(content) > LARGEST_ANSWER:
                raise NodeError(f"its answer has more than {LARGEST_ANSWER} bytes")
    try:
        return msgspec.json.decode(content, type=_Summary).pods or []
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise NodeError(f"its answer makes no sense: {error}") from error


def _by_instance(objects: Iterable[Metadata]) -> Mapping[uuid.UUID, list[Metadata]]:
    """Instance -> its objects, but for trials; what was labelled by somebody else is left out."""
    found: dict[uuid.UUID, list[Metadata]] = defaultdict(list)
    for obj in objects:
        with suppress(ValueError):
            if TRIAL_LABEL not in obj.labels:
                found[uuid.UUID(obj.labels[INSTANCE_LABEL])].append(obj)
    return found


def _usage(instance_id: uuid.UUID, told: Iterable[_Pod | None], claims: list[Metadata]) -> Usage:
    """What the pods of an instance use: None for one that no kubelet told of."""
    nano_cores: list[int | None] = []
    memory: list[int | None] = []
    names = [claim.name for claim in claims]
    volumes: dict[str, int] = {}
    for pod in told:
        nano_cores.append(pod.cpu.usage_nano_cores if pod and pod.cpu else None)
        memory.append(pod.memory.working_set_bytes if pod and pod.memory else None)
        for volume in pod.volume if pod else []:
            if volume.pvc_ref and volume.pvc_ref.name in names and volume.used_bytes is not None:
                known = volumes.get(volume.pvc_ref.name, 0)
                volumes[volume.pvc_ref.name] = max(known, volume.used_bytes)
    cores, mebibytes = _total(nano_cores), _total(memory)
    return Usage(
        id=instance_id,
        cores=None if cores is None else min(cores / 1e9, MOST_CORES),
        memory_mb=None if mebibytes is None else min(mebibytes // 2**20, 2**31 - 1),
        volumes=volumes,
        claims=names,
    )


def _total(values: Iterable[int | None]) -> int | None:
    """Their sum; None if one of them is not known."""
    known = list(values)
    return None if None in known else sum(value for value in known if value is not None)
