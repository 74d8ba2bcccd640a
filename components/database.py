"""Database: the database itself, made on a plain server, adopted on hosted Supabase."""

from dataclasses import dataclass, replace
from typing import Literal

import pulumi
import pulumi_postgresql as postgresql

from components.database_target import DatabaseTarget
from components.providers import roles
from components.schema import RepeatableSet
from migrate.connection import connect
from migrate.errors import MigrateError
from migrate.files import PLATFORM

MAINTENANCE_DATABASE = "postgres"
"""The database that every plain server has, from which others are created."""

PROXY_VARIABLES = {"DATABASE_PROXY": "ALL_PROXY", "DATABASE_NO_PROXY": "NO_PROXY"}
"""What bin/tunnel sets -> what the provider, and nothing else, shall see.

Its inputs are the server's own, and the same without a tunnel or with the next one."""


@dataclass(frozen=True)
class DatabaseArgs:
    """Arguments of Database.

    Attributes:
        platform: "postgres" for a plain server, "supabase" for a hosted project.
        target: the administrator's way to the database.
        connections: how many sessions a run has at once at most; on a plain server, which has
            no pooler, it may be up to 35.
        protect: refuse to destroy it.
    """

    platform: Literal["postgres", "supabase"]
    target: DatabaseTarget
    connections: int
    protect: bool


@dataclass(frozen=True)
class ServerInventory:
    """Names of the databases and roles that a server has before a run.

    They are declared with `import_`: what Pulumi's state does not know of them, because it was
    lost or a run was killed, is taken over and made as declared.
    """

    databases: frozenset[str] = frozenset()
    roles: frozenset[str] = frozenset()


def existing_on_server(to: DatabaseTarget) -> ServerInventory:
    """Read the names.  A preview continues without, and the resources warn of what is unknown.

    Raises:
        pulumi.RunError: an `up` cannot reach the server, and would otherwise find nothing to do.
    """
    try:
        with connect(to.url()) as connection:
            return ServerInventory(*roles.on_server(connection))
    except MigrateError as error:
        if pulumi.runtime.is_dry_run():
            return ServerInventory()
        raise pulumi.RunError(str(error)) from None


class Database(pulumi.ComponentResource):
    """The database, ready for the schema: API roles, `auth` and its functions are there.

    On a plain server it creates the database and, from sql/platform/, what Supabase would bring.
    On Supabase all of that exists: it declares the provider only and manages none of Supabase's
    reserved roles and schemas.

    Attributes:
        name: the database's name.
        provider: the way to the server for roles and grants.
        existing_roles: names of the roles that the server has before this run.
    """

    name: pulumi.Output[str]
    provider: postgresql.Provider
    existing_roles: frozenset[str]

    def __init__(
        self, name: str, args: DatabaseArgs, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("mindroom:database:Database", name, None, opts)
        to, plain = args.target, args.platform == "postgres"
        existing = existing_on_server(replace(to, database=MAINTENANCE_DATABASE) if plain else to)
        self.existing_roles = existing.roles
        self.provider = postgresql.Provider(
            "server",
            host=to.host,
            port=to.port,
            username=to.login(to.role),
            database_username=to.role,
            password=pulumi.Output.secret(to.password),
            sslmode=to.sslmode,
            sslrootcert=to.sslrootcert or None,
            database=MAINTENANCE_DATABASE if plain else to.database,
            superuser=plain,
            max_connections=_max_connections(args),
            opts=pulumi.ResourceOptions(parent=self, env_var_mappings=PROXY_VARIABLES),
        )
        self.name = pulumi.Output.from_input(to.database)
        if plain:
            database = postgresql.Database(
                "database",
                name=to.database,
                encoding="UTF8",
                opts=pulumi.ResourceOptions(
                    parent=self,
                    provider=self.provider,
                    protect=args.protect,
                    import_=to.database if to.database in existing.databases else None,
                ),
            )
            RepeatableSet(
                "platform", PLATFORM, pulumi.ResourceOptions(parent=self, depends_on=database)
            )
            self.name = database.name
        self.register_outputs({"name": self.name})


def _max_connections(args: DatabaseArgs) -> int:
    """What to limit a pool of pulumi-postgresql to: (connections - 3) / 2 / databases / orders.

    It has a pool for each database and order of the parameters in its connection string, which are
    as many as parameters.  Sessions count twice there: it takes a new one for each question, and
    the server may not have noticed yet that the one before has ended.  Three are others': of the
    program, of the dynamic providers, and to see who blocks that one.

    To drop a database, it waits for a second session of a pool while it holds the first.
    """
    databases = 2 if args.platform == "postgres" else 1
    orders = 4 if args.target.sslrootcert else 3
    return max(databases, (args.connections - 3) // (2 * databases * orders))
