"""What Pulumi declares, one file a component; `config` is the only reader of stack config."""

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
