"""A customer's life on the platform of `make up CLUSTER=1`: every step is real, shown and checked.

The database is asked as who would ask it: the sign-up as Supabase's auth, Stripe's events as
stripe_handler, everything else by the provisioner's HTTP API. Her instance is the published
MindRoom, run as its pods say, where this machine has a Python for it: she talks to her agent in
Matrix. Elsewhere the demo tells the instance gateway what an instance would. Whatever is not as it
should be ends the demo with an error.
"""

import json
import secrets
import time
from base64 import b64decode
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx2
import psycopg
from psycopg.types.json import Jsonb

from dev.published import Chat, Pods
from embedded.cluster import ClusterAccess
from embedded.errors import UserError

TIMEOUT = 120.0
"""Seconds that the provisioner may take for what was asked of it."""

TALKED = 4
"""Messages a day where MindRoom runs: a Matrix server takes ten of a user, then one each 5 s."""

CONFIG = {
    "agents": {
        "ada": {
            "display_name": "Ada's agent",
            "role": "Answers, in Latin",
            "model": "default",
            "rooms": ["lobby"],
            "access": {"current_room_members": True},
        }
    },
    # It needs no provider, and is quick.
    "models": {
        "default": {
            "provider": "synthetic",
            "id": "lorem",
            "extra_kwargs": {"max_response_chars": 400, "chars_per_second": 4000},
        }
    },
    "room_defaults": {"join_policy": "public"},
    # The default needs packages beyond those that an answer needs.
    "memory": "none",
}

STARTED = 1_700_000_000
RUNNING = {"matrix": "Running", "mindroom": "Running"}
AUDITED = {
    "account.created": 1,
    "subscription.created": 1,
    "subscription.updated": 1,
    "instance.created": 1,
    "instance.updated": 5,
    "usage.limit_exceeded": 1,
}
"""Action -> how often the audit log has it in the end."""


