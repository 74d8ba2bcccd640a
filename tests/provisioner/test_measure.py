"""What instances use, from kubelets that speak TLS and ask the real API server who may know it."""

import asyncio
import json
import secrets
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx2
import pytest
import yaml

from provisioner import measure
from provisioner.cluster import Cluster
from provisioner.context import Context
from provisioner.database import Database
from provisioner.health_watch import HealthWatch
from provisioner.measure import Measure, kubelet_client
from provisioner.reachability import Reachability
from provisioner.settings import Settings
from tests.support.kubelets import Authority, Kubelet, a_kubelet, claim, create, pod, running
from tests.support.provisioning import RELEASE, World, eventually

NODES = 3


@dataclass
class Pods:
    """The pods and claims of instances, made by hand, on nodes that only kubelets of tests keep."""

    world: World
    kubelets: list[Kubelet]
    ca: str
    names: list[str] = field(default_factory=list)

    def instance(self) -> UUID:
        """An instance that no reconciler works on."""
        account, subscription = self.world.subscribe("enterprise")
        name = f"i{secrets.token_hex(6)}"
        [[made]] = self.world.db.execute(
            """insert into public.instances
                 (account_id, subscription_id, app_name, subdomain, status)
               values (%s, %s, %s, %s, 'maintenance') returning id""",
            [account, subscription, name, name],
        )
        return UUID(str(made))

    def add(self, instance: UUID, *nodes: int) -> list[str]:
        """A running pod on each of these nodes; their ids."""
        return self.create(*((instance, node) for node in nodes))

    def create(self, *places: tuple[UUID, int]) -> list[str]:
        """A running pod of each instance on its node; their ids."""
        made = create(
            self.world, *(running(instance, self.kubelets[node].node) for instance, node in places)
        )
        names = [f"pod/{name}" for name in made]
        self.world.kubectl("wait", *names, "--for=jsonpath={.status.phase}=Running")
        return [*made.values()]

    def claim(self, instance: UUID) -> str:
        """A volume claim; its name."""
        [name] = create(self.world, claim(instance))
        return name

    def remove(self, kind: str, instance: UUID) -> None:
        label = f"-lmindroom.chat/instance={instance}"
        self.world.kubectl("delete", kind, label, "--force", "--grace-period=0")

    def used(self, instance: UUID) -> tuple[float, int, float]:
        """Cores, mebibytes, gibibytes."""
        row = self.world.row(instance)
        return row["cpu_used"], row["memory_used_mb"], row["storage_used_gb"]

    def settings(self, **changes: object) -> Settings:
        given = self.world.environment(**{"KUBELET_CA": self.ca, "MEASURE_SECONDS": 0.3} | changes)
        names = [name for name in Settings.model_fields if name.upper() in given]
        return Settings.model_validate({name: given[name.upper()] for name in names})

    def measure(self, **changes: object) -> dict[str, str]:
        """One round; the nodes that failed, and why."""
        return asyncio.run(self._measure(self.settings(**changes)))

    async def _measure(self, settings: Settings) -> dict[str, str]:
        async with Database(settings) as database, Cluster(settings) as cluster:
            measuring = Measure(context(settings, database, cluster))
            async with (
                database.connection() as session,
                kubelet_client(cluster, settings.kubelet_ca) as client,
            ):
                await measuring.round(session, client)
            ours = {kubelet.node for kubelet in self.kubelets}
            return {node: why for node, why in measuring.failed.items() if node in ours}


def context(settings: Settings, database: Database, cluster: Cluster) -> Context:
    reachable = Reachability("cluster", [])
    watch = HealthWatch(database, cluster, reachable)
    return Context(settings, database, cluster, Reachability("database", []), reachable, watch)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def listening(world: World, authority: Authority) -> Iterator[list[Kubelet]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(a_kubelet(f"{world.namespace}-{number}", world.cluster, authority))
            for number in range(NODES)
        ]


@pytest.fixture
def pods(
    world: World,
    listening: list[Kubelet],
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Pods]:
    monkeypatch.setenv("KUBECONFIG", str(world.kubeconfig))
    yield Pods(world, listening, authority.certificate)
    for kubelet in listening:
        kubelet.pods, kubelet.body, kubelet.seconds = [], None, 0.0
    world.kubectl("delete", "pods,pvc", "--all", "--force", "--grace-period=0")


