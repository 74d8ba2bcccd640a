"""What goes wrong around the instance-provisioner: it ends in the state that the rows want."""

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID

import psutil  # type: ignore[import-untyped]
import pytest
import yaml

from provisioner.config import PLATFORM
from tests.support.provisioning import (
    BASE_DOMAIN,
    PATIENCE,
    RESYNC,
    Service,
    World,
    eventually,
    make_namespace,
)
from tests.support.proxy import Proxy

NOT_THERE = {"images": {"mindroom": "mindroom/mindroom:not-there"}}
CRASHES = {"images": {"mindroom": "mindroom/mindroom:crashes"}}
ALL = "deployments,statefulsets,services,ingresses,configmaps,secrets,networkpolicies,pvc"


@pytest.fixture(autouse=True)
def _stop_all_services(world: World) -> Iterator[None]:
    """A service that still runs after a failed test would claim the work of the next."""
    yield
    world.kill_all()


def helms(world: World) -> list[psutil.Process]:
    """The Helm programs that work for this namespace."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if f"--namespace={world.namespace}" in (process.info["cmdline"] or [])
    ]


def one_release(world: World, instance: UUID) -> None:
    """Exactly one, whole, and its workloads once."""
    statuses = world.releases()[world.row(instance)["app_name"]]
    assert statuses.count("deployed") == 1
    assert set(statuses) <= {"deployed", "superseded", "failed"}
    assert len(world.objects("deployments,statefulsets", instance)) == 2


def killed_before_claim(world: World, service: Service) -> UUID:
    os.kill(service.process.pid, signal.SIGSTOP)
    instance = world.provision()
    service.kill()
    return instance


def killed_after_claim(world: World, service: Service) -> UUID:
    with world.locked("lock table private.instance_secrets in access exclusive mode"):
        instance = world.provision()
        eventually(lambda: world.row(instance)["lease"])
        service.kill()
    return instance


def killed_during_helm(world: World, service: Service) -> UUID:
    instance = world.provision()
    name = world.row(instance)["app_name"]
    [helm] = eventually(lambda: helms(world))
    helm.suspend()
    while not world.releases().get(name):
        helm.resume()
        time.sleep(0.01)
        helm.suspend()
    service.kill()
    eventually(lambda: helms(world) == [])  # it does not go on by itself
    assert world.releases()[name] == ["pending-install"]
    return instance


def killed_while_its_pods_start(world: World, service: Service) -> UUID:
    with world.no_room():
        instance = world.provision()
        name = world.row(instance)["app_name"]
        eventually(lambda: world.releases().get(name) == ["deployed"] and not helms(world))
        service.kill()
    return instance


def killed_after_helm(world: World, service: Service) -> UUID:
    instance = world.provision()
    with world.locked("select from public.instances where id = %s for no key update", instance):
        eventually(lambda: service.events("done", instance_id=str(instance)))
        service.kill()
    assert world.releases()[world.row(instance)["app_name"]] == ["deployed"]
    return instance


@pytest.mark.parametrize(
    "kill",
    [
        killed_before_claim,
        killed_after_claim,
        killed_during_helm,
        killed_while_its_pods_start,
        killed_after_helm,
    ],
)
def test_killed_at_any_step_and_started_again_ends_in_one_release(
    world: World, kill: Callable[[World, Service], UUID]
) -> None:
    instance = kill(world, world.start().until_ready())
    row = world.row(instance)
    assert row["status"] == "provisioning"
    assert row["due_at"]
    with world.running():
        world.settled(instance, "running")
        one_release(world, instance)
        world.remove(instance)


def test_killed_during_the_removal_and_started_again_ends_without_a_release(world: World) -> None:
    service = world.start().until_ready()
    instance = world.provision("free")
    name = world.settled(instance, "running")["app_name"]
    world.db.execute("select public.deprovision_instance(%s)", [instance])
    eventually(lambda: service.events("helm started", command="uninstall"))
    service.kill()
    with world.running():
        world.settled(instance, "deprovisioned")
        assert name not in world.releases()
        assert world.objects(ALL, instance) == []


def test_a_removal_ends_when_the_objects_are_gone_and_says_what_is_in_the_way(world: World) -> None:
    finalizers = '[{"op": "add", "path": "/metadata/finalizers", "value": %s}]'
    with world.running(HELM_TIMEOUT_SECONDS=6) as service:
        instance = world.provision("free")
        world.settled(instance, "running")
        held = [world.objects(kind, instance)[0] for kind in ("deployments", "ingresses", "pvc")]
        patches = [
            ("patch", obj["kind"], obj["metadata"]["name"], "--type=json", "-p") for obj in held
        ]
        for patch in patches:
            world.kubectl(*patch, finalizers % '["mindroom.test/wait"]')
        world.db.execute("select public.deprovision_instance(%s)", [instance])
        # Helm knows of no release any more when it is asked for the second time.
        eventually(
            lambda: len([e for e in service.events("failed") if "still there" in e["error"]]) > 1
        )
        row = world.row(instance)
        assert row["status"] == "deprovisioning"
        for obj in held:
            named = rf"{obj['kind']} {obj['metadata']['name']} \(finalizers? mindroom.test/wait"
            assert re.search(named, row["error_message"])
        assert f"Pod {row['app_name']}-mindroom-" in row["error_message"]
        for patch in patches:
            world.kubectl(*patch, finalizers % "[]")
        assert world.settled(instance, "deprovisioned")["error_message"] is None
        assert world.objects(f"{ALL},pods", instance) == []


def test_a_worker_that_lost_its_lease_writes_nothing(world: World) -> None:
    """A process that was suspended for longer than its lease."""
    slow = world.start().until_ready()
    with world.no_room():
        instance = world.provision()
        eventually(lambda: slow.events("helm started", instance_id=str(instance)))
        os.kill(slow.process.pid, signal.SIGSTOP)
        helm = helms(world)
        for process in helm:
            process.suspend()
    with world.running():
        world.settled(instance, "running")
        before = world.row(instance)
        for process in helm:
            process.resume()
        os.kill(slow.process.pid, signal.SIGCONT)
        eventually(lambda: slow.events("lease lost", instance_id=str(instance)))
        assert slow.metric("provisioner_leases_lost_total") == 1
        world.settled(instance, "running")
        assert world.row(instance)["provisioned_at"] == before["provisioned_at"]
        one_release(world, instance)
    assert slow.stop() == 0


# ---- outages


@pytest.fixture
def cluster_proxy(world: World) -> Proxy:
    """Between the service and the API server."""
    config = yaml.safe_load(world.kubeconfig.read_text())
    cluster = config["clusters"][0]["cluster"]
    server = urlsplit(cluster["server"])
    assert server.port
    proxy = Proxy(server.port)
    cluster["server"] = f"https://127.0.0.1:{proxy.port}"
    (world.directory / "kubeconfig-proxy").write_text(yaml.safe_dump(config))
    return proxy


def test_while_the_cluster_is_unreachable_it_waits_reports_it_and_catches_up(
    world: World, cluster_proxy: Proxy
) -> None:
    with world.running(KUBECONFIG=world.directory / "kubeconfig-proxy", MAX_ATTEMPTS=2) as service:
        ran_before = world.provision()
        world.settled(ran_before, "running")
        with world.no_room():
            in_progress = world.provision()
            eventually(lambda: service.events("helm started", instance_id=str(in_progress)))
            cluster_proxy.cut()
        eventually(lambda: any(key.startswith("cluster: ") for key in service.readiness() or {}))
        meanwhile = world.provision()
        time.sleep(4)  # far more than two attempts take
        for instance in (in_progress, meanwhile):
            row = world.row(instance)
            assert (row["status"], row["error_message"]) == ("provisioning", None)
        assert service.http.get("/health").status_code == 200
        assert service.http.get("/ready").status_code == 503
        cluster_proxy.restore()
        service.until_ready()
        for instance in (in_progress, meanwhile, ran_before):
            world.settled(instance, "running")
            one_release(world, instance)


def test_while_the_database_is_unreachable_it_waits_reports_it_and_catches_up(world: World) -> None:
    url = urlsplit(world.environment()["DATABASE_URL"])
    assert url.port
    proxy = Proxy(url.port)
    through = urlunsplit(url._replace(netloc=url.netloc.replace(f":{url.port}", f":{proxy.port}")))
    with world.running(DATABASE_URL=through) as service:
        with world.no_room():
            in_progress = world.provision()
            eventually(lambda: service.events("helm started", instance_id=str(in_progress)))
            proxy.cut()
        eventually(lambda: "database: listener" in (service.readiness() or {}))
        meanwhile = world.provision()
        refused = service.http.get(f"/api/v1/instances/{meanwhile}")
        assert refused.status_code == 503
        assert service.http.get("/health").status_code == 200
        time.sleep(2)
        proxy.restore()
        service.until_ready()
        for instance in (in_progress, meanwhile):
            world.settled(instance, "running")
            one_release(world, instance)
    password = url.password
    assert password
    assert password not in service.log.read_text()


def test_started_before_the_database_and_the_cluster_it_waits_for_them(
    world: World, cluster_proxy: Proxy
) -> None:
    cluster_proxy.cut()
    url = urlsplit(world.environment()["DATABASE_URL"])
    assert url.port
    proxy = Proxy(url.port)
    proxy.cut()
    through = urlunsplit(url._replace(netloc=url.netloc.replace(f":{url.port}", f":{proxy.port}")))
    service = world.start(DATABASE_URL=through, KUBECONFIG=world.directory / "kubeconfig-proxy")
    eventually(lambda: service.readiness())
    instance = world.provision()
    proxy.restore()
    cluster_proxy.restore()
    world.settled(instance, "running")
    assert service.readiness() == {}
    assert service.stop() == 0


def test_without_a_privilege_it_reports_it_and_resumes_when_it_is_granted(world: World) -> None:
    with world.running() as service:
        world.db.execute("revoke usage on schema private from instance_provisioner")
        try:
            instance = world.provision()
            eventually(
                lambda: (
                    (service.readiness() or {}).get("database: claims")
                    == "permission denied for schema private"
                )
            )
        finally:
            world.db.execute("grant usage on schema private to instance_provisioner")
        world.settled(instance, "running")
        service.until_ready()


def test_with_its_role_in_the_cluster_removed_it_waits_and_goes_on(world: World) -> None:
    with world.running() as service:
        world.kubectl("delete", "rolebinding", "instance-provisioner")
        instance = world.provision()
        eventually(lambda: "forbidden" in (service.readiness() or {}).get("cluster: resync", ""))
        assert world.row(instance)["status"] == "provisioning"
        world.apply_rbac()
        world.settled(instance, "running")
        service.until_ready()


def test_a_namespace_removed_by_hand_is_filled_again_when_it_is_back(world: World) -> None:
    with world.running(MAX_ATTEMPTS=2) as service:
        instance = world.provision()
        world.settled(instance, "running")
        world.kubectl("delete", "namespace", world.namespace)
        eventually(lambda: any("cluster" in key for key in service.readiness() or {}))
        meanwhile = world.provision()
        make_namespace(world)
        world.apply_rbac()
        world.settled(meanwhile, "running")
        eventually(lambda: len(world.objects("deployments,statefulsets", instance)) == 2)
        world.settled(instance, "running")
        one_release(world, instance)


def test_a_rotated_token_is_read_again(world: World) -> None:
    """The old one is refused as soon as the object that it is bound to is gone."""
    service_namespace = f"{world.namespace}-service"
    world.cluster.kubectl("create", "secret", "generic", "first", "-n", service_namespace)
    token = world.cluster.kubectl(
        *("create", "token", "instance-provisioner", "-n", service_namespace),
        *("--bound-object-kind=Secret", "--bound-object-name=first"),
    )
    (world.directory / "token").write_text(token)
    with world.running() as service:
        world.settled(world.provision(), "running")
        world.new_token()
        world.cluster.kubectl("delete", "secret", "first", "-n", service_namespace)
        time.sleep(11)  # the API server believes a token for ten seconds without looking again
        world.settled(world.provision(), "running")
        service.until_ready()
        assert not service.events("failed")


# ---- attempts that fail


def test_helm_that_hangs_is_killed_and_retried(world: World) -> None:
    with world.running(HELM_TIMEOUT_SECONDS=2, HELM_SLACK_SECONDS=1) as service:
        instance = world.provision()
        [helm] = eventually(lambda: helms(world))
        helm.suspend()
        eventually(lambda: service.events("failed", instance_id=str(instance)))
        assert not helm.is_running()
        world.settled(instance, "running")
        assert "hung" in service.events("failed", instance_id=str(instance))[0]["error"]

        # Nothing was stopped when Helm fails: a change of what runs is retried, too, and not held.
        world.db.execute(
            "insert into private.instance_secrets (instance_id, name, value) values (%s, 'A', 'b')",
            [instance],
        )
        world.update(instance, storage_limit_gb=world.row(instance)["storage_limit_gb"] + 1)
        upgrades = eventually(lambda: [h for h in helms(world) if "upgrade" in h.cmdline()])
        upgrades[0].suspend()
        eventually(lambda: len(service.events("failed", instance_id=str(instance))) == 2)
        assert service.events("failed", instance_id=str(instance))[1]["held"] is False
        world.settled(instance, "running")
        assert world.row(instance)["error_message"] is None
        one_release(world, instance)


def test_attempts_that_wait_for_pods_let_others_work(world: World) -> None:
    with world.running(WORKERS=1, HELM_TIMEOUT_SECONDS=600) as service:
        stuck = [world.provision("free", app_config=NOT_THERE) for _ in range(2)]
        good = world.provision("free")
        world.settled(good, "running")
        for instance in stuck:
            assert len(service.events("claimed", instance_id=str(instance))) == 1
            assert not service.events("failed", instance_id=str(instance))
            world.remove(instance)


def test_a_new_instance_that_never_works_is_given_up_and_provisioned_again_on_request(
    world: World,
) -> None:
    with world.running(HELM_TIMEOUT_SECONDS=8, MAX_ATTEMPTS=2) as service:
        account, subscription = world.subscribe()
        [[new]] = world.db.execute(
            """insert into public.instances
                 (account_id, subscription_id, app_name, subdomain, app_config)
               values (%s, %s, 'never', 'never', %s) returning id""",
            [account, subscription, '{"images": {"mindroom": "mindroom/mindroom:not-there"}}'],
        )
        row = world.settled(new, "failed")
        assert row["error_message"].startswith(
            "mindroom: ImagePullBackOff: the image mindroom/mindroom:not-there cannot be pulled"
        )
        claimed = service.events("claimed", instance_id=str(new))
        assert [event["attempt"] for event in claimed] == [1, 2]
        assert len(service.events("given up", instance_id=str(new))) == 1
        assert "never" not in world.releases()
        assert world.objects(f"{ALL},pods", new) == []
        world.update(new, app_config={})
        answer = service.http.post(
            "/api/v1/provision",
            params={"wait": PATIENCE},
            json={"subscription_id": str(subscription), "account_id": str(account)},
        )
        assert answer.status_code == 200
        assert answer.json()["status"] == "running"
        assert answer.json()["instance_id"] == str(new)
        assert world.row(new)["error_message"] is None


def test_an_instance_that_ran_is_not_given_up_when_it_is_provisioned_again(world: World) -> None:
    with world.running(HELM_TIMEOUT_SECONDS=4, MAX_ATTEMPTS=1) as service:
        instance = world.provision()
        world.settled(instance, "running")
        world.update(instance, status="failed")
        world.update(instance, status="provisioning", app_config=CRASHES)
        eventually(lambda: service.events("failed", instance_id=str(instance)))
        assert not service.events("given up", instance_id=str(instance))
        assert world.objects("pvc", instance)
        world.update(instance, app_config={})
        world.settled(instance, "running")
        one_release(world, instance)


def test_values_that_the_chart_refuses_are_reported_and_the_release_goes_on(world: World) -> None:
    with world.running(MAX_ATTEMPTS=2) as service:
        instance = world.provision()
        world.settled(instance, "running")
        world.update(instance, app_config={"imagse": {}})
        eventually(lambda: len(service.events("failed", instance_id=str(instance))) > 3)
        row = world.row(instance)
        assert row["status"] == "running"
        assert "imagse" in row["error_message"]
        one_release(world, instance)
        world.update(instance, app_config={})
        assert world.settled(instance, "running")["error_message"] is None


def test_what_can_be_known_of_a_change_is_known_before_it_stops_anything(world: World) -> None:
    """An image that is not there, a quota, no room: each is tried until it works, and no longer."""
    quota = '{"apiVersion":"v1","kind":"ResourceQuota","metadata":{"name":"q"},"spec":{"hard":%s}}'
    with world.running(HELM_TIMEOUT_SECONDS=4) as service:
        instance = world.provision()
        name = world.settled(instance, "running")["app_name"]

        def generation() -> int:
            return int(world.object(f"deployment/{name}-mindroom")["metadata"]["generation"])

        def refused(problem: str, **changes: Any) -> None:
            failures = len(service.events("failed", instance_id=str(instance)))
            before = generation()
            world.update(instance, **changes)
            eventually(
                lambda: len(service.events("failed", instance_id=str(instance))) > failures + 1
            )
            row = world.row(instance)
            assert problem in row["error_message"]
            assert (row["status"], row["held"], generation()) == ("running", None, before)

        refused("ImagePullBackOff: the image mindroom/mindroom:not-there", app_config=NOT_THERE)
        world.update(instance, app_config={})
        world.settled(instance, "running")
        refused("Unschedulable: 0/1 nodes are available", memory_limit_mb=2**23)
        world.cluster.kubectl(
            *("create", "-n", world.namespace, "-f-"), stdin=quota % '{"limits.memory":"5Gi"}'
        )
        refused("FailedCreate: ", memory_limit_mb=8192)
        last = generation()
        world.kubectl("delete", "resourcequota", "q")
        assert world.settled(instance, "running")["error_message"] is None
        assert generation() > last
        assert len(world.objects("deployments,statefulsets", instance)) == 2


def test_a_volume_that_cannot_grow_blocks_nothing_else(world: World) -> None:
    def storage_class(*, grows: bool) -> None:
        patch = f'{{"allowVolumeExpansion": {str(grows).lower()}}}'
        world.cluster.kubectl("patch", "storageclass", "kwok", "-p", patch)

    def size() -> str:
        return str(world.volume(instance)["spec"]["resources"]["requests"]["storage"])

    def health() -> tuple[str, list[str]]:
        row = world.row(instance)
        return row["health_status"], row["health_details"].get("problems", [])

    with world.running() as service:
        instance = world.provision()
        name = world.settled(instance, "running")["app_name"]
        storage_class(grows=False)
        try:
            world.update(instance, storage_limit_gb=20, memory_limit_mb=3072, config={"rooms": {}})
            row = world.settled(instance, "running")
            assert (row["error_message"], row["held"], size()) == (None, None, "7680Mi")
            pod = world.object(f"deployment/{name}-mindroom")["spec"]["template"]["spec"]
            assert json.loads(world.config(instance)) == {"rooms": {}} | PLATFORM
            assert pod["containers"][0]["resources"]["limits"]["memory"] == "1536Mi"
            eventually(lambda: health()[0] == "degraded")
            for problem, start in zip(
                health()[1],
                (
                    "matrix: CannotGrow: the volume has 2560Mi and cannot have 5120Mi",
                    "mindroom: CannotGrow: the volume has 7680Mi and cannot have 15360Mi",
                ),
                strict=True,
            ):
                assert problem.startswith(start)
                assert "only dynamically provisioned" in problem
                assert problem.endswith("(allowVolumeExpansion), or move its data)")
            time.sleep(2 * RESYNC)
            assert len(service.events("claimed", instance_id=str(instance))) == 2
            assert len(service.events("volume cannot grow", volume=f"{name}-backend")) == 1
        finally:
            storage_class(grows=True)
        eventually(lambda: size() == "15Gi")
        eventually(lambda: health() == ("healthy", []))
        assert world.row(instance)["due_at"] is None
        one_release(world, instance)


def test_a_change_that_never_works_interrupts_once_and_is_held(world: World) -> None:
    """What ran before runs again, though a volume has grown, until something or somebody asks."""
    with world.running(HELM_TIMEOUT_SECONDS=4) as service:
        instance = world.provision()
        mindroom = f"deployment/{world.settled(instance, 'running')['app_name']}-mindroom"

        def failures() -> int:
            return len(service.events("failed", instance_id=str(instance)))

        def checked() -> None:
            last = len(service.events("held", instance_id=str(instance)))
            eventually(lambda: len(service.events("held", instance_id=str(instance))) > last + 1)

        config = {"agents": {"eve": {"model": "large"}}}
        world.update(instance, app_config=CRASHES, storage_limit_gb=20, config=config)
        row = eventually(lambda: row if (row := world.row(instance))["held"] else None)
        assert row["status"] == "running"
        assert row["error_message"].startswith("mindroom: CrashLoopBackOff: ")
        eventually(lambda: world.row(instance)["health_status"] == "healthy")
        restored = world.object(mindroom)
        for container in restored["spec"]["template"]["spec"]["containers"]:
            assert container["image"].startswith("ghcr.io/mindroom-ai/mindroom:")
        assert json.loads(world.config(instance)) == PLATFORM
        requests = world.volume(instance)["spec"]["resources"]["requests"]
        assert requests["storage"] == "15Gi"
        one_release(world, instance)

        checked()
        assert failures() == 1
        assert (
            world.object(mindroom)["metadata"]["generation"] == restored["metadata"]["generation"]
        )
        assert world.row(instance)["error_message"] == row["error_message"]
        eventually(lambda: service.metric("provisioner_instances_held") == 1)
        shown = service.http.get(f"/api/v1/instances/{instance}").json()
        assert shown["held"]
        world.kubectl("scale", mindroom, "--replicas=3")
        eventually(lambda: world.object(mindroom)["spec"]["replicas"] == 1)

        answer = service.http.post(
            "/api/v1/retry", params={"wait": PATIENCE}, json={"instance_id": str(instance)}
        )
        assert (answer.status_code, answer.json()["held"], failures()) == (200, True, 2)
        world.update(instance, app_config={})
        row = world.settled(instance, "running")
        assert (row["error_message"], row["held"]) == (None, None)
        assert json.loads(world.config(instance)) == config | PLATFORM
        one_release(world, instance)


def test_an_attempt_is_cancelled_when_its_row_changes(world: World) -> None:
    with world.running() as service, world.no_room():
        instance = world.provision("free")
        eventually(lambda: service.events("helm started", instance_id=str(instance)))
        world.db.execute("select public.deprovision_instance(%s)", [instance])
        world.settled(instance, "deprovisioned")
        assert [event["reason"] for event in service.events("released")] == ["its row was changed"]
        eventually(lambda: world.objects(ALL, instance) == [])


def test_a_matrix_server_keeps_its_name_whatever_its_hosts_are(world: World) -> None:
    """Synapse does not start with another name than its database was made with."""

    def named() -> tuple[str, str, str]:
        """Its name, where clients find it, and the name that MindRoom is told."""
        name = world.row(instance)["app_name"]
        data = world.object(f"configmap/{name}-matrix")["data"]
        homeserver = yaml.safe_load(data["homeserver.yaml"])
        pod = world.object(f"deployment/{name}-mindroom")["spec"]["template"]["spec"]
        told = {each["name"]: each.get("value") for each in pod["containers"][0]["env"]}
        return (
            homeserver["server_name"],
            homeserver["public_baseurl"],
            told["MATRIX_SERVER_NAME"],
        )

    with world.running():
        instance = world.provision()
        world.update(instance, subdomain="ada")
        name = f"{world.settled(instance, 'running')['app_name']}.{BASE_DOMAIN}"
        assert named() == (name, f"https://ada.{BASE_DOMAIN}/", name)
        world.update(instance, subdomain="eve")
        assert world.settled(instance, "running")["matrix_url"] == f"https://eve.{BASE_DOMAIN}"
        assert named() == (name, f"https://eve.{BASE_DOMAIN}/", name)
        # As an earlier release left it, which gave the host for a name.
        world.db.execute(
            """delete from private.instance_secrets
               where instance_id = %s and name = 'MATRIX_SERVER_NAME'""",
            [instance],
        )
    with world.running(BASE_DOMAIN="other.test"):
        world.update(instance, cpu_limit=2)
        world.settled(instance, "running")
        name = f"eve.{BASE_DOMAIN}"
        assert named() == (name, "https://eve.other.test/", name)


# ---- being stopped


def test_on_sigterm_it_finishes_what_is_in_progress(world: World) -> None:
    service = world.start().until_ready()
    with world.no_room():
        instance = world.provision()
        eventually(lambda: service.events("helm started", instance_id=str(instance)))
        service.process.send_signal(signal.SIGTERM)
        eventually(lambda: service.events("stopping"))
        assert service.readiness() == {"service": "stopping"}
        later = world.provision()
    assert service.process.wait(PATIENCE) == 0
    world.settled(instance, "running")
    row = world.row(later)
    assert (row["lease"], row["attempts"]) == (None, 0)
    with world.running():
        world.settled(later, "running")


def test_after_the_grace_period_it_releases_what_is_in_progress(world: World) -> None:
    service = world.start(GRACE_SECONDS=1, LEASE_SECONDS=600).until_ready()
    with world.no_room():
        instance = world.provision()
        eventually(lambda: service.events("helm started", instance_id=str(instance)))
        assert service.stop() == 0
        assert helms(world) == []
        row = world.row(instance)
        assert (row["status"], row["lease"], row["attempts"]) == ("provisioning", None, 0)
    with world.running(LEASE_SECONDS=600):  # its expiry is not waited for: it was released
        world.settled(instance, "running")
        one_release(world, instance)
