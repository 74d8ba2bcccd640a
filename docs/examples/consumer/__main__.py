"""stripe-handler, as another team deploys it: of the platform it knows the outputs only.

docs/outputs.md says how to run it.
"""

from typing import Any

import pulumi
import pulumi_kubernetes as kubernetes

CONTRACT = "1"
"""The major version of the platform's outputs that this is written for."""

NAME = "stripe-handler"


def main() -> None:
    """Declare the service."""
    config = pulumi.Config()
    context = config.get("kubernetesContext")
    platform = pulumi.StackReference(config.require("platform"))
    database_url = pulumi.Output.all(
        version=platform.require_output("contract_version"),
        urls=platform.require_output("service_database_urls"),
    ).apply(own_url)

    cluster = kubernetes.Provider(
        "cluster",
        context=context or None,
        render_yaml_to_directory=None if context else "manifests",
    )
    there = pulumi.ResourceOptions(provider=cluster)
    namespace = kubernetes.core.v1.Namespace(NAME, metadata={"name": NAME}, opts=there)
    # It gets a name of its own, another one when its content changes: so the pods start anew.
    secret = kubernetes.core.v1.Secret(
        "database",
        metadata={"namespace": namespace.metadata.name},
        string_data={"url": database_url},
        opts=there,
    )
    container = {
        "name": NAME,
        "image": config.require("image"),
        "env": [
            {
                "name": "DATABASE_URL",
                "valueFrom": {"secretKeyRef": {"name": secret.metadata.name, "key": "url"}},
            }
        ],
        "resources": {"limits": {"cpu": "500m", "memory": "128Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    labels = {"app.kubernetes.io/name": NAME}
    kubernetes.apps.v1.Deployment(
        NAME,
        metadata={"name": NAME, "namespace": namespace.metadata.name},
        spec={
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"automountServiceAccountToken": False, "containers": [container]},
            },
        },
        opts=there,
    )


def own_url(platform: dict[str, Any]) -> str:
    """The service's own connection URL.

    Raises:
        pulumi.RunError: the platform's contract is another than this program knows.
    """
    version = platform["version"]
    if version.partition(".")[0] != CONTRACT:
        raise pulumi.RunError(
            f"the platform's outputs have contract_version {version}, and this program knows "
            f"{CONTRACT}.x: see what changed in the platform's docs/outputs.md"
        )
    url: str = platform["urls"]["stripe_handler"]
    return url


main()
