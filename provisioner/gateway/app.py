"""The gateway's HTTP API: what instances did, and what an API key may do."""

import asyncio
import hashlib
import math
import re
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

import psycopg
import structlog
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from provisioner.gateway import metrics
from provisioner.gateway.database import Database
from provisioner.gateway.rates import Rates, Senders

MAX_BODY_BYTES = 1024 * 1024
MAX_HELD_BYTES = 32 * MAX_BODY_BYTES
"""Of all bodies that are being read, or wait to be counted."""

MAX_HELD_OF_ONE = 4 * MAX_BODY_BYTES
"""Of those from one address."""

BODY_SECONDS = 10.0
"""Within which a body has to arrive."""

BATCHES_PER_SECOND = 2.0
BATCHES_AT_ONCE = 20
"""Of one instance; it sends one every two seconds, and more to make up for an outage."""

KEYS_PER_SECOND = 50.0
KEYS_AT_ONCE = 500
"""Requests with one API key."""

STRANGERS_PER_SECOND = 10.0
STRANGERS_AT_ONCE = 100
"""Requests of one address with what is not known to be good; with API keys, for one instance."""

ASKERS_PER_SECOND = 100.0
ASKERS_AT_ONCE = 1_000
"""Those of one address, for all instances: of an ingress controller, or of who is none."""

RETRY_SECONDS = 2
"""After which to come again when the database cannot be reached."""

log = structlog.get_logger()

Name = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00]*$")]
Time = Annotated[
    str,
    Field(
        max_length=40,
        pattern=r"^[1-9]\d{3}-(0[1-9]|1[0-2])-\d\d[Tt ]([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d+)?"
        r"([Zz]|[+-](0\d|1[0-5]):[0-5]\d)$",
        json_schema_extra={"format": "date-time"},
    ),
]


class _Event(BaseModel):
    id: str = Field(
        min_length=1,
        max_length=255,
        pattern=r"^[^\x00]*$",
        description="An event is counted once, however often it is sent within three days.",
    )
    agent: Name | None = None
    platform: Name | None = None
    at: Time | None = Field(None, description="When it was: now, if left out.")


class MessageEvent(_Event):
    """A message."""

    type: Literal["sent", "received"]
    tool: Name | None = None


class ToolEvent(_Event):
    """A call of a tool."""

    type: Literal["tool"]
    tool: Name


class Batch(BaseModel):
    """What an instance did."""

    events: list[Annotated[MessageEvent | ToolEvent, Field(discriminator="type")]] = Field(
        max_length=1000
    )


BATCH = TypeAdapter(Batch)
EVENTS = TypeAdapter(list[MessageEvent | ToolEvent])


class Usage(BaseModel):
    """How much of a batch was new, and what the plan leaves for today."""

    counted: int
    duplicates: int
    within_limits: bool
    messages_remaining: int = Field(description="-1 = unlimited.")
    resets_at: datetime


class Problem(BaseModel):
    """Why a request failed."""

    detail: str


class BadEvent(Problem):
    """What is wrong with a batch, and the number of the event, counted from 0."""

    index: int | None = None


class BadBatchError(Exception):
    """A batch of which nothing was counted."""

    def __init__(self, detail: str, index: int | None = None) -> None:
        super().__init__(detail)
        self.index = index


@dataclass
class Gateway:
    """What the routes use.

    Attributes:
        instances: by their tokens.
        keys: by instance and API key.
        askers: about API keys, by address.
        held: bytes of the bodies that are not answered yet, by address of the client.
    """

    database: Database
    instances: Senders = field(
        default_factory=lambda: Senders(
            Rates(BATCHES_PER_SECOND, BATCHES_AT_ONCE),
            Rates(STRANGERS_PER_SECOND, STRANGERS_AT_ONCE),
        )
    )
    keys: Senders = field(
        default_factory=lambda: Senders(
            Rates(KEYS_PER_SECOND, KEYS_AT_ONCE), Rates(STRANGERS_PER_SECOND, STRANGERS_AT_ONCE)
        )
    )
    askers: Rates = field(default_factory=lambda: Rates(ASKERS_PER_SECOND, ASKERS_AT_ONCE))
    held: Counter[str] = field(default_factory=Counter)

    @asynccontextmanager
    async def body_of(self, request: Request) -> AsyncIterator[bytes]:
        """The body of a request, held until it is answered; unless it is too large or too slow."""
        body, client = bytearray(), _client(request)
        try:
            try:
                async with asyncio.timeout(BODY_SECONDS):
                    async for chunk in request.stream():
                        body += chunk
                        self.held[client] += len(chunk)
                        if len(body) > MAX_BODY_BYTES:
                            raise _unread(413, "a batch has at most 1 MiB: send fewer events")
                        if (
                            self.held[client] > MAX_HELD_OF_ONE
                            or self.held.total() > MAX_HELD_BYTES
                        ):
                            raise _unread(503, "too much is being sent at once", RETRY_SECONDS)
            except TimeoutError:
                raise _unread(408, f"the body did not arrive within {BODY_SECONDS:g} s") from None
            except ClientDisconnect:
                raise _unread(499, "the client has gone") from None
            yield bytes(body)
        finally:
            self.held[client] -= len(body)
            if not self.held[client]:
                del self.held[client]


