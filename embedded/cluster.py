"""A Kubernetes cluster of our own, on loopback: all of the real control plane, and kwok for nodes.

Everything that the API promises holds: admission, RBAC, tokens, rollouts, quotas.  No container
runs: kwok plays the kubelet and makes of each pod what stages.yaml says.

One private directory holds everything: `etcd/`, `pki/`, `kubeconfig` (with the kept port and a
token), `lock` and a log of each program.  The programs outlive the process that starts them, and
are stopped by a later one, which finds them by their working directory, which is that one.
"""

import fcntl
import json
import os
import random
import secrets
import shutil
import signal
import ssl
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil  # type: ignore[import-untyped]
import yaml

from embedded.errors import UserError
from embedded.process import PORTS, alive, is_free, listener, spawn, system_error

BUILT = Path(__file__).parent.parent / ".tools" / "bin"
STAGES = Path(__file__).with_name("stages.yaml")
TIMEOUT = 60.0
"""Seconds that the cluster may take to come up."""
STOP_TIMEOUT = 10.0
"""Seconds that a program may take to stop before it is killed, and again when it was killed."""

# All paths are within the working directory.  etcd has no passwords: only who may enter that
# directory reaches it.
SERVERS: dict[str, list[str]] = {
    "etcd": [
        "--data-dir=etcd",
        "--unsafe-no-fsync",
        "--log-level=warn",
        "--listen-client-urls=unix://etcd.sock",
        "--advertise-client-urls=http://localhost:1",
        "--listen-peer-urls=unix://peer.sock",
    ],
    "kube-apiserver": [
        "--etcd-servers=unix://etcd.sock",
        "--bind-address=127.0.0.1",
        "--cert-dir=pki",
        "--endpoint-reconciler-type=none",
        "--authorization-mode=RBAC",
        "--token-auth-file=tokens.csv",
        "--service-account-issuer=https://kubernetes.default.svc",
        "--service-account-key-file=pki/apiserver.key",
        "--service-account-signing-key-file=pki/apiserver.key",
        "--service-cluster-ip-range=10.0.0.0/16",
        # Otherwise it waits a minute for watches to end, which they don't.
        "--shutdown-send-retry-after",
    ],
}
CLIENTS: dict[str, list[str]] = {
    "kube-controller-manager": [
        "--kubeconfig=kubeconfig",
        "--leader-elect=false",
        "--secure-port=0",
        "--service-account-private-key-file=pki/apiserver.key",
        "--root-ca-file=pki/apiserver.crt",
    ],
    "kube-scheduler": ["--kubeconfig=kubeconfig", "--leader-elect=false", "--secure-port=0"],
    "kwok": [
        "--kubeconfig=kubeconfig",
        "--manage-all-nodes",
        # How long pods wait when kwok was killed and another takes over.
        "--node-lease-duration-seconds=5",
        f"--config={STAGES}",
        "--server-address=",
        "--node-ip=127.0.0.1",
    ],
}
# Its controllers start at the same time and share memory without a lock (Go's race detector on
# v0.8.0): on two processors it crashes now and then.
ENVIRONMENTS = {"kwok": {"GOMAXPROCS": "1"}}

CAPACITY = {"cpu": "1000", "memory": "4Ti", "pods": "10000"}
OBJECTS: list[dict[str, Any]] = [
    {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "node", "labels": {"kubernetes.io/hostname": "node"}},
        "status": {"capacity": CAPACITY, "allocatable": CAPACITY},
    },
    {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {
            "name": "kwok",
            "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
        },
        "provisioner": "kwok",
        "allowVolumeExpansion": True,
    },
]


def program(name: str) -> str:
    """A program of Kubernetes: of KUBEBUILDER_ASSETS if it is there, otherwise our own.

    For a cluster that is given, where nothing is built, any kubectl will do.

    Raises:
        UserError: there is none.
    """
    folders = [os.environ.get("KUBEBUILDER_ASSETS", ""), str(BUILT)]
    if name == "kubectl":
        folders.append(os.environ.get("PATH", ""))
    for folder in folders:
        if found := shutil.which(name, path=folder):
            return os.path.abspath(found)
    raise UserError(f"{BUILT / name} is missing", "make cluster, which builds it")


