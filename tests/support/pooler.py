"""Poolers before a plain server: Supabase's, with what its server refuses, and a small one.

Behind Supabase's pooler a login is `ROLE.TENANT`.  The server of a hosted project has an extension
(supautils) by which nobody but a superuser changes its reserved roles, whatever CREATEROLE and
ADMIN OPTION would allow.  Here the statement is read on its way and replaced by the refusal; what a
DO block executes is not seen.
"""

import os
import secrets
import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from queue import LifoQueue, Queue
from typing import Any, Literal

import psycopg
from postgast import PgQueryError, parse, wrap
from postgast.pg_query_pb2 import OBJECT_ROLE

from tests.support.proxy import Proxy

TENANT = "abcdefghijklmnopqrst"

RESERVED = (
    "supabase_admin",
    "supabase_auth_admin",
    "supabase_storage_admin",
    "supabase_replication_admin",
    "dashboard_user",
    "pgbouncer",
    "service_role",
    "authenticator",
    "authenticated",
    "anon",
)
"""Roles that only a superuser creates, changes, drops, or makes members of others."""

RESERVED_MEMBERSHIPS = (
    "pg_read_server_files",
    "pg_write_server_files",
    "pg_execute_server_program",
    "authenticator",
)
"""Roles of which only a superuser makes members."""

PARSER = ThreadPoolExecutor(1)
"""The one thread that parses: the parser takes one of the process's 1,024 pthread keys for each
thread that ever used it, and whatever needs a key after the last one (gRPC does) crashes."""

_STARTUP = 3 << 16
_ENCRYPTION = (80877103, 80877104)  # TLS, GSSAPI


class Pooler(Proxy):
    """Passes sessions of `ROLE.TENANT` on as `ROLE`, and refuses what touches reserved roles."""

    def sent(self, client: socket.socket) -> Iterator[bytes]:
        """What the client sends: its login without the tenant, no statement that is refused."""
        stream = client.makefile("rb")
        while len(head := stream.read(8)) == 8:
            size, code = struct.unpack("!ii", head)
            body = stream.read(size - 8)
            if code not in _ENCRYPTION:
                break
            client.sendall(b"N")
        else:
            return
        if code == _STARTUP:
            words = body.split(b"\0")
            at = words.index(b"user") + 1
            role, _, tenant = words[at].partition(b".")
            if tenant != TENANT.encode():
                told = b"SFATAL\0CXX000\0MTenant or user not found\0\0"
                client.sendall(b"E" + struct.pack("!i", len(told) + 4) + told)
                return
            words[at] = role
            body = b"\0".join(words)
        yield struct.pack("!ii", len(body) + 8, code) + body
        while len(head := stream.read(5)) == 5:
            kind, size = struct.unpack("!ci", head)
            body = stream.read(size - 4)
            if kind == b"Q":
                body = _checked(body)
            elif kind == b"P":
                name, _, rest = body.partition(b"\0")
                query, _, types = rest.partition(b"\0")
                body = name + b"\0" + _checked(query + b"\0") + types
            yield kind + struct.pack("!i", len(body) + 4) + body


def _checked(query: bytes) -> bytes:
    try:
        tree = PARSER.submit(parse, query[:-1].decode()).result()
    except PgQueryError:
        return query  # for the server to tell
    statements: Any = wrap(tree)
    told = next((told for raw in statements.stmts for told in _refusals(raw.stmt)), None)
    if told is None:
        return query
    return f"do $$begin raise insufficient_privilege using message = '{told}'; end$$\0".encode()


