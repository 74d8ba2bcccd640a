"""What is promised of one connection holds for 64: every interleaving ends in exact totals."""

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.customers import TODAY, Db, customer_of_its_own
from tests.support.platforms import Platform

CONNECTIONS = 64

Call = tuple[str, list[Any]]
"""A query that gives one value, and its values."""


@dataclass(frozen=True)
class World:
    """A customer with three running instances, and many connections.

    Attributes:
        db: the administrator's connection.
        account: the customer.
        subscription: unlimited, unless a test says otherwise.
        instances: three, running.
    """

    db: Db
    account: UUID
    subscription: UUID
    instances: Sequence[UUID]
    connections: Sequence[psycopg.Connection]
    pool: ThreadPoolExecutor

    def at_once(self, calls: Sequence[Call]) -> list[Any]:
        """Deal the calls out to the connections, which begin together; their values in order."""
        hands = [calls[n :: len(self.connections)] for n in range(len(self.connections))]
        start = threading.Barrier(len(hands))

        def play(connection: psycopg.Connection, hand: Sequence[Call]) -> list[Any]:
            start.wait()
            found = []
            for query, values in hand:
                [[value]] = connection.execute(query.encode(), values).fetchall()
                found.append(value)
            return found

        played = list(self.pool.map(play, self.connections, hands))
        return [played[n % len(hands)][n // len(hands)] for n in range(len(calls))]


@pytest.fixture(scope="module")
def world(platform: Platform) -> Iterator[World]:
    with ExitStack() as stack:

        def connect() -> psycopg.Connection:
            return stack.enter_context(psycopg.connect(platform.url, autocommit=True))

        db, plan, first = stack.enter_context(customer_of_its_own(platform))
        account = db.one("select account_id from subscriptions where id = %s", plan)
        instances = [first]
        for _ in range(2):
            name = f"i{uuid4().hex[:12]}"
            row = {"account_id": account, "subscription_id": plan, "status": "running"}
            made = db.insert("instances", **row, app_name=name, subdomain=name)
            instances.append(made["id"])
        pool = stack.enter_context(ThreadPoolExecutor(CONNECTIONS))
        connections = [connect() for _ in range(CONNECTIONS)]
        yield World(db, account, plan, instances, connections, pool)


@pytest.fixture(autouse=True)
def nothing_used_yet(world: World) -> None:
    forget(world)


def forget(world: World) -> None:
    world.db.run("delete from usage_metrics where account_id = %s", world.account)
    world.db.run("delete from audit_logs where account_id = %s", world.account)


class Message(NamedTuple):
    """A message; which of the instances it is of."""

    which: int
    agent: str | None
    tool: str | None
    platform: str | None
    message_type: str


NAMES = st.sampled_from([None, "a", "b", '"', "{}", "a.b", "\\", "0", " ", "ä", "x" * 100])
TYPES = st.sampled_from(["sent", "received"])
JOBS = (
    "reset_daily_usage()",
    "cleanup_expired_data()::text",
    "calculate_storage_usage(instance_id => '{}')",
    "update_instance_health(instance_id => '{}', status => 'degraded')",
)
"""What may happen to an instance meanwhile, and changes no total."""

DOINGS = st.lists(
    st.builds(Message, st.integers(0, 2), NAMES, NAMES, NAMES, TYPES)
    | st.tuples(st.integers(0, 2), st.sampled_from(JOBS)),
    min_size=1,
    max_size=3 * CONNECTIONS,
)
LIMITS = st.sampled_from([-1, 0, 1, 10, 50])


def test_any_interleaving_of_messages_gives_exact_totals(world: World) -> None:
    @settings(max_examples=30)
    @given(DOINGS, LIMITS)
    def holds(doings: list[Any], limit: int) -> None:
        forget(world)
        world.db.update("subscriptions", world.subscription, max_messages_per_day=limit)
        answers = world.at_once([as_call(world, doing) for doing in doings])
        for which, instance in enumerate(world.instances):
            of_it = [
                (doing, answer)
                for doing, answer in zip(doings, answers, strict=True)
                if isinstance(doing, Message) and doing.which == which
            ]
            check(world, instance, limit, of_it)

    holds()


def as_call(world: World, doing: Any) -> Call:
    if isinstance(doing, Message):
        values = [world.instances[doing.which], *doing[1:]]
        return "select track_usage(%s, %s, %s, %s, %s)", values
    which, job = doing
    return f"select {job.format(world.instances[which])}", []


def check(world: World, instance: UUID, limit: int, of_it: list[tuple[Message, bool]]) -> None:
    """Hold what is stored of an instance to a plain recount of its messages."""
    messages = [message for message, _ in of_it]
    allowed = len(messages) if limit == -1 else min(limit, len(messages))
    assert [answer for _, answer in of_it].count(True) == allowed
    types = Counter(message.message_type for message in messages)
    names = (Counter(each[place] for each in messages if each[place]) for place in (1, 2))
    platforms = {message.platform for message in messages if message.platform}
    rows = world.db.run(
        f"""select messages_sent, messages_received, agent_counts, tool_counts, platforms_active
              from usage_metrics where instance_id = %s and usage_date = {TODAY}""",
        instance,
    )
    wanted = (types["sent"], types["received"], *map(dict, names), platforms)
    found = [(*row[:4], set(row[4])) for row in rows if row[0] + row[1]]
    assert found == ([wanted] if messages else [])
    assert all(len(row[4]) == len(set(row[4])) for row in rows)
    query = "select count(*) from audit_logs where resource_id = %s and action = %s"
    assert world.db.one(query, instance, "usage.limit_exceeded") == (allowed < len(messages))


def test_cleanup_takes_what_is_expired_and_no_message_that_is_counted_meanwhile(
    world: World,
) -> None:
    world.db.update("subscriptions", world.subscription, max_messages_per_day=-1)
    world.db.run(
        f"""insert into usage_metrics (account_id, instance_id, usage_date, messages_sent)
            select %s, id, {TODAY} - 300 - n, 1
              from unnest(%s::uuid[]) as id, generate_series(1, 4000) as n""",
        world.account,
        list(world.instances),
    )
    world.db.run(
        """insert into audit_logs (account_id, action, category, created_at)
           select %s, 'thing.done', 'test', now() - make_interval(days => n)
             from generate_series(1, 20000) as n""",
        world.account,
    )
    messages: list[Call] = [
        ("select track_usage(%s)", [instance]) for instance in world.instances for _ in range(300)
    ]
    cleanups: list[Call] = [("select cleanup_expired_data()", [])] * 12
    answers = world.at_once([*cleanups, *messages])
    removed = Counter[str]()
    for done in answers[: len(cleanups)]:
        removed.update(done)
    assert removed == {"usage_metrics": 3 * 3935, "audit_logs": 20_000 - 89} | dict.fromkeys(
        [
            "api_keys",
            "instance_backups",
            "released_subdomains",
            "stripe_events",
            "stripe_customers",
            "usage_events",
        ],
        0,
    )
    kept = world.db.run(
        f"""select usage_date = {TODAY}, count(*), sum(messages_sent) from usage_metrics
             where account_id = %s group by 1 order by 1""",
        world.account,
    )
    assert kept == [(False, 3 * 65, 3 * 65), (True, 3, 900)]


def test_storage_measured_everywhere_at_once_adds_up(world: World) -> None:
    measure = "update instances set storage_used_gb = %s where id = %s returning true"
    for each in range(5):
        measured = [(number, world.instances[number % 3]) for number in range(CONNECTIONS)]
        world.at_once(
            [(measure, [number * (each + 1), instance]) for number, instance in measured]
            + [("select calculate_storage_usage(%s)", [instance]) for _, instance in measured]
        )
        [[stored, total]] = world.db.run(
            """select p.storage_used_gb, sum(i.storage_used_gb)
                 from subscriptions p join instances i on subscription_id = p.id
                where p.id = %s group by p.id""",
            world.subscription,
        )
        assert stored == total


def test_an_instance_that_many_find_critical_became_so_once(world: World) -> None:
    report = "select update_instance_health(%s, %s)::text"
    for status in ("critical", "healthy"):
        world.at_once([(report, [world.instances[0], status])] * 16)
    said = world.db.run(
        """select details ->> 'new' from audit_logs
            where action = 'instance.health_changed' and account_id = %s order by created_at""",
        world.account,
    )
    assert said == [("critical",), ("healthy",)]
