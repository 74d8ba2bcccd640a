"""The instance gateway as a process, on a real database: each route with good input and bad."""

import asyncio
import http.client
import json
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx2
import psycopg
import pytest
from psycopg import OperationalError
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import TooManyRequests
from starlette.datastructures import Headers

from components import ROOT
from provisioner.gateway import database
from provisioner.gateway.app import (
    ASKERS_AT_ONCE,
    BATCHES_AT_ONCE,
    MAX_BODY_BYTES,
    MAX_HELD_OF_ONE,
    STRANGERS_AT_ONCE,
    create_app,
    needed_permission,
)
from provisioner.gateway.connections import HEAD_SECONDS, MAX_CONNECTIONS
from provisioner.gateway.database import MAX_WAITING, Counted, Database, Verdict
from provisioner.gateway.rates import MAX_SENDERS, Rates, Senders
from tests.support.customers import NOBODY, Db, customer_of_its_own, key_hash
from tests.support.gateways import environment, running_gateway
from tests.support.platforms import Platform
from tests.support.plugin import Instance
from tests.support.provisioning import PATIENCE, Service
from tests.support.proxy import Proxy

NEVER_MADE = "a-token-that-nobody-has"
HTTP = httpx2.Client(timeout=PATIENCE, trust_env=False, verify=False)


