"""Roles and Grants: the services' login roles, and their privileges from the authorization data."""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import pulumi
import pulumi_postgresql as postgresql

from components import PROJECT
from components.authorization import SERVICES, Service
from components.role_settings import RoleSettings
from components.scram import verifier


@dataclass(frozen=True)
class RolesArgs:
    """Arguments of Roles.

    Attributes:
        provider: the way to the server.
        passwords: role -> password, secrets.
        existing: names of the roles that the server has before this run.
        protect: refuse to destroy them.
    """

    provider: postgresql.Provider
    passwords: Mapping[str, pulumi.Output[str]]
    existing: Collection[str]
    protect: bool


class Roles(pulumi.ComponentResource):
    """The services' login roles, each with limits; what they may do is Grants' part."""

    def __init__(
        self, name: str, args: RolesArgs, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("mindroom:access:Roles", name, None, opts)
        for role, service in SERVICES.items():
            declared = postgresql.Role(
                role,
                name=role,
                login=True,
                password=_verifier(role, args.passwords[role]),
                roles=service.member_of,
                inherit=service.inherit,
                connection_limit=service.connection_limit,
                statement_timeout=service.statement_timeout,
                opts=pulumi.ResourceOptions(
                    parent=self,
                    provider=args.provider,
                    protect=args.protect,
                    import_=role if role in args.existing else None,
                ),
            )
            RoleSettings(
                f"{role}-settings",
                role,
                {"lock_timeout": str(service.lock_timeout)},
                pulumi.ResourceOptions(parent=self, depends_on=declared),
            )
        self.register_outputs({"names": list(SERVICES)})


def _verifier(role: str, password: pulumi.Output[str]) -> pulumi.Output[str]:
    """What the server keeps of the password: pulumi-postgresql doubles a backslash in a password.

    By the salt it is the same in each run, and another for each role of each stack.
    """
    salt = hashlib.sha256(f"{PROJECT}/{pulumi.get_stack()}/{role}".encode()).digest()[:16]
    return password.apply(lambda text: verifier(text, salt))


@dataclass(frozen=True)
class GrantsArgs:
    """Arguments of Grants.

    Attributes:
        provider: the way to the server.
        database: the database's name.
    """

    provider: postgresql.Provider
    database: pulumi.Input[str]


class Grants(pulumi.ComponentResource):
    """The service roles' privileges.

    One resource for a role and table or function, never a list of them: a change of such a list
    replaces the grant, and for a moment the role would have nothing.  Grants on one object follow
    each other, because PostgreSQL refuses two at once ("tuple concurrently updated").
    """

    def __init__(
        self, name: str, args: GrantsArgs, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("mindroom:access:Grants", name, None, opts)
        last: dict[str, postgresql.Grant] = {}
        for role, service in SERVICES.items():
            for suffix, grant in _grants(role, service, args.database).items():
                target = suffix.partition("-")[0]
                last[target] = postgresql.Grant(
                    f"{role}-{suffix}",
                    grant,
                    pulumi.ResourceOptions(
                        parent=self, provider=args.provider, depends_on=last.get(target)
                    ),
                )
        self.register_outputs({})


def _grants(
    role: str, service: Service, database: pulumi.Input[str]
) -> dict[str, postgresql.GrantArgs]:
    grants = {
        schema: postgresql.GrantArgs(
            role=role,
            database=database,
            object_type="schema",
            schema=schema,
            privileges=["USAGE"],
        )
        for schema in sorted({table.split(".")[0] for table in service.tables})
    }
    for function in service.functions:
        grants[f"public.{function}"] = postgresql.GrantArgs(
            role=role,
            database=database,
            object_type="function",
            schema="public",
            objects=[function],
            privileges=["EXECUTE"],
        )
    for qualified, privileges in service.tables.items():
        schema, table = qualified.split(".")
        if whole := [privilege for privilege, columns in privileges.items() if not columns]:
            grants[qualified] = postgresql.GrantArgs(
                role=role,
                database=database,
                object_type="table",
                schema=schema,
                objects=[table],
                privileges=whole,
            )
        for privilege, columns in privileges.items():
            if columns:
                grants[f"{qualified}-{privilege.lower()}"] = postgresql.GrantArgs(
                    role=role,
                    database=database,
                    object_type="column",
                    schema=schema,
                    objects=[table],
                    columns=columns,
                    privileges=[privilege],
                )
    return grants