class ClusterAccess:
    """A cluster that is reached through a kubeconfig.

    Attributes:
        kubeconfig: the file whose current context is meant.
    """

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig.absolute()

    @property
    def context(self) -> str:
        """The name of the current context.

        Raises:
            UserError: there is no such file, or it names none.
        """
        try:
            return str(yaml.safe_load(self.kubeconfig.read_text())["current-context"])
        except (OSError, yaml.YAMLError, TypeError, KeyError):
            raise UserError(
                f"{self.kubeconfig} is not a kubeconfig with a current context",
                "kubectl config use-context NAME",
            ) from None

    def kubectl(self, *arguments: str, stdin: str = "") -> str:
        """What kubectl prints.

        Raises:
            UserError: it fails; the message is what it says.
        """
        done = subprocess.run(
            [program("kubectl"), f"--kubeconfig={self.kubeconfig}", *arguments],
            env=os.environ | {"KUBECACHEDIR": str(self.kubeconfig.parent / "cache")},
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise UserError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout


class Cluster(ClusterAccess):
    """A cluster in a private directory; only `start` creates anything.

    Attributes:
        directory: where everything of this cluster is kept, mode 0700.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory.resolve()
        super().__init__(self.directory / "kubeconfig")

    def start(self) -> bool:
        """Start its programs that do not run; wait until pods can be created.

        Returns:
            True when this call started something, False when all of it was running.

        Raises:
            UserError: it cannot be started; what this call started is stopped again.
        """
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._locked():
            missing = [name for name in (*SERVERS, *CLIENTS) if name not in self._running()]
            if "kube-apiserver" in missing:
                self._choose_port()
            try:
                self._start_programs(SERVERS, missing, lambda: self._get("/readyz") is not None)
                if missing:
                    objects = {"apiVersion": "v1", "kind": "List", "items": OBJECTS}
                    self.kubectl("apply", "--server-side", "-f-", stdin=json.dumps(objects))
                self._start_programs(CLIENTS, missing, self._is_ready)
            except BaseException:
                self._terminate(missing, signal.SIGKILL)
                raise
            return bool(missing)

    def stop(self) -> bool:
        """Stop it; what it holds stays for the next start.

        Returns:
            True when this call stopped it, False when nothing of it was running.

        Raises:
            UserError: it does not stop.
        """
        if not self.directory.exists():
            return False
        with self._locked():
            clients = self._terminate(CLIENTS)
            return any([self._terminate(["kube-apiserver"]), self._terminate(["etcd"]), clients])

    def destroy(self) -> None:
        """Stop it at once and remove its directory.

        Raises:
            UserError: it does not stop, or its directory cannot be removed.
        """
        if self.directory.exists():
            with self._locked():
                self._terminate([*CLIENTS, *SERVERS], signal.SIGKILL)
                shutil.rmtree(self.directory)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Let one process at a time work on this cluster; make the system's errors readable."""
        try:
            with open(self.directory / "lock", "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        except OSError as error:
            raise system_error(error, self.directory) from error

    def _choose_port(self) -> None:
        """Keep a free port and a token on first use; see that the port is still free."""
        if not self.kubeconfig.exists():
            port = next(port for port in random.sample(PORTS, len(PORTS)) if is_free(port))
            token = secrets.token_urlsafe(32)
            entries = {
                "clusters": {
                    "server": f"https://127.0.0.1:{port}",
                    "certificate-authority": str(self.directory / "pki" / "apiserver.crt"),
                },
                "users": {"token": token},
                "contexts": {"cluster": "embedded", "user": "embedded"},
            }
            config = {"apiVersion": "v1", "kind": "Config", "current-context": "embedded"} | {
                kind: [{"name": "embedded", kind.removesuffix("s"): content}]
                for kind, content in entries.items()
            }
            self._write("tokens.csv", f'{token},admin,admin,"system:masters"')
            self._write("kubeconfig", yaml.safe_dump(config))
        port = self._port()
        if not is_free(port):
            raise UserError(
                f"port {port} on 127.0.0.1, kept for this cluster in {self.kubeconfig}, is taken "
                f"by {listener(port)}",
                "stop that program; or delete that file to have another port chosen",
            )

    def _endpoint(self) -> tuple[str, str]:
        """The API server's address and the administrator's token."""
        config = yaml.safe_load(self.kubeconfig.read_text())
        return config["clusters"][0]["cluster"]["server"], config["users"][0]["user"]["token"]

    def _port(self) -> int:
        return urlsplit(self._endpoint()[0]).port or 0

    def _write(self, name: str, text: str) -> None:
        descriptor = os.open(self.directory / name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
        with open(descriptor, "w") as file:
            file.write(text)

    def _running(self) -> dict[str, psutil.Process]:
        """The programs of this cluster, by name."""
        found = {}
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError, IndexError):
                if process.cwd() == str(self.directory) and alive(process):
                    found[Path(process.cmdline()[0]).name] = process
        return found

    def _start_programs(
        self,
        programs: Mapping[str, list[str]],
        missing: Collection[str],
        is_up: Callable[[], bool],
    ) -> None:
        """Start those of the programs that are missing; wait until `is_up`."""
        started = {}
        for name in programs.keys() & missing:
            command = [program(name), *programs[name]]
            if name == "kube-apiserver":
                command.append(f"--secure-port={self._port()}")
            with (self.directory / f"{name}.log").open("w") as output:
                process = spawn(
                    command,
                    stdout=output,
                    stderr=output,
                    cwd=self.directory,
                    environment=ENVIRONMENTS.get(name, {}),
                )
            process.returncode = 0  # we don't wait for it: no ResourceWarning when the object goes
            started[name] = psutil.Process(process.pid)
        deadline = time.monotonic() + TIMEOUT
        while not is_up():
            ended = [name for name, process in started.items() if not alive(process)]
            if ended or time.monotonic() > deadline:
                name = min(ended, default=list(programs)[-1])
                problem = "ended" if ended else f"was not ready within {TIMEOUT:g} seconds"
                log = self.directory / f"{name}.log"
                lines = "\n  ".join(log.read_text(errors="replace").splitlines()[-8:])
                raise UserError(
                    f"{name} {problem}; the last lines of {log}:\n  {lines}",
                    "fix what these lines name, then start again",
                )
            time.sleep(0.05)

    def _get(self, path: str) -> bytes | None:
        """What the API server answers; None where it doesn't, or with an error."""
        import httpx2  # spares `make up`, which imports this module, 0.07 s

        server, token = self._endpoint()
        headers = {"Authorization": f"Bearer {token}"}
        try:
            trusted = ssl.create_default_context(cafile=self.directory / "pki" / "apiserver.crt")
            answer = httpx2.get(
                server + path, headers=headers, verify=trusted, timeout=5, trust_env=False
            )
        except (OSError, httpx2.RequestError):  # the certificate may not be there yet
            return None
        return answer.content if answer.is_success else None

    def _is_ready(self) -> bool:
        node = json.loads(self._get("/api/v1/nodes/node") or "{}")
        conditions = node.get("status", {}).get("conditions", [])
        return (
            self._get("/api/v1/namespaces/default/serviceaccounts/default") is not None
            and any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)
            and self._api_clients() >= CLIENTS.keys()
        )

    def _api_clients(self) -> set[str]:
        """The programs that talk to the API server: of the scheduler nothing else tells."""
        port, found = self._port(), set()
        for name, process in self._running().items():
            with suppress(psutil.Error):
                peers = [connection.raddr for connection in process.net_connections()]
                if any(peer and peer.port == port for peer in peers):
                    found.add(name)
        return found

    def _terminate(self, names: Collection[str], how: signal.Signals = signal.SIGTERM) -> bool:
        ended = [process for name, process in self._running().items() if name in names]
        for process in ended:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(how)
        deadline = time.monotonic() + STOP_TIMEOUT
        for process in ended:
            while alive(process):
                if time.monotonic() > deadline:
                    if how == signal.SIGKILL:
                        raise UserError(
                            f"{process.name()} (process {process.pid}) in {self.directory} did "
                            f"not stop within {STOP_TIMEOUT:g} seconds of being killed"
                        )
                    self._terminate(names, signal.SIGKILL)
                time.sleep(0.02)
        return bool(ended)