@dataclass
class Customer:
    """A customer with a running instance, its token and an API key, before a gateway."""

    db: Db
    plan: UUID
    instance: UUID
    gateway: Service
    token: str = field(init=False)
    key: str = field(init=False)

    def __post_init__(self) -> None:
        self.token, self.key = f"token-of-{self.instance}", f"key-of-{self.instance}"
        self.rotate(self.token)
        self.db.insert(
            "api_keys",
            account_id=self.account,
            name="a key",
            key_prefix="mr_12345",
            key_hash=key_hash(self.key),
            permissions=["read", "execute"],
        )

    @property
    def account(self) -> UUID:
        return UUID(
            str(self.db.one("select account_id from instances where id = %s", self.instance))
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.gateway.port}"

    def rotate(self, token: str) -> None:
        self.keep("PLATFORM_USAGE_TOKEN", token)

    def keep(self, name: str, secret: str) -> None:
        self.db.run(
            """insert into private.instance_secrets (instance_id, name, value) values (%s, %s, %s)
               on conflict (instance_id, name) do update set value = excluded.value""",
            self.instance,
            name,
            secret,
        )

    def send(self, *events: Any, token: str | None = None) -> httpx2.Response:
        return self.post({"events": list(events)}, token)

    def post(self, body: Any, token: str | None = None) -> httpx2.Response:
        headers = {"Authorization": f"Bearer {token or self.token}"}
        return HTTP.post(f"{self.url}/v1/usage", json=body, headers=headers)

    def ask(self, instance: object = None, **headers: str) -> httpx2.Response:
        """As an ingress asks, by default for a GET."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if not any("method" in name.lower() for name in given):
            given |= {"X-Original-Method": "GET", "X-Original-URL": "https://a.example/"}
        return HTTP.get(
            f"{self.url}/auth",
            params={"instance": str(instance or self.instance)},
            headers=given,
        )

    @property
    def counted(self) -> int:
        """Messages, of all days."""
        return int(
            self.db.one(
                """select coalesce(sum(messages_sent + messages_received), 0)
                   from usage_metrics where instance_id = %s""",
                self.instance,
            )
        )

    def refusals(self) -> dict[str, int]:
        """Reason -> how many refused keys the audit log counts."""
        rows = self.db.run(
            """select details ->> 'reason', (details -> 'count')::int from audit_logs
               where action = 'api_key.refused' and account_id = %s""",
            self.account,
        )
        return dict(rows)


@pytest.fixture(scope="module")
def gateway(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    log = tmp_path_factory.mktemp("gateway") / "log"
    with running_gateway(platform.service_url("instance_gateway"), log) as service:
        yield service


@contextmanager
def a_customer(platform: Platform, gateway: Service) -> Iterator[Customer]:
    with customer_of_its_own(platform) as given:
        yield Customer(*given, gateway)


@pytest.fixture
def customer(platform: Platform, gateway: Service) -> Iterator[Customer]:
    with a_customer(platform, gateway) as customer:
        yield customer


@pytest.fixture
def other(platform: Platform, gateway: Service) -> Iterator[Customer]:
    with a_customer(platform, gateway) as other:
        yield other


def event(id: str, type: str = "sent", **more: Any) -> dict[str, Any]:  # noqa: A002
    return {"id": id, "type": type} | more


class TestUsage:
    """What an instance reports."""

    def test_batch_is_counted_once(self, customer: Customer) -> None:
        batch = [event("a"), event("b", "received", agent="ada"), event("c", "tool", tool="search")]
        answer = customer.send(*batch)
        assert answer.status_code == 200, answer.text
        found = answer.json()
        assert datetime.fromisoformat(found.pop("resets_at")) > datetime.now(UTC)
        assert found == {
            "counted": 3,
            "duplicates": 0,
            "within_limits": True,
            "messages_remaining": -1,
        }
        assert customer.send(*batch, event("a"), event("d")).json()["duplicates"] == 4
        assert customer.counted == 3

    def test_empty_batch_asks_for_the_limit(self, customer: Customer) -> None:
        customer.db.update("subscriptions", customer.plan, max_messages_per_day=2)
        assert customer.send().json()["messages_remaining"] == 2
        answer = customer.send(event("a"), event("b"), event("c")).json()
        assert (answer["within_limits"], answer["messages_remaining"]) == (False, 0)

    @pytest.mark.parametrize(
        "days", [-1, 0, 1, 400], ids=["a-day-ahead", "right", "a-day-behind", "a-year-behind"]
    )
    def test_clock_of_an_instance_may_be_wrong(self, customer: Customer, days: int) -> None:
        at = (datetime.now(UTC) - timedelta(days=days)).isoformat()
        assert customer.send(event("a", at=at)).json()["counted"] == 1
        ago = customer.db.one(
            """select (now() at time zone 'utc')::date - usage_date from usage_metrics
               where instance_id = %s and messages_sent = 1""",
            customer.instance,
        )
        assert ago == (1 if days == 1 else 0)

    def test_requests_at_once_get_their_own_answers(
        self, customer: Customer, other: Customer
    ) -> None:
        """Also where the database refuses one of those that it counts together."""
        bad = event("bad", at="2026-02-31T00:00:00Z")
        calls: list[Callable[[], httpx2.Response]] = []
        for number in range(8):
            calls.append(partial(customer.send, event(f"c{number}")))
            calls.append(partial(other.send, event(f"o{number}"), event("same")))
        calls.append(partial(other.send, event("lost"), bad))
        calls.append(partial(other.send, token=NEVER_MADE))
        with ThreadPoolExecutor(len(calls)) as pool:
            answers = [done.result() for done in [pool.submit(call) for call in calls]]
        *good, refused, unknown = answers
        assert [answer.status_code for answer in good] == [200] * 16
        assert (refused.status_code, refused.json()["index"]) == (422, 1)
        assert unknown.status_code == 401
        assert (customer.counted, other.counted) == (8, 9)

    def test_plugin_is_understood(self, customer: Customer, tmp_path: Path) -> None:
        instance = Instance(tmp_path, customer.gateway.port)
        instance.token_file.write_text(customer.token)
        instance.receive("$question")
        instance.answer("$answer")
        instance.send()
        assert (customer.counted, instance.buffered) == (2, 0)


class TestTokens:
    """By which alone an instance is known."""

    @pytest.mark.parametrize(
        "header", [None, "Bearer", "Basic YTpi", NEVER_MADE, f"Bearer {NEVER_MADE}"]
    )
    def test_without_one_nothing_is_counted(self, customer: Customer, header: str | None) -> None:
        answer = HTTP.post(
            f"{customer.url}/v1/usage",
            json={"events": [event("a")]},
            headers={"Authorization": header} if header else {},
        )
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert NEVER_MADE not in answer.text
        assert customer.counted == 0

    def test_anothers_counts_for_the_other(self, customer: Customer, other: Customer) -> None:
        assert customer.send(event("a"), token=other.token).status_code == 200
        assert (customer.counted, other.counted) == (0, 1)

    def test_api_key_is_none(self, customer: Customer) -> None:
        assert customer.send(event("a"), token=customer.key).status_code == 401

    def test_rotated_one_works_at_once_and_the_old_no_more(self, customer: Customer) -> None:
        old, new = customer.token, f"new-{customer.token}"
        assert customer.send(event("a")).status_code == 200
        customer.rotate(new)
        assert customer.send(event("b"), token=old).status_code == 401
        assert customer.send(event("b"), token=new).status_code == 200
        assert customer.counted == 2


BAD_EVENTS = {
    "no-object": 7,
    "no-id": {"type": "sent"},
    "empty-id": event(""),
    "long-id": event("x" * 256),
    "nul-in-id": event("\0"),
    "number-as-id": {"id": 7, "type": "sent"},
    "no-type": {"id": "a"},
    "unknown-type": event("a", "seen"),
    "empty-agent": event("a", agent=""),
    "long-agent": event("a", agent="x" * 101),
    "tool-without-name": event("a", "tool"),
    "no-time": event("a", at="noon"),
    "date-only": event("a", at="2026-12-01"),
    "no-such-day": event("a", at="2026-02-31T00:00:00Z"),
}


class TestBadBatches:
    """Of which nothing is counted."""

    @pytest.mark.parametrize("bad", BAD_EVENTS.values(), ids=BAD_EVENTS)
    def test_bad_event_is_named_by_its_index(self, customer: Customer, bad: object) -> None:
        answer = customer.send(event("good"), bad, event("also good"))
        assert answer.status_code == 422, answer.text
        assert answer.json()["index"] == 1
        assert answer.json()["detail"].startswith("event 1 of the batch")
        assert customer.counted == 0

    @pytest.mark.parametrize("body", [[], {}, {"events": None}, {"events": {}}, 7, None])
    def test_other_body_is_refused(self, customer: Customer, body: object) -> None:
        answer = customer.post(body)
        assert answer.status_code == 422
        assert "index" not in answer.json()

    @pytest.mark.parametrize(
        "content",
        [b"", b"{", b"\xff", b'{"events": [{"id": "\\ud800", "type": "sent"}]}', b"[" * 100_000],
        ids=["empty", "half", "not-utf-8", "half-a-character", "deep"],
    )
    def test_body_that_is_no_json_is_refused(self, customer: Customer, content: bytes) -> None:
        answer = HTTP.post(
            f"{customer.url}/v1/usage",
            content=content,
            headers={"Authorization": f"Bearer {customer.token}"},
        )
        assert answer.status_code == 422

    def test_batch_of_1001_is_refused_and_one_of_1000_is_not(self, customer: Customer) -> None:
        events = [event(str(number)) for number in range(1001)]
        assert customer.send(*events).status_code == 422
        assert customer.counted == 0
        assert customer.send(*events[:-1]).json()["counted"] == 1000

    @pytest.mark.parametrize("length", [True, False], ids=["with-length", "without-length"])
    def test_ten_megabytes_are_not_read(self, customer: Customer, length: bool) -> None:
        total, block = 10 * MAX_BODY_BYTES, b"x" * 65536
        how = f"Content-Length: {total}" if length else "Transfer-Encoding: chunked"
        with socket.create_connection(("127.0.0.1", customer.gateway.port), timeout=10) as sender:
            sender.sendall(
                f"POST /v1/usage HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {customer.token}\r\n"
                f"{how}\r\n\r\n".encode()
            )
            sent = 0
            try:
                while sent < total:
                    sender.sendall(block if length else b"10000\r\n" + block + b"\r\n")
                    sent += len(block)
            except OSError:
                pass
            response = http.client.HTTPResponse(sender)
            try:
                response.begin()
                assert response.status == 413
            except ConnectionError:
                pass  # the rest of the body met a closed connection before the answer was read
        assert sent < total
        assert customer.send(event("a")).status_code == 200


class TestRates:
    """How often an instance may come."""

    def test_too_many_batches_are_told_when_to_come_again(
        self, customer: Customer, other: Customer
    ) -> None:
        answers = [customer.send(event(str(number))) for number in range(BATCHES_AT_ONCE + 10)]
        refused = [answer for answer in answers if answer.status_code == 429]
        assert refused
        assert int(refused[0].headers["Retry-After"]) >= 1
        assert customer.counted == len(answers) - len(refused) >= BATCHES_AT_ONCE
        assert other.send(event("a")).status_code == 200

    def test_sender_may_come_in_a_burst_and_then_steadily(self) -> None:
        now = 0.0
        rates = Rates(per_second=2, burst=3, clock=lambda: now)
        waits = [rates.seconds_to_wait(b"a") for _ in range(5)]
        assert waits == [0, 0, 0, 0.5, 0.5]
        assert rates.seconds_to_wait(b"b") == 0
        now = 0.5
        assert [rates.seconds_to_wait(b"a") for _ in range(2)] == [0, 0.5]
        now = 100
        assert [rates.seconds_to_wait(b"a") for _ in range(4)] == [0, 0, 0, 0.5]

    def test_memory_is_bounded_and_who_comes_is_not_forgotten(self) -> None:
        rates = Rates(per_second=1, burst=2, clock=lambda: 0.0)
        for number in range(3 * MAX_SENDERS):
            rates.seconds_to_wait(number.to_bytes(4, "big"))
            rates.seconds_to_wait(b"a")
        assert rates.seconds_to_wait(b"a") > 0
        assert len(rates._empty_at) == MAX_SENDERS

    def test_who_tries_secrets_hinders_nobody_who_has_one(
        self, customer: Customer, other: Customer
    ) -> None:
        """As all come from one address, whoever is not known waits; and a key, at its instance."""
        for each in (customer, other):
            assert each.send().status_code == 200
        assert customer.ask(X_API_Key=customer.key).status_code == 200
        tokens = until_429(lambda number: customer.send(token=f"{NEVER_MADE}{number}"))
        keys = until_429(lambda number: customer.ask(X_API_Key=f"{NEVER_MADE}{number}"))
        assert (set(tokens), set(keys)) == ({401}, {403})
        assert customer.refusals() == {"unknown": len(keys)}
        assert customer.send(event("a")).status_code == 200
        assert customer.ask(X_API_Key=customer.key).status_code == 200
        assert other.ask(X_API_Key=other.key).status_code == 200
        customer.db.update("subscriptions", customer.plan, tier="free")
        assert set(until_429(lambda _: customer.ask(X_API_Key=customer.key))) == {403}

    def test_asker_is_limited_whatever_instances_it_names(self) -> None:
        class Refusing(Database):
            async def verify_api_key(self, *_: object) -> Verdict:
                return Verdict(False, None, None, "unknown", None)

        async def ask() -> set[int]:
            app = create_app(Refusing("postgresql://a@b/c"))
            path = "/auth?instance="
            answers = [
                await answer_to(app, "10.0.0.1", b"", f"{path}{UUID(int=number)}")
                for number in range(ASKERS_AT_ONCE + 200)
            ]
            assert await answer_to(app, "10.0.0.2", b"", f"{path}{NOBODY}") == 403
            return set(answers)

        assert asyncio.run(ask()) == {403, 429}

    def test_secret_that_is_good_does_not_count_for_its_address(self) -> None:
        senders = Senders(Rates(1, 1, lambda: 0.0), Rates(1, 1, lambda: 0.0))
        for secret in ("one", "another"):
            assert senders.seconds_to_wait(secret, "here") == 0
            senders.learn(secret, "here", good=True)
        assert senders.seconds_to_wait("one", "here") == 1
        assert senders.seconds_to_wait("a third", "here") == 0
        assert senders.seconds_to_wait("a fourth", "here") == 1


class TestKeys:
    """What an ingress asks for a request."""

    @pytest.mark.parametrize("header", ["Authorization", "X_API_Key"])
    def test_valid_one_passes_with_account_and_scopes(
        self, customer: Customer, header: str
    ) -> None:
        scheme = "Bearer " if header == "Authorization" else ""
        answer = customer.ask(**{header: f"{scheme}{customer.key}"})
        assert answer.status_code == 200, answer.text
        assert answer.headers["X-Account-Id"] == str(customer.account)
        assert answer.headers["X-Api-Scopes"] == "read,execute"
        assert answer.content == b""

    def test_mindroom_is_shown_its_own_key_which_no_log_has(self, customer: Customer) -> None:
        assert "Authorization" not in customer.ask(X_API_Key=customer.key).headers
        secret = f"key-for-mindroom-of-{customer.instance}"
        customer.keep("OPENAI_COMPAT_API_KEYS", secret)
        answer = customer.ask(X_API_Key=customer.key)
        assert answer.headers["Authorization"] == f"Bearer {secret}"
        refused = customer.ask(X_API_Key=NEVER_MADE)
        assert "Authorization" not in refused.headers
        assert secret not in customer.gateway.log.read_text() + answer.text + refused.text
        assert secret not in repr(Verdict(True, customer.account, ["read"], None, secret))

    def test_without_one_a_request_does_not_pass(self, customer: Customer) -> None:
        for headers in ({}, {"Authorization": "Basic YTpi"}, {"X_API_Key": ""}):
            answer = customer.ask(**headers)
            assert answer.status_code == 401
            assert answer.headers["WWW-Authenticate"] == "Bearer"

    def test_every_refusal_is_the_same_to_who_asks(
        self, customer: Customer, other: Customer
    ) -> None:
        """The reason is for the log, and is counted for the account."""
        db, mine = customer.db, {"X_API_Key": customer.key}
        writing = {"X_Original_Method": "POST", "X_Original_URL": "https://a.example/api/config"}

        def changed(table: str, **changes: object) -> httpx2.Response:
            """The answer while rows of the customer are so."""
            [before] = db.run(
                f"select {', '.join(changes)} from {table} where account_id = %s", customer.account
            )
            assign = f"update {table} set {', '.join(f'{name} = %s' for name in changes)}"
            where = "where account_id = %s"
            db.run(f"{assign} {where}", *changes.values(), customer.account)
            try:
                return customer.ask(**mine)
            finally:
                db.run(f"{assign} {where}", *before, customer.account)

        past = datetime.now(UTC) - timedelta(days=1)
        answers = {
            "unknown": customer.ask(X_API_Key=NEVER_MADE),
            "account": customer.ask(X_API_Key=other.key),
            "scope": customer.ask(**mine, **writing),
            "revoked": changed("api_keys", is_active=False),
            "expired": changed("api_keys", created_at=past - timedelta(days=1), expires_at=past),
            "plan": changed("subscriptions", tier="free"),
            "request": customer.ask(**mine, X_Original_Method="POST"),
        }
        assert {answer.status_code for answer in answers.values()} == {403}
        assert len({answer.text for answer in answers.values()}) == 1
        logged = customer.gateway.events("API key refused", instance_id=str(customer.instance))
        assert [line["reason"] for line in logged] == list(answers)
        noted = dict.fromkeys(("scope", "revoked", "expired", "plan"), 1) | {"unknown": 2}
        assert customer.refusals() == noted
        assert other.refusals() == {}
        assert customer.ask(**mine).status_code == 200

    def test_preflight_of_a_browser_does_not_pass(self, customer: Customer) -> None:
        assert customer.ask(X_Original_Method="OPTIONS").status_code == 401

    def test_key_opens_no_instance_of_another(self, customer: Customer, other: Customer) -> None:
        for instance in (other.instance, NOBODY):
            assert customer.ask(instance, X_API_Key=customer.key).status_code == 403

    def test_instance_has_to_be_named(self, customer: Customer) -> None:
        assert customer.ask("none", X_API_Key=customer.key).status_code == 422

    def test_traefik_asks_with_other_headers(self, customer: Customer) -> None:
        asked = {"X_API_Key": customer.key, "X_Forwarded_Method": "POST"}
        assert customer.ask(**asked, X_Forwarded_Uri="/v1/chat").status_code == 200
        assert customer.ask(**asked, X_Forwarded_Uri="/api/config").status_code == 403

    def test_running_agents_counts_as_a_message_until_the_limit(self, customer: Customer) -> None:
        customer.db.update("subscriptions", customer.plan, max_messages_per_day=2)
        asked = {"X_API_Key": customer.key, "X_Original_Method": "POST"}
        url = "https://a.example/v1/chat/completions"
        statuses = [customer.ask(**asked, X_Original_URL=url).status_code for _ in range(3)]
        assert statuses == [200, 200, 403]
        assert customer.ask(X_API_Key=customer.key).status_code == 200
        assert customer.counted == 2
        assert customer.send().json()["messages_remaining"] == 0


NGINX = ("X-Original-Method", "X-Original-URL", "https://a.example")
TRAEFIK = ("X-Forwarded-Method", "X-Forwarded-Uri", "")


@pytest.mark.parametrize("ingress", [NGINX, TRAEFIK], ids=["nginx", "traefik"])
@pytest.mark.parametrize(
    ("method", "path", "permission"),
    [
        ("GET", "/", "read"),
        ("HEAD", "/v1/models", "read"),
        ("OPTIONS", "/api/x", "read"),
        ("POST", "/v1/chat/completions", "execute"),
        ("POST", "/v1/chat/completions?a=/api", "execute"),
        ("POST", "/%76%31/chat/completions", "execute"),
        ("POST", "/v1", "execute"),
        ("POST", "/v10/x", "write"),
        ("POST", "/api/v1/x", "write"),
        ("PUT", "/api/rooms/%21a%3Ab", "write"),
        ("DELETE", "/api/x", "write"),
        ("PURGE", "/api/x", "write"),
        ("POST", "/v1/../api/config", None),
        ("POST", "/api/%2e%2e/v1/x", None),
        ("POST", "/v1/.", None),
        ("POST", "//v1/x", None),
        ("POST", "/api//v1", None),
        ("POST", "/v1\\..\\api", None),
        ("POST", "/v1/%ff", None),
        ("POST", "", None),
    ],
)
def test_permission_follows_from_method_and_path(
    ingress: tuple[str, str, str], method: str, path: str, permission: str | None
) -> None:
    of_method, of_url, before = ingress
    assert needed_permission(Headers({of_method: method, of_url: before + path})) == permission


@pytest.mark.parametrize(
    ("nginx", "traefik", "permission"),
    [("GET", "GET", "read"), ("GET", "POST", None), ("POST", "GET", None)],
)
def test_client_cannot_speak_for_the_ingress(
    nginx: str, traefik: str, permission: str | None
) -> None:
    headers = {NGINX[0]: nginx, NGINX[1]: "https://a.example/api"}
    headers |= {TRAEFIK[0]: traefik, TRAEFIK[1]: "/api"}
    assert needed_permission(Headers(headers)) == permission
    assert needed_permission(Headers({})) is None


class TestOneOfMany:
    """What one sender can take from all others."""

    def test_connections(self, customer: Customer) -> None:
        address = ("127.0.0.1", customer.gateway.port)
        with ExitStack() as stack:
            for _ in range(MAX_CONNECTIONS):
                stack.enter_context(
                    socket.create_connection(address, source_address=("127.0.0.2", 0))
                )
            one_more = stack.enter_context(
                socket.create_connection(address, PATIENCE, source_address=("127.0.0.2", 0))
            )
            with suppress(ConnectionError):
                assert one_more.recv(1) == b""
            assert customer.send(event("a")).status_code == 200

    def test_memory_until_a_batch_is_answered(self) -> None:
        waits = asyncio.Event()

        class Slow(Database):
            async def record_usage(self, *_: str) -> None:
                await waits.wait()

        async def statuses() -> list[int]:
            app = create_app(Slow("postgresql://a@b/c"))
            body = json.dumps({"events": []}).encode().ljust(MAX_BODY_BYTES)
            asked = [
                asyncio.create_task(answer_to(app, address, body))
                for address in ("10.0.0.1",) * (MAX_HELD_OF_ONE // len(body) + 1) + ("10.0.0.2",)
            ]
            await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            waits.set()
            answers = [await each for each in asked]
            assert not app.state.gateway.held
            return answers

        assert asyncio.run(statuses()) == [401] * 4 + [503, 401]

    def test_client_that_leaves_is_no_error(self) -> None:
        app = create_app(Database("postgresql://a@b/c"))
        assert asyncio.run(answer_to(app, "10.0.0.1", None)) == 499


def until_429(call: Callable[[int], httpx2.Response]) -> list[int]:
    """The statuses of calls with 0, 1 and so on until one is told when to come again."""
    statuses: list[int] = []
    for number in range(4 * STRANGERS_AT_ONCE):
        answer = call(number)
        if answer.status_code == 429:
            assert int(answer.headers["Retry-After"]) >= 1
            return statuses
        statuses.append(answer.status_code)
    pytest.fail(f"never 429 in {len(statuses)}")


async def answer_to(app: Any, address: str, body: bytes | None, url: str = "/v1/usage") -> int:
    """The status of what is answered; without a body, to a client that leaves."""
    status: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect" if body is None else "http.request", "body": body}

    async def send(message: dict[str, Any]) -> None:
        status.append(message.get("status", 0))

    path, _, query = url.partition("?")
    scope = {
        "type": "http",
        "method": "GET" if query else "POST",
        "path": path,
        "query_string": query.encode(),
    }
    headers = [(b"authorization", b"Bearer a")]
    await app(scope | {"headers": headers, "client": (address, 1)}, receive, send)
    return status[0]


class Broken(Database):
    """Whose statements all fail.

    Attributes:
        asked: how many there were.
    """

    def __init__(self, fail: Callable[[], Awaitable[Any]]) -> None:
        super().__init__("postgresql://a@b/c")
        self.fail, self.asked = fail, 0

    async def _execute(self, *_: object) -> Any:
        self.asked += 1
        await asyncio.sleep(0)
        return await self.fail()

    async def outcomes(self, calls: int) -> list[Any]:
        """Of batches that come at once, and of a key."""
        batches = [self.record_usage("hash", "[]") for _ in range(calls)]
        async with asyncio.timeout(PATIENCE):
            return await asyncio.gather(
                *batches, self.verify_api_key("hash", UUID(NOBODY), "read"), return_exceptions=True
            )


@pytest.mark.parametrize(
    ("error", "statements"),
    [
        (psycopg.errors.QueryCanceled(), 2),
        (psycopg.errors.LockNotAvailable(), 2),
        (psycopg.errors.DiskFull(), 2),
        (ValueError(), 2),
        (psycopg.errors.InvalidParameterValue(), 8),
    ],
    ids=repr,
)
def test_only_a_malformed_batch_has_each_counted_alone(error: Exception, statements: int) -> None:
    """Six that come at once, and a key."""

    async def fail() -> None:
        raise error

    async def asked() -> tuple[list[Any], int]:
        broken = Broken(fail)
        return await broken.outcomes(6), broken.asked

    assert asyncio.run(asked()) == ([error] * 7, statements)


def test_no_answer_takes_longer_than_a_sender_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "ANSWER_SECONDS", 0.1)

    async def hang() -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(PATIENCE)
        await asyncio.sleep(0.5)

    async def outcomes() -> list[Any]:
        broken = Broken(hang)
        found = await broken.outcomes(60)
        assert not broken._waiting
        return found

    assert {type(each) for each in asyncio.run(outcomes())} == {TimeoutError}


class TestOutages:
    """The database is away."""

    def test_gateway_says_so_and_recovers_by_itself(
        self, platform: Platform, tmp_path: Path
    ) -> None:
        url = platform.service_url("instance_gateway")
        port = int(str(conninfo_to_dict(url)["port"]))
        proxy = Proxy(port)
        with ExitStack() as stack:
            log = tmp_path / "log"
            gateway = stack.enter_context(
                running_gateway(url.replace(f":{port}/", f":{proxy.port}/"), log)
            )
            customer = stack.enter_context(a_customer(platform, gateway))
            assert customer.send(event("a")).status_code == 200
            silent = stack.enter_context(
                socket.create_connection(("127.0.0.1", gateway.port), timeout=HEAD_SECONDS)
            )
            silent.sendall(b"POST /v1/usage HTTP/1.1\r\n")
            proxy.cut()
            began = time.monotonic()
            with ThreadPoolExecutor(4) as pool:
                asked = [pool.submit(customer.send, event("b")) for _ in range(3)]
                asked.append(pool.submit(customer.ask, X_API_Key=customer.key))
                answers = [done.result() for done in asked]
            assert [answer.status_code for answer in answers] == [503] * 4
            assert {answer.headers["Retry-After"] for answer in answers} == {"2"}
            assert time.monotonic() - began < 20
            assert HTTP.get(f"{customer.url}/health").status_code == 200
            proxy.restore()
            until = time.monotonic() + PATIENCE
            while (answer := customer.send(event("b"))).status_code != 200:
                assert answer.status_code in (429, 503)
                assert time.monotonic() < until
                time.sleep(0.5)
            # Connections that broke unnoticed cost nobody an answer.
            proxy.cut()
            proxy.restore()
            assert customer.send(event("c")).status_code == 200
            assert customer.ask(X_API_Key=customer.key).status_code == 200
            assert customer.counted == 3
            assert silent.recv(1) == b""

    def test_no_more_wait_than_memory_is_for(self) -> None:
        async def send_them() -> list[BaseException | Counted | None]:
            async with Database("postgresql://instance_gateway@127.0.0.1:1/mindroom") as nowhere:
                sent = [nowhere.record_usage("0a" * 32, "[]") for _ in range(MAX_WAITING + 10)]
                return await asyncio.gather(*sent, return_exceptions=True)

        answers = asyncio.run(send_them())
        assert all(isinstance(answer, OperationalError) for answer in answers)
        assert sum(isinstance(answer, TooManyRequests) for answer in answers) == 10

    def test_it_starts_without_a_database(self, tmp_path: Path) -> None:
        url = "postgresql://instance_gateway:word@127.0.0.1:1/mindroom"
        with running_gateway(url, tmp_path / "log") as gateway:
            answer = HTTP.post(
                f"http://127.0.0.1:{gateway.port}/v1/usage",
                json={"events": []},
                headers={"Authorization": f"Bearer {NEVER_MADE}"},
            )
            assert answer.status_code == 503
            assert "Retry-After" in answer.headers
            assert "word" not in gateway.log.read_text() + answer.text


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("DATABASE_URL", "postgres//a:word@b", "must be postgresql://USER:PASSWORD@HOST"),
        ("PORT", "word", "Input should be a valid integer"),
        ("LOG_LEVEL", "loud", "must be one of debug, info, warning, error"),
    ],
)
def test_wrong_setting_is_named_and_not_shown(variable: str, value: str, message: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "provisioner.gateway"],
        cwd=ROOT,
        env=environment("postgresql://a@b/c", **{variable: value}),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {variable}: ")
    assert message in done.stderr
    assert "word" not in done.stderr


def test_metrics_tell_what_was_answered(customer: Customer) -> None:
    def counts() -> tuple[float, ...]:
        names = ("gateway_events_total", "gateway_keys_total")
        requests = "gateway_request_duration_seconds_count"
        return tuple(customer.gateway.metric(name) for name in (*names, requests))

    customer.send(event("a"))
    customer.ask(X_API_Key=customer.key)
    before = counts()
    customer.send(event("a"), event("b"))
    customer.ask(X_API_Key=customer.key)
    assert [now - then for now, then in zip(counts(), before, strict=True)] == [2, 1, 2]


def test_no_secret_is_logged(customer: Customer) -> None:
    customer.send(event("a"))
    customer.send(event("\0"))
    customer.send(event("a"), token=NEVER_MADE)
    customer.ask(X_API_Key=customer.key)
    customer.ask(X_API_Key=NEVER_MADE)
    log = customer.gateway.log.read_text()
    assert "unknown token" in log
    assert "API key refused" in log
    for secret in (customer.token, customer.key, NEVER_MADE, key_hash(customer.key)):
        assert secret not in log


UNEXPECTED = """
import logging, structlog
from provisioner import log
log.configure("info")
def f(token):
    raise RuntimeError("unexpected")
