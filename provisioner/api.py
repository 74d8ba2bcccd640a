"""The HTTP API: a request changes the row of an instance, and the reconciler does the work."""

import asyncio
import hmac
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import psycopg
from fastapi import APIRouter, Body, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from psycopg import errors
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

from provisioner import operations
from provisioner.database import Database
from provisioner.listener import Listener
from provisioner.operations import RefusedError, Row
from provisioner.reachability import Reachability

MAX_WAIT_SECONDS = 600
NO_NUL_CHARACTER = r"^[^\x00]*$"

Tier = Literal["free", "starter", "professional", "enterprise"]
Wait = Annotated[
    float,
    Query(ge=0, le=MAX_WAIT_SECONDS, description="Seconds to wait for the work to be done."),
]


def _not_text(value: Any) -> Any:
    if isinstance(value, str | bool):
        raise ValueError("must be a number")
    return value


STRICT_NUMBER = BeforeValidator(_not_text)
"""A JSON number; pydantic alone would also take text that looks like one."""


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Provision(_Request):
    """Whose instance to provision."""

    subscription_id: uuid.UUID
    account_id: uuid.UUID
    tier: Tier | None = Field(None, description="If given, it has to be the subscription's.")
    config: dict[str, Any] = Field(
        {}, description="Agents, teams, tools, models and rooms of a new instance."
    )


class DeprovisionInstance(_Request):
    """Which instance to remove."""

    instance_id: uuid.UUID
    reason: str | None = Field(None, max_length=500, pattern=NO_NUL_CHARACTER)


class DeprovisionCustomer(_Request):
    """The customer whose instances to remove, all of them."""

    customer_id: uuid.UUID = Field(description="The account's id.")
    reason: str | None = Field(None, max_length=500, pattern=NO_NUL_CHARACTER)


class Limits(_Request):
    """New limits of an instance; those that are left out do not change."""

    instance_id: uuid.UUID
    cpu_limit: Annotated[float | None, STRICT_NUMBER] = Field(
        None, ge=0.01, le=999.99, description="Cores."
    )
    memory_limit_mb: Annotated[int | None, STRICT_NUMBER] = Field(None, gt=0, lt=2**31)
    storage_limit_gb: Annotated[int | None, STRICT_NUMBER] = Field(None, gt=0, lt=2**31)


class Retry(_Request):
    """Which instance to work on now."""

    instance_id: uuid.UUID


class Problem(BaseModel):
    """Why a request failed."""

    detail: str


class Readiness(BaseModel):
    """Whether the service can do its work, and what prevents it."""

    ready: bool
    problems: dict[str, str]


@dataclass(frozen=True)
class Dependencies:
    """What the routes use.

    Attributes:
        api_token: what callers have to present.
        stopping: set when the service was told to stop.
    """

    api_token: SecretStr
    database: Database
    listener: Listener
    reachabilities: Sequence[Reachability]
    stopping: asyncio.Event

    async def wait_until_settled(
        self, instance_ids: Sequence[uuid.UUID], seconds: float
    ) -> list[Row]:
        """Instances when their work is done or the time is up, whichever comes first."""
        deadline = time.monotonic() + seconds
        with self.listener.subscribe(instance_ids) as changed:
            while True:
                changed.clear()
                rows = await operations.read(self.database, instance_ids)
                remaining = deadline - time.monotonic()
                if all(row.settled for row in rows) or remaining <= 0 or self.stopping.is_set():
                    return rows
                try:
                    async with asyncio.timeout(remaining):
                        await changed.wait()
                except TimeoutError:
                    continue


def _dependencies(request: Request) -> Dependencies:
    dependencies: Dependencies = request.app.state.dependencies
    return dependencies


Injected = Annotated[Dependencies, Depends(_dependencies)]
BEARER = HTTPBearer(auto_error=False, description="The service's API_TOKEN.")


def _authorize(
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)],
    dependencies: Injected,
) -> None:
    presented = credentials.credentials if credentials else ""
    expected = dependencies.api_token.get_secret_value()
    if not hmac.compare_digest(presented.encode(), expected.encode()):
        raise HTTPException(
            401,
            "present the API token: Authorization: Bearer TOKEN",
            {"WWW-Authenticate": "Bearer"},
        )


api = APIRouter(
    prefix="/api/v1",
    dependencies=[Depends(_authorize)],
    responses={
        202: {"description": "Accepted: the work is not done yet"},
        400: {"model": Problem, "description": "The body is not JSON"},
        401: {"model": Problem, "description": "Without the API token"},
        404: {"model": Problem, "description": "No such row"},
        409: {"model": Problem, "description": "Not in this state"},
        503: {"model": Problem, "description": "The database cannot be reached"},
    },
)


