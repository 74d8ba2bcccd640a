"""MindRoom's data platform, one stack an environment.

Config is explained in Pulumi.yaml, the outputs in docs/outputs.md.
"""

import signal

import pulumi

from components import config as stack_config
from components.access import Grants, GrantsArgs, Roles, RolesArgs
from components.authorization import API_ROLES
from components.automation import Automation, AutomationArgs
from components.database import Database, DatabaseArgs
from components.instance_provisioner import InstanceProvisioner, InstanceProvisionerArgs
from components.schema import Schema, SchemaArgs


def main() -> None:
    """Declare the platform."""
    # When a resource fails, Pulumi interrupts this program, and the language host would print
    # a traceback of the interruption behind the error.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

    config = stack_config.load()
    passwords = {
        role: pulumi.Output.secret(password.get_secret_value())
        for role, password in config.service_passwords.items()
    }
    urls = pulumi.Output.secret(
        {
            role: config.target.url_for(role, password.get_secret_value())
            for role, password in config.service_passwords.items()
        }
    )

    database = Database(
        "database",
        DatabaseArgs(config.platform, config.target, config.database_connections, config.protect),
    )
    schema = Schema(
        "schema", SchemaArgs(config.protect), pulumi.ResourceOptions(depends_on=database)
    )
    roles = Roles(
        "roles",
        RolesArgs(database.provider, passwords, database.existing_roles, config.protect),
        pulumi.ResourceOptions(depends_on=schema),
    )
    grants = Grants(
        "grants",
        GrantsArgs(database.provider, database.name),
        pulumi.ResourceOptions(depends_on=[schema, roles]),
    )
    automation = Automation(
        "automation", AutomationArgs(config.automation), pulumi.ResourceOptions(depends_on=schema)
    )
    provisioner = InstanceProvisioner(
        "instance-provisioner",
        InstanceProvisionerArgs(
            context=config.kubernetes_context,
            render_directory=config.render_directory,
            image=config.provisioner_image,
            base_domain=config.base_domain,
            measure=config.measure,
            database_url=urls["instance_provisioner"],
            gateway_database_url=urls["instance_gateway"],
            database_port=config.database_port,
            database_ca=config.database_ca,
            api_token=pulumi.Output.secret(config.provisioner_api_token.get_secret_value()),
            jobs=automation.kubernetes,
            protect=config.protect,
            after=grants,
        ),
        pulumi.ResourceOptions(depends_on=schema),
    )

    # The contract with the other services: see docs/outputs.md before changing any of it.
    pulumi.export("contract_version", "1.1.0")
    pulumi.export("schema_version", schema.version)
    pulumi.export("schema_fingerprint", schema.fingerprint)
    pulumi.export("applied_migrations", schema.applied)
    pulumi.export(
        "database",
        {
            "host": config.database_host,
            "port": config.database_port,
            "name": database.name,
            "sslmode": config.database_sslmode,
            "platform": config.platform,
        },
    )
    pulumi.export("service_database_urls", urls)
    pulumi.export("api_roles", list(API_ROLES))
    pulumi.export("instance_provisioner", provisioner.description)
    pulumi.export("instance_gateway", provisioner.gateway)
    pulumi.export("automation", automation.description)


main()
