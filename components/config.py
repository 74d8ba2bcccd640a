"""The stack's config: typed, cross-checked, all problems told at once with the YAML to add.

This is the only reader of stack config.  Names, descriptions and defaults of the keys are in
Pulumi.yaml.
"""

import difflib
import json
import os
import re
import textwrap
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

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
from components.session import DatabaseTarget, endpoint
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
    database_bastion: str = Field("", examples=["deploy@platform.mindroom.example"])
    service_passwords: Annotated[dict[str, SecretStr], BeforeValidator(_from_json)]
    kubernetes_context: str = Field("", examples=["production"])
    render_directory: str = Field("", examples=[""])
    provisioner_image: str = Field(examples=["registry.example/instance-provisioner:1.0.0"])
    provisioner_api_token: SecretStr
    base_domain: str = Field(examples=["mindroom.example"])
    automation: Scheduler = Field(examples=["kubernetes"])
    protect: bool = Field(examples=[True])
    policy_exceptions: Annotated[list[PolicyException], BeforeValidator(parse_exceptions)] = Field(
        [],
        examples=[[{"policy": "pods-have-limits", "resource": "NAME OR TYPE", "reason": "WHY"}]],
    )

    @property
    def connection(self) -> DatabaseTarget:
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
    problems = []
    config = None
    try:
        config = Config.model_validate(given)
    except ValidationError as error:
        problems += [_problem(detail) for detail in error.errors()]
    wrong = {key for key, _ in problems}
    problems += [(key, text) for key, text in _contradictions(given) if key not in wrong]
    problems += [
        (key, "stands in the stack file in plain text: replace it, it may have been seen")
        for key in exposed
    ]
    if problems or config is None:
        raise pulumi.RunError(_message(problems, stack))
    return config


def _problem(detail: Any) -> tuple[str, str]:
    key = str(detail["loc"][0])
    match detail["type"]:
        case "missing":
            return key, "is missing"
        case "extra_forbidden":
            close = difflib.get_close_matches(key, _FIELDS, 1)
            return key, "is no key of this project" + (f": {close[0]} is meant?" if close else "")
        case "literal_error":
            return key, f"must be {detail['ctx']['expected']}, not {detail['input']!r}"
        case kind if key in SECRETS:
            return key, f"is malformed ({kind}; the value is not shown)"
        case "value_error":
            return key, str(detail["ctx"]["error"])
        case _:
            return key, f"{detail['msg'].lower()}, not {detail['input']!r}"


def _contradictions(given: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is wrong in combination, told of values that may be wrong by themselves, too."""
    problems = []
    sslmode = given.get("databaseSslmode", "")
    if given.get("platform") == "supabase" and str(given.get("databasePort")) == "6543":
        problems.append(
            (
                "databasePort",
                "6543 is Supabase's transaction pooler, where the migration lock does not hold: "
                "use the session mode port 5432",
            )
        )
    if given.get("databaseHost") not in (None, *LOOPBACK) and sslmode in (
        "disable",
        "allow",
        "prefer",
    ):
        problems.append(
            ("databaseSslmode", f"{sslmode} sends passwords in the clear to a remote host")
        )
    certificate = given.get("databaseSslrootcert")
    if sslmode.startswith("verify") and not certificate:
        problems.append(("databaseSslrootcert", f"is missing, and sslmode {sslmode} needs it"))
    if certificate and not (ROOT / certificate).is_file():
        problems.append(("databaseSslrootcert", f"{certificate!r} is no file: put it there"))
    if not given.get("kubernetesContext") and not given.get("renderDirectory"):
        problems.append(
            (
                "kubernetesContext",
                "and renderDirectory are missing: give one of them, so that nothing is deployed "
                "to whatever cluster happens to be current",
            )
        )
    if given.get("kubernetesContext") and given.get("renderDirectory"):
        problems.append(
            ("renderDirectory", "and kubernetesContext are both given: empty one of them")
        )
    elif context := given.get("kubernetesContext"):
        files = os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
        if context not in _contexts(files):
            problems.append(
                (
                    "kubernetesContext",
                    f"{context!r} is no context of {files}: `kubectl config get-contexts` lists "
                    "those that are; KUBECONFIG can name another file",
                )
            )
    token = given.get("provisionerApiToken")
    if token and len(str(token)) < SHORTEST_PASSWORD:
        problems.append(("provisionerApiToken", f"is under {SHORTEST_PASSWORD} characters long"))
    image = given.get("provisionerImage")
    if image and not _IMAGE.fullmatch(image):
        problems.append(
            ("provisionerImage", f"{image!r} is not repository:tag or repository@sha256:digest")
        )
    return problems + _password_problems(given)


def _contexts(files: str) -> set[str]:
    """The contexts of kubeconfig files, as the provider merges them."""
    found = set()
    for path in files.split(os.pathsep):
        with suppress(OSError, UnicodeError, yaml.YAMLError, TypeError, KeyError):
            contexts = yaml.safe_load(Path(path).read_text())["contexts"]
            found |= {str(context["name"]) for context in contexts}
    return found


def _password_problems(given: Mapping[str, Any]) -> list[tuple[str, str]]:
    try:
        passwords = dict(_from_json(given.get("servicePasswords", {})))
    except (TypeError, ValueError):
        return []
    missing = [role for role in SERVICES if not passwords.get(role)]
    unknown = [role for role in passwords if role not in SERVICES]
    short = [
        role for role, password in passwords.items() if 0 < len(str(password)) < SHORTEST_PASSWORD
    ]
    problems = {
        "has no password for": missing,
        "names roles that do not exist:": unknown,
        f"has passwords under {SHORTEST_PASSWORD} characters for": short,
    }
    return [
        ("servicePasswords", f"{text} {', '.join(roles)}")
        for text, roles in problems.items()
        if roles
    ]


def _message(problems: list[tuple[str, str]], stack: str) -> str:
    described = yaml.safe_load((ROOT / "Pulumi.yaml").read_text())["config"]
    lines = [f"the config of stack {stack} has {len(problems)} problem(s)"]
    for key, text in problems:
        lines.append(f"\n{PROJECT}:{key} {text}")
        if key not in _FIELDS:
            lines.append(f"  remove or rename it in Pulumi.{stack}.yaml")
            continue
        lines.append(f"  it is: {described[key]['description']}")
        if key == "servicePasswords":
            lines += [
                f"  run: pulumi config set -s {stack} --secret --path servicePasswords.{role}"
                for role in SERVICES
            ]
        elif key in SECRETS:
            lines.append(f"  run: pulumi config set -s {stack} --secret {key}")
        value: Any = {"secure": "(ciphertext)"}
        if key == "servicePasswords":
            value = {role: {"secure": "(ciphertext)"} for role in SERVICES}
        if key in SECRETS:
            lines.append(f"  which adds to Pulumi.{stack}.yaml, below config:")
        else:
            lines.append(f"  in Pulumi.{stack}.yaml, below config, for example:")
            value = Config.model_fields[_FIELDS[key]].examples[0]  # type: ignore[index]
        added = yaml.safe_dump({f"{PROJECT}:{key}": value}, sort_keys=False)
        lines.append(textwrap.indent(added.rstrip(), "    "))
    return "\n".join(lines)
