"""customer-portal: a user asks, and gets what that user may have."""

import json
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from typing import Any, NamedTuple
from uuid import UUID

import psycopg
from psycopg.rows import class_row
from psycopg.types.json import Jsonb


@contextmanager
def acting_for(connection: psycopg.Connection, claims: Mapping[str, Any]) -> Iterator[None]:
    """A transaction with the rights of a user, which end with it, however it ends.

    Args:
        connection: as customer_portal, from a pool or not, with no transaction open.
        claims: of the user's JWT, whose signature is verified.
    """
    with connection.transaction():
        connection.execute(
            """select set_config('role', 'authenticated', true),
                      set_config('request.jwt.claims', %s, true)""",
            [json.dumps(claims)],
        )
        yield


class Instance(NamedTuple):
    """The instance that a user is sent to."""

    id: UUID
    frontend_url: str | None
    status: str
    tier: str
    features: dict[str, bool]


class Limits(NamedTuple):
    """What an instance has left today; -1 is unlimited."""

    within_limits: bool
    messages_remaining: int
    messages_limit: int


def home(
    connection: psycopg.Connection, claims: Mapping[str, Any]
) -> tuple[Instance, Limits] | None:
    """What the user's start page shows; None without a running instance and a live plan."""
    with acting_for(connection, claims):
        instances = connection.cursor(row_factory=class_row(Instance)).execute(
            """select id, frontend_url, status, tier, features
                 from get_user_instance(user_id => %s)""",
            [claims["sub"]],
        )
        for instance in instances:
            [limits] = connection.cursor(row_factory=class_row(Limits)).execute(
                """select within_limits, messages_remaining, messages_limit
                     from check_usage_limits(instance_id => %s)""",
                [instance.id],
            )
            return instance, limits
    return None


def configure(
    connection: psycopg.Connection, claims: Mapping[str, Any], instance: UUID, config: Any
) -> bool:
    """Change what the instance runs; False if the user has no such instance.

    Raises:
        psycopg.errors.CheckViolation: the plan does not allow it; message and hint are for people.
    """
    with acting_for(connection, claims):
        changed = connection.execute(
            "update instances set config = %s where id = %s", [Jsonb(config), instance]
        )
        return changed.rowcount == 1


def open_ticket(
    connection: psycopg.Connection, claims: Mapping[str, Any], subject: str, description: str
) -> None:
    """Ask the support; the account is the user's without being named."""
    with acting_for(connection, claims):
        connection.execute(
            "insert into support_tickets (subject, description) values (%s, %s)",
            [subject, description],
        )


def create_api_key(
    connection: psycopg.Connection, claims: Mapping[str, Any], name: str, permissions: list[str]
) -> str:
    """A new key, to be shown to the user once: the database keeps its hash."""
    key = "mr_" + secrets.token_urlsafe(32)
    with acting_for(connection, claims):
        connection.execute(
            """insert into api_keys (name, key_prefix, key_hash, permissions)
               values (%s, %s, %s, %s)""",
            [name, key[:8], sha256(key.encode()).hexdigest(), permissions],
        )
    return key
