"""What Pulumi declares.

The components, in the order in which `__main__` makes them:

    database.py               the database, made on a plain server, adopted on Supabase
    schema.py                 the SQL files of sql/, applied and verified
    access.py                 the services' login roles, and what they may do
    automation.py             the jobs that the database needs
    instance_provisioner.py   the provisioner and the gateway beside it, by their Helm chart

What they are made from:

    config.py                 the stack's config, checked
    authorization.py          who may do what, as data
    database_target.py        where the database is, and how one logs in there
    scram.py                  passwords as the server stores them

Dynamic providers run in a process of their own, which Pulumi starts from this directory: what a
component hands them is inputs, which are in the state, and stack config, which is not.

    session.py                their base class, with the one session that they share
    by_hand.py                takes back what roles were given by hand
    role_settings.py          the settings of roles
    providers/                what they ask of a server

schema.py and automation.py have their own providers beside what declares them.
"""

from pathlib import Path

ROOT = Path(__file__).parent.parent
"""The project's directory."""

PROJECT = "mindroom"
"""The project's name in Pulumi.yaml, which is also the namespace of its config."""

PROVISIONER = "instance-provisioner"
"""The provisioner's release, Service and ServiceAccount."""

GATEWAY = "instance-gateway"
"""The instance gateway's Deployment and Service."""

NAMESPACE = "mindroom"
"""The provisioner's Kubernetes namespace."""

INSTANCES_NAMESPACE = "mindroom-instances"
"""The Kubernetes namespace of the customers' instances."""
