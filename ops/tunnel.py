"""A tunnel to the database of a stack: `bin/tunnel`, which docs/tunnel.md explains.

This process becomes the command that the tunnel is for (exec), so that the command has the
terminal, the signals and the exit code.  A child process, which no Ctrl-C reaches, keeps ssh
running until the command has ended.
"""

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path
from typing import IO, NoReturn, TextIO, cast

from components.database_target import DatabaseTarget
from embedded.errors import UserError, with_remedy
from embedded.process import reach_loopback_directly
from ops import committed_config

USAGE = "bin/tunnel [-s STACK] -- COMMAND [ARGUMENT...]"
EXIT_NO_TUNNEL = 255
"""The exit code when there is no tunnel: that of ssh."""

EXIT_NO_COMMAND = 127
"""The exit code when the command does not exist: that of shells."""

UP = "the tunnel is up"
SSH_OPTIONS = {
    "BatchMode": "yes",
    "PreferredAuthentications": "publickey",
    "StrictHostKeyChecking": "yes",
    "ForwardAgent": "no",
    "ExitOnForwardFailure": "yes",
    "ConnectTimeout": "10",
    # A dead connection is noticed within 15 seconds.
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "3",
    # A connection that ssh shares with others would not end with this one.
    "ControlMaster": "no",
    "ControlPath": "none",
    "LogLevel": "INFO",
    # Carried out once the forwards listen.
    "PermitLocalCommand": "yes",
    "LocalCommand": f"echo {UP}",
}

PORT_TAKEN = "Address already in use"
SSH_ERRORS = {
    PORT_TAKEN: ("every port that was chosen was taken by another program", "run it again"),
    "Offending": (
        "its host key is not the recorded one",
        "somebody may be in between: ask whoever runs it; docs/tunnel.md says how to record a new "
        "key",
    ),
    "host key is known": ("its host key is not recorded", "docs/tunnel.md says how to record it"),
    "Permission denied": (
        "it accepts none of our keys",
        "`ssh-add -l` lists those of the agent; the bastion has to know one of them",
    ),
    "Could not resolve hostname": (
        "no host has that name",
        "check databaseBastion in the stack file",
    ),
    "Connection refused": ("it refuses the connection", "check that it is up, and its port"),
    "timed out": ("it does not answer", "check that it is up, and the firewalls"),
}
"""Part of an error of ssh -> its meaning, and what to do."""

OPEN_FAILED = "open failed: "
"""Part of ssh's output when the bastion cannot, or will not, connect to the database."""

ATTEMPTS = 5
"""How often ports are chosen, since another program may take one before ssh does."""

POLL_SECONDS = 0.2
"""Seconds within which the end of the command is noticed."""

RETRY_SECONDS = 2.0
"""Seconds between two attempts to connect again."""


def main(arguments: list[str]) -> int:
    """Become the command, with a tunnel; returns an exit code only where that fails."""
    try:
        stack, command = parse(arguments)
        _open(stack)
        reach_loopback_directly()
        _become(command)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_NO_TUNNEL
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def parse(arguments: list[str]) -> tuple[str, list[str]]:
    """The stack and the command; `pulumi ... -s STACK` names the stack for both.

    Raises:
        UserError: one of them is missing.
    """
    stack = ""
    if arguments[:1] == ["-s"]:
        stack, arguments = "".join(arguments[1:2]), arguments[2:]
    if arguments[:1] != ["--"] or not arguments[1:]:
        raise UserError("no command follows `--`", USAGE)
    command = arguments[1:]
    if not stack and Path(command[0]).name == "pulumi":
        parts = [part for argument in command for part in argument.split("=", 1)]
        given = [value for flag, value in pairwise(parts) if flag in ("-s", "--stack")]
        stack = next(iter(given), "")
    if not stack:
        raise UserError("no stack is named, whose database the tunnel leads to", USAGE)
    return stack.rpartition("/")[2], command


