"""Running commands, and how much memory they and their server sessions take (Linux only)."""

import os
import select
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

INTERVAL = 0.05
"""Seconds between two looks at the memory."""


@dataclass(frozen=True)
class Command:
    """What to run, where, and with which environment on top of a bare one."""

    arguments: list[str]
    directory: Path
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ran:
    """What came of a command.

    Attributes:
        code: its exit code; negative for a signal, and None when it did not end in time.
        output: what it wrote, standard output and error as one.
        seconds: from its start to its end.
    """

    code: int | None
    output: str
    seconds: float


class Running:
    """A command under way, the leader of a process group of its own."""

    def __init__(self, command: Command, environment: Mapping[str, str]) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 closed by `end`
        self._started = time.perf_counter()
        self._process = subprocess.Popen(
            command.arguments,
            cwd=command.directory,
            env={**environment, **command.environment},
            stdin=subprocess.DEVNULL,
            stdout=self._file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """The process that was started, not its children."""
        return self._process.pid

    def kill(self) -> None:
        """Kill the process, and none of its children."""
        self._process.kill()
        self._process.wait()

    def end(self, timeout: float) -> Ran:
        """Wait for the command; when time is up kill it with all its children."""
        code = self._wait(timeout)
        seconds = time.perf_counter() - self._started
        with suppress(ProcessLookupError):  # what it has left running
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        self._file.seek(0)
        output = self._file.read().decode(errors="replace")
        self._file.close()
        return Ran(code, output, seconds)

    def _wait(self, timeout: float) -> int | None:
        """The exit code, without delay: Popen's own wait looks only every 50 ms."""
        if self._process.returncode is None:
            descriptor = os.pidfd_open(self.pid)
            ended, _, _ = select.select([descriptor], [], [], timeout)
            os.close(descriptor)
            if not ended:
                return None
        return self._process.wait()


@dataclass
class Memory:
    """Peaks in bytes, as far as looks every `INTERVAL` see them.

    Attributes:
        client: resident memory of a command with all its children.
        backend: private memory of the largest server session.
    """

    client: int = 0
    backend: int = 0


@contextmanager
def watched(pid: int, backends: Callable[[], list[int]]) -> Iterator[Memory]:
    """Watch a command and the server sessions of its database."""
    memory = Memory()
    done = threading.Event()

    def watch() -> None:
        while not done.wait(INTERVAL):
            # A process's own peak is exact, so that nothing is missed between two looks.
            client = sum(_status(each, "VmHWM") for each in _tree(pid))
            memory.client = max(memory.client, client)
            backend = max((_status(each, "RssAnon") for each in backends()), default=0)
            memory.backend = max(memory.backend, backend)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield memory
    finally:
        done.set()
        thread.join()


def children(pid: int) -> list[int]:
    """The processes that a process has started and that still run."""
    found: list[int] = []
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            text = Path(f"/proc/{pid}/task/{thread}/children").read_text()
            found += map(int, text.split())
    return found


def title(pid: int) -> str:
    """What a process calls itself; empty when it is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


def _tree(pid: int) -> list[int]:
    return [pid, *(each for child in children(pid) for each in _tree(child))]


def _status(pid: int, key: str) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    return 0
