"""Many instances: each is provisioned once, and idle ones cost next to nothing."""

import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.provisioning import World, eventually

INSTANCES = 50
REPLICAS = 2
RESYNC, KEEPALIVE = 4, 1
WATCHED = 13


def purpose(statement: str) -> str:
    """The purpose of a statement; the statement itself if it is an unexpected one."""
    for name, pattern in {
        "keep-alive": r"^select 1$",
        "resync": r"work\.due_at is not null as due",
        "claim": r"^with next as",
        "erasures": r"from private\.erasures",
        "pending": r"as length",
        "check of a connection": r"^$",
    }.items():
        if re.search(pattern, statement.strip()):
            return name
    return statement


@pytest.fixture
def statements(world: World) -> Iterator[Path]:
    """The server's log, to which the service's role writes every statement."""
    world.db.execute("alter role instance_provisioner set log_statement = 'all'")
    [[directory]] = world.db.execute("show data_directory")
    yield Path(directory).parent / "server.log"
    world.db.execute("alter role instance_provisioner reset log_statement")


def test_two_replicas_provision_fifty_instances_once_each_and_are_idle_then(
    world: World, statements: Path
) -> None:
    calm = {"LEASE_SECONDS": 60, "RESYNC_SECONDS": RESYNC, "KEEPALIVE_SECONDS": KEEPALIVE}
    services = [world.start(**calm).until_ready() for _ in range(REPLICAS)]
    instances = [world.provision() for _ in range(INSTANCES)]
    rows = {str(instance): world.settled(instance, "running") for instance in instances}
    claimed = [
        [event["instance_id"] for event in service.events("claimed")] for service in services
    ]
    assert sorted(instance for of_service in claimed for instance in of_service) == sorted(rows)
    assert all(claimed)
    assert world.releases() == {row["app_name"]: ["deployed"] for row in rows.values()}
    assert len(world.objects("deployments,statefulsets")) == 2 * INSTANCES
    for service in services:
        assert service.metric("provisioner_leases") == 0

    eventually(
        lambda: {world.row(instance)["health_status"] for instance in instances} == {"healthy"}
    )
    time.sleep(2 * RESYNC)  # for pending writes
    before = statements.stat().st_size
    time.sleep(WATCHED)
    with statements.open() as log:
        log.seek(before)
        text = log.read()
    logged = re.findall(r"LOG:  (?:execute \S+|statement): (.*(?:\n\t.*)*)", text)
    counts = Counter(purpose(statement.replace("\n\t", "\n")) for statement in logged)
    resyncs = REPLICAS * (WATCHED // RESYNC + 1)
    assert counts.pop("keep-alive") <= REPLICAS * (WATCHED // KEEPALIVE + 1)
    assert 0 < counts["resync"] <= resyncs
    assert counts.pop("claim") <= resyncs
    assert counts.pop("pending") <= resyncs
    assert counts.pop("erasures") <= resyncs
    counts.pop("check of a connection", None)
    assert set(counts) == {"resync"}
    for service in services:
        assert service.stop() == 0
