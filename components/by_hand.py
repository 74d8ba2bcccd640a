"""What roles were given by hand: taken back from the services, named of all others."""

from contextlib import suppress
from typing import Any

import psycopg
import pulumi
from pulumi.dynamic import CreateResult, DiffResult, ReadResult, Resource, UpdateResult

from components import ROOT
from components.authorization import GROUP, SERVICES
from components.session import DatabaseProvider
from migrate.errors import MigrateError, UnreachableError
from migrate.session import Connection

CHECK = ROOT / "sql" / "verify" / "80_access.sql"
"""The query that finds it, which is one of the checks of the database, too."""


class GivenByHandProvider(DatabaseProvider):
    """Takes back what the services have beyond the authorization data.

    The input `given` is always empty, so that whatever is found is a diff.
    """

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        """Ask the database."""
        given = {}
        with suppress(UnreachableError):  # Schema's resources warn of it
            given = self._given()
        for what in given:
            print(f"not in the authorization data: {what}")
        return DiffResult(changes=bool(given))

    def create(self, props: dict[str, Any]) -> CreateResult:
        """Take it back.

        Raises:
            MigrateError: other roles have something, too, or it cannot be taken back.
        """
        return CreateResult("by-hand", self._take_back(props))

    def update(self, _id: str, _olds: dict[str, Any], news: dict[str, Any]) -> UpdateResult:
        """The same as create."""
        return UpdateResult(self._take_back(news))

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        """What there is, as both inputs and outputs, so that it is a diff by name."""
        live = props | {"given": self._given()}
        return ReadResult(id_, live, live)

    def _given(self) -> dict[str, str]:
        with self.session() as session:
            return {f"{role}: {has}": statement for role, has, statement in _rows(session)}

    def _take_back(self, props: dict[str, Any]) -> dict[str, Any]:
        with self.session() as session:
            for role, has, statement in _rows(session):
                if role in (GROUP, *SERVICES):
                    with suppress(psycopg.Error):  # it is named below
                        session.execute(statement.encode())
                        print(f"taken back from {role}: {has}")
            if left := _rows(session):
                raise MigrateError(
                    "what the authorization data does not name:\n"
                    + "\n".join(
                        f"  {role}: {has}\n    {statement};" for role, has, statement in left
                    ),
                    "run these statements, or name it in components/authorization.py "
                    "(an administrator of the server in ADMINISTRATORS)",
                )
        return props


def _rows(session: Connection) -> list[tuple[str, str, str]]:
    """Role, what it has, and the statement that takes it back."""
    return session.execute(CHECK.read_bytes()).fetchall()


class GivenByHand(Resource, module="access", name="GivenByHand"):
    """What roles have that the authorization data does not name: nothing."""

    def __init__(self, name: str, opts: pulumi.ResourceOptions) -> None:
        super().__init__(GivenByHandProvider(), name, {"given": {}}, opts)