@dataclass
class Demo:
    """One customer, and what is asked about them.

    Attributes:
        admin: the administrator's URL.
        stripe_handler: the URL of the role of that name.
        api: the provisioner's URL.
        token: the provisioner's API token.
        gateway: the instance gateway's URL.
        cluster: an administrator's way into the cluster.
        namespace: of the instances.
        mindroom: the directory of MindRoom's programs; None where they do not run.
        directory: where MindRoom keeps its files meanwhile.
    """

    admin: str
    stripe_handler: str
    api: str
    token: str
    gateway: str
    cluster: ClusterAccess
    namespace: str
    mindroom: Path | None
    directory: Path
    step: int = 0
    by_hand: list[str] = field(default_factory=list)
    mark: str = field(default_factory=lambda: secrets.token_hex(4))

    def play(self) -> None:
        """Play it through.

        Raises:
            UserError: a step is not what it should be.
        """
        account = self.sign_up()
        subscription, limit = self.subscribe(account)
        instance, release = self.provision(account, subscription)
        if self.mindroom:
            with self.mindroom_of(instance, self.mindroom) as pods:
                chat = self.talk_until_limit(instance, subscription, pods)
                self.upgrade(instance)
                self.talk_on(chat)
        else:
            self.report_until_limit(instance, limit)
            self.upgrade(instance)
            within = self.report(instance, "after")["within_limits"]
            self.check(within, "her messages are allowed again")
        self.stop_and_start(instance, release)
        self.deprovision(instance)
        self.show_audit_log(account)
        print("\nThat was a customer's life: every step was as it should be.")

    # ---- the steps

    def sign_up(self) -> UUID:
        """Sign a customer up; returns the id of her account."""
        email = f"ada-{self.mark}@customers.example"
        self.begin(f"Ada signs up as {email}")
        account = UUID(
            str(
                self.value(
                    "insert into auth.users (id, email, raw_user_meta_data)"
                    " values (gen_random_uuid(), %s, %s) returning id",
                    email,
                    Jsonb({"full_name": "Ada"}),
                )
            )
        )
        [row] = self.rows("select email, full_name from public.accounts where id = %s", account)
        self.check(row == (email, "Ada"), f"the trigger made her account: {row}")
        return account

    def subscribe(self, account: UUID) -> tuple[UUID, int]:
        """Subscribe to the plan starter; returns the subscription and its messages a day."""
        self.begin("Stripe: she has a customer and a subscription to the plan starter")
        self.stripe(1, "customer.created", self.customer(account))
        self.stripe(2, "customer.subscription.created", self.subscription("starter"))
        [(subscription, tier, limit)] = self.rows(
            "select id, tier, max_messages_per_day from public.subscriptions where account_id = %s",
            account,
        )
        self.check((tier, limit) == ("starter", 1000), f"{tier}: {limit} messages a day")
        self.check(
            self.value("select public.has_active_subscription(%s)", account) is True,
            "the subscription is live",
        )
        return subscription, limit

    def provision(self, account: UUID, subscription: UUID) -> tuple[str, str]:
        """Provision an instance; returns its id and the name of its release."""
        self.begin("provision_instance")
        row = self.request(
            "POST",
            "/api/v1/provision",
            {
                "account_id": str(account),
                "subscription_id": str(subscription),
                "config": CONFIG,
            },
        )
        instance, release = row["instance_id"], row["app_name"]
        self.check(
            row["status"] == "provisioning", f"instance {instance} is to be release {release}"
        )
        row = self.follow(instance, "running")
        url = row["frontend_url"]
        self.check(url.startswith(f"https://{release}."), f"it is at {url}")
        self.check(self.pods(instance) == RUNNING, "its pods run")
        revisions = self.kubectl("get", "secrets", f"-lowner=helm,name={release}", "-oname").split()
        self.check(len(revisions) == 1, f"Helm has one revision: {revisions}")
        self.wait("it is healthy", lambda: self.get(instance)["health_status"] == "healthy")
        return instance, release

    def report_until_limit(self, instance: str, limit: int) -> None:
        """Report, as her instance would, as many messages as the plan allows, and one more."""
        self.begin(f"She uses it, until the limit of {limit} messages")
        print(
            "   left out: MindRoom itself, which needs Python 3.12; the demo reports in its place"
        )
        ids = [str(number) for number in range(limit)]
        answer = self.report(instance, *ids)
        self.check(
            answer["within_limits"] and answer["messages_remaining"] == 0,
            f"{answer['counted']} messages are within it",
        )
        answer = self.report(instance, *ids)
        self.check(answer["counted"] == 0, "reported again, as after a crash, none counts twice")
        answer = self.report(instance, "over")
        self.check(
            not answer["within_limits"],
            f"one more is reported to be over it, until {answer['resets_at']}",
        )
        used = self.used(instance)
        self.check(used == (limit + 1, False), f"check_usage_limits says {used}")

    @contextmanager
    def mindroom_of(self, instance: str, programs: Path) -> Iterator[Pods]:
        """The published MindRoom and its Matrix server, running as the instance's pods say."""
        kinds = "deployments,statefulsets,services,configmaps,secrets"
        label = f"-lmindroom.chat/instance={instance}"
        manifests = json.loads(self.kubectl("get", kinds, label, "-ojson"))["items"]
        print("   MindRoom and its Matrix server start, as the pods say", flush=True)
        with Pods(manifests, self.directory, programs).running() as pods:
            yield pods

    def talk_until_limit(self, instance: str, subscription: UUID, pods: Pods) -> Chat:
        """Talk to the agent for as long as the plan allows it, and on."""
        self.begin(f"She talks to her agent in Matrix, with {TALKED} messages a day for the demo")
        self.rows(
            "update public.subscriptions set max_messages_per_day = %s where id = %s returning id",
            TALKED,
            subscription,
        )
        self.by_hand.append("subscription.updated")
        secret = self.secret(instance)
        chat = Chat.register(pods.url("matrix"), "ada", secret["MATRIX_REGISTRATION_SHARED_SECRET"])
        chat.join(f"#lobby:{secret['MATRIX_SERVER_NAME']}")
        chat.agent = f"@mindroom_ada:{secret['MATRIX_SERVER_NAME']}"
        self.check(chat.agent in chat.members(), f"{chat.user} is in a room with {chat.agent}")
        for number in range(1, TALKED // 2 + 1):
            self.ask(chat, f"{chat.agent} what is question {number}?")
            self.wait_for_use(instance, 2 * number)
        self.ask(chat, f"{chat.agent} what is beyond my plan?")
        self.wait_for_use(instance, TALKED + 2)
        refused = chat.say(f"{chat.agent} are you there?")
        self.wait("she is told in the room", lambda: chat.notices() != [])
        print(f"         {chat.notices()[-1]}")
        self.check(chat.answer(refused) == "", "and is not answered")
        return chat

    def talk_on(self, chat: Chat) -> None:
        """Talk on, with the larger plan, which MindRoom hears of within half a minute."""

        def answered() -> bool:
            message = chat.say(f"{chat.agent} and now?")
            time.sleep(5)
            return chat.answer(message) != ""

        self.wait("her agent answers again", answered)

    def upgrade(self, instance: str) -> None:
        """Change to a larger plan, which the provisioner sees by itself."""
        self.begin("Stripe: she upgrades to the plan professional, and her pods grow")
        before = self.memory(instance)
        self.stripe(3, "customer.subscription.updated", self.subscription("professional"))
        row = self.follow(instance, "running")
        after = self.memory(instance)
        self.check(
            row["memory_limit_mb"] == 4096 and before < after <= 4096,
            f"{before} MiB became {after} MiB, without a request to the provisioner",
        )

    def stop_and_start(self, instance: str, release: str) -> None:
        """Stop the instance and start it again, on the same volume."""
        self.begin("She takes a break: the instance is stopped, and started again")
        get_volume = ("get", "pvc", f"{release}-backend", "-ojsonpath={.metadata.uid}")
        volume = self.kubectl(*get_volume)
        self.set_status(instance, "stopped")
        self.follow(instance, "stopped")
        self.wait("it has no pods", lambda: self.pods(instance) == {})
        self.set_status(instance, "running")
        self.follow(instance, "running")
        self.wait("its pods run again", lambda: self.pods(instance) == RUNNING)
        self.check(self.kubectl(*get_volume) == volume, "on the volume that they had")

    def deprovision(self, instance: str) -> None:
        """Remove the instance; its volume stays for as long as the plan says."""
        self.begin("deprovision_instance")
        self.request(
            "DELETE", "/api/v1/deprovision", {"instance_id": instance, "reason": "the demo is over"}
        )
        self.follow(instance, "deprovisioned")
        label = f"-lmindroom.chat/instance={instance}"
        left = self.kubectl("get", "all,ingress,cm,secret,netpol", label, "-oname")
        self.check(left == "", "nothing of the release is left")
        until = self.kubectl(
            "get",
            "pvc",
            label,
            r"-ojsonpath={.items[*].metadata.annotations.mindroom\.chat/delete-after}",
        )
        self.check(
            until != "", f"but her volumes, until {until.partition(' ')[0]}, as the plan says"
        )

    def show_audit_log(self, account: UUID) -> None:
        """Show what was recorded of all this."""
        self.begin("What the audit log has of it")
        entries = self.rows(
            "select to_char(created_at, 'HH24:MI:SS'), actor_role, action, details"
            " from public.audit_logs where account_id = %s order by created_at, id",
            account,
        )
        for at, actor, action, details in entries:
            print(f"   {at}  {actor:<22}{action:<28}{_shorten(details)}")
        counts = Counter(action for _, _, action, _ in entries)
        for action, expected in (Counter(AUDITED) + Counter(self.by_hand)).items():
            self.check(counts[action] == expected, f"{action}: {counts[action]}")

    # ---- what is shown

    def begin(self, title: str) -> None:
        """Begin a step."""
        self.step += 1
        print(f"\n{self.step}. {title}", flush=True)

    def check(self, good: bool, finding: str) -> None:
        """Show what was found.

        Raises:
            UserError: it is not as it should be.
        """
        print(f"   {'ok' if good else 'WRONG'}: {finding}", flush=True)
        if not good:
            raise UserError(
                f"step {self.step} is not what it should be: {finding}",
                "look at the provisioner's log and at what the step shows above",
            )

    def wait(self, finding: str, good: Callable[[], bool]) -> None:
        """Show what comes true within TIMEOUT."""
        deadline = time.monotonic() + TIMEOUT
        while not (found := good()) and time.monotonic() < deadline:
            time.sleep(0.2)
        self.check(found, finding)

    def follow(self, instance: str, status: str) -> dict[str, Any]:
        """Show what changes until an instance is settled with a status; its row."""
        started, shown = time.monotonic(), ""
        while time.monotonic() - started < TIMEOUT:
            row = self.get(instance)
            pods = ", ".join(f"{k} {v}" for k, v in self.pods(instance).items()) or "none"
            now = f"{row['status']}; pods: {pods}"
            if now != shown:
                print(f"   {time.monotonic() - started:5.1f} s  {now}", flush=True)
                shown = now
            if row["settled"]:
                break
            time.sleep(0.1)
        problem = f": {row['error_message']}" if row["error_message"] else ""
        good = row["settled"] and row["status"] == status and not problem
        self.check(good, f"the instance is {row['status']}{problem}")
        return row

    # ---- what is asked

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """What a query returns to the administrator."""
        with psycopg.connect(self.admin, autocommit=True) as connection:
            return connection.execute(query.encode(), values).fetchall()

    def value(self, query: str, *values: object) -> object:
        """The one value that a query returns."""
        [[value]] = self.rows(query, *values)
        return value

    def ask(self, chat: Chat, question: str) -> None:
        """Write to an agent, who answers."""
        message = chat.say(question)
        self.wait("her agent answers", lambda: chat.answer(message) != "")
        print(f"         {chat.answer(message)[:80]}")

    def wait_for_use(self, instance: str, messages: int) -> None:
        """Show that messages are counted."""
        self.wait(f"{messages} messages are counted", lambda: self.used(instance)[0] == messages)

    def used(self, instance: str) -> tuple[int, bool]:
        """Messages of today, and whether one more is allowed."""
        query = "select messages_used, within_limits from public.check_usage_limits(%s)"
        [(messages, within)] = self.rows(query, UUID(instance))
        return messages, within

    def report(self, instance: str, *ids: str) -> dict[str, Any]:
        """What the gateway answers to the instance that sent messages with these ids."""
        message = {"type": "sent", "agent": "ada", "platform": "matrix"}
        events = [message | {"id": event_id} for event_id in ids]
        token = self.secret(instance)["PLATFORM_USAGE_TOKEN"]
        return _request("POST", f"{self.gateway}/v1/usage", token, {"events": events})

    def secret(self, instance: str) -> dict[str, str]:
        """The instance's tokens."""
        label = f"-lmindroom.chat/instance={instance}"
        [secret] = json.loads(self.kubectl("get", "secrets", label, "-ojson"))["items"]
        return {name: b64decode(value).decode() for name, value in secret["data"].items()}

    def as_service_role(self) -> psycopg.Connection:
        """A connection with the role that our own servers have through Supabase's API."""
        connection = psycopg.connect(self.admin, autocommit=True)
        connection.execute("set role service_role")
        return connection

    def set_status(self, instance: str, status: str) -> None:
        """Ask for a status, as a server of ours would."""
        with self.as_service_role() as connection:
            connection.execute(
                "update public.instances set status = %s where id = %s", [status, instance]
            )

    def stripe(self, number: int, kind: str, content: Mapping[str, Any]) -> None:
        """Hand an event on, as stripe-handler would."""
        event = {
            "id": f"evt_{self.mark}_{number}",
            "type": kind,
            "created": STARTED + number,
            "data": {"object": content},
        }
        with psycopg.connect(self.stripe_handler, autocommit=True) as connection:
            [outcome] = connection.execute(
                "select public.handle_stripe_event(%s)", [Jsonb(event)]
            ).fetchone() or [None]
        self.check(outcome == "applied", f"{kind}: {outcome}")

    def customer(self, account: UUID) -> dict[str, Any]:
        """Stripe's customer, who names the account."""
        return {
            "id": f"cus_{self.mark}",
            "object": "customer",
            "created": STARTED,
            "metadata": {"account_id": str(account)},
        }

    def subscription(self, tier: str) -> dict[str, Any]:
        """Stripe's subscription to a plan."""
        price = {"id": f"price_{tier}", "metadata": {"tier": tier}}
        return {
            "id": f"sub_{self.mark}",
            "object": "subscription",
            "customer": f"cus_{self.mark}",
            "created": STARTED,
            "status": "active",
            "metadata": {},
            "items": {"data": [{"price": price}]},
        }

    def request(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """What the provisioner's API answers.

        Raises:
            UserError: it refuses, or does not answer.
        """
        return _request(method, f"{self.api}{path}", self.token, body)

    def get(self, instance: str) -> dict[str, Any]:
        """An instance as the provisioner's API shows it."""
        return self.request("GET", f"/api/v1/instances/{instance}")

    def kubectl(self, *arguments: str) -> str:
        """What kubectl prints about the instances' namespace."""
        return self.cluster.kubectl(*arguments, "-n", self.namespace)

    def pods(self, instance: str) -> dict[str, str]:
        """Component -> phase."""
        listing = self.kubectl("get", "pods", f"-lmindroom.chat/instance={instance}", "-ojson")
        return {
            pod["metadata"]["labels"]["app.kubernetes.io/component"]: pod["status"]["phase"]
            for pod in json.loads(listing)["items"]
            if "deletionTimestamp" not in pod["metadata"]
        }

    def memory(self, instance: str) -> int:
        """MiB that the pods may use together."""
        listing = self.kubectl("get", "pods", f"-lmindroom.chat/instance={instance}", "-ojson")
        return sum(
            _mebibytes(container["resources"]["limits"]["memory"])
            for pod in json.loads(listing)["items"]
            if "deletionTimestamp" not in pod["metadata"]
            for container in pod["spec"]["containers"]
        )


def _mebibytes(quantity: str) -> int:
    """A quantity as the API server writes it."""
    return int(quantity[:-2]) * {"Mi": 1, "Gi": 1024}[quantity[-2:]]


def _request(method: str, url: str, token: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
    try:
        answer = httpx2.request(
            method,
            url,
            json=body,
            headers={"Authorization": f"Bearer {token}"},
            timeout=30,
            trust_env=False,
        )
    except httpx2.RequestError as error:
        raise UserError(
            f"{method} {url}: the service does not answer: {error}", "make up CLUSTER=1 starts it"
        ) from error
    if not answer.is_success:
        raise UserError(f"{method} {url}: {answer.status_code} {answer.text}")
    row: dict[str, Any] | list[dict[str, Any]] = answer.json()
    return row[0] if isinstance(row, list) else row


def _shorten(details: Mapping[str, Any]) -> str:
    text = json.dumps({k: v for k, v in details.items() if k != "changed"})
    return text if len(text) <= 100 else f"{text[:97]}..."
