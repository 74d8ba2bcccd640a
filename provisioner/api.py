"""The HTTP API: it writes the row and answers; the loop does the work."""

import asyncio
import hmac
import time
import uuid
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import psycopg
from fastapi import APIRouter, Body, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from psycopg import errors
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from provisioner import rows as table
from provisioner.database import Database
from provisioner.listener import Listener
from provisioner.reach import Reach
from provisioner.rows import RefusedError, Row
from provisioner.settings import Settings

LONGEST_WAIT = 600
PRINTABLE = r"^[^\x00]*$"

Tier = Literal["free", "starter", "professional", "enterprise"]
Wait = Annotated[
    float,
    Query(ge=0, le=LONGEST_WAIT, description="Seconds to wait for the work to be done."),
]


def _number(value: Any) -> Any:
    if isinstance(value, str | bool):
        raise ValueError("must be a number")
    return value


NUMBER = BeforeValidator(_number)
"""Where JSON says a number, no text that looks like one will do."""


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Provision(_Request):
    """Whose instance to make."""

    subscription_id: uuid.UUID
    account_id: uuid.UUID
    tier: Tier | None = Field(None, description="If given, it has to be the subscription's.")
    config: dict[str, Any] = Field(
        {}, description="Agents, teams, tools, models and rooms of a new instance."
    )


class DeprovisionInstance(_Request):
    """Which instance to remove."""

    instance_id: uuid.UUID
    reason: str | None = Field(None, max_length=500, pattern=PRINTABLE)


class DeprovisionCustomer(_Request):
    """Whose instances to remove, all of them."""

    customer_id: uuid.UUID = Field(description="The account's id.")
    reason: str | None = Field(None, max_length=500, pattern=PRINTABLE)


class Limits(_Request):
    """What an instance may use; what is left out stays."""

    instance_id: uuid.UUID
    cpu_limit: Annotated[float | None, NUMBER] = Field(
        None, ge=0.01, le=999.99, description="Cores."
    )
    memory_limit_mb: Annotated[int | None, NUMBER] = Field(None, gt=0, lt=2**31)
    storage_limit_gb: Annotated[int | None, NUMBER] = Field(None, gt=0, lt=2**31)


class Problem(BaseModel):
    """What is wrong with a request, or with the service."""

    detail: str


class Readiness(BaseModel):
    """Whether the service can do its work."""

    ready: bool
    problems: dict[str, str]


def create(
    settings: Settings,
    database: Database,
    listener: Listener,
    reaches: Sequence[Reach],
    stopping: asyncio.Event,
) -> FastAPI:
    """The application."""
    token = settings.api_token.get_secret_value().encode()
    bearer = HTTPBearer(auto_error=False, description="The service's API_TOKEN.")

    def authorized(
        given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
    ) -> None:
        presented = given.credentials.encode() if given else b""
        if not hmac.compare_digest(presented, token):
            raise HTTPException(
                401,
                "present the API token: Authorization: Bearer TOKEN",
                {"WWW-Authenticate": "Bearer"},
            )

    async def settle(instance_ids: Sequence[uuid.UUID], wait: float) -> list[Row]:
        """Instances as they are when their work is done, or the time is over."""
        until = time.monotonic() + wait
        with listener.waiting(instance_ids) as changed:
            while True:
                changed.clear()
                rows = await table.read(database, instance_ids)
                left = until - time.monotonic()
                if all(row.settled for row in rows) or left <= 0 or stopping.is_set():
                    return rows
                try:
                    async with asyncio.timeout(left):
                        await changed.wait()
                except TimeoutError:
                    continue

    def status(response: Response, rows: Sequence[Row]) -> None:
        response.status_code = 200 if all(row.settled for row in rows) else 202

    api = APIRouter(
        prefix="/api/v1",
        dependencies=[Depends(authorized)],
        responses={
            202: {"description": "Accepted: the work is not done yet"},
            400: {"model": Problem, "description": "The body is not JSON"},
            401: {"model": Problem, "description": "Without the API token"},
            404: {"model": Problem, "description": "No such row"},
            409: {"model": Problem, "description": "Not in this state"},
            503: {"model": Problem, "description": "The database is away"},
        },
    )

    @api.post("/provision", responses={202: {"model": Row}})
    async def provision(request: Provision, response: Response, wait: Wait = 0) -> Row:
        """Provision a subscription's instance; the same one however often it is asked for."""
        instance_id = await table.provision(
            database, request.subscription_id, request.account_id, request.tier, request.config
        )
        rows = await settle([instance_id], wait)
        status(response, rows)
        return rows[0]

    @api.delete("/deprovision", responses={202: {"model": list[Row]}})
    async def deprovision(
        request: Annotated[DeprovisionInstance | DeprovisionCustomer, Body()],
        response: Response,
        wait: Wait = 0,
    ) -> list[Row]:
        """Remove an instance, or all that a customer has."""
        instance_ids = await table.deprovision(
            database,
            request.instance_id if isinstance(request, DeprovisionInstance) else None,
            request.customer_id if isinstance(request, DeprovisionCustomer) else None,
            request.reason,
        )
        rows = await settle(instance_ids, wait)
        status(response, rows)
        return rows

    @api.put("/limits", responses={202: {"model": Row}})
    async def limits(request: Limits, response: Response, wait: Wait = 0) -> Row:
        """Change what an instance may use, until its tier changes."""
        await table.set_limits(
            database,
            request.instance_id,
            request.cpu_limit,
            request.memory_limit_mb,
            request.storage_limit_gb,
        )
        rows = await settle([request.instance_id], wait)
        status(response, rows)
        return rows[0]

    @api.get("/instances/{instance_id}")
    async def instance(instance_id: uuid.UUID) -> Row:
        """An instance as it is now."""
        [row] = await table.read(database, [instance_id])
        return row

    app = FastAPI(
        title="instance-provisioner",
        version="1.0.0",
        docs_url=None,
        redoc_url=None,
        exception_handlers={RefusedError: _refused, psycopg.Error: _database_error},
    )
    app.include_router(api)

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Alive, whatever it can reach."""
        return {"status": "alive"}

    @app.get("/ready", responses={503: {"model": Readiness}})
    async def ready(response: Response) -> Readiness:
        """Whether database and cluster are reached, as those who use them saw it last."""
        problems = {
            f"{reach.name}: {task}": problem
            for reach in reaches
            for task, problem in reach.problems.items()
        }
        if stopping.is_set():
            problems["service"] = "stopping"
        response.status_code = 503 if problems else 200
        return Readiness(ready=not problems, problems=problems)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    return app


async def _refused(_: Request, error: Exception) -> JSONResponse:
    status = error.status if isinstance(error, RefusedError) else 500
    return JSONResponse({"detail": str(error)}, status)


async def _database_error(_: Request, error: Exception) -> JSONResponse:
    """What the database refuses, in its own words; that it cannot be asked."""
    diagnosis = error.diag if isinstance(error, psycopg.Error) else None
    text = (diagnosis and diagnosis.message_primary) or str(error)
    if diagnosis and diagnosis.message_hint:
        text = f"{text}: {diagnosis.message_hint}"
    match error:
        case errors.NoDataFound():
            status = 404
        case errors.ObjectNotInPrerequisiteState():
            status = 409
        case psycopg.DataError() | psycopg.IntegrityError():
            status = 422
        case _:
            status = 503
    # FastAPI's own shape for what is wrong with a request.
    problem = [{"loc": ["body"], "msg": text, "type": "database"}]
    return JSONResponse({"detail": problem if status == 422 else text}, status)
