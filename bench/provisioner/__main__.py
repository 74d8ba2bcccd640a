"""The promises of the provisioner, each measured beside what it is compared with.

    start   from the commit of provision_instance() to the start of Helm: under 100 ms at the
            median, beside a bare LISTEN/NOTIFY round trip
    fifty   50 instances by 2 replicas x 4 workers: at most 1.2 times `xargs -P 8 helm install` of
            the same chart and values
    idle    1,000 instances at rest: no query but the resync and the keep-alive; the memory
    measure a round over 1,000 instances on ten nodes, whose kubelets are ours: under 5 s and 10
            statements
    failing a running customer, an upgrade that never works, fifteen minutes: the downtime; the
            service's times are a tenth of the defaults, and the figures ten times what was seen

`python -m bench.provisioner [NAME...]`. It starts a PostgreSQL and a cluster of its own (or uses
CLUSTER_KUBECONFIG); the service is started as the tests start it.
"""

import asyncio
import datetime
import json
import os
import secrets
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import UUID

import psutil  # type: ignore[import-untyped]
import psycopg
import yaml

from components import ROOT
from dev.in_process import HELM
from embedded.cluster import Cluster, ClusterAccess
from embedded.postgres import Server, embedded_bin
from provisioner.cluster import Cluster as Client
from provisioner.cluster import fingerprint
from provisioner.settings import Settings

sys.path.insert(0, str(ROOT / "tests"))

from tests.support.kubelets import Authority, a_kubelet, claim, create, pod, running
from tests.support.platforms import Platform, run, stack_config
from tests.support.provisioning import Service, World, a_world, eventually

CHART = ROOT / "charts" / "instance"
STARTS = 30
INSTANCES = 50
ROUNDS = 3
IDLE = 1000
IDLE_SECONDS = 125
MEASURED = 1000
KUBELETS = 10
FAILING = {
    "not-there": "the image cannot be pulled",
    "crashes": "the new pod ends at once",
}
FAILING_SECONDS = 900
SCALE = 10
CALM = {"RESYNC_SECONDS": 60, "LEASE_SECONDS": 60, "HELM_TIMEOUT_SECONDS": 300}


@contextmanager
def a_platform() -> Iterator[World]:
    """A server that survives crashes, a cluster, a platform."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        directory = Path(name)
        server = Server(directory / "postgres", embedded_bin(), settings={"log_statement": "all"})
        stack.callback(server.destroy)
        server.start()
        if given := os.environ.get("CLUSTER_KUBECONFIG"):
            cluster = ClusterAccess(Path(given))
        else:
            cluster = own = Cluster(directory / "cluster")
            stack.callback(own.destroy)
            own.start()
        config = stack_config(server.url("mindroom"), directory / "manifests")
        platform = Platform(server.url("mindroom"), config, run(config))
        files = directory / "provisioner"
        files.mkdir()
        yield stack.enter_context(a_world(platform, cluster, HELM, files))


def when(event: dict[str, str]) -> float:
    """An event's time as time.time() has it."""
    return datetime.datetime.fromisoformat(event["timestamp"]).timestamp()


def start(world: World) -> None:
    """How soon Helm starts."""
    url = world.platform.service_url("instance_provisioner")
    starts, trips = [], []
    with (
        world.running(**CALM) as service,
        psycopg.connect(url, autocommit=True) as listener,
        psycopg.connect(url, autocommit=True) as notifier,
    ):
        listener.execute("listen bench")
        for _ in range(STARTS):
            began = time.perf_counter()
            notifier.execute("notify bench")
            assert next(listener.notifies(timeout=10, stop_after=1))
            trips.append(1000 * (time.perf_counter() - began))
            instance = world.provision()
            committed = time.time()
            world.settled(instance, "running")
            [event] = service.events("helm started", instance_id=str(instance))
            starts.append(1000 * (when(event) - committed))
            world.remove(instance)
    ours, bare = statistics.median(starts), statistics.median(trips)
    print(
        f"start: {ours:.1f} ms at the median ({min(starts):.1f} to {max(starts):.1f}); target 100"
    )
    print(f"       bare LISTEN/NOTIFY {bare:.2f} ms: {ours / bare:.0f} times that")