def _open(stack: str) -> None:
    """Open the tunnel, and set the variables by which the command finds it.

    Raises:
        UserError: it cannot be opened.
    """
    config = committed_config(stack)
    bastion, host, port = (config[f"database{key}"] for key in ("Bastion", "Host", "Port"))
    if not bastion:
        raise UserError(
            f"Pulumi.{stack}.yaml names no bastion",
            "if the database is not reached without one, add below config "
            "`mindroom:databaseBastion: USER@HOST`",
        )
    if not host:
        raise UserError(
            f"Pulumi.{stack}.yaml has no databaseHost for the tunnel to lead to", "add it"
        )
    if str(port) == "6543":
        raise UserError(
            f"databasePort 6543 of Pulumi.{stack}.yaml is a transaction pooler, where the lock of "
            "a migration does not hold",
            "use the session mode port 5432",
        )
    if not shutil.which("ssh"):
        raise UserError("ssh is missing", "install OpenSSH's client (Debian: openssh-client)")
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    for attempt in range(ATTEMPTS):
        near, proxy = _free_ports()
        options = [f"-o{key}={value}" for key, value in SSH_OPTIONS.items()]
        forwards = ["-L", f"127.0.0.1:{near}:{target}", "-D", f"127.0.0.1:{proxy}"]
        result = _start_guard(["ssh", "-N", "-T", *options, *forwards, "--", bastion], bastion)
        if result == UP:
            break
        if PORT_TAKEN not in result or attempt == ATTEMPTS - 1:
            raise UserError(f"no tunnel through the bastion {bastion}: {result}")
    os.environ |= {
        "DATABASE_TUNNEL": f"{near}:{host}:{port}",
        "DATABASE_PROXY": f"socks5://127.0.0.1:{proxy}",
        # Instead of a NO_PROXY that has the database's host, too.
        "DATABASE_NO_PROXY": "none.invalid",
    }
    # The password is encrypted there: libpq has PGPASSWORD and ~/.pgpass for it.
    os.environ["DATABASE_URL"] = DatabaseTarget.read((config | {"databasePassword": ""}).get).url()


def _free_ports() -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        return [near.getsockname()[1] for near in sockets]


def _become(command: list[str]) -> NoReturn:
    """Become the command, without the signals that Python ignores and others do not."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"error: {command[0]}: {error.strerror}", file=sys.stderr)
        sys.exit(EXIT_NO_COMMAND)


def _start_guard(ssh: list[str], bastion: str) -> str:
    """Start the child that keeps ssh running; returns UP, or why it is not.

    The child ends by itself where ssh never came up.
    """
    parent = os.getpid()
    reader, writer = os.pipe()
    if child := os.fork():
        os.close(writer)
        with open(reader) as answer:
            result = answer.read()
        if result != UP:
            os.waitpid(child, 0)
        return result
    try:
        os.setsid()
        # Only the command decides what a signal to the whole group means.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        os.dup2(nothing, 1)  # otherwise a reader of the command's output would wait for us
        with open(writer, "w") as answer:
            _keep_up(ssh, bastion, parent, answer)
    finally:
        os._exit(0)


def _keep_up(command: list[str], bastion: str, parent: int, answer: TextIO) -> None:
    """Start ssh whenever it does not run, until the parent has ended.

    Args:
        command: ssh, as it is started.
        bastion: what it connects to, for the messages.
        parent: the process that the tunnel is for.
        answer: receives UP, or why the first attempt failed, after which there is no other.
    """
    reported = ""
    while os.getppid() == parent:
        output: list[str] = []
        up = False
        with subprocess.Popen(
            command,
            env=os.environ | {"SHELL": "/bin/sh"},  # which carries out LocalCommand
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,  # so that select sees all that is left to read
        ) as ssh:
            for line in _lines(ssh, parent):
                if OPEN_FAILED in line:
                    _report(
                        f"{bastion} does not reach the database: {line.partition(OPEN_FAILED)[2]}"
                    )
                elif line != UP:
                    output.append(line)
                elif answer.closed:
                    up = True
                    _report(f"connected to {bastion} again")
                else:
                    up = True
                    answer.write(UP)
                    answer.close()
            ssh.terminate()
        if os.getppid() != parent:
            return
        reason = _reason(output)
        if not answer.closed:
            answer.write(reason)
            return
        if up:
            _report(f"lost {bastion} and the connections through it: {reason}; connecting again")
        elif reason != reported:
            _report(f"cannot connect to {bastion} again: {reason}")
        reported = "" if up else reason
        time.sleep(RETRY_SECONDS)


def _lines(ssh: subprocess.Popen[bytes], parent: int) -> Iterator[str]:
    """The lines of ssh's output, until it or the parent has ended."""
    stream = cast("IO[bytes]", ssh.stdout)
    while os.getppid() == parent:
        if select.select([stream], [], [], POLL_SECONDS)[0]:
            line = stream.readline()
            if not line:
                return
            yield line.decode(errors="replace").strip()
        elif ssh.poll() is not None:
            return  # a process that it started still holds the pipe


def _reason(output: list[str]) -> str:
    for part, (meaning, remedy) in SSH_ERRORS.items():
        for line in output:
            if part in line:
                return with_remedy(f"{meaning} ({line})", remedy)
    return output[-1] if output else "ssh ended without a message"


def _report(text: str) -> None:
    with suppress(OSError):  # the terminal may be gone
        print(f"tunnel: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
