"""The dev stack as Pulumi has it: its state, its config file, what encrypts and what locks it."""

import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_urlsafe
from typing import Any, NoReturn

import psutil  # type: ignore[import-untyped]
import yaml

from components import PROJECT, ROOT
from embedded.errors import UserError
from embedded.process import alive

NAME = "dev"
DOWNLOAD_TIMEOUT = 20.0
ANOTHERS = (
    "DATABASE_",
    "PG",
    "PULUMI_ACCESS_TOKEN",
    "PULUMI_BACKEND_URL",
    "PULUMI_CONFIG",
    "PULUMI_DIY_BACKEND_",
    "PULUMI_SELF_MANAGED_STATE_",
    "PULUMI_STACK",
)
"""How the variables begin that name another stack: its database, its state, what encrypts it."""


def forget_other_stacks() -> None:
    """Remove from this process's environment what an operator exported for another stack."""
    for name in [name for name in os.environ if name.startswith(ANOTHERS)]:
        del os.environ[name]


def take_turn(directory: Path) -> None:
    """Wait until no other run works on a directory, which is made if there is none.

    Our turn ends with this process, whatever that becomes by exec and however it ends: a lock of
    fcntl belongs to the process, and no child inherits it.
    """
    path = directory / "lock"
    while True:
        directory.mkdir(mode=0o700, exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            print(f"waiting for another run to end: {os.read(lock, 1000).decode()}", flush=True)
            fcntl.lockf(lock, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):  # the other has removed the directory
            if os.path.samestat(os.fstat(lock), path.stat()):
                break
        os.close(lock)
    os.truncate(lock, 0)
    os.pwrite(lock, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
    os.set_inheritable(lock, True)


def find_pulumi(directory: Path) -> str | None:
    """The CLI on PATH, otherwise one that the SDK downloads; None where neither is possible."""
    if found := shutil.which("pulumi"):
        return found
    from pulumi.automation import PulumiCommand  # spares a run that finds it 0.08 s

    # The SDK's downloader has no time limit of its own.
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        return PulumiCommand.install(root=str(directory / "pulumi-cli")).command
    except Exception as error:  # of the network or the script, of any type
        print(f"no Pulumi CLI on PATH, nor can it be downloaded ({error}): running in-process")
        return None
    finally:
        socket.setdefaulttimeout(None)


def write(path: Path, text: str) -> None:
    """Replace a file by one that only its owner may read, whole or not at all."""
    new = path.with_name(f"{path.name}.new")
    with open(os.open(new, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    new.replace(path)


@dataclass(frozen=True)
class Stack:
    """The stack whose state and config file are in a private directory.

    Attributes:
        directory: where all of it is kept.
    """

    directory: Path

    @property
    def file(self) -> Path:
        """The config file, with what was generated."""
        return self.directory / f"Pulumi.{NAME}.yaml"

    @property
    def passphrase(self) -> Path:
        """The file with what encrypts the secrets in the config file and in the state."""
        return self.directory / "passphrase"

    @property
    def state(self) -> Path:
        """The file with Pulumi's state."""
        return self.directory / "pulumi" / ".pulumi" / "stacks" / PROJECT / f"{NAME}.json"

    @property
    def environment(self) -> dict[str, str]:
        """This process's, with the variables by which Pulumi finds all of it."""
        return os.environ | {
            "PULUMI_BACKEND_URL": (self.directory / "pulumi").as_uri(),
            "PULUMI_CONFIG_PASSPHRASE_FILE": str(self.passphrase),
            "PULUMI_SKIP_UPDATE_CHECK": os.environ.get("PULUMI_SKIP_UPDATE_CHECK", "true"),
        }

    def is_deployed_to(self, context: str) -> bool:
        """Whether the state, which knows what a failed run left, too, has resources there."""
        return any(
            resource["type"] == "pulumi:providers:kubernetes"
            and resource["inputs"].get("context") == context
            for resource in self._latest().get("resources", [])
        )

    def prepare(self, pulumi: str, config: Mapping[str, Any], secrets: Mapping[str, Any]) -> None:
        """Create the stack where there is none, and write its config with the secrets encrypted.

        It is created from its directory, with a project file of its own, so that the salt of its
        encryption goes to the config file there and not into the committed one.  What is missing
        of the directory is made again; a state whose passphrase is lost is kept beside a new one.

        Raises:
            UserError: it is locked by a run that may be in progress, its state cannot be read, or
                Pulumi fails.
        """
        if not self._has_passphrase():
            if self.state.exists():
                kept = self.state.rename(self.state.with_name(f"{self.state.name}.unreadable"))
                print(
                    "the passphrase is lost, and with it the secrets in the state, which is kept "
                    f"as {kept}: another is made from what is there"
                )
            write(self.passphrase, token_urlsafe(32))
        if not self.state.exists():
            self.file.unlink(missing_ok=True)
            (self.directory / "pulumi").mkdir(exist_ok=True)
            (self.directory / "Pulumi.yaml").write_text(f"name: {PROJECT}\nruntime: python\n")
            self._run(pulumi, "stack", "select", "--create")
        self._unlock(pulumi)
        self._write_config(pulumi, config, secrets)

    def become(self, pulumi: str, command: str, *options: str) -> NoReturn:
        """Become a Pulumi command on the stack, so that Ctrl-C is Pulumi's alone to handle.

        The config is checked by components/config.py, which names all problems at once.
        """
        common = ["--stack", NAME, "--config-file", str(self.file), "--non-interactive"]
        sys.stdout.flush()
        os.chdir(ROOT)
        os.execve(
            pulumi,
            [pulumi, command, *common, "--skip-config-validation", *options],
            self.environment,
        )

    def _run(self, pulumi: str, *arguments: str, stdin: str | None = None) -> None:
        """Run a Pulumi command on the stack, which prints nothing.

        Raises:
            UserError: it fails.
        """
        done = subprocess.run(
            [pulumi, *arguments, "--stack", NAME, "--non-interactive"],
            cwd=self.directory,
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            command = " ".join(arguments[:2])
            raise UserError(
                f"pulumi {command} failed: {done.stderr.strip()}", "see docs/recovery.md"
            )

    def _has_passphrase(self) -> bool:
        return self.passphrase.exists() and self.passphrase.stat().st_size > 0

    def _latest(self) -> dict[str, Any]:
        """What the state has of the last update; nothing where there is none.

        Raises:
            UserError: it cannot be read.
        """
        try:
            latest = json.loads(self.state.read_text())["checkpoint"]["latest"]
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{self.state} is damaged",
                f"put a copy in its place, such as {self.state.name}.bak beside it; without one "
                "remove it, and another is made from what is there (docs/recovery.md)",
            ) from None
        return dict(latest or {})

    def _config_file(self) -> dict[str, Any]:
        """What the config file holds; at least the salt, which the state has, too."""
        with suppress(OSError, ValueError, yaml.YAMLError):
            content = yaml.safe_load(self.file.read_text())
            if isinstance(content, dict) and "encryptionsalt" in content:
                return content
        state = self._latest().get("secrets_providers", {}).get("state", {})
        return {"encryptionsalt": state.get("salt")}

    def _unlock(self, pulumi: str) -> None:
        """Remove the lock and the unfinished operations of a run that was killed.

        Raises:
            UserError: a lock is of a run that may be in progress.
        """
        locks = self.directory / "pulumi" / ".pulumi" / "locks" / "organization" / PROJECT / NAME
        for lock in locks.glob("*.json"):
            _check_ended(lock)
            print("a run was killed: its lock is removed")
            for path in (lock, lock.with_name(f"{lock.name}.attrs")):
                path.unlink(missing_ok=True)
        if self._latest().get("pending_operations"):
            print("a run was killed: its unfinished operations are removed from the state")
            # Of the stack resource alone, so that no provider is asked.
            target = ("--target", "**pulumi:pulumi:Stack**")
            refresh = ("refresh", "--yes", "--skip-preview", "--clear-pending-creates")
            self._run(pulumi, *refresh, *target)

    def _write_config(
        self, pulumi: str, config: Mapping[str, Any], secrets: Mapping[str, Any]
    ) -> None:
        """Write the config; secrets are encrypted again only where one may have changed."""
        stack = self._config_file()
        present = stack.get("config", {})
        encrypted = {f"{PROJECT}:{key}": present.get(f"{PROJECT}:{key}") for key in secrets}
        stale = not all(encrypted.values()) or (
            (self.directory / "secrets.json").stat().st_mtime > self.file.stat().st_mtime
        )
        plain = {f"{PROJECT}:{k}": v for k, v in config.items() if k not in secrets and v != ""}
        if stale or plain | encrypted != present:
            stack["config"] = plain if stale else plain | encrypted
            write(self.file, yaml.safe_dump(stack))
        for key, value in secrets.items() if stale else ():
            named = value if isinstance(value, dict) else {None: value}
            for name, secret in named.items():
                path = f"{PROJECT}:{key}" + (f".{name}" if name else "")
                # By standard input, since every user of the machine can read arguments.
                self._run(pulumi, "config", "set", "--secret", "--path", path, stdin=secret)


def _check_ended(lock: Path) -> None:
    """See that the run has ended that a lock of Pulumi's is of.

    Raises:
        UserError: it may be in progress.
    """
    try:
        held = json.loads(lock.read_text())
        host, pid = str(held["hostname"]), int(held["pid"])
        whose = f"{held['username']}@{host} (process {pid}), since {held['timestamp']}"
    except (ValueError, KeyError, TypeError):
        return  # Pulumi writes it whole: only a machine that crashes leaves it otherwise
    if host != socket.gethostname():
        raise UserError(
            f"the stack is locked by a run on another machine: {whose}",
            f"wait for its end; if no run is in progress there, remove {lock}",
        )
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        if alive(process) and "pulumi" in process.name():
            raise UserError(
                f"the stack is locked by another run: {whose}",
                f"wait for its end, or interrupt it: kill -INT {pid}",
            )