def test_what_all_pods_use_is_added_up_on_the_instances_row(pods: Pods) -> None:
    first, second = pods.instance(), pods.instance()
    here, there = pods.add(first, 0, 1)
    [other] = pods.add(second, 1)
    data, matrix, own = pods.claim(first), pods.claim(first), pods.claim(second)
    pods.kubelets[0].pods = [pod(here, 0.25, 100, **{data: 1.5})]
    pods.kubelets[1].pods = [
        pod(there, 0.5, 200, **{matrix: 0.5}),
        pod(other, 0.001, 1, **{own: 0.001}),
        pod("of-nobody", 9, 9),
    ]
    assert pods.measure() == {}
    assert pods.used(first) == (0.75, 300, 2.0)
    assert pods.used(second) == (0.001, 1, 0.001)
    db = pods.world.db
    row = pods.world.row(first)
    assert row["measured_at"] is not None
    db.execute("select public.calculate_storage_usage(%s)", [first])
    [[used]] = db.execute(
        "select storage_used_gb::float from public.check_usage_limits(%s)", [first]
    )
    assert used == 2.0


def test_a_volume_that_two_pods_mount_is_counted_once(pods: Pods) -> None:
    instance = pods.instance()
    uids = pods.add(instance, 0, 0, 1)
    data = pods.claim(instance)
    told = [pod(uid, 0.1, 10, **{data: 3}) for uid in uids]
    pods.kubelets[0].pods, pods.kubelets[1].pods = told[:2], told[2:]
    assert pods.measure() == {}
    assert pods.used(instance) == (0.3, 30, 3.0)


def test_a_claim_that_no_pod_mounts_keeps_its_value_and_one_that_is_gone_has_none(
    pods: Pods,
) -> None:
    instance = pods.instance()
    [uid] = pods.add(instance, 0)
    data, matrix = pods.claim(instance), pods.claim(instance)
    pods.kubelets[0].pods = [pod(uid, 0.1, 10, **{data: 1, matrix: 2})]
    pods.measure()
    pods.kubelets[0].pods = [pod(uid, 0.1, 10, **{data: 4})]
    pods.measure()
    assert pods.used(instance)[2] == 6.0
    pods.world.kubectl("delete", "pvc", matrix, "--wait=false")
    eventually(lambda: matrix not in pods.world.kubectl("get", "pvc"))
    pods.measure()
    assert pods.used(instance)[2] == 4.0
    pods.remove("pods", instance)
    pods.measure()
    assert pods.used(instance) == (0, 0, 4.0)


def before(pods: Pods) -> list[tuple[UUID, str]]:
    """An instance on each node, measured once, with its pod."""
    instances = [pods.instance() for _ in range(NODES)]
    uids = pods.create(*((instance, node) for node, instance in enumerate(instances)))
    found = list(zip(instances, uids, strict=True))
    for kubelet, (_, uid) in zip(pods.kubelets, found, strict=True):
        kubelet.pods = [pod(uid, 1, 100)]
    assert pods.measure() == {}
    for kubelet, (_, uid) in zip(pods.kubelets, found, strict=True):
        kubelet.pods = [pod(uid, 2, 200)]
    return found


def huge(uid: str) -> dict[str, Any]:
    return pod(uid, 1, 100) | {"memory": {"workingSetBytes": 10**30}}


def negative(uid: str) -> dict[str, Any]:
    return pod(uid, 1, 100) | {"cpu": {"usageNanoCores": -1}}


def words(uid: str) -> dict[str, Any]:
    return pod(uid, 1, 100) | {"cpu": {"usageNanoCores": "many"}}


def as_body(*told: dict[str, Any]) -> bytes:
    return json.dumps({"pods": told}).encode()


