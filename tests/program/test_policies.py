"""The policies: what each refuses and what it lets through, by itself and by the real engine."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml
from pulumi import automation

from components import PROJECT, ROOT
from components.authorization import SERVICES
from components.automation import SCHEDULES
from policies.rules import RULES, PolicyException, Resource, secrets_of
from tests.support.engines import make_project
from tests.support.manifests import CHARTS, Object, Values, run
from tests.support.platforms import TOKEN, stack_config

DIGEST = "@sha256:" + "0a" * 32
CONTAINER: Mapping[str, Any] = {
    "name": "app",
    "image": f"registry.example:5000/app{DIGEST}",
    "resources": {"limits": {"cpu": "1", "memory": "64Mi"}},
    "securityContext": {"runAsNonRoot": True, "readOnlyRootFilesystem": True},
}
"""One that no policy refuses."""


def problems(resource: Resource) -> list[tuple[str, str]]:
    """Policies with what they refuse."""
    return [(name, text) for name, rule in RULES.items() for text in rule(resource)]


def pod(of_pod: Mapping[str, Any] = {}, **of_container: Any) -> Resource:
    """A Deployment with such a pod."""
    spec = {"containers": [{**CONTAINER, **of_container}], **of_pod}
    return Resource("kubernetes:apps/v1:Deployment", "app", {"spec": {"template": {"spec": spec}}})


def env(name: str, **source: Any) -> Resource:
    return pod(env=[{"name": name, **source}])


def config_map(name: str, value: str) -> Resource:
    return Resource("kubernetes:core/v1:ConfigMap", "app", {"data": {name: value}})


def sql(kind: str, **props: Any) -> Resource:
    return Resource(f"postgresql:index/{kind}", "app", props, protect=True)


def with_secret(type_: str, **props: Any) -> Resource:
    """A resource of a stack whose config has two secrets."""
    config = {
        f"{PROJECT}:databasePassword": "a/long=password",
        f"{PROJECT}:servicePasswords": json.dumps({"app": "of the service app"}),
        f"{PROJECT}:provisionerApiToken": "short",
        f"{PROJECT}:baseDomain": "mindroom.example",
    }
    return Resource(type_, "app", props, secrets=secrets_of(config))


CHOSEN = {"runAsNonRoot": True}
REFUSED: Mapping[str, Mapping[str, list[Resource]]] = {
    "no-grant-to-public": {
        "PUBLIC is every role": [
            sql("grant:Grant", role="public"),
            sql("grant:Grant", role="PUBLIC"),
            sql("defaultPrivileges:DefaultPrivileges", role="public"),
        ]
    },
    "no-privileged-role": {
        "superuser is set": [sql("role:Role", superuser=True)],
        "bypassRowLevelSecurity is set": [sql("role:Role", bypassRowLevelSecurity=True)],
        "is a member of service_role": [
            sql("role:Role", roles=["platform_service", "service_role"])
        ],
        "is a member of postgres": [sql("grantRole:GrantRole", role="app", grantRole="postgres")],
    },
    "data-is-protected": {
        "is not protected": [
            Resource("postgresql:index/database:Database", "database", {}),
            Resource("postgresql:index/role:Role", "app", {}),
            Resource("pulumi-python:dynamic/schema:MigrationSet", "migrations", {}),
            Resource("kubernetes:core/v1:Namespace", "mindroom-instances", {}),
        ]
    },
    "pods-have-limits": {
        "app has no resources.limits.memory": [pod(resources={"limits": {"cpu": "1"}})],
        "app has no resources.limits.cpu": [
            pod(resources={"limits": {"memory": "1Gi"}, "requests": {"cpu": "1"}})
        ],
    },
    "pods-are-not-root": {
        "app has no securityContext.runAsNonRoot: true": [
            pod(securityContext={"readOnlyRootFilesystem": True}),
            pod(
                {"securityContext": CHOSEN},
                securityContext={"readOnlyRootFilesystem": True, "runAsNonRoot": False},
            ),
        ],
        "app has securityContext.runAsUser: 0": [
            pod({"securityContext": {"runAsUser": 0}}),
            pod(securityContext={**CONTAINER["securityContext"], "runAsUser": 0}),
        ],
    },
    "pods-have-a-read-only-root": {
        "app has no securityContext.readOnlyRootFilesystem: true": [
            pod(securityContext=CHOSEN),
            pod(securityContext={**CHOSEN, "readOnlyRootFilesystem": False}),
        ]
    },
    "no-secret-in-plain-text": {
        "is named like a secret": [
            env("API_TOKEN", value="x"),
            env("SmtpPasswd", value="x"),
            env("DATABASE_URL", value="x"),
            config_map("PRIVATE_KEY", "x"),
        ],
        "is a URL with a password": [
            env("DB", value="host and postgresql://app:word@db.example/app"),
            config_map("CACHE", "redis://:word@cache.example"),
        ],
        "holds a secret of the stack's config": [
            with_secret("kubernetes:core/v1:ConfigMap", data={"a": "b: a/long=password"}),
            with_secret("kubernetes:apps/v1:Deployment", args=["--to", "of the service app"]),
            with_secret("kubernetes:core/v1:Service", a=f"//{quote('a/long=password', safe='')}@"),
        ],
    },
    "images-have-a-digest": {
        "may become another": [
            pod(image="app"),
            pod(image="registry.example:5000/app:1.0.0"),
            pod(image=f"app{DIGEST}0"),
        ]
    },
}
"""Policy -> what it says -> of what."""

LET_THROUGH = [
    sql("grant:Grant", role="app", privileges=["SELECT"], schema="public"),
    Resource("kubernetes:rbac.authorization.k8s.io/v1:RoleBinding", "app", {"role": "public"}),
    sql("role:Role", superuser=False, roles=["platform_service"]),
    sql("grantRole:GrantRole", role="app", grantRole="platform_service"),
    Resource("postgresql:index/database:Database", "database", {}, protect=True),
    Resource("postgresql:index/grant:Grant", "app", {"role": "app"}),
    Resource("kubernetes:core/v1:Namespace", "mindroom", {}),
    Resource("pulumi-python:dynamic/schema:RepeatableSet", "platform", {}),
    pod(),
    pod({"securityContext": CHOSEN}, securityContext={"readOnlyRootFilesystem": True}),
    env("API_TOKEN", valueFrom={"secretKeyRef": {"name": "app", "key": "token"}}),
    env("API_TOKEN", value=""),
    env("API_TOKEN_FILE", value="/etc/app/token"),
    env("HOMESERVER", value="http://matrix.example:8008/@path"),
    config_map("BASE_DOMAIN", "mindroom.example"),
    with_secret("kubernetes:core/v1:Secret", stringData={"API_TOKEN": "of the service app"}),
    with_secret("kubernetes:core/v1:ConfigMap", data={"a": "short"}),
    with_secret("pulumi:providers:postgresql", password="a/long=password"),
]


@pytest.mark.parametrize("policy", RULES)
def test_what_is_refused(policy: str) -> None:
    for text, resources in REFUSED[policy].items():
        for resource in resources:
            ((refused_by, said),) = problems(resource)
            assert refused_by == policy
            assert text in said


@pytest.mark.parametrize("resource", LET_THROUGH)
def test_what_is_let_through(resource: Resource) -> None:
    assert problems(resource) == []


def test_no_message_shows_a_secret() -> None:
    for resources in REFUSED["no-secret-in-plain-text"].values():
        for resource in resources:
            for _, said in problems(resource):
                assert not re.search("word@|long=|of the service", said)


@pytest.mark.parametrize(
    ("type_", "place"),
    [
        ("kubernetes:core/v1:Pod", "{}"),
        ("kubernetes:apps/v1:StatefulSet", '{"template": {"spec": {}}}'),
        ("kubernetes:batch/v1:Job", '{"template": {"spec": {}}}'),
        ("kubernetes:batch/v1:CronJob", '{"jobTemplate": {"spec": {"template": {"spec": {}}}}}'),
    ],
)
@pytest.mark.parametrize("kind", ["initContainers", "containers", "ephemeralContainers"])
def test_every_container_of_whatever_makes_pods_is_seen(type_: str, place: str, kind: str) -> None:
    pods = json.dumps({kind: [CONTAINER, {"name": "bare", "image": "bare"}]})
    spec = json.loads(re.sub(r"\{\}", lambda _: pods, place))
    refused_by = {name for name, said in problems(Resource(type_, "app", {"spec": spec}))}
    assert refused_by == {name for name in RULES if name.startswith(("pods", "images"))}


@pytest.mark.parametrize("resource", ["app", "a*", "*", "kubernetes:core/v1:Pod", "kubernetes:*"])
def test_an_exception_names_a_resource_or_a_type(resource: str) -> None:
    exception = PolicyException("pods-have-limits", resource, "a trial")
    excused = Resource("kubernetes:core/v1:Pod", "app", {})
    assert exception.excuses("pods-have-limits", excused)
    assert not exception.excuses("pods-are-not-root", excused)
    other = Resource("postgresql:index/role:Role", "other", {})
    assert exception.excuses("pods-have-limits", other) == (resource == "*")


# ---- the charts, which the provisioner installs, too

IMAGES: dict[str, Values] = {
    "instance": {"images": dict.fromkeys(("mindroom", "matrix"), f"app{DIGEST}")},
    "instance-provisioner": {"image": {"repository": "app", "digest": DIGEST.strip("@")}},
}
OPTIONS: dict[str, Values] = {
    "instance": {"secretNames": ["OPENAI_API_KEY", "WEATHER_TOKEN"]},
    "instance-provisioner": {"automation": {"jobs": {"a": {"schedule": "0 0 * * *", "sql": "x"}}}},
}


@pytest.mark.parametrize("chart", IMAGES)
@pytest.mark.parametrize("pinned", [True, False], ids=["pinned", "by-tag"])
def test_charts_keep_every_policy(helm: Path, chart: str, *, pinned: bool) -> None:
    values = yaml.safe_load((CHARTS / chart / "ci" / "minimal-values.yaml").read_text())
    values |= OPTIONS[chart] | (IMAGES[chart] if pinned else {})
    rendered = run(helm, "template", "app", CHARTS / chart, "-f-", stdin=json.dumps(values))
    assert rendered.returncode == 0, rendered.stderr
    resources = [of_manifest(each) for each in yaml.safe_load_all(rendered.stdout) if each]
    with_pods = [each for each in resources if list(each.containers)]
    assert len(with_pods) == (3 if chart == "instance" else 4)  # the chart's test included
    refused_by = [name for each in resources for name in dict(problems(each))]
    assert refused_by == ([] if pinned else ["images-have-a-digest"] * len(with_pods))


def of_manifest(manifest: Object) -> Resource:
    """The resource that Pulumi makes of a manifest."""
    group, _, version = manifest["apiVersion"].rpartition("/")
    type_ = f"kubernetes:{group or 'core'}/{version}:{manifest['kind']}"
    return Resource(type_, manifest["metadata"]["name"], manifest)


# ---- the engine

VIOLATIONS = """
import pulumi_postgresql as postgresql

