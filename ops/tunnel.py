"""A tunnel to the database of a stack: `bin/tunnel`, which docs/tunnel.md explains.

This process becomes the command that the tunnel is for, so that its terminal, its signals and its
exit code are its own.  A child of it, which no Ctrl-C reaches, keeps ssh up for as long as the
command runs, however that ends.
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
from ops import committed_config

USAGE = "bin/tunnel [-s STACK] -- COMMAND [ARGUMENT...]"
FAILED = 255
"""The exit code when there is no tunnel, as ssh has it."""

NOT_FOUND = 127
"""The exit code when there is no such command, as shells have it."""

UP = "the tunnel is up"
OPTIONS = {
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

TAKEN = "Address already in use"
REASONS = {
    TAKEN: ("somebody takes each port that we choose", "run it again"),
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
        "there is no host of that name",
        "check databaseBastion in the stack file",
    ),
    "Connection refused": ("it refuses the connection", "check that it is up, and its port"),
    "timed out": ("it does not answer", "check that it is up, and the firewalls"),
}
"""Part of what ssh says -> what that means, and what to do."""

REFUSED = "open failed: "
"""What ssh says when the bastion cannot, or will not, connect to the database."""

ATTEMPTS = 5
"""How often ports are chosen, since somebody may take one before ssh does."""

TICK = 0.2
"""Seconds within which the end of the command is noticed."""

PAUSE = 2.0
"""Seconds between two attempts to connect again."""


def main(arguments: list[str]) -> int:
    """Become the command, with a tunnel; returns an exit code only where that fails."""
    try:
        stack, command = parse(arguments)
        _open(stack)
        _become(command)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def parse(arguments: list[str]) -> tuple[str, list[str]]:
    """The stack and the command; `pulumi ... -s STACK` says the stack for both."""
    stack = ""
    if arguments[:1] == ["-s"]:
        stack, arguments = "".join(arguments[1:2]), arguments[2:]
    if arguments[:1] != ["--"] or not arguments[1:]:
        raise UserError("no command follows `--`", USAGE)
    command = arguments[1:]
    if not stack and Path(command[0]).name == "pulumi":
        words = [part for word in command for part in word.split("=", 1)]
        given = [value for flag, value in pairwise(words) if flag in ("-s", "--stack")]
        stack = next(iter(given), "")
    if not stack:
        raise UserError("no stack is named, whose database the tunnel leads to", USAGE)
    return stack.rpartition("/")[2], command


def _open(stack: str) -> None:
    """Open the tunnel, and tell the programs that this process becomes, or starts, of it.

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
        options = [f"-o{key}={value}" for key, value in OPTIONS.items()]
        forwards = ["-L", f"127.0.0.1:{near}:{target}", "-D", f"127.0.0.1:{proxy}"]
        said = _guard(["ssh", "-N", "-T", *options, *forwards, "--", bastion], bastion)
        if said == UP:
            break
        if TAKEN not in said or attempt == ATTEMPTS - 1:
            raise UserError(f"no tunnel through the bastion {bastion}: {said}")
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
        return [each.getsockname()[1] for each in sockets]


def _become(command: list[str]) -> NoReturn:
    """Become the command, which shall not ignore what Python does."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"error: {command[0]}: {error.strerror}", file=sys.stderr)
        sys.exit(NOT_FOUND)


def _guard(ssh: list[str], bastion: str) -> str:
    """Start the child that keeps ssh up; returns UP, or else why it is not.

    The child ends by itself where ssh never came up.
    """
    parent = os.getpid()
    reader, writer = os.pipe()
    if child := os.fork():
        os.close(writer)
        with open(reader) as answer:
            said = answer.read()
        if said != UP:
            os.waitpid(child, 0)
        return said
    try:
        os.setsid()
        # What a signal to the whole group means is the command's to decide.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        os.dup2(nothing, 1)  # else whoever reads the command's output would wait for us
        with open(writer, "w") as answer:
            _keep_up(ssh, bastion, parent, answer)
    finally:
        os._exit(0)


def _keep_up(command: list[str], bastion: str, parent: int, answer: TextIO) -> None:
    """Start ssh whenever it is not there, until the parent has ended.

    Args:
        command: ssh, as it is started.
        bastion: what it connects to, for the messages.
        parent: the process that the tunnel is for.
        answer: is told UP, or why the first attempt failed, which then is the only one.
    """
    told = ""
    while os.getppid() == parent:
        said: list[str] = []
        up = False
        with subprocess.Popen(
            command,
            env=os.environ | {"SHELL": "/bin/sh"},  # which carries out LocalCommand
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,  # what is left to read, select has to see
        ) as ssh:
            for line in _lines(ssh, parent):
                if REFUSED in line:
                    _tell(f"{bastion} does not reach the database: {line.partition(REFUSED)[2]}")
                elif line != UP:
                    said.append(line)
                elif answer.closed:
                    up = True
                    _tell(f"connected to {bastion} again")
                else:
                    up = True
                    answer.write(UP)
                    answer.close()
            ssh.terminate()
        if os.getppid() != parent:
            return
        reason = _reason(said)
        if not answer.closed:
            answer.write(reason)
            return
        if up:
            _tell(f"lost {bastion}, and what went through it: {reason}; connecting again")
        elif reason != told:
            _tell(f"cannot connect to {bastion} again: {reason}")
        told = "" if up else reason
        time.sleep(PAUSE)


def _lines(ssh: subprocess.Popen[bytes], parent: int) -> Iterator[str]:
    """What ssh says, until it or the parent has ended."""
    stream = cast("IO[bytes]", ssh.stdout)
    while os.getppid() == parent:
        if select.select([stream], [], [], TICK)[0]:
            line = stream.readline()
            if not line:
                return
            yield line.decode(errors="replace").strip()
        elif ssh.poll() is not None:
            return  # something that it started still has its end of the pipe


def _reason(said: list[str]) -> str:
    for part, (meaning, remedy) in REASONS.items():
        for line in said:
            if part in line:
                return with_remedy(f"{meaning} ({line})", remedy)
    return said[-1] if said else "ssh ended without a word"


def _tell(text: str) -> None:
    with suppress(OSError):  # the terminal may be gone
        print(f"tunnel: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
