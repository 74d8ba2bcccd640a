"""The instance-provisioner as a process, with a database and a namespace of its own, for the tests.

It has the privileges that it will have: the database role's, and those of the chart's
ServiceAccount, whose token it is given.
"""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import httpx2
import psycopg
import yaml
from psycopg.types.json import Jsonb

from components import ROOT
from embedded.cluster import ClusterAccess
from tests.support.platforms import Platform

TOKEN = "a-token-of-the-provisioner's-tests"
RELEASE = "instance-provisioner"
BASE_DOMAIN = "mindroom.test"
PATIENCE = 60.0
RESYNC = 2
CHART = ROOT / "charts" / "instance-provisioner"

T = TypeVar("T")


def eventually(ask: Callable[[], T | None], timeout: float = PATIENCE) -> T:
    """The first true answer, polled until the timeout."""
    until = time.monotonic() + timeout
    while not (answer := ask()):
        assert time.monotonic() < until, f"not within {timeout} s: {answer}"
        time.sleep(0.05)
    return answer


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Service:
    """A running provisioner.

    Attributes:
        log: the file with its output.
    """

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def http(self) -> httpx2.Client:
        """A client that presents the token."""
        return httpx2.Client(
            base_url=f"http://127.0.0.1:{self.port}",
            headers={"Authorization": f"Bearer {TOKEN}"},
            timeout=PATIENCE,
        )

    def events(self, name: str | None = None, **having: Any) -> list[dict[str, Any]]:
        """The events that it logged, or those with this name and these values."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [
            line
            for line in lines
            if name in (None, line["event"])
            and all(line.get(key) == value for key, value in having.items())
        ]

    def readiness(self) -> dict[str, str] | None:
        """The problems that /ready names; None where nothing answers."""
        try:
            answer = self.http.get("/ready").json()
        except httpx2.HTTPError:
            return None
        assert answer["ready"] is (answer["problems"] == {})
        return dict(answer["problems"])

    def until_ready(self) -> "Service":
        eventually(lambda: self.readiness() == {})
        return self

    def metric(self, name: str) -> float:
        """The sum of a metric over all labels."""
        text = self.http.get("/metrics").text
        values = [
            float(line.rpartition(" ")[2])
            for line in text.splitlines()
            if line.partition(" ")[0].partition("{")[0] == name
        ]
        assert values, name
        return sum(values)

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.kill()
        self.process.wait()

    def stop(self, timeout: float = PATIENCE) -> int:
        """Stop it as Kubernetes does; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)