postgresql.Grant(
    "to-public", role="public", database="x", object_type="schema", privileges=["USAGE"]
)
postgresql.Role("almighty", name="almighty", superuser=True)
files = pulumi.ProviderResource("kubernetes", "files", {"renderYamlToDirectory": "manifests"})
token = pulumi.Config().require("provisionerApiToken")
variables = [{"name": "ITS_TOKEN", "value": "x"}, {"name": "A", "value": token}]
pulumi.CustomResource(
    "kubernetes:core/v1:Pod",
    "bare",
    {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "bare", "namespace": "default"},
        "spec": {"containers": [{"name": "bare", "image": "bare", "env": variables}]},
    },
    pulumi.ResourceOptions(provider=files),
)
"""


def preview(directory: Path, *, program: str = "", **changes: Any) -> tuple[bool, str]:
    """Whether a first preview with the policies goes through, and all that it prints.

    Args:
        directory: where to put the project, empty.
        program: what the program declares beside the platform.
        changes: to the config of the dev stack.
    """
    url = "postgresql://postgres:a-long-password@127.0.0.1:1/mindroom"  # a preview asks no server
    project = make_project(directory, stack_config(url, directory / "manifests", **changes), url)
    with (directory / "__main__.py").open("a") as file:
        file.write(program)
    try:
        result = project.stack.preview(color="never", policy_packs=["policies"])
    except automation.CommandError as error:
        return False, str(error)
    return True, result.stdout + result.stderr


def refusals(printed: str) -> set[tuple[str, str]]:
    """Policy and name of each resource that a preview refuses."""
    return set(re.findall(r"- \[mandatory\]  (\S+)  \(\S+: (\S+)\)", printed))


@pytest.mark.engine
@pytest.mark.skipif(not shutil.which("pulumi"), reason="needs the Pulumi CLI on PATH")
class TestEngine:
    """The pack, as the real engine runs it in a first preview."""

    def test_the_program_keeps_every_policy(self, tmp_path: Path) -> None:
        image = f"registry.example/instance-provisioner{DIGEST}"
        changes: dict[str, Any] = {
            "protect": True,
            "provisionerImage": image,
            "policyExceptions": [],
        }
        good, printed = preview(tmp_path, **changes)
        assert good, printed
        assert "mindroom@" in printed
        assert "can't run policy" not in printed

    def test_a_stack_is_excused_from_what_it_says_and_an_idle_exception_is_told(
        self, tmp_path: Path
    ) -> None:
        own = yaml.safe_load((ROOT / "Pulumi.dev.yaml").read_text())["config"]
        idle = {"policy": "pods-have-limits", "resource": "kubernetes:*", "reason": "a trial"}
        good, printed = preview(
            tmp_path, policyExceptions=[*own[f"{PROJECT}:policyExceptions"], idle]
        )
        assert good, printed
        assert refusals(printed) == set()
        (told,) = re.findall(r"- \[advisory\].*\n.*\n +(.*)", printed)
        assert told == "nothing of kubernetes:* breaks pods-have-limits: remove it"

    def test_what_breaks_a_policy_fails_the_preview(self, tmp_path: Path) -> None:
        good, printed = preview(tmp_path, program=VIOLATIONS, policyExceptions=[])
        assert not good
        provisioner = "instance-provisioner:mindroom/instance-provisioner"
        gateway = "instance-provisioner:mindroom/instance-gateway"
        jobs = {f"{provisioner}-{job.replace('_', '-')}" for job in SCHEDULES}
        data = {"database", "migrations", "repeatable", "verification", "mindroom-instances"}
        assert refusals(printed) == (
            {("no-grant-to-public", "to-public"), ("no-privileged-role", "almighty")}
            | {("data-is-protected", name) for name in data | {*SERVICES, "almighty"}}
            | {("images-have-a-digest", name) for name in jobs | {provisioner, gateway, "bare"}}
            | {(name, "bare") for name in RULES if name.startswith("pods")}
            | {("no-secret-in-plain-text", "bare")}
        )
        assert "ITS_TOKEN is named like a secret" in printed
        assert "holds a secret of the stack's config" in printed
        assert TOKEN not in printed