def _client(request: Request) -> str:
    """The address that a request comes from."""
    return request.client.host if request.client else ""


def _unread(status: int, detail: str, retry_after: int | None = None) -> HTTPException:
    """An answer before the end of the request, whose rest is not read."""
    headers = {"Connection": "close"}
    if retry_after:
        headers["Retry-After"] = str(retry_after)
    return HTTPException(status, detail, headers)


async def _gateway(request: Request) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway


Injected = Annotated[Gateway, Depends(_gateway)]
Bearer = Annotated[
    HTTPAuthorizationCredentials | None,
    Depends(HTTPBearer(auto_error=False, description="The instance's token, or an API key.")),
]
ApiKey = Annotated[
    str | None, Depends(APIKeyHeader(name="X-API-Key", auto_error=False, description="An API key."))
]

api = APIRouter(
    responses={
        401: {"model": Problem, "description": "Nothing was presented that is known"},
        503: {"model": Problem, "description": "The database cannot be reached: see Retry-After"},
    }
)


@api.post(
    "/v1/usage",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Batch"}}},
        }
    },
    responses={
        408: {"model": Problem, "description": "The body did not arrive in time"},
        413: {"model": Problem, "description": "The body has more than 1 MiB"},
        422: {"model": BadEvent, "description": "An event is malformed; nothing was counted"},
        429: {"model": Problem, "description": "Too many batches: see Retry-After"},
    },
)
async def usage(request: Request, presented: Bearer, gateway: Injected) -> Usage:
    """Count a batch of the instance whose token is presented, each event once."""
    if not presented:
        raise _unauthorized("present the instance's token: Authorization: Bearer TOKEN")
    token_hash = _sha256(presented.credentials)
    client = _client(request)
    if wait := gateway.instances.seconds_to_wait(token_hash, client):
        raise _unread(429, "too many batches", math.ceil(wait))
    try:
        async with gateway.body_of(request) as body:
            counted = await gateway.database.record_usage(token_hash, _events_of(body))
    except ValidationError as error:
        raise _bad_batch(error) from None
    except (psycopg.DataError, UnicodeError) as error:
        raise _refused_batch(error) from None
    gateway.instances.learn(token_hash, client, good=counted is not None)
    if counted is None:
        log.warning("unknown token", client=client)
        raise _unauthorized("no instance has this token")
    metrics.events.labels("counted").inc(counted.counted)
    metrics.events.labels("duplicate").inc(counted.duplicates)
    return Usage.model_construct(**counted._asdict())


def _events_of(body: bytes) -> str:
    """The events of a batch, JSON: far smaller than they are as objects."""
    return EVENTS.dump_json(BATCH.validate_json(body).events, exclude_none=True).decode()


def _bad_batch(error: ValidationError) -> BadBatchError:
    """What is wrong, without what was sent."""
    [problem, *_] = error.errors(include_url=False, include_context=False, include_input=False)
    match problem["loc"]:
        case ("events", int(index), *rest):
            # The discriminator's value stands before the name of a field.
            where = f"event {index} of the batch: " + ".".join(str(part) for part in rest[1:])
            return BadBatchError(f"{where}: {problem['msg']}", index)
        case where:
            return BadBatchError(f"{'.'.join(str(part) for part in where)}: {problem['msg']}")


def _refused_batch(error: psycopg.DataError | UnicodeError) -> BadBatchError:
    """What the database says of a batch."""
    message = isinstance(error, psycopg.Error) and error.diag.message_primary
    if not message:
        return BadBatchError("the batch has text that is no Unicode")
    named = re.match(r"event (\d+) of the batch ", message)
    return BadBatchError(message, int(named[1]) if named else None)