NONSENSE: dict[str, Callable[[str], bytes]] = {
    "no JSON": lambda _: b"<html>",
    "cut off": lambda uid: as_body(pod(uid, 9, 900))[:-10],
    "empty": lambda _: b"",
    "another document": lambda _: b'{"items": []}',
    "no UTF-8": lambda uid: as_body(pod(uid, 9, 900)).replace(b'uid": "', b'uid": "\xff'),
    "negative": lambda uid: as_body(negative(uid)),
    "huge": lambda uid: as_body(huge(uid)),
    "words": lambda uid: as_body(words(uid)),
    "too long": lambda uid: as_body(pod(uid, 9, 900)) + b" " * measure.LARGEST_ANSWER,
    "deep": lambda _: b'{"pods": ' + b"[" * 100_000,
}


def test_a_node_that_fails_spoils_only_its_own(pods: Pods, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "NODE_SECONDS", 2.0)
    (_, uid), *others = found = before(pods)
    bad = pods.kubelets[0]
    for name, body in NONSENSE.items():
        bad.body = body(uid)
        assert pods.measure().keys() == {bad.node}, name
        assert pods.used(found[0][0])[:2] == (1, 100), name
    assert {pods.used(instance)[:2] for instance, _ in others} == {(2, 200)}
    bad.body, bad.seconds = None, 4.0
    assert pods.measure() == {bad.node: "no answer within 2 s"}
    assert pods.used(found[0][0])[:2] == (1, 100)
    bad.seconds = 0.0
    assert pods.measure() == {}
    assert pods.used(found[0][0])[:2] == (2, 200)


def test_numbers_that_are_missing_leave_the_last_ones(pods: Pods) -> None:
    [(instance, uid), *_] = before(pods)
    started = pod(uid, 2, 200)
    del started["cpu"]["usageNanoCores"], started["volume"][0]["usedBytes"]
    pods.kubelets[0].pods = [started]
    assert pods.measure() == {}
    assert pods.used(instance)[:2] == (1, 200)
    del started["cpu"], started["memory"], started["volume"]
    assert pods.measure() == {}
    assert pods.used(instance)[:2] == (1, 200)


def test_a_pod_that_moves_meanwhile_counts_once(pods: Pods) -> None:
    instance = pods.instance()
    [old] = pods.add(instance, 0)
    pods.kubelets[0].pods = [pod(old, 1, 100)]
    pods.measure()
    pods.remove("pods", instance)
    [new] = pods.add(instance, 1)
    pods.kubelets[1].pods = [pod(new, 2, 200)]  # and the first one still tells of the old one
    pods.measure()
    assert pods.used(instance)[:2] == (2, 200)
    pods.kubelets[0].pods = [pod(new, 2, 200)]  # told by both
    pods.measure()
    assert pods.used(instance)[:2] == (2, 200)
    pods.kubelets[0].pods = pods.kubelets[1].pods = []  # by neither
    pods.measure()
    assert pods.used(instance)[:2] == (2, 200)


def test_of_an_instance_that_is_half_on_a_node_that_is_away_the_sum_stays(pods: Pods) -> None:
    instance = pods.instance()
    here, there = pods.add(instance, 0, 1)
    data, matrix = pods.claim(instance), pods.claim(instance)
    pods.kubelets[0].pods = [pod(here, 1, 100, **{data: 1})]
    pods.kubelets[1].pods = [pod(there, 1, 100, **{matrix: 1})]
    pods.measure()
    pods.kubelets[0].pods = [pod(here, 3, 300, **{data: 3})]
    pods.kubelets[1].body = b"away"
    pods.measure()
    assert pods.used(instance) == (2, 200, 4.0)


def test_a_row_that_somebody_holds_keeps_its_values(pods: Pods) -> None:
    [(held, _), (free, _), _] = before(pods)
    with pods.world.locked("select from public.instances where id = %s for update", held):
        pods.measure()
    assert (pods.used(held)[0], pods.used(free)[0]) == (1, 2)


# ---- who may


def asked(world: World, path: str) -> httpx2.Response:
    """A request to the API server with the ServiceAccount's token."""
    cluster = yaml.safe_load(world.kubeconfig.read_text())["clusters"][0]["cluster"]
    return httpx2.get(
        cluster["server"] + path,
        headers={"Authorization": f"Bearer {(world.directory / 'token').read_text()}"},
        verify=ssl.create_default_context(cafile=cluster["certificate-authority"]),
    )


