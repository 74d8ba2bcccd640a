"""Settings of a login role that pulumi-postgresql cannot declare.

Apart from access.py, because the provider process imports this module, and has no use for
pulumi-postgresql.
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import pulumi
from pulumi.dynamic import CreateResult, DiffResult, ReadResult, Resource, UpdateResult

from components.providers import roles
from components.session import DatabaseProvider
from migrate.errors import MigrateError, UnreachableError


class RoleSettingsProvider(DatabaseProvider):
    """Keeps a role's settings as declared; the inputs are `role` and `settings`."""

    def diff(self, _id: str, olds: dict[str, Any], news: dict[str, Any]) -> DiffResult:
        """Compare with the last state, and with the database; another role is another resource."""
        replaces = ["role"] if olds["role"] != news["role"] else []
        changes = bool(replaces) or olds["settings"] != news["settings"]
        with suppress(UnreachableError):  # Schema's resources warn of it
            changes = changes or self._live(news) != news["settings"]
        return DiffResult(changes=changes, replaces=replaces)

    def create(self, props: dict[str, Any]) -> CreateResult:
        """Set the settings."""
        return CreateResult(props["role"], self._set(props))

    def update(self, _id: str, _olds: dict[str, Any], news: dict[str, Any]) -> UpdateResult:
        """Set the settings."""
        return UpdateResult(self._set(news))

    def _set(self, props: dict[str, Any]) -> dict[str, Any]:
        with self.session() as session:
            if props["role"] not in roles.on_server(session)[1]:
                raise MigrateError(
                    f"the stack's state has the role {props['role']}, and the server has not",
                    "run `pulumi up --refresh --run-program`, which makes it (docs/recovery.md)",
                )
            roles.set_settings(session, props["role"], props["settings"])
        return props

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        """The live settings, of those that were declared."""
        live = props | {"settings": self._live(props)}
        return ReadResult(id_, live, live)

    def _live(self, props: dict[str, Any]) -> dict[str, str]:
        with self.session() as session:
            found = roles.settings(session, props["role"])
        return {name: found[name] for name in props["settings"] if name in found}


class RoleSettings(Resource, module="access", name="RoleSettings"):
    """Settings of a login role."""

    def __init__(
        self, name: str, role: str, settings: Mapping[str, str], opts: pulumi.ResourceOptions
    ) -> None:
        props = {"role": role, "settings": dict(settings)}
        super().__init__(RoleSettingsProvider(), name, props, opts)
