"""InstanceProvisioner: its namespaces, its chart and the secrets of what that runs."""

import hashlib
import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import pulumi
import yaml
from pulumi_kubernetes.core.v1 import Namespace, Secret
from pulumi_kubernetes.helm.v4 import Chart
from pulumi_kubernetes.meta.v1 import ObjectMetaArgs

from components import GATEWAY, INSTANCES_NAMESPACE, NAMESPACE, PROVISIONER, ROOT
from components.automation import Jobs

CHART = ROOT / "charts" / PROVISIONER
PORT = 8080
GATEWAY_PORT = 8081

VERSION = importlib.metadata.version("pulumi-kubernetes")
"""The plugin has the SDK's version."""

RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}


@dataclass(frozen=True)
class InstanceProvisionerArgs:
    """Arguments of InstanceProvisioner.

    Attributes:
        context: the kubeconfig context to deploy to; empty to render only.
        render_directory: where to write the manifests instead; empty to deploy.
        image: repository:tag or repository@sha256:digest.
        base_domain: the domain under which instances get their subdomains.
        measure: who tells what instances use.
        database_url: the service's own connection URL, a secret.
        gateway_database_url: the instance gateway's, a secret.
        database_port: the port in those URLs, for the network policies.
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
    measure: Literal["kubelet", "none"]
    database_url: pulumi.Output[str]
    gateway_database_url: pulumi.Output[str]
    database_port: int
    database_ca: str
    api_token: pulumi.Output[str]
    jobs: Jobs
    protect: bool
    after: pulumi.Resource


class InstanceProvisioner(pulumi.ComponentResource):
    """The service that turns rows of `instances` into Helm releases, and the instance gateway.

    Attributes:
        description: namespace, service_url, service_account and chart_version, for its callers.
        gateway: namespace and service_url of the gateway.
    """

    description: pulumi.Output[dict[str, str]]
    gateway: pulumi.Output[dict[str, str]]

    def __init__(
        self,
        name: str,
        args: InstanceProvisionerArgs,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("mindroom:instance_provisioner:InstanceProvisioner", name, None, opts)
        # Not kubernetes.Provider, which takes KUBECONFIG and PULUMI_K8S_* as inputs into the state:
        # another machine, or the next run, has others.
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
            Namespace(label, metadata=ObjectMetaArgs(name=label, labels=RESTRICTED), opts=opts)
            for label, opts in ((NAMESPACE, child), (INSTANCES_NAMESPACE, kept))
        )
        if args.context:
            # Read by every run: a recreated cluster, which otherwise looks unchanged, is noticed.
            Namespace.get("namespace-on-the-cluster", instances.id, child)
        ca = {"ca.crt": args.database_ca} if args.database_ca else {}
        contents: dict[str, dict[str, pulumi.Input[str]]] = {
            PROVISIONER: {"DATABASE_URL": args.database_url, "API_TOKEN": args.api_token, **ca},
            GATEWAY: {"DATABASE_URL": args.gateway_database_url, **ca},
        }
        secrets = [
            Secret(
                label,
                metadata=ObjectMetaArgs(name=label, namespace=NAMESPACE),
                string_data=content,
                opts=pulumi.ResourceOptions(parent=self, provider=cluster, depends_on=namespace),
            )
            for label, content in contents.items()
        ]
        repository, separator, reference = args.image.partition("@")
        if not separator:
            repository, _, reference = args.image.rpartition(":")
        values = {
            "image": {
                "repository": repository,
                "digest" if separator else "tag": reference,
            },
            "existingSecret": PROVISIONER,
            "secretChecksum": _checksum(contents[PROVISIONER]),
            "databaseCa": bool(args.database_ca),
            "gateway": {
                "existingSecret": GATEWAY,
                "secretChecksum": _checksum(contents[GATEWAY]),
            },
            "instancesNamespace": INSTANCES_NAMESPACE,
            "config": {"baseDomain": args.base_domain, "measure": args.measure},
            "networkPolicy": {"databasePort": args.database_port},
            "automation": {"jobs": args.jobs},
        }
        Chart(
            PROVISIONER,
            chart=str(CHART.relative_to(ROOT)),
            namespace=NAMESPACE,
            values=values,
            opts=pulumi.ResourceOptions(
                parent=self,
                provider=cluster,
                depends_on=[namespace, instances, *secrets, args.after],
            ),
        )
        self.description = pulumi.Output.from_input(
            {
                "namespace": NAMESPACE,
                "service_url": f"http://{PROVISIONER}.{NAMESPACE}.svc:{PORT}",
                "service_account": PROVISIONER,
                "chart_version": yaml.safe_load((CHART / "Chart.yaml").read_text())["version"],
            }
        )
        self.gateway = pulumi.Output.from_input(
            {
                "namespace": NAMESPACE,
                "service_url": f"http://{GATEWAY}.{NAMESPACE}.svc:{GATEWAY_PORT}",
            }
        )
        self.register_outputs({"description": self.description, "gateway": self.gateway})


def _checksum(content: Mapping[str, pulumi.Input[str]]) -> pulumi.Output[str]:
    """Only a digest of long random passwords: no secret, and a diff may show it."""
    return pulumi.Output.unsecret(pulumi.Output.json_dumps(content)).apply(
        lambda text: hashlib.sha256(text.encode()).hexdigest()
    )
