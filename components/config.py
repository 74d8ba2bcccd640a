"""The stack's config: typed, cross-checked, all problems reported at once with the YAML to add.

Nothing else in the program reads stack config; the dynamic providers read the database's from it,
in `session.py`.  Names, descriptions and defaults of the keys are in Pulumi.yaml.
"""

import difflib
import json
import os
import re
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import pulumi
import yaml
from pulumi.runtime import config as runtime_config
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
)
from pydantic.alias_generators import to_camel

from components import PROJECT, ROOT
from components.authorization import SERVICES
from components.automation import Scheduler
from components.database_target import DatabaseTarget, endpoint
from policies.rules import PolicyException, parse_exceptions

LOOPBACK = ("localhost", "127.0.0.1", "::1")
SHORTEST_PASSWORD = 16

_IMAGE = re.compile(r"[a-z0-9.-]+(:\d+)?(/[a-z0-9._-]+)*(:[\w.-]+|@sha256:[0-9a-f]{64})")


def _from_json(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


class Config(BaseModel):
    """The stack's config.  A key that Pulumi.yaml gives an empty default is missing when empty."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel)

    platform: Literal["postgres", "supabase"] = Field(examples=["postgres"])
    database_host: str = Field(examples=["db.mindroom.example"])
    database_port: Annotated[int, Field(gt=0, lt=65536)] = Field(examples=[5432])
    database_name: str = Field(examples=["mindroom"])
    database_user: str = Field(examples=["postgres"])
    database_password: SecretStr
    database_sslmode: Literal[
        "disable", "allow", "prefer", "require", "verify-ca", "verify-full"
    ] = Field(examples=["verify-full"])
    database_sslrootcert: str = Field("", examples=["certs/supabase-ca.crt"])
    database_connections: Annotated[int, Field(ge=11)] = Field(examples=[15])
    database_bastion: str = Field("", examples=["deploy@platform.mindroom.example"])
    service_passwords: Annotated[dict[str, SecretStr], BeforeValidator(_from_json)]
    kubernetes_context: str = Field("", examples=["production"])
    render_directory: str = Field("", examples=[""])
    provisioner_image: str = Field(examples=["registry.example/instance-provisioner:1.0.0"])
    provisioner_api_token: SecretStr
    base_domain: str = Field(examples=["mindroom.example"])
    automation: Scheduler = Field(examples=["kubernetes"])
    measure: Literal["kubelet", "none"] = Field("kubelet", examples=["none"])
    protect: bool = Field(examples=[True])
    policy_exceptions: Annotated[list[PolicyException], BeforeValidator(parse_exceptions)] = Field(
        [],
        examples=[[{"policy": "pods-have-limits", "resource": "NAME OR TYPE", "reason": "WHY"}]],
    )

    @property
    def target(self) -> DatabaseTarget:
        """The administrator's way to the database."""
        return DatabaseTarget.read(lambda key: _plain(getattr(self, _FIELDS[key])))

    @property
    def database_ca(self) -> str:
        """The CA certificate (PEM) that the database's own is checked against, or nothing."""
        path = self.database_sslrootcert
        return (ROOT / path).read_text() if path else ""


_FIELDS = {to_camel(name): name for name in Config.model_fields}
SECRETS = ("databasePassword", "servicePasswords", "provisionerApiToken")


def _plain(value: Any) -> Any:
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def load() -> Config:
    """The config of the stack that Pulumi runs.

    Raises:
        pulumi.RunError: with every problem, where it is, and the YAML to add.
    """
    prefix = f"{PROJECT}:"
    values = {
        key.removeprefix(prefix): value
        for key, value in runtime_config.CONFIG.get().items()
        if key.startswith(prefix)
    }
    exposed = [
        key
        for key in SECRETS
        if values.get(key) not in (None, "", "{}")
        and not runtime_config.is_config_secret(prefix + key)
    ]
    config = parse(values, exposed, pulumi.get_stack())
    server = endpoint(config.database_host, config.database_port)
    if config.database_bastion and "hostaddr" not in server:
        pulumi.log.warn(
            "databaseBastion is set, but there is no tunnel: if the database cannot be reached, "
            f"run bin/tunnel -- pulumi ... -s {pulumi.get_stack()}"
        )
    return config


def parse(values: Mapping[str, Any], exposed: list[str], stack: str) -> Config:
    """A config out of raw values, keyed as in Pulumi.yaml.

    Args:
        values: what the stack says, defaults included.
        exposed: keys of secrets that stand unencrypted in the stack file.
        stack: the stack's name, for the messages.

    Raises:
        pulumi.RunError: with every problem, where it is, and the YAML to add.
    """
    given = {key: value for key, value in values.items() if value not in (None, "", "{}")}
    problems: list[_Problem] = []
    config = None
    try:
        config = Config.model_validate(given)
    except ValidationError as error:
        problems += [_problem(detail) for detail in error.errors()]
    wrong = {problem.key for problem in problems}
    problems += [problem for problem in _contradictions(given) if problem.key not in wrong]
    problems += [
        _Problem(
            key, "stands in the stack file in plain text", "replace it, since it may have been seen"
        )
        for key in exposed
    ]
    if problems or config is None:
        raise pulumi.RunError(_message(problems, stack))
    return config


class _Problem(NamedTuple):
    """What is wrong with a key, as a predicate of it; and what to do, where an example is not all.

    Attributes:
        key: as in Pulumi.yaml.
    """

    key: str
    text: str
    remedy: str = ""


def _problem(detail: Any) -> _Problem:
    key = str(detail["loc"][0])
    match detail["type"]:
        case "missing":
            return _Problem(key, "is missing")
        case "extra_forbidden":
            close = difflib.get_close_matches(key, _FIELDS, 1)
            meant = f"; did you mean {close[0]}?" if close else ""
            return _Problem(key, f"is an unknown key{meant}")
        case "literal_error":
            return _Problem(key, f"must be {detail['ctx']['expected']}, not {detail['input']!r}")
        case kind if key in SECRETS:
            return _Problem(key, f"is malformed ({kind}; the value is not shown)")
        case "value_error":
            return _Problem(key, str(detail["ctx"]["error"]))
        case _:
            return _Problem(key, f"{detail['msg'].lower()}, not {detail['input']!r}")


def _contradictions(given: Mapping[str, Any]) -> Iterator[_Problem]:
    """Problems that the types do not show: of combinations, lengths, files and contexts."""
    yield from _database_problems(given)
    yield from _cluster_problems(given)
    yield from _provisioner_problems(given)
    yield from _password_problems(given)


def _database_problems(given: Mapping[str, Any]) -> Iterator[_Problem]:
    if given.get("platform") == "supabase" and str(given.get("databasePort")) == "6543":
        yield _Problem(
            "databasePort",
            "6543 is Supabase's transaction pooler, where the migration lock does not hold",
            "use the session mode port 5432",
        )
    sslmode, certificate = given.get("databaseSslmode", ""), given.get("databaseSslrootcert")
    remote = given.get("databaseHost") not in (None, *LOOPBACK)
    if remote and sslmode in ("disable", "allow", "prefer"):
        yield _Problem(
            "databaseSslmode", f"{sslmode} sends passwords in the clear to a remote host"
        )
    if sslmode.startswith("verify") and not certificate:
        yield _Problem("databaseSslrootcert", f"is missing, and sslmode {sslmode} needs it")
    if certificate and not (ROOT / certificate).is_file():
        yield _Problem(
            "databaseSslrootcert", f"{certificate!r} is not a file", "put it there, or name another"
        )


def _cluster_problems(given: Mapping[str, Any]) -> Iterator[_Problem]:
    context, directory = given.get("kubernetesContext"), given.get("renderDirectory")
    if not context and not directory:
        yield _Problem(
            "kubernetesContext",
            "and renderDirectory are missing",
            "give one of them, so that nothing is deployed to whatever cluster happens to be "
            "current",
        )
    elif context and directory:
        yield _Problem(
            "renderDirectory", "and kubernetesContext are both given", "empty one of them"
        )
    elif context:
        files = os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
        if context not in _contexts(files):
            yield _Problem(
                "kubernetesContext",
                f"{context!r} is not a context of {files}",
                "name one that `kubectl config get-contexts` lists, or another file by KUBECONFIG",
            )


def _provisioner_problems(given: Mapping[str, Any]) -> Iterator[_Problem]:
    token, image = given.get("provisionerApiToken"), given.get("provisionerImage")
    if token and len(str(token)) < SHORTEST_PASSWORD:
        yield _Problem("provisionerApiToken", f"is under {SHORTEST_PASSWORD} characters long")
    if image and not _IMAGE.fullmatch(image):
        yield _Problem(
            "provisionerImage", f"{image!r} is not repository:tag or repository@sha256:digest"
        )


def _contexts(files: str) -> set[str]:
    """The contexts of kubeconfig files, as the provider merges them."""
    found = set()
    for path in files.split(os.pathsep):
        with suppress(OSError, UnicodeError, yaml.YAMLError, TypeError, KeyError):
            contexts = yaml.safe_load(Path(path).read_text())["contexts"]
            found |= {str(context["name"]) for context in contexts}
    return found


def _password_problems(given: Mapping[str, Any]) -> Iterator[_Problem]:
    try:
        passwords = dict(_from_json(given.get("servicePasswords", {})))
    except (TypeError, ValueError):
        return
    short = [
        role for role, password in passwords.items() if 0 < len(str(password)) < SHORTEST_PASSWORD
    ]
    for text, roles in (
        ("has no password for", [role for role in SERVICES if not passwords.get(role)]),
        ("names roles that do not exist:", [role for role in passwords if role not in SERVICES]),
        (f"has passwords under {SHORTEST_PASSWORD} characters for", short),
    ):
        if roles:
            yield _Problem("servicePasswords", f"{text} {', '.join(roles)}")


def _message(problems: list[_Problem], stack: str) -> str:
    declared = yaml.safe_load((ROOT / "Pulumi.yaml").read_text())["config"]
    blocks = [f"the config of stack {stack} has {len(problems)} problem(s)"]
    for problem in problems:
        key, file = problem.key, f"Pulumi.{stack}.yaml"
        lines = [f"{PROJECT}:{key} {problem.text}"]
        if key in _FIELDS:
            lines += [f"  it is: {declared[key]['description']}", *_remedy(problem, stack, file)]
        else:
            lines.append(f"  what to do: remove or rename it in {file}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _remedy(problem: _Problem, stack: str, file: str) -> Iterator[str]:
    """The lines that say what to do about a key of this project, with the YAML to add."""
    key = problem.key
    start = "  what to do: " + (f"{problem.remedy}: " if problem.remedy else "")
    value: Any
    if key == "servicePasswords":
        paths, value = (
            [f"--path {key}.{role}" for role in SERVICES],
            {role: {"secure": "(ciphertext)"} for role in SERVICES},
        )
    elif key in SECRETS:
        paths, value = [key], {"secure": "(ciphertext)"}
    else:
        paths, value = [], Config.model_fields[_FIELDS[key]].examples[0]  # type: ignore[index]
    commands = [f"pulumi config set -s {stack} --secret {path}" for path in paths]
    if commands:
        yield start + "\n  and: ".join(commands)
        yield f"  which adds to {file}, below config:"
    else:
        yield f"{start}write in {file}, below config, for example:"
    added = yaml.safe_dump({f"{PROJECT}:{key}": value}, sort_keys=False)
    yield textwrap.indent(added.rstrip(), "    ")
