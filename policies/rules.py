"""The rules for every resource of a stack, as functions without Pulumi: see docs/policies.md.

`policies/__main__.py` runs them in Pulumi; the tests run them over the charts, too.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import quote

PROTECTED = {
    "postgresql:index/database:Database": "*",
    "postgresql:index/role:Role": "*",
    "pulumi-python:dynamic/schema:MigrationSet": "*",
    "pulumi-python:dynamic/schema:RepeatableSet": "repeatable",
    "pulumi-python:dynamic/schema:Verification": "*",
    "kubernetes:core/v1:Namespace": "mindroom-instances",
}
"""Type -> names of what holds customers' data or says who may reach it."""

BYPASS_ROW_SECURITY = ("postgres", "service_role", "supabase_admin")
"""Roles that bypass row-level security: a member can become one of them by SET ROLE."""

SECRET_NAME = re.compile(
    r"(?i)(?:secret|token|passw(?:or)?d|passphrase|credential|(?:api|access|private)_?key|dsn"
    r"|database_?url)(?!.*_(?:file|path|name)$)"
)
CREDENTIALS = re.compile(r"://[^/\s:@]*:[^/\s@]+@")
DIGEST = re.compile(r"@sha256:[0-9a-f]{64}$")
SHORTEST_SECRET = 12
"""Characters; a shorter secret may be a word that occurs anywhere."""


@dataclass(frozen=True)
class Resource:
    """A resource as it is declared.

    Attributes:
        type: its type, such as `kubernetes:apps/v1:Deployment`.
        props: its inputs; of a Kubernetes resource, the manifest.
        protect: whether Pulumi is to refuse to delete it.
        secrets: the stack's secrets, which only a Secret may hold.
    """

    type: str
    name: str
    props: Mapping[str, Any]
    protect: bool = False
    secrets: frozenset[str] = frozenset()

    @property
    def containers(self) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
        """Each container of the pods that it makes, with the pod's specification."""
        if not self.type.startswith("kubernetes:"):
            return
        pod = _at(self.props, "spec")
        if self.type != "kubernetes:core/v1:Pod":
            pod = _at(_at(pod, "jobTemplate", "spec") or pod, "template", "spec")
        for kind in ("initContainers", "containers", "ephemeralContainers"):
            for container in _at(pod, kind):
                yield container, pod


def _at(value: Any, *path: str) -> Any:
    """The value at a path of nested mappings; an empty mapping where the path ends early."""
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return {} if value is None else value


def no_grant_to_public(resource: Resource) -> Iterator[str]:
    """Nothing is granted to PUBLIC."""
    role = resource.props.get("role") if resource.type.startswith("postgresql:") else None
    if isinstance(role, str) and role.lower() == "public":
        yield "PUBLIC is every role, those to come included: name the role that needs it"


def no_privileged_role(resource: Resource) -> Iterator[str]:
    """No role is a superuser or bypasses row-level security."""
    if resource.type == "postgresql:index/role:Role":
        for key in ("superuser", "bypassRowLevelSecurity"):
            if resource.props.get(key):
                yield f"{key} is set: grant what its job needs instead"
        groups = list(resource.props.get("roles") or ())
    elif resource.type == "postgresql:index/grantRole:GrantRole":
        groups = [resource.props.get("grantRole")]
    else:
        return
    for group in groups:
        if group in BYPASS_ROW_SECURITY:
            yield f"is a member of {group}, which bypasses row-level security"


def data_is_protected(resource: Resource) -> Iterator[str]:
    """What holds customers' data, or says who may reach it, is protected from deletion."""
    if fnmatchcase(resource.name, PROTECTED.get(resource.type, "")) and not resource.protect:
        yield "is not protected: set mindroom:protect to true in the stack file"


def pods_have_limits(resource: Resource) -> Iterator[str]:
    """Every container has limits of CPU and memory."""
    for container, _ in resource.containers:
        for kind in ("cpu", "memory"):
            if not _at(container, "resources", "limits", kind):
                yield f"container {container['name']} has no resources.limits.{kind}"


def pods_are_not_root(resource: Resource) -> Iterator[str]:
    """No container runs as root."""
    for container, pod in resource.containers:
        settings = {**_at(pod, "securityContext"), **_at(container, "securityContext")}
        if settings.get("runAsNonRoot") is not True:
            yield f"container {container['name']} has no securityContext.runAsNonRoot: true"
        if settings.get("runAsUser") == 0:
            yield f"container {container['name']} has securityContext.runAsUser: 0"