def test_the_way_through_the_api_server_would_need_more(world: World, pods: Pods) -> None:
    path = f"/api/v1/nodes/{pods.kubelets[0].node}/proxy/stats/summary"
    answer = asked(world, path)
    assert answer.status_code == 403
    assert 'cannot get resource "nodes/proxy"' in answer.json()["message"]
    assert pods.measure() == {}


def test_who_may_not_get_the_statistics_of_nodes_is_refused(world: World, pods: Pods) -> None:
    role = f"clusterrole/{world.namespace}-service-{RELEASE}-measure"
    [(instance, _), *_] = before(pods)
    with without_statistics(world, role):
        failed = eventually(pods.measure)
    assert set(failed.values()) == {"403 Forbidden"}
    assert pods.used(instance)[0] == 1
    (world.directory / "token").write_text("forged")
    with pytest.raises(httpx2.HTTPError, match="Unauthorized"):
        pods.measure()
    world.new_token()


@contextmanager
def without_statistics(world: World, role: str) -> Iterator[None]:
    """The role without its rule for nodes/stats."""
    rules = json.loads(world.cluster.kubectl("get", role, "-ojson"))["rules"]

    def give(rules: list[Any]) -> None:
        patch = json.dumps({"rules": rules})
        world.cluster.kubectl("patch", role, "--type=merge", f"-p={patch}")

    give([rule for rule in rules if rule["resources"] != ["nodes/stats"]])
    yield
    give(rules)


def test_a_kubelet_whose_certificate_nobody_vouches_for_is_not_told_the_token(
    pods: Pods, tmp_path: Path
) -> None:
    before(pods)
    asked = [kubelet.asked for kubelet in pods.kubelets]
    for ca in ("", Authority(tmp_path).certificate):
        failed = pods.measure(KUBELET_CA=ca)
        assert len(failed) == NODES
        assert all("CERTIFICATE_VERIFY_FAILED" in why for why in failed.values())
    assert [kubelet.asked for kubelet in pods.kubelets] == asked


# ---- one at a time


def test_one_of_many_replicas_measures_and_another_when_it_ends(pods: Pods) -> None:
    settings = pods.settings()
    kubelet = pods.kubelets[0]

    async def rounds(seconds: float) -> int:
        asked = kubelet.asked
        await asyncio.sleep(seconds)
        return kubelet.asked - asked

    async def replicas() -> None:
        async with (
            Cluster(settings) as cluster,
            Database(settings) as first,
            Database(settings) as second,
        ):
            tasks = [
                asyncio.create_task(Measure(context(settings, database, cluster)).run())
                for database in (first, second)
            ]
            await asyncio.sleep(1)
            assert 1 <= await rounds(1.5) <= 6
            holders = pods.world.db.execute(
                """select pid from pg_locks where locktype = 'advisory' and granted
                    and database = (
                      select oid from pg_database where datname = current_database()
                    )"""
            ).fetchall()
            assert len(holders) == 1
            pods.world.db.execute("select pg_terminate_backend(%s)", holders[0])
            assert await rounds(2) >= 1
            for task in tasks:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            assert await rounds(0.7) == 0

    asyncio.run(replicas())


def test_the_service_measures_if_it_is_told_to(pods: Pods) -> None:
    instance = pods.instance()
    [uid] = pods.add(instance, 0)
    pods.kubelets[0].pods = [pod(uid, 1, 100)]
    with pods.world.running(MEASURE="kubelet", MEASURE_SECONDS=1, KUBELET_CA=pods.ca) as service:
        eventually(lambda: pods.used(instance)[0] == 1)
        eventually(lambda: service.metric("provisioner_last_measurement_timestamp_seconds"))
        assert service.metric("provisioner_nodes") >= NODES
        pods.kubelets[0].body = b"nonsense"
        node = pods.kubelets[0].node
        eventually(lambda: service.events("node not measured", node=node))
        pods.kubelets[0].body = None
        eventually(lambda: service.events("node no longer fails to be measured", node=node))
