"""The HTTP API of the instance-provisioner: each route with good input and bad."""

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx2
import pytest

from components import ROOT
from tests.support.provisioning import PATIENCE, TOKEN, Service, World, eventually

NOBODY = "00000000-0000-4000-8000-000000000000"
ROUTES = [
    ("POST", "/api/v1/provision", {"subscription_id": NOBODY, "account_id": NOBODY}),
    ("DELETE", "/api/v1/deprovision", {"instance_id": NOBODY}),
    ("PUT", "/api/v1/limits", {"instance_id": NOBODY, "cpu_limit": 1}),
    ("POST", "/api/v1/retry", {"instance_id": NOBODY}),
    ("GET", f"/api/v1/instances/{NOBODY}", None),
]


@pytest.fixture(scope="module")
def service(world: World) -> Iterator[Service]:
    with world.running() as service:
        yield service


@pytest.fixture(scope="module")
def http(service: Service) -> httpx2.Client:
    return service.http


def of(customer: tuple[UUID, UUID], **more: Any) -> dict[str, Any]:
    account, subscription = customer
    return {"account_id": str(account), "subscription_id": str(subscription)} | more


def provisioned(world: World, http: httpx2.Client) -> dict[str, Any]:
    answer = http.post("/api/v1/provision", json=of(world.subscribe()), params={"wait": PATIENCE})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


@pytest.mark.parametrize("header", [None, "Bearer", "Bearer wrong", f"Basic {TOKEN}", TOKEN])
@pytest.mark.parametrize(("method", "path", "body"), ROUTES)
def test_without_the_token_nothing_is_disclosed(
    service: Service, method: str, path: str, body: object, header: str | None
) -> None:
    answer = httpx2.request(
        method,
        f"http://127.0.0.1:{service.port}{path}",
        json=body,
        headers={"Authorization": header} if header else {},
    )
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert TOKEN not in answer.text


@pytest.mark.parametrize(("method", "path", "body"), ROUTES)
def test_what_does_not_exist_is_not_found(
    http: httpx2.Client, method: str, path: str, body: object
) -> None:
    answer = http.request(method, path, json=body)
    assert answer.status_code == 404
    assert NOBODY in answer.json()["detail"]


@pytest.mark.parametrize("token", [None, "", "too-short"])
def test_without_a_token_configured_it_does_not_start(world: World, token: str | None) -> None:
    environment = world.environment()
    del environment["API_TOKEN"]
    if token is not None:
        environment["API_TOKEN"] = token
    done = subprocess.run(
        [sys.executable, "-m", "provisioner"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 2
    wrong = "is not set" if token is None else "must have at least 16 bytes"
    assert done.stderr == f"error: API_TOKEN: {wrong}\n"


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("DATABASE_URL", "postgres//a:word@b", "must be postgresql://USER:PASSWORD@HOST"),
        ("BASE_DOMAIN", "Not A Domain", "String should match pattern"),
        ("INSTANCE_VALUES", "[1]", "Input should be a valid dictionary"),
        ("WORKERS", "0", "Input should be greater than 0"),
        ("LOG_LEVEL", "loud", "must be one of debug, info, warning, error"),
        ("MEASURE", "kubelets", "Input should be 'kubelet' or 'none'"),
        ("KUBELET_CA", "a certificate", "must be certificates (PEM)"),
        ("KUBECONFIG", "/not/there", "Configuration file /not/there not found"),
    ],
)
def test_a_wrong_setting_is_named_and_not_shown(
    world: World, variable: str, value: str, message: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "provisioner"],
        cwd=ROOT,
        env=world.environment(**{variable: value}),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert "word" not in done.stderr


def test_provisioning_answers_at_once_or_waits_for_the_end(
    world: World, http: httpx2.Client
) -> None:
    customer = world.subscribe()
    at_once = http.post("/api/v1/provision", json=of(customer))
    assert at_once.status_code == 202
    assert at_once.json()["status"] == "provisioning"
    assert at_once.json()["customer_id"] == str(customer[0])
    at_the_end = http.post("/api/v1/provision", json=of(customer), params={"wait": PATIENCE})
    assert at_the_end.status_code == 200
    row = at_the_end.json()
    assert row["status"] == "running"
    assert row["instance_id"] == at_once.json()["instance_id"]
    assert row["frontend_url"] == f"https://{row['app_name']}.mindroom.test"
    assert row["api_url"] == f"{row['frontend_url']}/api"
    assert row == http.get(f"/api/v1/instances/{row['instance_id']}").json() | {
        name: row[name]
        for name in ("health_status", "health_details", "last_health_check", "updated_at")
    }