@dataclass
class World:
    """A platform, a namespace for its instances, and the provisioners that work on them.

    Attributes:
        db: an administrator's connection.
        cluster: an administrator's way into the cluster.
        namespace: of the instances.
        kubeconfig: of the chart's ServiceAccount, with its token in a file beside it.
    """

    platform: Platform
    db: psycopg.Connection
    cluster: ClusterAccess
    namespace: str
    directory: Path
    helm: Path
    services: list[Service] = field(default_factory=list)

    @property
    def kubeconfig(self) -> Path:
        return self.directory / "kubeconfig"

    def environment(self, **changes: object) -> dict[str, str]:
        """The environment of the service, as the chart sets it, but with short times."""
        settings = {
            "DATABASE_URL": self.platform.service_url("instance_provisioner"),
            "API_TOKEN": TOKEN,
            "BASE_DOMAIN": BASE_DOMAIN,
            "INSTANCES_NAMESPACE": self.namespace,
            "HELM": self.helm,
            "KUBECONFIG": self.kubeconfig,
            "HOST": "127.0.0.1",
            "HOME": self.directory,
            "RESYNC_SECONDS": RESYNC,
            "LEASE_SECONDS": 3,
            "HELM_TIMEOUT_SECONDS": 30,
            "FIRST_BACKOFF_SECONDS": 0.2,
            "LAST_BACKOFF_SECONDS": 1,
        }
        kept = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"}
        return kept | {name: str(value) for name, value in (settings | changes).items()}

    def start(self, **changes: object) -> Service:
        """Start a provisioner."""
        port = free_port()
        log = self.directory / f"{len(self.services)}-{secrets.token_hex(2)}.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "provisioner"],
                cwd=ROOT,
                env=self.environment(PORT=port, **changes),
                stdout=output,
                stderr=output,
            )
        service = Service(process, port, log)
        self.services.append(service)
        return service

    @contextmanager
    def no_room(self) -> Iterator[None]:
        """No pod finds a node: Helm waits."""
        self.cluster.kubectl("cordon", "-lkubernetes.io/hostname")
        try:
            yield
        finally:
            self.cluster.kubectl("uncordon", "-lkubernetes.io/hostname")

    @contextmanager
    def locked(self, statement: str, *values: object) -> Iterator[None]:
        """A transaction of the administrator that holds the locks of a statement."""
        with psycopg.connect(self.platform.url) as connection:
            connection.execute(statement.encode(), values)
            yield
            connection.rollback()

    @contextmanager
    def running(self, **changes: object) -> Iterator[Service]:
        """A provisioner that is ready, and stopped afterwards."""
        service = self.start(**changes).until_ready()
        yield service
        assert service.stop() == 0

    def kill_all(self) -> None:
        """Kill the services that still run."""
        for service in self.services:
            if service.process.poll() is None:
                service.kill()

    # ---- the database

    def subscribe(self, tier: str = "starter") -> tuple[UUID, UUID]:
        """A new customer: account and subscription."""
        [[account]] = self.db.execute(
            "insert into auth.users (id, email) values (gen_random_uuid(), %s) returning id",
            [f"{secrets.token_hex(6)}@customers.example"],
        )
        [[subscription]] = self.db.execute(
            "insert into public.subscriptions (account_id, tier) values (%s, %s) returning id",
            [account, tier],
        )
        return account, subscription

    def provision(
        self,
        tier: str = "starter",
        config: Mapping[str, Any] | None = None,
        app_config: Mapping[str, Any] | None = None,
    ) -> UUID:
        """A new customer's new instance."""
        subscription = self.subscribe(tier)[1]
        with self.db.transaction():
            [[instance]] = self.db.execute(
                "select public.provision_instance(%s, %s)", [subscription, Jsonb(config or {})]
            )
            if app_config:
                self.update(instance, app_config=app_config)
        return UUID(str(instance))

    def row(self, instance: UUID) -> dict[str, Any]:
        """A row of instances, and beside it that of private.provisioning."""
        [[row]] = self.db.execute(
            """select to_jsonb(i) || to_jsonb(p) from public.instances i
               join private.provisioning p on p.instance_id = i.id where i.id = %s""",
            [instance],
        )
        return dict(row)

    def update(self, instance: UUID, **changes: Any) -> None:
        values = [Jsonb(value) if isinstance(value, dict) else value for value in changes.values()]
        assignments = ", ".join(f"{name} = %s" for name in changes)
        query = f"update public.instances set {assignments} where id = %s"
        assert self.db.execute(query.encode(), [*values, instance]).rowcount == 1

    def settled(self, instance: UUID, status: str) -> dict[str, Any]:
        """The row, when nothing is left to do and it has this status."""

        def look() -> dict[str, Any] | None:
            row = self.row(instance)
            return row if row["status"] == status and row["due_at"] is None else None

        try:
            return eventually(look)
        except AssertionError:
            raise AssertionError(f"not {status}: {self.row(instance)}") from None

    def remove(self, instance: UUID) -> None:
        """Have it deprovisioned."""
        self.db.execute("select public.deprovision_instance(%s)", [instance])
        self.settled(instance, "deprovisioned")

    # ---- the cluster

    def objects(self, kinds: str, instance: UUID | None = None) -> list[dict[str, Any]]:
        """The objects of an instance, or of all."""
        label = "mindroom.chat/instance" + (f"={instance}" if instance else "")
        return list(
            json.loads(
                self.cluster.kubectl("get", kinds, "-n", self.namespace, "-l", label, "-ojson")
            )["items"]
        )

    def object(self, name: str) -> dict[str, Any]:
        """An object by kind/name."""
        return dict(json.loads(self.kubectl("get", name, "-ojson")))

    def config(self, instance: UUID) -> str:
        """The config that the MindRoom of an instance reads."""
        mindroom = self.object(f"deployment/{self.row(instance)['app_name']}-mindroom")
        volume = mindroom["spec"]["template"]["spec"]["volumes"][0]
        name = volume["projected"]["sources"][0]["configMap"]["name"]
        return str(self.object(f"configmap/{name}")["data"]["config.json"])

    def volume(self, instance: UUID) -> dict[str, Any]:
        """The claim of an instance's MindRoom."""
        return self.object(f"pvc/{self.row(instance)['app_name']}-backend")

    def kubectl(self, *arguments: str, stdin: str = "") -> str:
        return self.cluster.kubectl(*arguments, "-n", self.namespace, stdin=stdin)

    def releases(self) -> dict[str, list[str]]:
        """Release -> the statuses of its revisions."""
        records = json.loads(self.kubectl("get", "secrets", "-lowner=helm", "-ojson"))["items"]
        found: dict[str, list[str]] = {}
        for record in records:
            labels = record["metadata"]["labels"]
            found.setdefault(labels["name"], []).append(labels["status"])
        return found

    def new_token(self, duration: str = "1h") -> None:
        """Give the ServiceAccount's kubeconfig a new token, as the kubelet would."""
        token = self.cluster.kubectl(
            "create", "token", RELEASE, "-n", f"{self.namespace}-service", f"--duration={duration}"
        )
        path = self.directory / "token"
        path.with_suffix(".new").write_text(token)
        path.with_suffix(".new").replace(path)

    def apply_rbac(self) -> None:
        """The chart's ServiceAccount, Role and RoleBinding."""
        values = yaml.safe_load((CHART / "ci" / "minimal-values.yaml").read_text())
        values["config"]["measure"] = "kubelet"
        rendered = subprocess.run(
            [
                *(self.helm, "template", RELEASE, CHART, "-f-"),
                *("-n", f"{self.namespace}-service"),
                *("-s=templates/rbac.yaml", "-s=templates/serviceaccount.yaml"),
            ],
            input=json.dumps(values | {"instancesNamespace": self.namespace}),
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        self.cluster.kubectl("apply", "-f-", stdin=rendered)


@contextmanager
def a_world(
    platform: Platform, cluster: ClusterAccess, helm: Path, directory: Path
) -> Iterator[World]:
    """A namespace, the ServiceAccount's kubeconfig, and an end to all that was started."""
    namespace = f"test-{secrets.token_hex(4)}"
    with psycopg.connect(platform.url, autocommit=True) as db:
        world = World(platform, db, cluster, namespace, directory, helm)
        cluster.kubectl("create", "namespace", f"{namespace}-service")
        make_namespace(world)
        world.apply_rbac()
        kubeconfig = yaml.safe_load(cluster.kubeconfig.read_text())
        kubeconfig["users"] = [
            {"name": user["name"], "user": {"tokenFile": str(directory / "token")}}
            for user in kubeconfig["users"]
        ]
        world.kubeconfig.write_text(yaml.safe_dump(kubeconfig))
        world.new_token()
        try:
            yield world
        finally:
            world.kill_all()
            for name in (namespace, f"{namespace}-service"):
                cluster.kubectl("delete", "namespace", name, "--wait=false", "--ignore-not-found")
            roles = "clusterrole,clusterrolebinding"
            cluster.kubectl("delete", roles, f"{namespace}-service-{RELEASE}-measure")


def make_namespace(world: World) -> None:
    """As Pulumi makes it."""
    world.cluster.kubectl("create", "namespace", world.namespace)
    world.cluster.kubectl(
        "label", "namespace", world.namespace, "pod-security.kubernetes.io/enforce=restricted"
    )
