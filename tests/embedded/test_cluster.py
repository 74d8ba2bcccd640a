"""The cluster on loopback: what starting and stopping promise, and what its pods come to."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil  # type: ignore[import-untyped]
import pytest
import yaml

from components import ROOT
from embedded import cluster as module
from embedded.cluster import CLIENTS, SERVERS, Cluster, ClusterAccess, program
from embedded.errors import UserError

PROGRAMS = {*SERVERS, *CLIENTS}


def running(cluster: Cluster) -> dict[str, psutil.Process]:
    return {name: each for name, each in cluster._running().items() if name in PROGRAMS}


def port(cluster: Cluster) -> int:
    config = yaml.safe_load(cluster.kubeconfig.read_text())
    return urlsplit(config["clusters"][0]["cluster"]["server"]).port or 0


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A running cluster for tests that stop it."""
    cluster = Cluster(tmp_path_factory.mktemp("own") / "a directory with a space")
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.destroy()


def test_second_start_changes_nothing(own: Cluster) -> None:
    before = running(own)
    assert before.keys() == PROGRAMS
    assert own.start() is False
    assert running(own) == before


def test_a_start_by_another_process_finds_it(own: Cluster) -> None:
    code = "import sys; from embedded.cluster import *; print(Cluster(Path(sys.argv[1])).start())"
    done = subprocess.run(
        [sys.executable, "-c", code, own.directory], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_it_is_private(own: Cluster) -> None:
    assert own.directory.stat().st_mode & 0o777 == 0o700
    for name in ("kubeconfig", "tokens.csv", "pki/apiserver.key"):
        assert (own.directory / name).stat().st_mode & 0o077 == 0
    listening = {
        (name, connection.laddr.ip, connection.laddr.port)
        for name, process in running(own).items()
        for connection in process.net_connections("tcp")
        if connection.status == "LISTEN"
    }
    assert listening == {("kube-apiserver", "127.0.0.1", port(own))}


def test_kwok_runs_on_one_processor(own: Cluster) -> None:
    assert running(own)["kwok"].environ()["GOMAXPROCS"] == "1"  # on more it crashes now and then


def test_what_it_holds_survives_a_stop(own: Cluster) -> None:
    before = port(own)
    own.kubectl("create", "configmap", "kept", "--from-literal=a=b")
    assert own.stop() is True
    assert running(own) == {}
    assert own.stop() is False
    assert own.start() is True
    assert port(own) == before
    assert own.kubectl("get", "configmap", "kept", "-o", "jsonpath={.data.a}") == "b"


def test_a_client_that_watches_does_not_hold_the_stop_up(own: Cluster) -> None:
    watch = ["get", "namespaces", "--watch", f"--kubeconfig={own.kubeconfig}"]
    with subprocess.Popen([program("kubectl"), *watch], stdout=subprocess.PIPE) as client:
        try:
            assert client.stdout
            client.stdout.readline()
            begun = time.monotonic()
            assert own.stop() is True
            assert time.monotonic() - begun < module.STOP_TIMEOUT
        finally:
            client.kill()
    assert running(own) == {}
    own.start()


def test_a_program_that_does_not_stop_is_killed(
    own: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STOP_TIMEOUT", 2.0)
    running(own)["kube-apiserver"].suspend()
    assert own.stop() is True
    assert running(own) == {}
    own.start()


@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_a_killed_program_is_started_again(own: Cluster, name: str) -> None:
    others = {each: process for each, process in running(own).items() if each != name}
    killed = running(own)[name]
    killed.kill()
    killed.wait()
    assert own.start() is True
    assert running(own).keys() == PROGRAMS
    assert others.items() <= running(own).items()
    own.kubectl("create", "deployment", f"after-{name}", "--image=a:1")
    own.kubectl("rollout", "status", f"deployment/after-{name}", "--timeout=60s")


def test_port_taken_by_another_program(own: Cluster) -> None:
    own.stop()
    with socket.create_server(("127.0.0.1", port(own))):
        with pytest.raises(UserError, match=rf"port {port(own)} .*python.*process {os.getpid()}"):
            own.start()
        assert running(own) == {}
    own.start()


def test_a_program_that_does_not_start_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Cluster(tmp_path / "broken")
    monkeypatch.setitem(CLIENTS, "kube-scheduler", ["--no-such-flag"])
    with pytest.raises(UserError, match=r"kube-scheduler ended(.|\n)*unknown flag: --no-such"):
        broken.start()
    assert running(broken) == {}
    monkeypatch.undo()
    try:
        assert broken.start() is True
    finally:
        broken.destroy()
    assert not broken.directory.exists()


def test_a_process_without_a_command_line_yet_has_not_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    young = Cluster(tmp_path / "young")
    found, unseen = young._running, iter(range(10))
    monkeypatch.setattr(young, "_running", lambda: found() if next(unseen, 10) == 10 else {})
    try:
        assert young.start() is True
        monkeypatch.undo()
        assert running(young).keys() == PROGRAMS
    finally:
        monkeypatch.undo()
        young.destroy()


def test_missing_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUILT", tmp_path / "nothing")
    with pytest.raises(UserError, match=r"nothing/\S+ is missing\n  what to do: make cluster"):
        Cluster(tmp_path / "new").start()


def test_any_kubectl_will_do_but_no_other_etcd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("etcd", "kubectl"):
        shutil.copy(sys.executable, tmp_path / name)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert module.program("kubectl") == str(module.BUILT / "kubectl")
    monkeypatch.setattr(module, "BUILT", tmp_path / "nothing")
    assert module.program("kubectl") == str(tmp_path / "kubectl")
    with pytest.raises(UserError, match="etcd is missing"):
        module.program("etcd")


def test_programs_of_kubebuilder_assets_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    assert module.program("etcd") == str(module.BUILT / "etcd")
    shutil.copy(sys.executable, tmp_path / "etcd")
    assert module.program("etcd") == str(tmp_path / "etcd")


@pytest.mark.parametrize("content", ["", "kind: Config", ": :"], ids=["empty", "none", "broken"])
def test_kubeconfig_without_a_context(tmp_path: Path, content: str) -> None:
    (tmp_path / "kubeconfig").write_text(content)
    with pytest.raises(UserError, match="is not a kubeconfig with a current context"):
        _ = ClusterAccess(tmp_path / "kubeconfig").context


def wait_for(what: Callable[[], str], expected: str) -> None:
    deadline = time.monotonic() + 30
    while (found := what()) != expected:
        assert time.monotonic() < deadline, found
        time.sleep(0.1)


class TestPods:
    """What becomes of pods and volumes."""

    def test_a_job_succeeds(self, cluster: ClusterAccess, namespace: str) -> None:
        cluster.kubectl("create", "job", "job", "--image=a:1", "-n", namespace)
        complete = ("wait", "--for=condition=complete", "job/job", "--timeout=30s")
        cluster.kubectl(*complete, "-n", namespace)

    def test_a_pod_that_no_node_can_take_is_unschedulable(
        self, cluster: ClusterAccess, namespace: str
    ) -> None:
        need = (
            '{"spec": {"containers": [{"name": "a", "resources": {"limits": {"memory": "5Ti"}}}]}}'
        )
        options = ("--image=a:1", f"--overrides={need}", "--override-type=strategic")
        cluster.kubectl("run", "a", *options, "-n", namespace)
        reason = ("get", "pod", "a", "-n", namespace, "-ojsonpath={.status.conditions[0].reason}")
        wait_for(lambda: cluster.kubectl(*reason), "Unschedulable")

    def test_a_claim_gets_a_volume_that_goes_with_it(
        self, cluster: ClusterAccess, namespace: str
    ) -> None:
        claim = {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "claim"},
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": "1Gi"}},
            },
        }
        where = ("-n", namespace)
        capacity = ("get", "pvc", "claim", *where, "-ojsonpath={.status.phase} {..storage}")
        cluster.kubectl("create", "-f-", *where, stdin=json.dumps(claim))
        wait_for(lambda: cluster.kubectl(*capacity), "Bound 1Gi 1Gi")
        more = '{"spec": {"resources": {"requests": {"storage": "2Gi"}}}}'
        cluster.kubectl("patch", "pvc", "claim", *where, f"--patch={more}")
        wait_for(lambda: cluster.kubectl(*capacity), "Bound 2Gi 2Gi")
        volume = cluster.kubectl("get", "pvc", "claim", *where, "-ojsonpath={.spec.volumeName}")
        cluster.kubectl("delete", "pvc", "claim", *where)
        found = ("get", "pv", volume, "--ignore-not-found", "-oname")
        wait_for(lambda: cluster.kubectl(*found), "")

    def test_a_service_account_may_do_what_its_role_says(
        self, cluster: ClusterAccess, namespace: str, tmp_path: Path
    ) -> None:
        cluster.kubectl("create", "serviceaccount", "reader", "-n", namespace)
        cluster.kubectl(
            "create", "role", "reader", "--verb=get,list", "--resource=pods", "-n", namespace
        )
        cluster.kubectl(
            "create",
            "rolebinding",
            "reader",
            "--role=reader",
            f"--serviceaccount={namespace}:reader",
            "-n",
            namespace,
        )
        token = cluster.kubectl("create", "token", "reader", "-n", namespace)
        config = yaml.safe_load(cluster.kubeconfig.read_text())
        config["users"][0]["user"] = {"token": token}
        (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
        reader = ClusterAccess(tmp_path / "kubeconfig")
        reader.kubectl("get", "pods", "-n", namespace)
        with pytest.raises(UserError, match="cannot list resource"):
            reader.kubectl("get", "secrets", "-n", namespace)
        with pytest.raises(UserError, match="cannot list resource"):
            reader.kubectl("get", "pods", "-n", "default")