def fifty(world: World) -> None:
    """How long 50 instances take, and the same by xargs; by turns."""
    times: dict[Callable[[World], float], list[float]] = {by_service: [], by_xargs: []}
    for _ in range(ROUNDS):
        for way, taken in times.items():
            taken.append(way(world))
    ours, theirs = (statistics.median(each) for each in times.values())
    for title, each in zip(
        ("2 replicas x 4 workers", "xargs -P 8 helm"), times.values(), strict=True
    ):
        print(f"fifty: {title:<24}" + " ".join(f"{taken:6.1f} s" for taken in each))
    print(f"       ratio of the medians {ours / theirs:.2f}; target 1.2")


def by_service(world: World) -> float:
    """Seconds from the first commit until all run."""
    services = [world.start(WORKERS=4, **CALM).until_ready() for _ in range(2)]
    customers = [world.subscribe() for _ in range(INSTANCES)]
    began = time.perf_counter()
    instances = []
    for _, subscription in customers:
        [[instance]] = world.db.execute("select public.provision_instance(%s)", [subscription])
        instances.append(UUID(str(instance)))
    eventually(lambda: count(world, "running") >= INSTANCES, timeout=600)
    taken = time.perf_counter() - began
    for instance in instances:
        world.db.execute("select public.deprovision_instance(%s)", [instance])
    eventually(lambda: count(world, "running") == count(world, "deprovisioning") == 0, timeout=600)
    for service in services:
        assert service.stop() == 0
    world.kubectl("delete", "pvc", "--all")
    return taken


def count(world: World, status: str) -> int:
    """How many instances have a status."""
    [[number]] = world.db.execute(
        "select count(*) from public.instances where status = %s", [status]
    )
    return int(number)


def by_xargs(world: World) -> float:
    """Seconds that Helm alone takes for the same releases."""
    names = [f"x{secrets.token_hex(6)}" for _ in range(INSTANCES)]
    for name in names:
        (world.directory / f"{name}.json").write_text(json.dumps(values(name)))
    secret = ["create", "secret", "generic"]
    for name in names:
        world.kubectl(
            *secret, f"{name}-secrets", "--from-literal=MATRIX_REGISTRATION_SHARED_SECRET=a"
        )
    common = f"--kubeconfig={world.kubeconfig} --namespace={world.namespace}"
    install = f"{HELM} install {{}} {CHART} --wait {common} --values={world.directory}/{{}}.json"
    began = time.perf_counter()
    xargs(install, names)
    taken = time.perf_counter() - began
    xargs(f"{HELM} uninstall {{}} {common}", names)
    world.kubectl("delete", "pvc,secret", "--all")
    return taken


def xargs(command: str, names: list[str]) -> None:
    """Run a command for each name, eight at a time."""
    subprocess.run(
        ["xargs", "-P", "8", "-I", "{}", *shlex.split(command)],
        input="\n".join(names),
        text=True,
        check=True,
        stdout=subprocess.DEVNULL,
    )


def values(name: str) -> dict[str, object]:
    """What the service gives the chart for an instance of the tier starter."""
    return {
        "instanceId": str(UUID(bytes=secrets.token_bytes(16), version=4)),
        "accountId": str(UUID(bytes=secrets.token_bytes(16), version=4)),
        "host": f"{name}.mindroom.test",
        "paused": False,
        "resources": {"cpu": 1, "memoryMb": 2048, "storageGb": 10},
        "configName": f"{name}-config",
        "secretName": f"{name}-secrets",
        "secretNames": [],
        "secretChecksum": "0" * 64,
        "matrix": {"serverName": f"{name}.mindroom.test"},
    }


