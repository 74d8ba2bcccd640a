"""Programs that outlive the process that starts them, and the ports that they listen on."""

import errno
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import psutil  # type: ignore[import-untyped]

from embedded.errors import UserError

# Nothing else of our environment, which may hold secrets, and PG* variables for other servers.
ENVIRONMENT = {"LC_ALL": "C", "PATH": os.environ.get("PATH", os.defpath)}
# Below the ports that Linux and macOS hand out to outgoing connections: one of those could be in
# use, for a moment, just when the server starts again.
PORTS = range(20000, 32768)
LOOPBACK = ("127.0.0.1", "localhost", "::1")
_REMEDIES = {
    errno.ENOSPC: "free some space there, then start again",
    errno.EROFS: "choose a file system that can be written to",
    errno.EACCES: "chown it to the user who runs this",
    errno.EPERM: "chown it to the user who runs this",
}


def system_error(error: OSError, path: Path) -> UserError:
    """An error of the operating system, about the file that it names, otherwise about the path."""
    return UserError(
        f"{error.filename or path}: {error.strerror or error}",
        _REMEDIES.get(error.errno or 0, ""),
    )


def spawn(
    command: list[str],
    stdout: int | IO[str],
    stderr: int | IO[str],
    cwd: str | Path = "/",
    keep: Sequence[int] = (),
    environment: Mapping[str, str] = {},
) -> subprocess.Popen[str]:
    """Start a command of a server's, out of reach of Ctrl-C; the descriptors to keep stay open."""
    return subprocess.Popen(
        command,
        env={**ENVIRONMENT, **environment},
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        text=True,
        start_new_session=True,
        pass_fds=keep,
    )


def reach_loopback_directly() -> None:
    """Have this process, and what it starts from now on, reach loopback without a proxy.

    Go's programs prefer the one spelling, Python's the other; gRPC's C library has a third name.
    """
    names = ("no_proxy", "NO_PROXY", "no_grpc_proxy")
    given = [part for name in names for part in os.environ.get(name, "").split(",") if part]
    os.environ |= dict.fromkeys(names, ",".join(dict.fromkeys([*given, *LOOPBACK])))


@contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Raise a Ctrl-C of the block at its end, so that what the block starts can be ended."""
    if threading.current_thread() is not threading.main_thread():  # the others get none
        yield
        return
    pending: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: pending.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if pending:
            signal.raise_signal(signal.SIGINT)


def alive(process: psutil.Process) -> bool:
    """Whether it still runs; one that ended, and that we started, is reaped."""
    with suppress(ChildProcessError):
        os.waitpid(process.pid, os.WNOHANG)  # if we started it, nobody else takes its exit status
    try:
        # A killed process is a zombie before its last thread has let go of ports and files.
        zombie = process.status() == psutil.STATUS_ZOMBIE and process.num_threads() <= 1
        return bool(process.is_running() and not zombie)
    except psutil.NoSuchProcess:
        return False


def is_free(port: int) -> bool:
    """Whether nothing listens on a port of 127.0.0.1."""
    with socket.socket() as attempt, suppress(OSError):
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        attempt.bind(("127.0.0.1", port))
        return True
    return False


def listener(port: int) -> str:
    """The program that listens on a port, as far as the system tells."""
    with suppress(psutil.Error):  # the system names other users' programs to root only
        for found in psutil.net_connections("tcp"):
            if found.status == "LISTEN" and found.laddr.port == port and found.pid:
                return f"{psutil.Process(found.pid).name()} (process {found.pid})"
    return "another program"
