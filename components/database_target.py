"""The administrator's way to the database."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote


@dataclass(frozen=True)
class DatabaseTarget:
    """How to reach the database as its administrator.

    Attributes:
        role: the administrator's role.
        tenant: the project's reference behind Supabase's pooler, where a login is `ROLE.TENANT`.
        sslrootcert: path of the CA certificate; empty where the sslmode needs none.
    """

    host: str
    port: int
    database: str
    role: str
    tenant: str
    password: str
    sslmode: str
    sslrootcert: str

    @classmethod
    def read(cls, get: Callable[[str], Any]) -> "DatabaseTarget":
        """From a getter of stack config values, as a dynamic provider's `configure` has one."""
        role, tenant = get("databaseUser"), ""
        if get("platform") == "supabase":
            role, _, tenant = role.partition(".")
        return cls(
            get("databaseHost"),
            int(get("databasePort")),
            get("databaseName"),
            role,
            tenant,
            get("databasePassword"),
            get("databaseSslmode"),
            get("databaseSslrootcert") or "",
        )

    def login(self, role: str) -> str:
        """The user name by which a role logs in."""
        return f"{role}.{self.tenant}" if self.tenant else role

    def url(self) -> str:
        """The administrator's connection URL for this machine, password included."""
        server = endpoint(self.host, self.port)
        url = replace(self, port=server["port"]).url_for(self.role, self.password)
        url += f"&hostaddr={server['hostaddr']}" if "hostaddr" in server else ""
        # Not urlencode's +, which libpq takes literally.
        return url + (f"&sslrootcert={quote(self.sslrootcert)}" if self.sslrootcert else "")

    def url_for(self, role: str, password: str) -> str:
        """A role's connection URL for any machine, password included.

        It names no CA file, which is elsewhere on each machine: that is for PGSSLROOTCERT to say.
        """
        host = f"[{self.host}]" if ":" in self.host else quote(self.host, safe="")
        login = quote(self.login(role), safe="") + (
            f":{quote(password, safe='')}" if password else ""
        )
        return (
            f"postgresql://{login}@{host}:{self.port}/{quote(self.database, safe='')}"
            f"?sslmode={self.sslmode}"
        )

    def __repr__(self) -> str:
        """Without the password."""
        return f"DatabaseTarget({self.login(self.role)}@{self.host}:{self.port}/{self.database})"


def endpoint(host: str, port: int) -> dict[str, Any]:
    """The parameters by which libpq finds a server: itself, or the near end of bin/tunnel to it.

    The host stays the server's own, whose name the certificate has.
    """
    near, _, target = os.environ.get("DATABASE_TUNNEL", "").partition(":")
    if target == f"{host}:{port}":
        return {"host": host, "hostaddr": "127.0.0.1", "port": int(near)}
    return {"host": host, "port": port}
