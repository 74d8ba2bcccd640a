"""The gateway's settings, from environment variables of the same names in capitals."""

from typing import Annotated

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from provisioner.settings import DatabaseUrl, LogLevel


class Settings(BaseSettings):
    """All settings of the gateway.

    Attributes:
        database_url: the URL of the role instance_gateway.
        host: the address that it listens on.
        port: its port.
        log_level: the least severe event that is logged.
    """

    model_config = SettingsConfigDict(frozen=True)

    database_url: DatabaseUrl
    host: str = "0.0.0.0"  # noqa: S104 - in a pod, whose NetworkPolicy restricts access
    port: Annotated[int, Field(ge=0, lt=65536)] = 8081
    log_level: LogLevel = "info"