for logger in (logging.getLogger("uvicorn.error"), structlog.get_logger()):
    try:
        f("the-" + "secret")
    except RuntimeError:
        logger.error("failed", exc_info=True)
"""


def test_unexpected_error_is_logged_without_the_values_of_variables() -> None:
    done = subprocess.run(
        [sys.executable, "-c", UNEXPECTED], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.count("unexpected") == 2
    assert "the-secret" not in done.stdout


def test_its_openapi_document_is_kept_by_every_answer(platform: Platform, tmp_path: Path) -> None:
    """Fuzzed from its own document, as a customer that exists."""
    url = platform.service_url("instance_gateway")
    with ExitStack() as stack:
        gateway = stack.enter_context(running_gateway(url, tmp_path / "log", unlimited=True))
        customer = stack.enter_context(a_customer(platform, gateway))
        config = tmp_path / "schemathesis.toml"
        config.write_text(f"[parameters]\ninstance = {json.dumps(str(customer.instance))}\n")
        done = subprocess.run(
            [
                *(Path(sys.executable).with_name("schemathesis"), f"--config-file={config}", "run"),
                f"{customer.url}/openapi.json",
                f"--header=Authorization: Bearer {customer.token}",
                *("--checks=all", "--max-examples=50", "--seed=1", "--no-color"),
                "--generation-database=none",
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert gateway.process.poll() is None
        assert customer.counted > 0
        assert not [line for line in gateway.events() if "exception" in line]