def test_one_subscription_gets_one_instance_however_often_it_is_asked_for(
    world: World, http: httpx2.Client
) -> None:
    customer = world.subscribe()
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda _: http.post("/api/v1/provision", json=of(customer)), range(16))
        )
    assert {answer.status_code for answer in answers} <= {200, 202}
    assert len({answer.json()["instance_id"] for answer in answers}) == 1
    [[count]] = world.db.execute(
        "select count(*) from public.instances where subscription_id = %s", [customer[1]]
    )
    assert count == 1


def test_after_a_removal_provisioning_makes_a_new_one(world: World, http: httpx2.Client) -> None:
    row = provisioned(world, http)
    removed = http.request(
        "DELETE", "/api/v1/deprovision", json={"instance_id": row["instance_id"]}
    )
    assert removed.status_code == 202
    again = http.post(
        "/api/v1/provision",
        json={"account_id": row["customer_id"], "subscription_id": row["subscription_id"]},
    )
    assert again.json()["instance_id"] != row["instance_id"]


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"account_id": NOBODY}, 404, "has no subscription"),
        ({"tier": "enterprise"}, 409, "is of the tier starter, not enterprise"),
        ({"tier": "golden"}, 422, "tier"),
        ({"config": []}, 422, "config"),
        ({"config": {"agents": {str(number): {} for number in range(11)}}}, 422, "11 agents"),
        ({"config": {"name": "a\x00b"}}, 422, "unsupported Unicode escape sequence"),
        ({"config": {"name": "\ud800"}}, 422, "invalid"),
        ({"subscription_id": "1"}, 422, "subscription_id"),
        ({"subscription": "1"}, 422, "subscription"),
    ],
)
def test_provisioning_refuses_what_is_wrong_and_makes_nothing(
    world: World, http: httpx2.Client, change: dict[str, Any], status: int, words: str
) -> None:
    customer = world.subscribe()
    answer = http.post(
        "/api/v1/provision",
        content=json.dumps(of(customer) | change),
        headers={"Content-Type": "application/json"},
    )
    assert answer.status_code == status, answer.text
    assert words in answer.text
    [[count]] = world.db.execute(
        "select count(*) from public.instances where subscription_id = %s", [customer[1]]
    )
    assert count == 0


def test_without_a_live_subscription_nothing_is_provisioned(
    world: World, http: httpx2.Client
) -> None:
    customer = world.subscribe()
    world.db.execute(
        "update public.subscriptions set status = 'past_due' where id = %s", [customer[1]]
    )
    answer = http.post("/api/v1/provision", json=of(customer))
    assert answer.status_code == 409
    assert "is not live" in answer.json()["detail"]


def test_deprovisioning_an_instance(world: World, http: httpx2.Client) -> None:
    instance = provisioned(world, http)["instance_id"]
    body = {"instance_id": instance, "reason": "moved out"}
    for _ in range(2):
        answer = http.request("DELETE", "/api/v1/deprovision", json=body, params={"wait": PATIENCE})
        assert answer.status_code == 200
        assert [row["status"] for row in answer.json()] == ["deprovisioned"]
    reasons = [
        details.get("reason")
        for [details] in world.db.execute(
            """select details from public.audit_logs
               where resource_id = %s and action = 'instance.updated' order by created_at""",
            [instance],
        )
    ]
    assert reasons == [None, "moved out", None]


def test_deprovisioning_a_customer(world: World, http: httpx2.Client) -> None:
    row = provisioned(world, http)
    other = world.db.execute(
        "select public.provision_instance(%s)", [row["subscription_id"]]
    ).fetchone()
    answer = http.request(
        "DELETE",
        "/api/v1/deprovision",
        json={"customer_id": row["customer_id"]},
        params={"wait": PATIENCE},
    )
    assert answer.status_code == 200
    assert other
    assert {removed["instance_id"] for removed in answer.json()} == {
        row["instance_id"],
        str(other[0]),
    }
    assert {removed["status"] for removed in answer.json()} == {"deprovisioned"}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"instance_id": NOBODY, "customer_id": NOBODY},
        {"instance_id": None},
        {"instance_id": NOBODY, "reason": "a\x00b"},
        {"instance_id": NOBODY, "reason": "long" * 200},
    ],
)
def test_deprovisioning_refuses_what_is_wrong(http: httpx2.Client, body: object) -> None:
    assert http.request("DELETE", "/api/v1/deprovision", json=body).status_code == 422


