"""A bastion for the tests: a real sshd on loopback, which alone knows the database's name."""

import os
import shutil
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from tests.support.migrating import wait_for

NAME, OTHER_NAME = "db.mindroom.test", "other.mindroom.test"
"""The name that the database's certificate has, and one that it has not; no resolver knows them."""

NEEDED = {
    "openssh-server": "usr/sbin/sshd",
    "openssh-client": "usr/bin/ssh",
    "libnss-wrapper": "usr/lib/*/libnss_wrapper.so",
    "openssl": "usr/bin/openssl",
}
"""Debian's package -> what shows that it is there."""


def require_packages() -> None:
    """Skip where they are not; fail in CI."""
    there = {package for package, path in NEEDED.items() if any(Path("/").glob(path))}
    if missing := NEEDED.keys() - there:
        needed = f"a bastion needs Debian's {' '.join(sorted(missing))}"
        if os.environ.get("CI") == "true":
            pytest.fail(needed)
        pytest.skip(needed)


def run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)


def make_certificates(directory: Path) -> dict[str, str]:
    """A CA, `ca.crt`, and a certificate of it for NAME; the settings of a server with that."""
    ca, ca_key, crt, key = (
        directory / name for name in ("ca.crt", "ca.key", "server.crt", "server.key")
    )
    new = ["openssl", "req", "-x509", "-nodes", "-newkey", "ec"]
    new += ["-pkeyopt", "ec_paramgen_curve:prime256v1"]
    run(*new, "-subj", "/CN=a CA", "-keyout", ca_key, "-out", ca)
    leaf = ["-addext", f"subjectAltName=DNS:{NAME}", "-addext", "basicConstraints=CA:FALSE"]
    signed = ["-subj", f"/CN={NAME}", *leaf, "-CA", str(ca), "-CAkey", str(ca_key)]
    run(*new, *signed, "-keyout", key, "-out", crt)
    if os.getuid() == 0:
        shutil.chown(key, "postgres")
    return {"ssl": "on", "ssl_cert_file": str(crt), "ssl_key_file": str(key)}


@dataclass
class Bastion:
    """An sshd that lets one key in and connects to one port, and an ssh that knows it.

    Attributes:
        directory: for its files; `bin` there has to be first on a client's PATH.
        target: the only port that it forwards to, as NAME or OTHER_NAME.
        port: its own, on 127.0.0.1.
    """

    directory: Path
    target: int
    port: int = 0

    def __post_init__(self) -> None:
        """Make its keys and what the client has."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        for name in ("host_key", "other_host_key", "key", "other_key"):
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.directory / name)
        (self.directory / "hosts").write_text(f"127.0.0.1 {NAME} {OTHER_NAME}\n")
        # As docs/tunnel.md has it.
        allowed = ",".join(f'permitopen="{name}:{self.target}"' for name in (NAME, OTHER_NAME))
        (self.directory / "authorized_keys").write_text(
            f'restrict,port-forwarding,{allowed},command="/bin/false" '
            + (self.directory / "key.pub").read_text()
        )
        (self.directory / "sshd_config").write_text(f"""\
ListenAddress 127.0.0.1:{self.port}
HostKey {self.directory}/host_key
AuthorizedKeysFile {self.directory}/authorized_keys
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PidFile none
""")
        (self.directory / "bin").mkdir()
        self.client()
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        self.start()

    @property
    def url(self) -> str:
        """What a stack file says."""
        return f"ssh://127.0.0.1:{self.port}"

    def client(self, *, host: str = "host_key", key: str = "key", before: str = "") -> None:
        """Make the client's ssh, which by itself would be careless.

        Args:
            host: the host key that it knows, or nothing.
            key: its own key.
            before: what it does, in bash, before it starts.
        """
        known = self.directory / "known_hosts"
        known.write_text("")
        if host:
            kind, public, *_ = (self.directory / f"{host}.pub").read_text().split()
            known.write_text(f"[127.0.0.1]:{self.port} {kind} {public}\n")
        config = self.directory / "ssh_config"
        config.write_text(f"""\
UserKnownHostsFile {known}
GlobalKnownHostsFile /dev/null
IdentityFile {self.directory / key}
IdentitiesOnly yes
IdentityAgent none
StrictHostKeyChecking accept-new
ControlMaster auto
ControlPath {self.directory}/shared
ControlPersist yes
""")
        script = self.directory / "bin" / "ssh"
        script.write_text(f'#!/bin/bash\n{before}\nexec /usr/bin/ssh -F {config} "$@"\n')
        script.chmod(0o755)

    def start(self) -> None:
        """Listen."""
        names = {"LD_PRELOAD": "libnss_wrapper.so", "NSS_WRAPPER_HOSTS": f"{self.directory}/hosts"}
        with (self.directory / "log").open("a") as log:
            self.process = psutil.Popen(
                ["/usr/sbin/sshd", "-D", "-e", "-f", self.directory / "sshd_config"],
                env=os.environ | names,
                stderr=log,
                start_new_session=True,
            )
        wait_for(self._listens, "sshd")

    def _listens(self) -> bool:
        with socket.socket() as attempt:
            return attempt.connect_ex(("127.0.0.1", self.port)) == 0

    def connections(self) -> list[psutil.Process]:
        """The processes of its connections."""
        return self.process.children(recursive=True) if self.process.is_running() else []

    def stop(self) -> None:
        """End all connections, and listen no more."""
        for each in [self.process, *self.connections()]:
            each.kill()
        self.process.wait(10)
