"""The Helm program, as a child that does not outlive this process."""

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any

import structlog

from provisioner import metrics
from provisioner.settings import Settings

log = structlog.get_logger()

KEPT_REVISIONS = 3
END_SECONDS = 5
LONGEST_ERROR = 1000
PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None)


class HelmError(Exception):
    """What Helm said."""


async def upgrade(
    settings: Settings, release: str, values: Mapping[str, Any], *, roll_back: bool
) -> None:
    """Install or upgrade a release, and wait until its pods are ready.

    Args:
        settings: the chart, the namespace and the time limit are from here.
        release: its name.
        values: of the chart.
        roll_back: whether a failure leaves the release as it was before.

    Raises:
        HelmError: it failed.
    """
    limit = settings.helm_timeout_seconds
    await _run(
        settings,
        ["upgrade", release, str(settings.instance_chart), "--install", "--wait"]
        + [f"--timeout={limit}s", f"--history-max={KEPT_REVISIONS}", "--values=-"]
        + (["--atomic"] if roll_back else []),
        limit * (2 if roll_back else 1),
        json.dumps(values).encode(),
    )


async def uninstall(settings: Settings, release: str) -> None:
    """Remove a release, if it is there, and wait until its pods are gone.

    Raises:
        HelmError: it failed.
    """
    limit = settings.helm_timeout_seconds
    await _run(
        settings,
        ["uninstall", release, "--ignore-not-found", "--wait", f"--timeout={limit}s"],
        limit,
    )


async def _run(
    settings: Settings, arguments: list[str], limit: float, stdin: bytes | None = None
) -> None:
    command = arguments[0]
    started = time.monotonic()
    log.info("helm started", command=command)
    process = await asyncio.create_subprocess_exec(
        settings.helm,
        *arguments,
        f"--namespace={settings.instances_namespace}",
        stdin=asyncio.subprocess.PIPE if stdin is not None else asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env=_environment(),
        preexec_fn=_die_with_parent if sys.platform == "linux" else None,
    )
    try:
        async with asyncio.timeout(limit + settings.helm_slack_seconds):
            _, stderr = await process.communicate(stdin)
    except TimeoutError:
        raise HelmError(
            f"helm {command} hung: it was killed beyond its time limit of {limit:g} s"
        ) from None
    finally:
        await asyncio.shield(_end(process))
        metrics.helm_duration.labels(command).observe(time.monotonic() - started)
    if process.returncode:
        text = stderr.decode(errors="replace").strip().removeprefix("Error: ")
        raise HelmError(text[-LONGEST_ERROR:] or f"helm {command} ended with {process.returncode}")


def _environment() -> dict[str, str]:
    """Ours without its secrets."""
    return {k: v for k, v in os.environ.items() if k not in ("API_TOKEN", "DATABASE_URL")}


def _die_with_parent() -> None:
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Ask it to end, then make it; Helm notes in the release that it was interrupted."""
    for ask in (process.terminate, process.kill):
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                ask()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), END_SECONDS)