def test_limits_reach_the_pods(world: World, http: httpx2.Client) -> None:
    row = provisioned(world, http)
    answer = http.put(
        "/api/v1/limits",
        json={"instance_id": row["instance_id"], "memory_limit_mb": 3000},
        params={"wait": PATIENCE},
    )
    assert answer.status_code == 200
    assert answer.json()["memory_limit_mb"] == 3000
    assert answer.json()["cpu_limit"] == row["cpu_limit"]
    mindroom = world.object(f"deployment/{row['app_name']}-mindroom")
    container, _ = mindroom["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["memory"] == "1500Mi"


@pytest.mark.parametrize(
    "limits",
    [
        {"cpu_limit": 0},
        {"cpu_limit": 1000},
        {"cpu_limit": "1"},
        {"memory_limit_mb": -1},
        {"memory_limit_mb": 1.5},
        {"storage_limit_gb": 2**31},
        {"disk": 1},
    ],
)
def test_limits_refuses_what_is_wrong(http: httpx2.Client, limits: dict[str, Any]) -> None:
    answer = http.put("/api/v1/limits", json={"instance_id": NOBODY} | limits)
    assert answer.status_code == 422


def test_limits_of_what_is_removed_are_refused(world: World, http: httpx2.Client) -> None:
    instance = provisioned(world, http)["instance_id"]
    world.remove(UUID(instance))
    answer = http.post("/api/v1/retry", json={"instance_id": str(instance)})
    assert answer.status_code == 409
    answer = http.put("/api/v1/limits", json={"instance_id": instance, "cpu_limit": 1})
    assert answer.status_code == 409
    assert answer.json()["detail"] == f"instance {instance} is deprovisioned"


def test_a_body_that_is_not_json_is_refused(http: httpx2.Client) -> None:
    for content in (b"{", b"\xff", b"[" * 100_000):
        answer = http.post(
            "/api/v1/provision", content=content, headers={"Content-Type": "application/json"}
        )
        assert answer.status_code in (400, 422), content[:10]


def test_metrics_and_probes_need_no_token(service: Service) -> None:
    for path in ("/health", "/ready", "/metrics", "/openapi.json"):
        answer = httpx2.get(f"http://127.0.0.1:{service.port}{path}")
        assert answer.status_code == 200
        assert TOKEN not in answer.text


def test_its_openapi_document_is_kept_by_every_answer(
    world: World, http: httpx2.Client, service: Service, tmp_path: Path
) -> None:
    """Fuzzed from its own document, with customers that exist."""
    rows = [provisioned(world, http) for _ in range(2)]
    known = {
        "subscription_id": [row["subscription_id"] for row in rows],
        "account_id": [row["customer_id"] for row in rows],
        "customer_id": [rows[1]["customer_id"]],
        "instance_id": [row["instance_id"] for row in rows],
    }
    lines = ["[dictionaries]"]
    lines += [f"{name} = {{ values = {json.dumps(values)} }}" for name, values in known.items()]
    lines += ["[parameters]", "wait = 0"]
    lines += [f"instance_id = {json.dumps(known['instance_id'][0])}"]
    lines += [f'"body.{name}" = {{ dictionary = "{name}", probability = 0.5 }}' for name in known]
    config = tmp_path / "schemathesis.toml"
    config.write_text("\n".join(lines))
    done = subprocess.run(
        [
            *(Path(sys.executable).with_name("schemathesis"), f"--config-file={config}", "run"),
            f"http://127.0.0.1:{service.port}/openapi.json",
            f"--header=Authorization: Bearer {TOKEN}",
            *("--checks=all", "--max-examples=50", "--seed=1", "--no-color"),
            "--generation-database=none",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert service.process.poll() is None
    eventually(lambda: service.readiness() == {})
    assert not [event for event in service.events() if "exception" in event]
