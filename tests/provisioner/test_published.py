"""The published MindRoom and Synapse, run as the pods that the chart makes of an instance's row.

`make test-published` runs this; the packages are installed once, which takes minutes.
"""

import asyncio
import hashlib
import json
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx2
import psycopg
import pytest
import yaml
from psycopg.types.json import Jsonb
from pydantic import SecretStr

from dev.in_process import HELM
from dev.published import Chat, Pods, environment
from embedded.errors import UserError
from provisioner import instance_secrets, instances
from provisioner.actions import TOKENS, chart_values, first_secrets
from provisioner.config import PLATFORM
from provisioner.database import Database
from provisioner.settings import Settings
from tests.support import confined
from tests.support.gateways import running_gateway
from tests.support.manifests import CHARTS, run
from tests.support.platforms import Platform
from tests.support.provisioning import BASE_DOMAIN, eventually

pytestmark = pytest.mark.published

PATIENCE = 120.0
PLUGIN = PLATFORM["plugins"][0]


def config(user: str) -> dict[str, Any]:
    """A customer's, who would rather not be counted."""
    return {
        "agents": {"ada": {"display_name": "Ada", "role": "Answers.", "rooms": ["lobby"]}},
        "models": {"default": {"provider": "synthetic", "id": "lorem"}},
        "memory": "none",
        "administrators": [user],
        "room_defaults": {"invite_users": [user]},
        "plugins": [
            PLUGIN | {"enabled": False},
            PLUGIN | {"hooks": {"count_or_refuse": {"enabled": False}}},
            PLUGIN["path"],
            {"path": "./plugins/another"},
        ],
    }


@dataclass(frozen=True)
class Provisioned:
    """An instance as the provisioner would release it.

    Attributes:
        server: the name of its Matrix server.
        secrets: the content of its Secret.
        manifests: those of its release, and the Secret and ConfigMap that the release names.
    """

    id: UUID
    server: str
    secrets: Mapping[str, str]
    manifests: list[dict[str, Any]]

    @property
    def user(self) -> str:
        return f"@ann:{self.server}"


def provisioned(
    platform: Platform, db: psycopg.Connection, gateway: str, **config_more: object
) -> Provisioned:
    """A new customer's instance, whose row names her in its config."""
    [[account]] = db.execute(
        "insert into auth.users (id, email) values (gen_random_uuid(),"
        " gen_random_uuid() || '@customers.example') returning id"
    )
    [[subscription]] = db.execute(
        "insert into public.subscriptions (account_id, tier) values (%s, 'starter') returning id",
        [account],
    )
    [[instance]] = db.execute("select public.provision_instance(%s)", [subscription])
    [[name]] = db.execute("select app_name from public.instances where id = %s", [instance])
    server = f"{name}.{BASE_DOMAIN}"
    db.execute(
        "update public.instances set config = %s where id = %s",
        [Jsonb(config(f"@ann:{server}") | config_more), instance],
    )
    settings = Settings.model_construct(
        database_url=SecretStr(platform.service_url("instance_provisioner")),
        base_domain=BASE_DOMAIN,
        instance_values={"gateway": {"url": gateway, "namespace": "platform"}},
    )

    async def look() -> tuple[instances.Instance, dict[str, str]]:
        async with Database(settings) as database:
            row = await instances.read(database, UUID(str(instance)))
            assert row
            first = first_secrets(settings, row)
            return row, await instance_secrets.add_missing(database, row.id, first)

    row, secrets = asyncio.run(look())
    values = chart_values(settings, row, f"{name}-secrets", secrets)
    command = ("template", name, CHARTS / "instance", "--namespace", "instances", "--values", "-")
    rendered = run(HELM, *command, stdin=json.dumps(values))
    assert rendered.returncode == 0, rendered.stderr
    manifests = [each for each in yaml.safe_load_all(rendered.stdout) if each]
    for kind, name, content in (
        ("Secret", values["secretName"], {"stringData": secrets}),
        ("ConfigMap", values["configName"], {"data": {"config.json": row.config}}),
    ):
        manifests.append({"kind": kind, "metadata": {"name": name}, **content})
    assert secrets["MATRIX_SERVER_NAME"] == server
    return Provisioned(row.id, server, secrets, manifests)


@pytest.fixture(scope="module")
def programs() -> Path:
    return environment()


@pytest.fixture(scope="module", autouse=True)
def _confine() -> Iterator[None]:
    """Where this machine lets us, a process may write where its container may, as its user."""
    with pytest.MonkeyPatch.context() as patch:
        if confined.is_possible():
            patch.setattr("dev.published.spawn", confined.spawn_confined)
        yield


@pytest.mark.skipif(not confined.is_possible(), reason="no namespaces: run as root, or see sysctl")
def test_they_are_confined(tmp_path: Path) -> None:
    for name in ("container/mounted/config", "container/mounted/tmp", "volumes/data"):
        (tmp_path / name).mkdir(parents=True)
    touch = "id -u; touch ../volumes/data/x mounted/tmp/x && ! touch mounted/config/x"
    command = confined.confined(["sh", "-c", touch], tmp_path / "container")
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, "Read-only file system" in done.stderr) == ("1000\n", True)