def _set_status(response: Response, rows: Sequence[Row]) -> None:
    response.status_code = 200 if all(row.settled for row in rows) else 202


@api.post("/provision", responses={202: {"model": Row}})
async def provision(
    body: Provision, response: Response, dependencies: Injected, wait: Wait = 0
) -> Row:
    """Provision a subscription's instance; repeated requests get the same one."""
    instance_id = await operations.provision(
        dependencies.database, body.subscription_id, body.account_id, body.tier, body.config
    )
    rows = await dependencies.wait_until_settled([instance_id], wait)
    _set_status(response, rows)
    return rows[0]


@api.delete("/deprovision", responses={202: {"model": list[Row]}})
async def deprovision(
    body: Annotated[DeprovisionInstance | DeprovisionCustomer, Body()],
    response: Response,
    dependencies: Injected,
    wait: Wait = 0,
) -> list[Row]:
    """Remove an instance, or all instances of a customer."""
    if isinstance(body, DeprovisionInstance):
        instance_ids = await operations.deprovision_instance(
            dependencies.database, body.instance_id, body.reason
        )
    else:
        instance_ids = await operations.deprovision_customer(
            dependencies.database, body.customer_id, body.reason
        )
    rows = await dependencies.wait_until_settled(instance_ids, wait)
    _set_status(response, rows)
    return rows


@api.put("/limits", responses={202: {"model": Row}})
async def limits(body: Limits, response: Response, dependencies: Injected, wait: Wait = 0) -> Row:
    """Change the limits of an instance, until its tier changes."""
    await operations.set_limits(
        dependencies.database,
        body.instance_id,
        body.cpu_limit,
        body.memory_limit_mb,
        body.storage_limit_gb,
    )
    rows = await dependencies.wait_until_settled([body.instance_id], wait)
    _set_status(response, rows)
    return rows[0]


@api.post("/retry", responses={202: {"model": Row}})
async def retry(body: Retry, response: Response, dependencies: Injected, wait: Wait = 0) -> Row:
    """Work on an instance now; a change of it that is held is tried again."""
    await operations.retry(dependencies.database, body.instance_id)
    rows = await dependencies.wait_until_settled([body.instance_id], wait)
    _set_status(response, rows)
    return rows[0]


@api.get("/instances/{instance_id}")
async def instance(instance_id: uuid.UUID, dependencies: Injected) -> Row:
    """An instance as it is now."""
    [row] = await operations.read(dependencies.database, [instance_id])
    return row


probes = APIRouter()


@probes.get("/health")
async def health() -> dict[str, str]:
    """Whether the process is alive; database and cluster need not be reachable."""
    return {"status": "alive"}


@probes.get("/ready", responses={503: {"model": Readiness}})
async def ready(response: Response, dependencies: Injected) -> Readiness:
    """Whether database and cluster can be reached, as the service's tasks last found."""
    problems = {
        f"{reachability.name}: {task}": problem
        for reachability in dependencies.reachabilities
        for task, problem in reachability.problems.items()
    }
    if dependencies.stopping.is_set():
        problems["service"] = "stopping"
    response.status_code = 503 if problems else 200
    return Readiness(ready=not problems, problems=problems)


@probes.get("/metrics", response_class=PlainTextResponse)
async def metrics() -> Response:
    """The metrics, for Prometheus."""
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


async def _refused(_: Request, error: Exception) -> JSONResponse:
    status = error.status if isinstance(error, RefusedError) else 500
    return JSONResponse({"detail": str(error)}, status)


async def _database_error(_: Request, error: Exception) -> JSONResponse:
    """The database's own message, with the HTTP status that corresponds to its SQLSTATE."""
    diagnosis = error.diag if isinstance(error, psycopg.Error) else None
    message = (diagnosis and diagnosis.message_primary) or str(error)
    if diagnosis and diagnosis.message_hint:
        message = f"{message}: {diagnosis.message_hint}"
    match error:
        case errors.NoDataFound():
            status = 404
        case errors.ObjectNotInPrerequisiteState():
            status = 409
        case psycopg.DataError() | psycopg.IntegrityError():
            status = 422
        case _:
            status = 503
    # FastAPI's own format of validation errors.
    validation_errors = [{"loc": ["body"], "msg": message, "type": "database"}]
    return JSONResponse({"detail": validation_errors if status == 422 else message}, status)


def create_app(dependencies: Dependencies) -> FastAPI:
    """The application, for an ASGI server."""
    app = FastAPI(
        title="instance-provisioner",
        version="1.0.0",
        docs_url=None,
        redoc_url=None,
        exception_handlers={RefusedError: _refused, psycopg.Error: _database_error},
    )
    app.state.dependencies = dependencies
    app.include_router(api)
    app.include_router(probes)
    return app