def idle(world: World) -> None:
    """What 1,000 instances cost that nobody touches."""
    at_rest(world, IDLE)
    log = Path(world.platform.config["renderDirectory"]).parent / "postgres" / "server.log"
    with world.running(**CALM) as service:
        time.sleep(20)  # what is due once after the start
        before = log.stat().st_size
        memory = [rss(service)]
        began = time.monotonic()
        cpu = cpu_seconds(service)
        while time.monotonic() < began + IDLE_SECONDS:
            time.sleep(5)
            memory.append(rss(service))
        cpu = cpu_seconds(service) - cpu
        assert service.events("claimed") == []
    with log.open() as file:
        file.seek(before)
        asked = [line for line in file if "LOG:  execute " in line or "LOG:  statement: " in line]
    print(f"idle:  {IDLE} instances, {IDLE_SECONDS} s: {max(memory):.0f} MiB at most")
    print(f"       {100 * cpu / IDLE_SECONDS:.1f} % of a core, {len(asked)} statements")


def rss(service: Service) -> float:
    """MiB."""
    return float(psutil.Process(service.process.pid).memory_info().rss) / 2**20


def cpu_seconds(service: Service) -> float:
    """Seconds."""
    times = psutil.Process(service.process.pid).cpu_times()
    return float(times.user + times.system)


def at_rest(world: World, number: int) -> None:
    """Instances with all their objects, made without Helm; stopped, so that there are no pods."""
    template = json.loads(rendered(world))
    account, subscription = world.subscribe("enterprise")
    rows = world.db.execute(
        """insert into public.instances (account_id, subscription_id, app_name, subdomain, status)
           select %s, %s, 'idle-' || n, 'idle-' || n, 'stopped' from generate_series(1, %s) as n
           returning id::text, app_name""",
        [account, subscription, number],
    ).fetchall()
    for first in range(0, number, 100):
        items = [
            json.loads(json.dumps(each).replace(PLACE, name).replace(PLACE_ID, instance))
            for instance, name in rows[first : first + 100]
            for each in template
        ]
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
        world.cluster.kubectl("create", "-n", world.namespace, "-f-", "-oname", stdin=text)
    time.sleep(10)  # for the controllers to see them
    settings = Settings.model_construct(instances_namespace=world.namespace)
    os.environ["KUBECONFIG"] = str(world.kubeconfig)

    async def fingerprints() -> dict[str, str]:
        async with Client(settings) as client:
            return {key: fingerprint(found, "") for key, found in (await client.objects()).items()}

    [[nothing]] = world.db.execute("select encode(sha256(''), 'hex')")
    applied = asyncio.run(fingerprints())
    world.db.execute("update private.provisioning set due_at = null")
    with world.db.cursor() as cursor:
        cursor.executemany(
            "update private.provisioning set applied = %s where instance_id = %s",
            [[f"{nothing} {each}", instance] for instance, each in applied.items()],
        )


def measure(world: World) -> None:
    """Rounds of the service itself; each pod has a volume."""
    log = Path(world.platform.config["renderDirectory"]).parent / "postgres" / "server.log"
    authority = Authority(world.directory)
    with ExitStack() as stack:
        kubelets = [
            stack.enter_context(a_kubelet(f"measured-{number}", world.cluster, authority))
            for number in range(KUBELETS)
        ]
        account, subscription = world.subscribe("enterprise")
        rows = world.db.execute(
            """insert into public.instances
                 (account_id, subscription_id, app_name, subdomain, status)
               select %s, %s, 'measured-' || n, 'measured-' || n, 'maintenance'
                 from generate_series(1, %s) as n
               returning id""",
            [account, subscription, MEASURED],
        ).fetchall()
        for number, kubelet in enumerate(kubelets):
            ids = [instance for [instance] in rows[number::KUBELETS] for _ in range(2)]
            claims = create(world, *(claim(instance) for instance in ids))
            made = create(world, *(running(instance, kubelet.node) for instance in ids))
            kubelet.pods = [
                pod(uid, 0.1, 100, **{name: 1.0})
                for uid, name in zip(made.values(), claims, strict=True)
            ]
        of_pods = ["get", "pods", "--field-selector=status.phase=Running", "-oname"]
        eventually(lambda: world.kubectl(*of_pods).count("pod/") >= 2 * MEASURED, timeout=300)
        with world.running(
            **CALM,
            LOG_LEVEL="debug",
            MEASURE="kubelet",
            MEASURE_SECONDS=10,
            KUBELET_CA=authority.certificate,
        ) as service:
            eventually(lambda: len(service.events("measured")) >= 4, timeout=120)
            seconds = [event["seconds"] for event in service.events("measured")]
        world.kubectl("delete", "pods,pvc", "--all", "--wait=false")
    [[known]] = world.db.execute(
        "select count(*) from public.instances where cpu_used = 0.2 and storage_used_gb = 2"
    )
    written = log.read_text()
    asked = sum(written.count(part) for part in ("as all_volumes", "id <> all"))
    print(
        f"measure: {known} instances, {KUBELETS} nodes: " + " ".join(f"{s:.2f} s" for s in seconds)
    )
    print(f"       {asked / len(seconds):.1f} statements a round; targets 5 s, 10")