@pytest.fixture(scope="module")
def gateway(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("gateway") / "log"
    with running_gateway(platform.service_url("instance_gateway"), log) as gateway:
        yield f"http://127.0.0.1:{gateway.port}"


@pytest.fixture(scope="module")
def instance(platform: Platform, connection: psycopg.Connection, gateway: str) -> Provisioned:
    """Which reports to the gateway."""
    return provisioned(platform, connection, gateway)


def test_a_config_that_it_refuses_does_not_start_and_says_why(
    platform: Platform, connection: psycopg.Connection, programs: Path, tmp_path: Path
) -> None:
    """What ran before runs on, which is the provisioner's part."""
    instance = provisioned(platform, connection, "", no_such_key=True)
    alone = [each for each in instance.manifests if each["kind"] != "StatefulSet"]
    pods = Pods(alone, tmp_path, programs)
    with pytest.raises(UserError, match="not ready"), pods.running():
        pass
    assert "Unknown key 'no_such_key'" in pods.log("mindroom").read_text()


@pytest.fixture(scope="module")
def pods(
    instance: Provisioned, programs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pods]:
    with Pods(instance.manifests, tmp_path_factory.mktemp("pods"), programs).running() as pods:
        yield pods


def test_a_customer_writes_is_answered_is_counted_and_is_limited(
    pods: Pods, instance: Provisioned, connection: psycopg.Connection
) -> None:
    def counted() -> list[tuple[int, int]]:
        return connection.execute(
            """select messages_received::int, messages_sent::int from public.usage_metrics
               where instance_id = %s""",
            [instance.id],
        ).fetchall()

    secret = instance.secrets["MATRIX_REGISTRATION_SHARED_SECRET"]
    ann = Chat.register(pods.url("matrix"), "ann", secret)
    assert ann.user == instance.user
    ann.join(f"#lobby:{instance.server}", PATIENCE)
    agent = f"@mindroom_ada:{instance.server}"
    eventually(lambda: agent in ann.members(), PATIENCE)
    greeting = ann.say(f"{agent} Good morning.")
    eventually(lambda: ann.answer(greeting), PATIENCE)
    eventually(lambda: counted() == [(1, 1)], PATIENCE)
    # The answer to the next one is over the limit, and the gateway says so.
    connection.execute(
        """update public.subscriptions set max_messages_per_day = 3
           where id = (select subscription_id from public.instances where id = %s)""",
        [instance.id],
    )
    ann.say(f"{agent} And how are you?")
    eventually(lambda: counted() == [(2, 2)], PATIENCE)
    ann.say(f"{agent} Are you there?")
    eventually(lambda: "used up" in ann.heard()[-1], PATIENCE)
    assert counted() == [(2, 2)]


def test_only_who_has_its_key_administers_it(pods: Pods, instance: Provisioned) -> None:
    url = pods.url("mindroom")
    key = {"Authorization": f"Bearer {instance.secrets['MINDROOM_API_KEY']}"}
    agents = f"{url}/api/config/agents"
    assert httpx2.get(agents, trust_env=False).status_code == 401
    assert httpx2.get(agents, headers=key, trust_env=False).status_code == 200


def test_only_whom_the_gateway_lets_pass_uses_the_openai_compatible_api(
    pods: Pods, instance: Provisioned, gateway: str, connection: psycopg.Connection
) -> None:
    [[account]] = connection.execute(
        "select account_id from public.instances where id = %s", [instance.id]
    )
    [[key]] = connection.execute("select 'mr_' || gen_random_uuid()")
    connection.execute(
        """insert into public.api_keys (account_id, name, key_prefix, key_hash, permissions)
           values (%s, 'a key', 'mr_12345', %s, '{read}')""",
        [account, hashlib.sha256(key.encode()).hexdigest()],
    )
    connection.execute(
        "update public.subscriptions set tier = 'professional' where account_id = %s", [account]
    )
    models = f"{pods.url('mindroom')}/v1/models"
    mine = {"Authorization": f"Bearer {key}"}
    asked = mine | {"X-Original-Method": "GET", "X-Original-URL": models}
    given = {"instance": str(instance.id)}
    passed = httpx2.get(f"{gateway}/auth", params=given, headers=asked, trust_env=False)
    assert passed.status_code == 200, passed.text
    shown = {"Authorization": passed.headers["Authorization"]}
    assert httpx2.get(models, headers=shown, trust_env=False).is_success
    for without in (
        {},
        mine,
        {"Authorization": f"Bearer {instance.secrets['MINDROOM_API_KEY']}"},
        {"Authorization": f"Bearer {instance.secrets['MINDROOM_SANDBOX_PROXY_TOKEN']}"},
    ):
        assert httpx2.get(models, headers=without, trust_env=False).status_code == 401
    # What agents' code sees.
    secret = instance.secrets["OPENAI_COMPAT_API_KEYS"].encode()
    files = [path for path in pods.directory.rglob("*") if path.is_file()]
    assert [path for path in files if secret in path.read_bytes()] == []


@pytest.mark.usefixtures("pods")
def test_agents_code_runs_in_the_sandbox_and_sees_no_secret(instance: Provisioned) -> None:
    url = "http://127.0.0.1:8766/api/sandbox-runner/execute"
    token = {"x-mindroom-sandbox-token": instance.secrets["MINDROOM_SANDBOX_PROXY_TOKEN"]}
    call = {
        "tool_name": "shell",
        "function_name": "run_shell_command",
        "args": [["sh", "-c", "echo ran; env; cat /proc/$PPID/environ"]],
    }
    assert httpx2.post(url, json=call, trust_env=False).status_code == 401
    answer = httpx2.post(url, json=call, headers=token, timeout=PATIENCE, trust_env=False).json()
    assert answer["ok"], answer
    assert answer["result"].startswith("ran")
    for name in TOKENS:
        assert instance.secrets[name] not in answer["result"], name