def _refusals(node: Any) -> Iterator[str]:
    """What is told of a statement that only a superuser may run."""
    changed, memberships = [], []
    match type(node).__name__:
        case "CreateRoleStmt":
            changed = [node.role]
            memberships = [
                role.rolename
                for option in node.options
                if option.defname == "addroleto"
                for role in option.arg.items
            ]
        case "AlterRoleStmt" | "AlterRoleSetStmt":
            changed = [node.role.rolename] if node.role else []
        case "DropRoleStmt":
            changed = [role.rolename for role in node.roles]
        case "RenameStmt" if node.rename_type == OBJECT_ROLE:
            changed = [node.subname, node.newname]
        case "GrantRoleStmt":
            changed = [role.rolename for role in node.grantee_roles]
            granted = node.granted_roles if node.is_grant else ()
            memberships = [role.priv_name for role in granted]
    for role in memberships:
        if role in RESERVED_MEMBERSHIPS:
            yield f'"{role}" role memberships are reserved, only superusers can grant them'
    for role in changed:
        if role in RESERVED:
            yield f'"{role}" is a reserved role, only superusers can modify it'


_REPORTED = ("server_version", "server_encoding", "client_encoding", "standard_conforming_strings")


class SmallPooler:
    """Gives its clients, whoever they are, backends out of a pool, as PgBouncer does.

    Attributes:
        port: its own, on 127.0.0.1.
        backends: the sessions on the server; idle ones may be asked while no client is there.
    """

    def __init__(
        self,
        url: str,
        size: int,
        mode: Literal["session", "transaction", "statement"] = "transaction",
        idle: Literal["last used first", "in turn"] = "last used first",
    ) -> None:
        self.backends = [
            psycopg.connect(url, autocommit=True, client_encoding="utf-8") for _ in range(size)
        ]
        self._mode = mode
        self._idle: Queue[socket.socket] = Queue() if idle == "in turn" else LifoQueue()
        for backend in self.backends:
            idle_one = socket.socket(fileno=os.dup(backend.fileno()))
            idle_one.setblocking(True)
            self._idle.put(idle_one)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """End everything."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for backend in self.backends:
            backend.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=[client], daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError, struct.error):
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            stream = client.makefile("rb")
            while True:
                size, code = struct.unpack("!ii", stream.read(8))
                stream.read(size - 8)
                if code not in _ENCRYPTION:
                    break
                client.sendall(b"N")
            client.sendall(_message(b"R", struct.pack("!i", 0)))
            for name in _REPORTED:
                value = self.backends[0].info.parameter_status(name) or ""
                client.sendall(_message(b"S", f"{name}\0{value}\0".encode()))
            client.sendall(_message(b"K", secrets.token_bytes(8)) + _message(b"Z", b"I"))
            while (kind := stream.read(1)) and kind != b"X":
                with self._backend() as backend:
                    state = b""
                    while state != b"I" or self._mode == "session":
                        (size,) = struct.unpack("!i", stream.read(4))
                        body = stream.read(size - 4)
                        if self._mode == "statement" and body.startswith(b"begin"):
                            told = b"SFATAL\0VFATAL\0C08P01\0Mno transactions here\0\0"
                            client.sendall(_message(b"E", told))
                            return
                        backend.sendall(kind + struct.pack("!i", size) + body)
                        if kind in b"QS":
                            state = _answered(backend, client)
                        if state != b"I" or self._mode == "session":
                            kind = stream.read(1)
                            if kind in (b"", b"X"):
                                return

    @contextmanager
    def _backend(self) -> Iterator[socket.socket]:
        backend = self._idle.get()
        try:
            yield backend
        finally:
            if self._mode == "session":
                for clean in (b"rollback\0", b"discard all\0"):
                    backend.sendall(_message(b"Q", clean))
                    _answered(backend, None)
            self._idle.put(backend)


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


def _answered(backend: socket.socket, client: socket.socket | None) -> bytes:
    """Pass an answer on up to its end; the state of the transaction."""
    while True:
        head = backend.recv(5, socket.MSG_WAITALL)
        body = backend.recv(struct.unpack("!i", head[1:])[0] - 4, socket.MSG_WAITALL)
        if client:
            with suppress(OSError):  # who went away does not stop the answer
                client.sendall(head + body)
        if head[:1] == b"Z":
            return body