def failing(world: World) -> None:
    """How long a customer is down within fifteen minutes of an upgrade that never works."""
    times = {
        "HELM_TIMEOUT_SECONDS": 300 // SCALE,
        "FIRST_BACKOFF_SECONDS": 5 / SCALE,
        "LAST_BACKOFF_SECONDS": 300 / SCALE,
        "RESYNC_SECONDS": 60 / SCALE,
        "LEASE_SECONDS": 60 / SCALE,
    }
    for tag, title in FAILING.items():
        with world.running(**times) as service:
            instance = world.provision()
            mindroom = f"deployment/{world.settled(instance, 'running')['app_name']}-mindroom"
            world.update(instance, app_config={"images": {"mindroom": f"mindroom/mindroom:{tag}"}})
            downtime, interruptions, was_ready = 0.0, 0, True
            last = began = time.monotonic()
            while last < began + FAILING_SECONDS / SCALE:
                is_ready = bool(world.object(mindroom)["status"].get("readyReplicas"))
                now = time.monotonic()
                downtime += 0 if is_ready else now - last
                interruptions += was_ready and not is_ready
                was_ready, last = is_ready, now
                time.sleep(0.1)
            attempts = len(service.events("claimed", instance_id=str(instance))) - 1
            world.remove(instance)
        print(
            f"failing: {title:<36}{SCALE * downtime:6.0f} s down of {FAILING_SECONDS}, "
            f"{interruptions} interruptions, {attempts} attempts"
        )


PLACE, PLACE_ID = "the-name-of-it", "00000000-0000-4000-8000-000000000000"


def rendered(world: World) -> str:
    """The objects of a stopped instance, with the service's Secret and Helm's record, as JSON."""
    given = values(PLACE) | {"instanceId": PLACE_ID, "paused": True}
    text = subprocess.run(
        [HELM, "template", PLACE, CHART, "--skip-tests", "-f-", "-n", world.namespace],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    objects = [each for each in yaml.safe_load_all(text) if each]
    label = {"mindroom.chat/instance": PLACE_ID}
    record = {"owner": "helm", "name": PLACE, "status": "deployed"}
    for name, labels, size in (
        (f"{PLACE}-secrets", label, 100),
        (f"sh.helm.release.v1.{PLACE}.v1", record, 8000),
    ):
        metadata = {"name": name, "labels": labels}
        content = {"stringData": {"content": "x" * size}}
        objects.append({"apiVersion": "v1", "kind": "Secret", "metadata": metadata} | content)
    return json.dumps(objects)


MEASURES = {each.__name__: each for each in (start, fifty, idle, measure, failing)}


def main(names: list[str]) -> int:
    """Measure what is named, or everything."""
    if unknown := set(names) - set(MEASURES):
        print(f"bench.provisioner knows {', '.join(MEASURES)}, not {', '.join(unknown)}")
        return 2
    with a_platform() as world:
        for name in names or MEASURES:
            MEASURES[name](world)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
