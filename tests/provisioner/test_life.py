"""The life of an instance: rows on a real PostgreSQL, releases on a real Kubernetes API."""

import base64
import json
import secrets
from collections.abc import Iterator
from functools import partial
from typing import Any
from uuid import UUID

import pytest
import yaml

from provisioner.actions import TOKENS
from provisioner.cluster import quantity
from provisioner.config import PLATFORM
from tests.support.provisioning import BASE_DOMAIN, RESYNC, Service, World, eventually

WORKLOADS = "deployments,statefulsets"
WITHOUT_MATRIX = {"matrix": {"enabled": False}}


@pytest.fixture(scope="module")
def service(world: World) -> Iterator[Service]:
    with world.running() as service:
        yield service


@pytest.fixture
def instance(world: World, service: Service) -> UUID:
    """A new instance that runs."""
    assert service.process.poll() is None
    instance = world.provision(config={"agents": {"ada": {}}})
    world.settled(instance, "running")
    return instance


@pytest.fixture(scope="module")
def kept(world: World, service: Service) -> UUID:
    """An instance that runs before and after each test that uses it."""
    assert service.process.poll() is None
    instance = world.provision(config={"agents": {"ada": {}}})
    world.settled(instance, "running")
    return instance


def resynced(service: Service) -> None:
    """Wait for a resync that has begun since."""
    last = "provisioner_last_resync_timestamp_seconds"
    before = service.metric(last)
    eventually(lambda: service.metric(last) > before + 2 * RESYNC)


def replicas(world: World, instance: UUID) -> list[int]:
    return [workload["spec"]["replicas"] for workload in world.objects(WORKLOADS, instance)]


def memory(world: World, instance: UUID) -> int:
    """MiB of all pods together."""
    return sum(
        int(quantity(container["resources"]["limits"]["memory"])) // 2**20
        for workload in world.objects(WORKLOADS, instance)
        for container in workload["spec"]["template"]["spec"]["containers"]
    )


def secret(world: World, row: dict[str, Any]) -> dict[str, Any]:
    return dict(world.object(f"secret/{row['app_name']}-secrets")["data"])


def test_a_new_row_becomes_a_release_that_runs(world: World, instance: UUID) -> None:
    row = world.row(instance)
    host = f"{row['subdomain']}.{BASE_DOMAIN}"
    assert (row["frontend_url"], row["api_url"], row["matrix_url"]) == (
        f"https://{host}",
        f"https://{host}/api",
        f"https://{host}",
    )
    assert row["provisioned_at"]
    assert row["error_message"] is None
    assert world.releases()[row["app_name"]] == ["deployed"]
    assert replicas(world, instance) == [1, 1]
    eventually(lambda: world.row(instance)["health_status"] == "healthy")
    [ingress] = world.objects("ingresses", instance)
    assert [rule["host"] for rule in ingress["spec"]["rules"]] == [host]
    assert json.loads(world.config(instance)) == {"agents": {"ada": {}}} | PLATFORM


def test_its_tokens_are_in_the_database_and_in_its_secret_and_nowhere_else(
    world: World, service: Service, instance: UUID
) -> None:
    row = world.row(instance)
    kept: dict[str, str] = dict(
        world.db.execute(
            "select name, encode(convert_to(value, 'UTF8'), 'base64')"
            " from private.instance_secrets where instance_id = %s",
            [instance],
        )
    )
    assert set(kept) == {*TOKENS, "MATRIX_SERVER_NAME"}
    assert secret(world, row) == kept
    values = [
        value
        for [value] in world.db.execute(
            "select value from private.instance_secrets where instance_id = %s and name = any(%s)",
            [instance, list(TOKENS)],
        )
    ]
    visible = (
        service.log.read_text() + json.dumps(row) + json.dumps(world.objects(WORKLOADS, instance))
    )
    assert not [value for value in values if value in visible]


