"""InstanceProvisioner: its namespaces, its secret and its chart.

The resources are declared as their manifests, by type token.  The typed SDK would cost every run
about 0.6 s: its imports, and those of every kind that the chart turns out to hold.
"""

import hashlib
import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pulumi
import yaml

from components import ROOT
from components.automation import Jobs

CHART = ROOT / "charts" / "instance-provisioner"
NAME = "instance-provisioner"
NAMESPACE = "mindroom"
INSTANCES_NAMESPACE = "mindroom-instances"
PORT = 8080

VERSION = importlib.metadata.version("pulumi-kubernetes")
"""Of the provider's plugin, which is that of its SDK."""

RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}


@dataclass(frozen=True)
class InstanceProvisionerArgs:
    """Arguments of InstanceProvisioner.

    Attributes:
        context: the kubeconfig context to deploy to; empty to render only.
        render_directory: where to write the manifests instead; empty to deploy.
        image: repository:tag or repository@sha256:digest.
        base_domain: the domain under which instances get their subdomains.
        database_url: the service's own connection URL, a secret.
        database_port: the port in that URL, for the network policy.
        database_ca: the CA that signed the server's certificate (PEM); empty without TLS.
        api_token: what callers of its API present, a secret.
        jobs: those of the database that the cluster is to run.
        protect: refuse to destroy the namespace of the customers' instances, with their data.
        after: what has to be there before its pods start; waited for by the chart alone.
    """

    context: str
    render_directory: str
    image: str
    base_domain: str
    database_url: pulumi.Output[str]
    database_port: int
    database_ca: str
    api_token: pulumi.Output[str]
    jobs: Jobs
    protect: bool
    after: pulumi.Resource


class InstanceProvisioner(pulumi.ComponentResource):
    """The service that turns rows of `instances` into Helm releases.

    Attributes:
        description: namespace, service_url, service_account and chart_version, for its callers.
    """

    description: pulumi.Output[dict[str, str]]

    def __init__(
        self,
        name: str,
        args: InstanceProvisionerArgs,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("mindroom:instance_provisioner:InstanceProvisioner", name, None, opts)
        cluster = pulumi.ProviderResource(
            "kubernetes",
            "cluster",
            {
                "context": args.context or None,
                "renderYamlToDirectory": args.render_directory or None,
                # What somebody changed by hand is taken back, not argued about.
                "enablePatchForce": True,
            },
            pulumi.ResourceOptions(parent=self, version=VERSION),
        )
        child = pulumi.ResourceOptions(parent=self, provider=cluster)
        kept = pulumi.ResourceOptions(parent=self, provider=cluster, protect=args.protect)
        namespace, instances = (
            _manifest("Namespace", {"name": each, "labels": RESTRICTED}, {}, opts)
            for each, opts in ((NAMESPACE, child), (INSTANCES_NAMESPACE, kept))
        )
        if args.context:
            # Read by every run: a cluster that was built anew is seen, which else looks unchanged.
            pulumi.CustomResource(
                "kubernetes:core/v1:Namespace",
                "namespace-on-the-cluster",
                {"apiVersion": "v1", "kind": "Namespace"},
                pulumi.ResourceOptions.merge(
                    child, pulumi.ResourceOptions(id=instances.id, version=VERSION)
                ),
            )
        content: dict[str, pulumi.Input[str]] = {
            "DATABASE_URL": args.database_url,
            "API_TOKEN": args.api_token,
        }
        if args.database_ca:
            content["ca.crt"] = args.database_ca
        secret = _manifest(
            "Secret",
            {"name": NAME, "namespace": NAMESPACE},
            {"stringData": content},
            pulumi.ResourceOptions.merge(
                child,
                pulumi.ResourceOptions(
                    depends_on=namespace, additional_secret_outputs=["data", "stringData"]
                ),
            ),
        )
        repository, separator, reference = args.image.partition("@")
        if not separator:
            repository, _, reference = args.image.rpartition(":")
        values = {
            "image": {
                "repository": repository,
                "digest" if separator else "tag": reference,
            },
            "existingSecret": NAME,
            "databaseCa": bool(args.database_ca),
            # Only a digest of long random passwords: no secret, and a diff may show it.
            "secretChecksum": pulumi.Output.unsecret(pulumi.Output.json_dumps(content)).apply(
                lambda text: hashlib.sha256(text.encode()).hexdigest()
            ),
            "instancesNamespace": INSTANCES_NAMESPACE,
            "config": {"baseDomain": args.base_domain},
            "networkPolicy": {"databasePort": args.database_port},
            "automation": {"jobs": args.jobs},
        }
        pulumi.ComponentResource(
            "kubernetes:helm.sh/v4:Chart",
            NAME,
            {"chart": str(CHART.relative_to(ROOT)), "namespace": NAMESPACE, "values": values},
            pulumi.ResourceOptions(
                parent=self,
                provider=cluster,
                version=VERSION,
                depends_on=[namespace, instances, secret, args.after],
            ),
            remote=True,
        )
        self.description = pulumi.Output.from_input(
            {
                "namespace": NAMESPACE,
                "service_url": f"http://{NAME}.{NAMESPACE}.svc:{PORT}",
                "service_account": NAME,
                "chart_version": yaml.safe_load((CHART / "Chart.yaml").read_text())["version"],
            }
        )
        self.register_outputs({"description": self.description})


def _manifest(
    kind: str,
    metadata: Mapping[str, Any],
    content: Mapping[str, Any],
    opts: pulumi.ResourceOptions,
) -> pulumi.CustomResource:
    """A resource of the API group `v1`, as its manifest has it."""
    return pulumi.CustomResource(
        f"kubernetes:core/v1:{kind}",
        metadata["name"],
        {"apiVersion": "v1", "kind": kind, "metadata": metadata, **content},
        pulumi.ResourceOptions.merge(opts, pulumi.ResourceOptions(version=VERSION)),
    )
