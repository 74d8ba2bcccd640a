"""Supabase's session pooler before a plain server, and what its server refuses.

Behind the pooler a login is `ROLE.TENANT`.  The server of a hosted project has an extension
(supautils) by which nobody but a superuser changes its reserved roles, whatever CREATEROLE and
ADMIN OPTION would allow.  Here the statement is read on its way and replaced by the refusal; what a
DO block executes is not seen.
"""

import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

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
