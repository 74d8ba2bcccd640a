"""Runs the Helm program, which never outlives this process."""

import asyncio
import base64
import contextlib
import ctypes
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import structlog
from lightkube import codecs

from provisioner import metrics
from provisioner.settings import Settings

log = structlog.get_logger()

TERMINATE_SECONDS = 5
MAX_ERROR_LENGTH = 1000
PR_SET_PDEATHSIG = 1
"""An option of prctl(2): the signal that a process gets when its parent dies."""

_libc = ctypes.CDLL(None)


class HelmError(Exception):
    """Helm failed, with this message, or was killed."""


async def upgrade(settings: Settings, release: str, chart: Path, values: Mapping[str, Any]) -> None:
    """Install or upgrade a release; its pods are not waited for.

    All of its revisions stay: Helm would keep the newest, whether they ever ran or not.

    Raises:
        HelmError: it failed.
    """
    seconds = settings.helm_timeout_seconds
    await _run(
        settings,
        [
            *("upgrade", release, str(chart), "--install", "--values=-"),
            *(f"--timeout={seconds}s", "--history-max=0"),
        ],
        seconds,
        json.dumps(values).encode(),
    )


@contextlib.contextmanager
def recorded_chart(record: Mapping[str, Any]) -> Iterator[Path]:
    """The chart of a revision that Helm has on record, in a directory for as long as needed."""
    chart = record["chart"]
    files = {
        "Chart.yaml": json.dumps(chart["metadata"]).encode(),
        "values.yaml": json.dumps(chart.get("values") or {}).encode(),
    }
    if chart.get("schema"):
        files["values.schema.json"] = base64.b64decode(chart["schema"])
    for file in [*(chart.get("templates") or []), *(chart.get("files") or [])]:
        files[file["name"]] = base64.b64decode(file["data"])
    with tempfile.TemporaryDirectory() as name:
        for path, content in files.items():
            (Path(name) / path).parent.mkdir(parents=True, exist_ok=True)
            (Path(name) / path).write_bytes(content)
        yield Path(name)


async def uninstall(settings: Settings, release: str) -> None:
    """Uninstall a release, if it exists. Its objects are deleted, and may not be gone yet.

    Without --wait: Helm forgets the release also when the wait failed, and says nothing more of it
    the next time.

    Raises:
        HelmError: it failed.
    """
    await _run(
        settings, ["uninstall", release, "--ignore-not-found"], settings.helm_timeout_seconds
    )


async def render(
    settings: Settings, release: str, values: Mapping[str, Any]
) -> list[codecs.AnyResource]:
    """The objects of a release as it would be now; the server checks what it has of them.

    Raises:
        HelmError: it failed.
    """
    output = await _run(
        settings,
        [
            *("upgrade", release, str(settings.instance_chart), "--install", "--values=-"),
            *("--dry-run=server", "--output=json"),
        ],
        settings.helm_timeout_seconds,
        json.dumps(values).encode(),
        command="render",
    )
    return codecs.load_all_yaml(json.loads(output)["manifest"])


async def _run(
    settings: Settings,
    arguments: list[str],
    seconds: float,
    stdin: bytes | None = None,
    command: str | None = None,
) -> bytes:
    """Run Helm, and return its output; killed if it exceeds its time limit by too much.

    `command` is what the log and the metrics call it, if not by its first argument.
    """
    command = command or arguments[0]
    started = time.monotonic()
    log.info("helm started", command=command)
    process = await asyncio.create_subprocess_exec(
        settings.helm,
        *arguments,
        f"--namespace={settings.instances_namespace}",
        stdin=asyncio.subprocess.PIPE if stdin is not None else asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=_environment_without_secrets(),
        preexec_fn=_die_with_parent if sys.platform == "linux" else None,
    )
    try:
        async with asyncio.timeout(seconds + settings.helm_slack_seconds):
            stdout, stderr = await process.communicate(stdin)
    except TimeoutError:
        raise HelmError(
            f"helm {command} hung: killed {settings.helm_slack_seconds:g} s after its time limit "
            f"of {seconds:g} s"
        ) from None
    finally:
        await asyncio.shield(_terminate(process))
        metrics.helm_duration.labels(command).observe(time.monotonic() - started)
    if process.returncode:
        message = stderr.decode(errors="replace").strip().removeprefix("Error: ")
        raise HelmError(
            message[-MAX_ERROR_LENGTH:] or f"helm {command}: exit code {process.returncode}"
        )
    return stdout


def _environment_without_secrets() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if name not in ("API_TOKEN", "DATABASE_URL")
    }


def _die_with_parent() -> None:
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


async def _terminate(process: asyncio.subprocess.Process) -> None:
    """End a process, first so that Helm can record the interruption in the release."""
    for send_signal in (process.terminate, process.kill):
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                send_signal()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), TERMINATE_SECONDS)