def pods_have_a_read_only_root(resource: Resource) -> Iterator[str]:
    """The root file system of every container is read-only."""
    for container, _ in resource.containers:
        if _at(container, "securityContext", "readOnlyRootFilesystem") is not True:
            yield (
                f"container {container['name']} has no securityContext.readOnlyRootFilesystem: "
                "true; mount an emptyDir where it writes"
            )


def no_secret_in_plain_text(resource: Resource) -> Iterator[str]:
    """No manifest but a Secret holds a secret: not as an environment variable, not elsewhere."""
    if not resource.type.startswith("kubernetes:") or resource.type == "kubernetes:core/v1:Secret":
        return
    plain = {
        f"container {container['name']}: {variable['name']}": (variable["name"], variable["value"])
        for container, _ in resource.containers
        for variable in _at(container, "env")
        if variable.get("value")
    }
    if resource.type == "kubernetes:core/v1:ConfigMap":
        plain |= {key: (key, value) for key, value in _at(resource.props, "data").items() if value}
    for place, (name, value) in plain.items():
        if SECRET_NAME.search(name):
            yield f"{place} is named like a secret and has a literal value: use a secretKeyRef"
        elif CREDENTIALS.search(str(value)):
            yield f"{place} is a URL with a password: use a secretKeyRef"
    if any(secret in text for text in _texts(resource.props) for secret in resource.secrets):
        yield "holds a secret of the stack's config: put it into a Secret and refer to that"


def images_have_a_digest(resource: Resource) -> Iterator[str]:
    """Every image is pinned by its digest."""
    for container, _ in resource.containers:
        image = container.get("image") or "its image"
        if not DIGEST.search(image):
            yield (
                f"container {container['name']}: {image} may become another: "
                "name it as repository@sha256:DIGEST"
            )


Rule = Callable[[Resource], Iterator[str]]
"""A resource -> its problems; the docstring is the policy in a sentence."""

RULES: Mapping[str, Rule] = {
    rule.__name__.replace("_", "-"): rule
    for rule in (
        no_grant_to_public,
        no_privileged_role,
        data_is_protected,
        pods_have_limits,
        pods_are_not_root,
        pods_have_a_read_only_root,
        no_secret_in_plain_text,
        images_have_a_digest,
    )
}
"""Policy -> its rule."""


@dataclass(frozen=True)
class PolicyException:
    """What a stack allows itself.

    Attributes:
        resource: the name or type of what is excused, `*` standing for any part.
    """

    policy: str
    resource: str
    reason: str

    def excuses(self, policy: str, resource: Resource) -> bool:
        """Whether it is for this policy and resource."""
        known_as = (resource.name, resource.type)
        return self.policy == policy and any(fnmatchcase(n, self.resource) for n in known_as)


def parse_exceptions(value: Any) -> list[PolicyException]:
    """A stack's `policyExceptions`, as the list or its JSON.

    Raises:
        ValueError: with all that is wrong with it.
    """
    try:
        entries = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        entries = None
    if not isinstance(entries, list):
        raise ValueError("must be a list")
    wanted = {"policy", "resource", "reason"}
    problems = []
    for number, entry in enumerate(entries, 1):
        given = entry if isinstance(entry, dict) else {}
        filled = {key for key, text in given.items() if isinstance(text, str) and text.strip()}
        problems += [f"entry {number} has no {key}" for key in sorted(wanted - filled)]
        unknown = sorted(given.keys() - wanted)
        problems += [f"entry {number} has an unknown {key}" for key in unknown]
        if "policy" in filled and given["policy"] not in RULES:
            known = ", ".join(RULES)
            problems.append(
                f"entry {number}: {given['policy']!r} is not a policy; there are {known}"
            )
    if problems:
        raise ValueError("; ".join(problems))
    return [PolicyException(**entry) for entry in entries]


def secrets_of(config: Mapping[str, str]) -> frozenset[str]:
    """The values of a stack's config whose keys are named like secrets, as they are and in a URL.

    Args:
        config: key -> text, or an object's JSON.
    """
    values: list[str] = []
    for key, value in config.items():
        if SECRET_NAME.search(key):
            try:
                values += _texts(json.loads(value))
            except ValueError:
                values.append(value)
    long = [value for value in values if len(value) >= SHORTEST_SECRET]
    return frozenset(long + [quote(value, safe="") for value in long])


def _texts(value: Any) -> Iterator[str]:
    """Every text in a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, Sequence):
        for item in value:
            yield from _texts(item)