def test_a_secret_that_is_added_reaches_the_pods(world: World, instance: UUID) -> None:
    before = world.objects("deployments", instance)
    world.db.execute(
        "insert into private.instance_secrets values (%s, 'OPENAI_API_KEY', e'a\\x7f-key')",
        [instance],
    )
    eventually(lambda: "OPENAI_API_KEY" in secret(world, world.row(instance)))
    world.settled(instance, "running")
    [old], [new] = before, world.objects("deployments", instance)
    assert old["spec"]["template"] != new["spec"]["template"]
    environment = {
        each["name"]: each for each in new["spec"]["template"]["spec"]["containers"][0]["env"]
    }
    assert environment["OPENAI_API_KEY_FILE"]["value"] == "/etc/mindroom-secrets/OPENAI_API_KEY"


def test_what_may_be_saved_as_config_reaches_mindroom_as_it_is(
    world: World, instance: UUID
) -> None:
    """Also what Helm's records have no room for, what YAML cannot hold, and large numbers."""
    config = {
        "room": 123456789012345678,
        "limit": 10**307,
        "text": 'é\u0085\u2028\ufeff\uffff\x7f\x01\U0001f600\U000e0001"\\{{ .Values }}',
        "deep": json.loads("[" * 400 + "]" * 400),
        "plugins": [{**PLATFORM["plugins"][0], "enabled": False}, "./plugins/platform-usage", 1],
        "blob": "",
    }
    world.update(instance, config=config)
    [[size]] = world.db.execute(
        "select octet_length(config::text) from instances where id = %s", [instance]
    )
    blob = base64.b64encode(secrets.token_bytes(2**20)).decode()[: 2**20 - size - 4096]
    for full in (blob, "é" * (len(blob) // 2)):
        world.update(instance, config=config | {"blob": full})
        world.settled(instance, "running")
        [[text]] = world.db.execute("select config::text from instances where id = %s", [instance])
        assert len(text.encode()) > 2**20 - 5000
        found = world.config(instance)
        for read in (json.loads(found), yaml.load(found, yaml.CSafeLoader)):
            assert read == json.loads(text) | PLATFORM
    # What ran before may have to be restored.
    names = [each["metadata"]["name"] for each in world.objects("configmaps", instance)]
    assert len([name for name in names if "-config-" in name]) == 2


def test_another_tier_resizes_the_pods_and_the_volumes(world: World, instance: UUID) -> None:
    before = memory(world, instance)
    size = world.volume(instance)["spec"]["resources"]["requests"]["storage"]
    assert size == "7680Mi"
    for tier, storage in (("professional", "38400Mi"), ("free", "38400Mi")):
        world.db.execute(
            """update public.subscriptions set tier = %s
               where id = (select subscription_id from public.instances where id = %s)""",
            [tier, instance],
        )
        row = world.settled(instance, "running")
        assert 0.98 * row["memory_limit_mb"] < memory(world, instance) <= row["memory_limit_mb"]
        requests = world.volume(instance)["spec"]["resources"]["requests"]
        assert requests["storage"] == storage
    assert memory(world, instance) < before


def test_a_stopped_instance_keeps_its_volumes_without_pods_and_starts_again(
    world: World, kept: UUID
) -> None:
    volumes = [claim["metadata"]["uid"] for claim in world.objects("pvc", kept)]
    assert len(volumes) == 2
    world.update(kept, status="stopped")
    world.settled(kept, "stopped")
    assert replicas(world, kept) == [0, 0]
    eventually(lambda: world.objects("pods", kept) == [])
    eventually(lambda: world.row(kept)["health_status"] == "unknown")
    world.update(kept, status="running")
    world.settled(kept, "running")
    assert replicas(world, kept) == [1, 1]
    assert [claim["metadata"]["uid"] for claim in world.objects("pvc", kept)] == volumes
    eventually(lambda: world.row(kept)["health_status"] == "healthy")


def test_app_config_takes_its_matrix_server_away_and_gives_it_back(
    world: World, instance: UUID
) -> None:
    world.update(instance, app_config=WITHOUT_MATRIX)
    row = world.settled(instance, "running")
    assert len(replicas(world, instance)) == 1
    world.update(instance, app_config={})
    row = world.settled(instance, "running")
    assert len(replicas(world, instance)) == 2
    assert row["matrix_url"] == row["frontend_url"]


def test_app_config_cannot_take_another_instances_name(world: World, instance: UUID) -> None:
    world.update(instance, app_config={"host": "other.example", "secretName": "other"})
    row = world.settled(instance, "running")
    [ingress] = world.objects("ingresses", instance)
    assert ingress["spec"]["rules"][0]["host"] == f"{row['subdomain']}.{BASE_DOMAIN}"


@pytest.mark.parametrize(("tier", "days"), [("free", 0), ("starter", 7)])
def test_a_removed_instance_leaves_only_volumes_for_as_long_as_its_tier_says(
    world: World, service: Service, tier: str, days: int
) -> None:
    instance = world.provision(tier, app_config=WITHOUT_MATRIX)
    row = world.settled(instance, "running")
    world.db.execute("select public.deprovision_instance(%s, 'moved out')", [instance])
    world.settled(instance, "deprovisioned")
    kinds = "deployments,statefulsets,services,ingresses,configmaps,secrets,networkpolicies"
    assert world.objects(kinds, instance) == []
    assert row["app_name"] not in world.releases()
    eventually(lambda: len(world.objects("pvc", instance)) == bool(days))
    if days:
        [volume] = world.objects("pvc", instance)
        annotations = volume["metadata"]["annotations"]
        [[kept]] = world.db.execute(
            "select %s::timestamptz - now()", [annotations["mindroom.chat/delete-after"]]
        )
        assert days - 0.01 < kept.total_seconds() / 86400 <= days
        assert not service.events("orphan: no row speaks of it")
        world.kubectl(
            "annotate",
            "pvc",
            volume["metadata"]["name"],
            "mindroom.chat/delete-after=2026-01-01T00:00:00+00:00",
            "--overwrite",
        )
        eventually(lambda: world.objects("pvc", instance) == [])


def test_an_erased_account_leaves_no_volume(world: World, service: Service) -> None:
    """Nor one that its tier would have kept of an instance that was removed before."""
    instance = world.provision("professional")
    row = world.settled(instance, "running")
    world.remove(instance)
    kept = world.objects("pvc", instance)
    assert kept

    def erased() -> bool:
        [[answer]] = world.db.execute("select erase_account(%s)", [row["account_id"]])
        return bool(answer["erased"])

    eventually(erased)
    assert world.objects("pvc", instance) == []
    assert len(service.events("volume deleted", instance_id=str(instance))) == len(kept)


def test_volumes_of_a_deleted_account_are_nobodys_and_deleted_when_they_expire(
    world: World, service: Service
) -> None:
    instance = world.provision("starter", app_config=WITHOUT_MATRIX)
    name = world.settled(instance, "running")["app_name"]
    world.remove(instance)
    world.db.execute(
        """delete from auth.users where id = (
             select account_id from public.instances where id = %s)""",
        [instance],
    )
    [volume] = world.objects("pvc", instance)
    account, subscription = world.subscribe()
    [[other]] = world.db.execute(
        """insert into public.instances (account_id, subscription_id, app_name, subdomain)
           values (%s, %s, %s, 'other') returning id""",
        [account, subscription, name],
    )
    error = world.settled(other, "failed")["error_message"]
    assert f"the volume {name}-backend is that of another instance, {instance}" in error
    assert world.objects("pvc", instance) == [volume]
    pvc = f"pvc/{name}-backend"
    finalizers = '[{"op": "add", "path": "/metadata/finalizers", "value": %s}]'
    world.kubectl("patch", pvc, "--type=json", "-p", finalizers % '["mindroom.test/wait"]')
    world.kubectl("annotate", pvc, "mindroom.chat/delete-after=2026-01-01", "--overwrite")
    resynced(service)
    resynced(service)
    world.kubectl("patch", pvc, "--type=json", "-p", finalizers % "[]")
    eventually(lambda: world.objects("pvc", instance) == [])
    assert len(service.events("volume deleted", instance_id=str(instance))) == 1
    assert service.process.poll() is None


@pytest.mark.parametrize(
    "damage",
    [
        "delete deployment {name}-mindroom",
        "delete service {name}-matrix",
        "delete ingress {name}",
        "delete networkpolicy {name}",
        "delete configmap -l app.kubernetes.io/component=config,mindroom.chat/instance={id}",
        "delete secret {name}-secrets",
        "scale statefulset {name}-matrix --replicas=3",
        "set image deployment/{name}-mindroom mindroom=another:image",
    ],
)
def test_a_manual_change_is_reverted(world: World, kept: UUID, damage: str) -> None:
    kinds = f"{WORKLOADS},services,ingresses,networkpolicies,configmaps,secrets"

    def specs() -> list[Any]:
        return [
            (obj["kind"], obj["metadata"]["name"], obj.get("spec"), obj.get("data"))
            for obj in world.objects(kinds, kept)
            if obj["kind"] != "Service"
            or obj["spec"].pop("clusterIP", obj["spec"].pop("clusterIPs"))
        ]

    def versions() -> list[Any]:
        return [
            (metadata["uid"], metadata.get("generation", metadata["resourceVersion"]))
            for metadata in (obj["metadata"] for obj in world.objects(kinds, kept))
        ]

    before, seen = specs(), versions()
    world.kubectl(*damage.format(name=world.row(kept)["app_name"], id=kept).split())
    eventually(lambda: specs() == before)
    assert versions() != seen  # also where it is repaired before kubectl returns
    world.settled(kept, "running")


def test_a_release_removed_by_hand_is_restored_with_its_volumes(world: World, kept: UUID) -> None:
    volumes = [claim["metadata"]["uid"] for claim in world.objects("pvc", kept)]
    name = world.row(kept)["app_name"]
    world.kubectl("delete", "all,ingress,netpol,cm,secret", "-l", f"mindroom.chat/instance={kept}")
    world.kubectl("delete", "secret", "-l", f"owner=helm,name={name}")
    eventually(lambda: world.releases().get(name) == ["deployed"])
    world.settled(kept, "running")
    assert replicas(world, kept) == [1, 1]
    assert [claim["metadata"]["uid"] for claim in world.objects("pvc", kept)] == volumes


def test_nothing_is_done_while_nothing_changes(
    world: World, service: Service, instance: UUID
) -> None:
    resynced(service)
    assert len(service.events("claimed", instance_id=str(instance))) == 1
    assert world.row(instance)["due_at"] is None


def test_a_release_without_a_row_is_reported_and_left_alone(
    world: World, service: Service, instance: UUID
) -> None:
    name = world.row(instance)["app_name"]
    record = world.object(f"secret/sh.helm.release.v1.{name}.v1")
    record["metadata"] = {
        "name": "sh.helm.release.v1.stranger.v1",
        "labels": record["metadata"]["labels"] | {"name": "stranger"},
    }
    world.cluster.kubectl("create", "-n", world.namespace, "-f-", stdin=json.dumps(record))
    eventually(lambda: service.events("orphan: no row speaks of it", orphan="release stranger"))
    assert service.metric("provisioner_orphans") == 1
    assert world.releases()["stranger"] == ["deployed"]
    world.kubectl("delete", "secret", "sh.helm.release.v1.stranger.v1")
    eventually(lambda: service.metric("provisioner_orphans") == 0)
    assert len(service.events("orphan: no row speaks of it", orphan="release stranger")) == 1


def test_an_instance_in_maintenance_is_left_alone(
    world: World, service: Service, kept: UUID
) -> None:
    world.update(kept, status="maintenance")
    name = f"statefulset/{world.row(kept)['app_name']}-matrix"
    world.kubectl("scale", name, "--replicas=2")
    resynced(service)
    assert world.object(name)["spec"]["replicas"] == 2
    world.update(kept, status="running")
    world.settled(kept, "running")
    assert world.object(name)["spec"]["replicas"] == 1


def test_an_instance_on_dokku_is_ignored(world: World, service: Service) -> None:
    account, subscription = world.subscribe()
    [[dokku]] = world.db.execute(
        """insert into public.instances (account_id, subscription_id, runtime, app_name, subdomain)
           values (%s, %s, 'dokku', 'on-dokku', 'on-dokku') returning id""",
        [account, subscription],
    )
    other = world.provision()
    world.settled(other, "running")
    assert world.row(dokku)["status"] == "provisioning"
    assert not service.events("claimed", instance_id=str(dokku))


HEALTH = [
    ("deployment", "mindroom", "not-there", "ImagePullBackOff: the image an-image:not-there"),
    ("statefulset", "matrix", "crashes", "CrashLoopBackOff: "),
]


@pytest.mark.parametrize(("kind", "component", "tag", "reason"), HEALTH)
def test_health_says_why_and_what_to_do(
    world: World, instance: UUID, kind: str, component: str, tag: str, reason: str
) -> None:
    world.update(instance, status="maintenance")
    name = f"{kind}/{world.row(instance)['app_name']}-{component}"
    world.kubectl("set", "image", name, f"{component}=an-image:{tag}")
    sick = eventually(
        lambda: row if (row := world.row(instance))["health_status"] == "critical" else None
    )
    eventually(
        lambda: [
            problem
            for problem in world.row(instance)["health_details"].get("problems", [])
            if problem.startswith(f"{component}: {reason}") and problem.endswith(")")  # the advice
        ]
    )
    assert sick["last_health_check"]
    world.update(instance, status="running")
    world.settled(instance, "running")
    eventually(lambda: world.row(instance)["health_status"] == "healthy")
    audited = [
        details["new"]
        for [details] in world.db.execute(
            """select details from public.audit_logs
               where resource_id = %s and action = 'instance.health_changed' order by created_at""",
            [instance],
        )
    ]
    assert audited.count("critical") == 1


UNBOUND = {
    "apiVersion": "v1",
    "kind": "PersistentVolumeClaim",
    "metadata": {"name": "unbound"},
    "spec": {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": "",
        "resources": {"requests": {"storage": "1Gi"}},
    },
}
HUGE = {"requests": {"memory": "5Ti"}, "limits": {"memory": "5Ti"}}
UNSCHEDULABLE = [
    (
        {"containers": [{"name": "mindroom", "resources": HUGE}]},
        "1 Insufficient memory",
        "(no node has room: ",
    ),
    (
        {"volumes": [{"name": "more", "persistentVolumeClaim": {"claimName": "unbound"}}]},
        "pod has unbound immediate PersistentVolumeClaims",
        "(its claim has no volume: ",
    ),
]


def problems(world: World, instance: UUID, start: str) -> list[str]:
    found = world.row(instance)["health_details"].get("problems", [])
    return [problem for problem in found if problem.startswith(start)]


def test_health_says_why_no_node_takes_a_pod(world: World, kept: UUID) -> None:
    name = f"deployment/{world.row(kept)['app_name']}-mindroom"
    world.update(kept, status="maintenance")
    world.cluster.kubectl("apply", "-n", world.namespace, "-f-", stdin=json.dumps(UNBOUND))
    for spec, reason, advice in UNSCHEDULABLE:
        world.kubectl("patch", name, "-p", json.dumps({"spec": {"template": {"spec": spec}}}))
        start = f"mindroom: Unschedulable: 0/1 nodes are available: {reason}"
        (found,) = eventually(partial(problems, world, kept, start))
        assert advice in found
    # Helm leaves in a list what others have put there.
    foreign = {"volumes": [{"name": "more", "$patch": "delete"}]}
    world.kubectl("patch", name, "-p", json.dumps({"spec": {"template": {"spec": foreign}}}))
    world.update(kept, status="running")
    world.settled(kept, "running")
    eventually(lambda: world.row(kept)["health_status"] == "healthy")
