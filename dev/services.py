"""The platform's services as processes on this machine, since no container runs in the cluster.

They outlive the process that starts them, and are stopped by a later one.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import yaml

from components import NAMESPACE, PROVISIONER, ROOT
from embedded.cluster import ClusterAccess
from embedded.errors import UserError
from embedded.process import PORTS, is_free

TIMEOUT = 60.0
TOKEN_HOURS = 24


@dataclass(frozen=True)
class Service:
    """One of them.

    Attributes:
        name: such as "provisioner".
        module: that Python runs.
        probe: the path that answers once it is ready.
        directory: where its log is kept, its port and its process id.
    """

    name: str
    module: str
    probe: str
    directory: Path

    @property
    def log(self) -> Path:
        """The file with its output."""
        return self.directory / "log"

    @property
    def url(self) -> str:
        """The URL of its API.

        Raises:
            UserError: it was never started.
        """
        try:
            return f"http://127.0.0.1:{int((self.directory / 'port').read_text())}"
        except (OSError, ValueError):
            raise UserError(f"the {self.name} was not started", "make up CLUSTER=1") from None

    @property
    def ready_url(self) -> str:
        """The same, of one that runs.

        Raises:
            UserError: it does not run, or is not ready.
        """
        if not self._is_ready():
            raise UserError(
                f"the {self.name} is not ready at {self.url}",
                f"make up CLUSTER=1 starts it; its log is {self.log}",
            )
        return self.url

    def start(self, settings: Mapping[str, str]) -> None:
        """Start it, or restart it with other settings, on the same port; wait until it is ready.

        Raises:
            UserError: it does not become ready.
        """
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.stop()
        port = self._port()
        (self.directory / "port").write_text(str(port))
        environment = dict(settings) | {
            "HOME": str(self.directory),
            "HOST": "127.0.0.1",
            "PORT": str(port),
            "PATH": os.environ.get("PATH", os.defpath),
        }
        with self.log.open("a") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", self.module],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        (self.directory / "pid").write_text(str(process.pid))
        deadline = time.monotonic() + TIMEOUT
        while not self._is_ready():
            if process.poll() is not None or time.monotonic() > deadline:
                lines = "\n  ".join(self.log.read_text().splitlines()[-5:])
                raise UserError(
                    f"the {self.name} is not ready; the last lines of {self.log}:\n  {lines}",
                    "fix what these lines name, then start again",
                )
            time.sleep(0.1)

    def stop(self) -> bool:
        """Stop it, so that it finishes what it does; False when it was not running."""
        pid = self.directory / "pid"
        if not pid.exists():
            return False
        running = False
        with suppress(psutil.Error, ValueError):
            process = psutil.Process(int(pid.read_text()))
            if process.cmdline()[1:] == ["-m", self.module]:
                running = True
                process.send_signal(signal.SIGTERM)
                process.wait(TIMEOUT)
        pid.unlink()
        return running

    def _port(self) -> int:
        with suppress(OSError, ValueError):
            before = int((self.directory / "port").read_text())
            if is_free(before):
                return before
        return next(port for port in random.sample(PORTS, len(PORTS)) if is_free(port))

    def _is_ready(self) -> bool:
        import httpx2  # spares `make up`, which imports this module, 0.07 s

        try:
            url = f"{self.url}{self.probe}"
            return httpx2.get(url, timeout=5, trust_env=False).is_success
        except httpx2.RequestError:
            return False


def provisioners_kubeconfig(directory: Path, cluster: ClusterAccess) -> Path:
    """Write a kubeconfig with the token of the provisioner's ServiceAccount.

    With it the process has the rights of the chart's Role and no others.

    Args:
        directory: for the kubeconfig and the token.
        cluster: an administrator's way into the cluster, which has the chart.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    create_token = ["create", "token", PROVISIONER, "-n", NAMESPACE, f"--duration={TOKEN_HOURS}h"]
    token = cluster.kubectl(*create_token)
    config = yaml.safe_load(cluster.kubeconfig.read_text())
    for user in config["users"]:
        user["user"] = {"tokenFile": str(directory / "token")}
    for name, text in (("token", token), ("kubeconfig", yaml.safe_dump(config))):
        descriptor = os.open(directory / name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
        with open(descriptor, "w") as file:
            file.write(text)
    return directory / "kubeconfig"
