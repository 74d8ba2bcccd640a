"""The service's settings, from environment variables of the same names in capitals."""

import hashlib
import os
import socket
import ssl
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict
from pydantic import AfterValidator, Field, Json, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

LOG_LEVELS = ("debug", "info", "warning", "error")
MIN_TOKEN_BYTES = 16


def _known_level(value: str) -> str:
    if value not in LOG_LEVELS:
        raise ValueError(f"must be one of {', '.join(LOG_LEVELS)}")
    return value


def _long_enough(value: SecretStr) -> SecretStr:
    if len(value.get_secret_value().encode()) < MIN_TOKEN_BYTES:
        raise ValueError(f"must have at least {MIN_TOKEN_BYTES} bytes")
    return value


def _database_url(value: SecretStr) -> SecretStr:
    try:
        conninfo_to_dict(value.get_secret_value())
    except ProgrammingError:
        raise ValueError("must be postgresql://USER:PASSWORD@HOST:PORT/DATABASE") from None
    return value


def _certificates(value: str) -> str:
    if value:
        try:
            ssl.create_default_context(cadata=value)
        except (ssl.SSLError, ValueError):
            raise ValueError("must be certificates (PEM)") from None
    return value


DatabaseUrl = Annotated[SecretStr, AfterValidator(_database_url)]
LogLevel = Annotated[str, AfterValidator(_known_level)]


class SettingsError(Exception):
    """Variables that are missing or wrong, and why."""


class Settings(BaseSettings):
    """All settings of the service; times are in seconds.

    Attributes:
        database_url: the URL of the role instance_provisioner.
        api_token: what callers of the HTTP API have to present.
        base_domain: the domain under which every instance has its subdomain.
        instances_namespace: the namespace of the releases.
        instance_values: values of the instance chart for every instance (JSON), such as
            {"ingress": {"className": "nginx"}}; a row's app_config overrides them.
        instance_chart: the directory of the instance chart.
        helm: the Helm program.
        host: the address that the HTTP API listens on.
        port: its port.
        log_level: the least severe event that is logged.
        workers: how many instances are worked on at the same time, beside those that wait for pods.
        resync_seconds: between two comparisons of all rows with all objects in the namespace.
        keepalive_seconds: between two keep-alive queries on the listening connection.
        lease_seconds: after which another worker takes over from one that died.
        helm_timeout_seconds: how long pods may take to become ready, or objects to be gone.
        helm_slack_seconds: how much longer Helm may take before it is killed.
        max_attempts: how often the provisioning of a new instance is attempted.
        first_backoff_seconds: longest delay of the second attempt; doubles with each further one.
        last_backoff_seconds: the limit of that delay.
        measure: whether what instances use is measured, by the kubelets, or not at all.
        measure_seconds: between two measurements.
        kubelet_ca: CAs (PEM) that kubelets' certificates may be of, beside the API server's.
        grace_seconds: to finish what is in progress after SIGTERM; below the pod's grace period.
    """

    model_config = SettingsConfigDict(frozen=True)

    database_url: DatabaseUrl
    api_token: Annotated[SecretStr, AfterValidator(_long_enough)]
    base_domain: Annotated[
        str, Field(pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$")
    ]
    instances_namespace: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
    instance_values: Json[dict[str, Any]] = Field("{}", validate_default=True)
    instance_chart: Path = Path(__file__).parent.parent / "charts" / "instance"
    helm: str = "helm"
    host: str = "0.0.0.0"  # noqa: S104 - in a pod, whose NetworkPolicy restricts access
    port: Annotated[int, Field(ge=0, lt=65536)] = 8080
    log_level: LogLevel = "info"
    workers: Annotated[int, Field(gt=0)] = 4
    resync_seconds: Annotated[float, Field(gt=0)] = 60
    keepalive_seconds: Annotated[float, Field(gt=0)] = 15
    lease_seconds: Annotated[float, Field(ge=1)] = 60
    helm_timeout_seconds: Annotated[int, Field(gt=0)] = 300
    helm_slack_seconds: Annotated[float, Field(ge=0)] = 15
    max_attempts: Annotated[int, Field(gt=0)] = 5
    first_backoff_seconds: Annotated[float, Field(gt=0)] = 5
    last_backoff_seconds: Annotated[float, Field(gt=0)] = 300
    measure: Literal["kubelet", "none"] = "none"
    measure_seconds: Annotated[float, Field(gt=0)] = 300
    kubelet_ca: Annotated[str, AfterValidator(_certificates)] = ""
    grace_seconds: Annotated[float, Field(ge=0)] = 45

    @property
    def lease_owner(self) -> str:
        """This process's name in `leased_by`: host/pid."""
        return f"{socket.gethostname()}/{os.getpid()}"

    @cached_property
    def chart_digest(self) -> str:
        """Of all files of the chart."""
        digest = hashlib.sha256()
        for path in sorted(self.instance_chart.rglob("*")):
            if path.is_file():
                digest.update(f"{path.relative_to(self.instance_chart)}\n".encode())
                digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()


S = TypeVar("S", bound=BaseSettings)


def load(kind: type[S]) -> S:
    """The settings of this process.

    Raises:
        SettingsError: names every variable that is missing or wrong, and never its value.
    """
    try:
        return kind()
    except ValidationError as error:
        problems = [
            f"{str(problem['loc'][0]).upper()}: {_description(problem['type'], problem['msg'])}"
            for problem in error.errors(include_input=False, include_url=False)
        ]
    raise SettingsError("; ".join(problems))


def _description(kind: str, message: str) -> str:
    return "is not set" if kind == "missing" else message.removeprefix("Value error, ")
