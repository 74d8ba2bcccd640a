"""Kubelets, as far as they tell what pods use: TLS, and they ask the API server who may know it."""

import json
import secrets
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx2
import yaml

from embedded.cluster import ClusterAccess
from tests.support.provisioning import World

NODE_LABEL = "test.mindroom.chat/kubelet"


@dataclass
class Authority:
    """A CA, and a certificate of it for 127.0.0.1."""

    directory: Path

    def __post_init__(self) -> None:
        new = ["openssl", "req", "-x509", "-nodes", "-newkey", "ec", "-days=2"]
        new += ["-pkeyopt", "ec_paramgen_curve:P-256"]
        by = [f"-CA={self.directory / 'ca.crt'}", f"-CAkey={self.directory / 'ca.key'}"]
        for name, more in (("ca", []), ("kubelet", [*by, "-addext=subjectAltName=IP:127.0.0.1"])):
            files = [f"-keyout={self.directory / name}.key", f"-out={self.directory / name}.crt"]
            subprocess.run(
                [*new, f"-subj=/CN={name}", *files, *more], capture_output=True, check=True
            )

    @property
    def certificate(self) -> str:
        """The CA's own (PEM)."""
        return (self.directory / "ca.crt").read_text()

    @property
    def context(self) -> ssl.SSLContext:
        """A server's."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.directory / "kubelet.crt", self.directory / "kubelet.key")
        return context


@dataclass
class Kubelet:
    """A kubelet of a node with its name.

    Attributes:
        pods: what /stats/summary tells; see `pod`.
        body: sent instead, if not None.
        seconds: how long it takes to answer.
        asked: how many requests came.
    """

    node: str
    cluster: ClusterAccess
    server: ThreadingHTTPServer
    pods: list[dict[str, Any]] = field(default_factory=list)
    body: bytes | None = None
    seconds: float = 0.0
    asked: int = 0

    @property
    def port(self) -> int:
        return int(self.server.server_address[1])

    def answer(self, path: str, token: str) -> tuple[int, bytes]:
        """As pkg/kubelet/server/auth.go has it: who asks, and may they get nodes/stats of it?"""
        self.asked += 1
        time.sleep(self.seconds)
        review = self._review("authentication", "TokenReview", {"token": token})
        if not review.get("authenticated"):
            return 401, b"Unauthorized"
        attributes = {"verb": "get", "resource": "nodes", "name": self.node}
        attributes["subresource"] = "stats" if path.startswith("/stats/") else "proxy"
        user = review["user"]
        spec = {
            "user": user["username"],
            "groups": user["groups"],
            "resourceAttributes": attributes,
        }
        if not self._review("authorization", "SubjectAccessReview", spec)["allowed"]:
            return 403, b"Forbidden"
        if path != "/stats/summary":
            return 404, b"Not Found"
        summary = {"node": {"nodeName": self.node}, "pods": self.pods}
        return 200, json.dumps(summary).encode() if self.body is None else self.body

    def _review(self, group: str, kind: str, spec: dict[str, Any]) -> dict[str, Any]:
        config = yaml.safe_load(self.cluster.kubeconfig.read_text())
        server = config["clusters"][0]["cluster"]
        version = f"{group}.k8s.io/v1"
        review = {"apiVersion": version, "kind": kind, "spec": spec}
        answer = httpx2.post(
            f"{server['server']}/apis/{version}/{kind.lower()}s",
            json=review,
            headers={"Authorization": f"Bearer {config['users'][0]['user']['token']}"},
            verify=ssl.create_default_context(cafile=server["certificate-authority"]),
        )
        return dict(answer.raise_for_status().json()["status"])


@contextmanager
def a_kubelet(node: str, cluster: ClusterAccess, authority: Authority) -> Iterator[Kubelet]:
    """It listens, and the node says where; no pod is scheduled to it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            token = (self.headers["Authorization"] or "").removeprefix("Bearer ")
            status, body = kubelet.answer(self.path, token)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A client that goes away, or does not trust us, is expected."""

    server = Quiet(("127.0.0.1", 0), Handler)
    server.socket = authority.context.wrap_socket(
        server.socket, server_side=True, do_handshake_on_connect=False
    )
    kubelet = Kubelet(node, cluster, server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    metadata = {"name": node, "labels": {NODE_LABEL: ""}}
    endpoint = {"kubeletEndpoint": {"Port": kubelet.port}}
    status = {"daemonEndpoints": endpoint}
    made = {"apiVersion": "v1", "kind": "Node", "metadata": metadata}
    try:
        made |= {"spec": {"unschedulable": True}, "status": status}
        cluster.kubectl("create", "-f-", stdin=json.dumps(made))
        yield kubelet
    finally:
        cluster.kubectl("delete", "node", node, "--ignore-not-found")
        server.shutdown()
        server.server_close()


def pod(uid: str, cores: float, mebibytes: int, **volumes: float) -> dict[str, Any]:
    """What a kubelet tells of a pod; volumes are gibibytes by claim, `_` for a hyphen."""
    return {
        "podRef": {"name": "a-pod", "namespace": "a-namespace", "uid": uid},
        "startTime": "2026-12-01T00:00:00Z",
        "containers": [],
        "cpu": {"time": "2026-12-01T00:00:00Z", "usageNanoCores": int(cores * 1e9)},
        "memory": {"time": "2026-12-01T00:00:00Z", "workingSetBytes": mebibytes * 2**20},
        "volume": [
            {"name": "config", "usedBytes": 4096},
            *(
                {
                    "name": name,
                    "usedBytes": int(gibibytes * 2**30),
                    "capacityBytes": 10 * 2**30,
                    "pvcRef": {"name": name.replace("_", "-"), "namespace": "a-namespace"},
                }
                for name, gibibytes in volumes.items()
            ),
        ],
    }


def running(instance: UUID, node: str) -> dict[str, Any]:
    """A pod of an instance, on a node."""
    context = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    container = {"name": "a", "image": "a:1", "securityContext": context}
    profile = {"type": "RuntimeDefault"}
    security = {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": profile}
    spec = {"nodeName": node, "securityContext": security, "containers": [container]}
    return _labelled("Pod", instance, spec)


def claim(instance: UUID) -> dict[str, Any]:
    """A volume claim of an instance."""
    resources = {"requests": {"storage": "10Gi"}}
    spec = {"accessModes": ["ReadWriteOnce"], "resources": resources}
    return _labelled("PersistentVolumeClaim", instance, spec)


def _labelled(kind: str, instance: UUID, spec: dict[str, Any]) -> dict[str, Any]:
    labels = {"mindroom.chat/instance": str(instance)}
    metadata = {"name": f"a{secrets.token_hex(6)}", "labels": labels}
    return {"apiVersion": "v1", "kind": kind, "metadata": metadata, "spec": spec}


def create(world: World, *objects: dict[str, Any]) -> dict[str, str]:
    """Make them, in the namespace of the instances: the name of each, and its id."""
    given = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    each = r'-ojsonpath={.metadata.name} {.metadata.uid}{"\n"}'
    made = world.kubectl("create", each, "-f-", stdin=given)
    return dict(line.split() for line in made.splitlines())