@api.get(
    "/auth",
    responses={
        200: {
            "content": None,
            "headers": {
                name: {"schema": {"type": "string"}}
                for name in ("X-Account-Id", "X-Api-Scopes", "Authorization")
            },
        },
        403: {"model": Problem, "description": "The API key does not allow the request"},
        429: {"model": Problem, "description": "Too many requests: see Retry-After"},
    },
)
async def auth(
    instance: uuid.UUID, request: Request, bearer: Bearer, api_key: ApiKey, gateway: Injected
) -> Response:
    """Whether an ingress may let a request pass: nginx' auth-url, Traefik's ForwardAuth.

    The ingress passes the answer's headers on: with its Authorization MindRoom takes the request.

    Method and path of the request are in X-Original-Method and X-Original-URL, or in
    X-Forwarded-Method and X-Forwarded-Uri.
    """
    key = api_key or (bearer.credentials if bearer else None)
    if not key:
        raise _unauthorized("present an API key: Authorization: Bearer KEY, or X-API-Key: KEY")
    key_hash, client = _sha256(key), _client(request)
    secret, origin = (instance, key_hash), (instance, client)
    wait = gateway.keys.seconds_to_wait(secret, origin)
    if not wait and secret not in gateway.keys:
        wait = gateway.askers.seconds_to_wait(client)
    if wait:
        metrics.keys.labels("rate").inc()
        raise _unread(429, "too many requests", math.ceil(wait))
    permission = needed_permission(request.headers)
    reason: str | None = "request"
    if permission:
        verdict = await gateway.database.verify_api_key(key_hash, instance, permission)
        gateway.keys.learn(secret, origin, good=verdict.valid or verdict.reason == "limit")
        if verdict.valid:
            metrics.keys.labels("valid").inc()
            headers = {
                "X-Account-Id": str(verdict.account_id),
                "X-Api-Scopes": ",".join(verdict.scopes or ()),
            }
            if verdict.upstream_key:
                headers["Authorization"] = f"Bearer {verdict.upstream_key}"
            return Response(headers=headers)
        reason = verdict.reason
    metrics.keys.labels(reason).inc()
    log.info("API key refused", instance_id=str(instance), reason=reason, permission=permission)
    raise HTTPException(403, "the API key does not allow this request")


READING = ("GET", "HEAD", "OPTIONS")
RUNS_AGENTS = re.compile(r"/v1(/|$)")
"""MindRoom's API that is compatible with OpenAI's."""


def needed_permission(headers: Headers) -> str | None:
    """The permission of an API key that a request needs; None if its headers do not tell.

    An ingress sets its own two headers and passes the client's others on, so where both pairs are
    there, they have to agree.
    """
    needed = {
        _permission_for(headers[method], headers.get(url, ""))
        for method, url in (
            ("X-Original-Method", "X-Original-URL"),
            ("X-Forwarded-Method", "X-Forwarded-Uri"),
        )
        if method in headers
    }
    return needed.pop() if len(needed) == 1 else None


def _permission_for(method: str, url: str) -> str | None:
    if method in READING:
        return "read"
    try:
        path = url.partition("?")[0] if url.startswith("/") else urlsplit(url).path
        path = unquote(path, errors="strict")
    except ValueError:
        return None
    # What servers resolve in more than one way.
    if not path.startswith("/") or "\\" in path or "//" in path or re.search(r"/\.\.?(/|$)", path):
        return None
    return "execute" if RUNS_AGENTS.match(path) else "write"


def _unauthorized(detail: str) -> HTTPException:
    return HTTPException(401, detail, {"WWW-Authenticate": "Bearer"})


def _sha256(secret: str) -> str:
    # A header's bytes, as the server decoded them.
    return hashlib.sha256(secret.encode("latin-1")).hexdigest()


probes = APIRouter()


@probes.get("/health")
async def health() -> dict[str, str]:
    """Whether the process is alive; the database need not be reachable."""
    return {"status": "alive"}


@probes.get("/metrics", response_class=PlainTextResponse)
async def prometheus() -> Response:
    """The metrics, for Prometheus."""
    return Response(generate_latest(metrics.REGISTRY), media_type=CONTENT_TYPE_LATEST)


async def _bad_batch_answer(_: Request, error: Exception) -> JSONResponse:
    index = error.index if isinstance(error, BadBatchError) else None
    found = {"index": index} if index is not None else {}
    return JSONResponse({"detail": str(error)} | found, 422)


async def _database_error(request: Request, error: Exception) -> JSONResponse:
    # The first line only: an error may quote what was sent.
    diagnosis = error.diag.message_primary if isinstance(error, psycopg.Error) else None
    text = diagnosis or str(error).partition("\n")[0] or "no answer in time"
    log.warning("database", path=request.url.path, error=text)
    return JSONResponse(
        {"detail": "the database cannot be reached"}, 503, {"Retry-After": str(RETRY_SECONDS)}
    )


class Measured:
    """Observes how long the routes of the API take, and what they answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.paths = {route.path for route in api.routes if hasattr(route, "path")}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http" or scope["path"] not in self.paths:
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 499

        async def observe(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, receive, observe)
        finally:
            metrics.request_duration.labels(scope["path"], status).observe(
                time.perf_counter() - start
            )


def create_app(database: Database) -> FastAPI:
    """The application, for an ASGI server."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with database:
            yield

    app = FastAPI(
        title="instance-gateway",
        version="1.0.0",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        exception_handlers={
            BadBatchError: _bad_batch_answer,
            psycopg.Error: _database_error,
            TimeoutError: _database_error,
        },
    )
    app.add_middleware(Measured)
    app.state.gateway = Gateway(database)
    app.include_router(api)
    app.include_router(probes)
    # The route reads its body itself: nobody else describes it.
    schema: dict[str, Any] = Batch.model_json_schema(ref_template="#/components/schemas/{model}")
    app.openapi()["components"]["schemas"] |= schema.pop("$defs") | {"Batch": schema}
    return app
