"""The instance gateway as a process, for the tests."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2

from components import ROOT
from tests.support.provisioning import Service, eventually, free_port

UNLIMITED = """
from provisioner.gateway import __main__, app
from provisioner.gateway.rates import Rates
app.Rates = lambda *_: Rates(1_000_000, 1_000_000)
__main__.main()
"""
"""The gateway without a limit of how often somebody may come."""


def environment(url: str, **changes: object) -> dict[str, str]:
    """The gateway's environment, as the chart sets it."""
    settings = {"DATABASE_URL": url, "HOST": "127.0.0.1"} | changes
    kept = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"}
    return kept | {name: str(value) for name, value in settings.items()}


@contextmanager
def running_gateway(url: str, log: Path, *, unlimited: bool = False) -> Iterator[Service]:
    """A gateway that answers, and is stopped afterwards.

    Args:
        url: of the database, for the role instance_gateway.
        log: the file for its output.
        unlimited: let everybody come as often as they like.
    """
    port = free_port()
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *(("-c", UNLIMITED) if unlimited else ("-m", "provisioner.gateway"))],
            cwd=ROOT,
            env=environment(url, PORT=port),
            stdout=output,
            stderr=output,
        )
    service = Service(process, port, log)
    try:
        eventually(lambda: _answers(service))
        yield service
        assert service.stop() == 0
    finally:
        if process.poll() is None:
            service.kill()


def _answers(service: Service) -> bool:
    assert service.process.poll() is None, service.log.read_text()
    try:
        return httpx2.get(f"http://127.0.0.1:{service.port}/health").is_success
    except httpx2.HTTPError:
        return False
