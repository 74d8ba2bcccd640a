"""The instance-provisioner as a process on this machine, since no container runs in the cluster.

It has the token of its ServiceAccount, so that it has the rights of the chart's Role and no others.
It outlives the process that starts it, and is stopped by a later one.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import yaml

from components import INSTANCES_NAMESPACE, NAMESPACE, PROVISIONER, ROOT
from embedded.cluster import ClusterAccess
from embedded.errors import UserError
from embedded.process import PORTS, is_free

HELM = ROOT / ".tools" / "bin" / "helm"
TIMEOUT = 60.0
TOKEN_HOURS = 24


def start(directory: Path, cluster: ClusterAccess, settings: Mapping[str, str]) -> str:
    """Start it, or restart it with other settings; wait until it is ready.

    Args:
        directory: where its kubeconfig, token and log are kept.
        cluster: an administrator's way into the cluster, which has the chart.
        settings: DATABASE_URL, API_TOKEN, BASE_DOMAIN.

    Returns:
        The URL of its API.

    Raises:
        UserError: it does not become ready.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    stop(directory)
    create_token = ["create", "token", PROVISIONER, "-n", NAMESPACE, f"--duration={TOKEN_HOURS}h"]
    _write_kubeconfig(directory, cluster, cluster.kubectl(*create_token))
    port = next(port for port in random.sample(PORTS, len(PORTS)) if is_free(port))
    (directory / "port").write_text(str(port))
    environment = dict(settings) | {
        "INSTANCES_NAMESPACE": INSTANCES_NAMESPACE,
        "HELM": str(HELM),
        "HOME": str(directory),
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "KUBECONFIG": str(directory / "kubeconfig"),
        "PATH": os.environ.get("PATH", os.defpath),
    }
    log = directory / "log"
    with log.open("a") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "provisioner"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    (directory / "pid").write_text(str(process.pid))
    url = url_of(directory)
    deadline = time.monotonic() + TIMEOUT
    while not _ready(url):
        if process.poll() is not None or time.monotonic() > deadline:
            lines = "\n  ".join(log.read_text().splitlines()[-5:])
            raise UserError(
                f"the provisioner is not ready; the last lines of {log}:\n  {lines}",
                "fix what these lines name, then start again",
            )
        time.sleep(0.1)
    return url


def url_of(directory: Path) -> str:
    """The URL of its API.

    Raises:
        UserError: it was never started.
    """
    try:
        return f"http://127.0.0.1:{int((directory / 'port').read_text())}"
    except (OSError, ValueError):
        raise UserError("the provisioner was not started", "make up CLUSTER=1") from None


def ready_url_of(directory: Path) -> str:
    """The same, of one that runs.

    Raises:
        UserError: it does not run, or is not ready.
    """
    url = url_of(directory)
    if not _ready(url):
        raise UserError(
            f"the provisioner is not ready at {url}",
            f"make up CLUSTER=1 starts it; its log is {directory / 'log'}",
        )
    return url


def stop(directory: Path) -> bool:
    """Stop it, so that it finishes or releases its leases; False when it was not running."""
    pid = directory / "pid"
    if not pid.exists():
        return False
    running = False
    with suppress(psutil.Error, ValueError):
        process = psutil.Process(int(pid.read_text()))
        if process.cmdline()[1:] == ["-m", "provisioner"]:
            running = True
            process.send_signal(signal.SIGTERM)
            process.wait(TIMEOUT)
    pid.unlink()
    return running


def _write_kubeconfig(directory: Path, cluster: ClusterAccess, token: str) -> None:
    config = yaml.safe_load(cluster.kubeconfig.read_text())
    for user in config["users"]:
        user["user"] = {"tokenFile": str(directory / "token")}
    for name, text in (("token", token), ("kubeconfig", yaml.safe_dump(config))):
        descriptor = os.open(directory / name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
        with open(descriptor, "w") as file:
            file.write(text)


def _ready(url: str) -> bool:
    import httpx2  # spares `make up`, which imports this module, 0.07 s

    try:
        return httpx2.get(f"{url}/ready", timeout=5, trust_env=False).is_success
    except httpx2.RequestError:
        return False
