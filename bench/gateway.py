"""The instance gateway under 1,000 instances that each send a batch every two seconds.

One process of the gateway is asked as the instances' plugin asks it, a connection for each request;
beside it, by turns and as often, `record_usage` is called by psycopg itself. What counts is that 99
of 100 answers take less than 50 ms.

`python -m bench.gateway`. It starts a PostgreSQL of its own; the senders are another process.
"""

import asyncio
import hashlib
import json
import multiprocessing
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import psycopg

from components import ROOT
from embedded.postgres import Server, embedded_bin
from provisioner.gateway.database import Database

sys.path.insert(0, str(ROOT / "tests"))

from tests.support.gateways import running_gateway
from tests.support.platforms import Platform, run, stack_config

INSTANCES = 1_000
EVERY_SECONDS = 2.0
SECONDS = 10.0
ROUNDS = 3
TARGET_MS = 50.0

SPAWN = multiprocessing.get_context("spawn")

Send = Callable[[int, str], Awaitable[None]]
"""Send the events, JSON, of the instance with a number."""


def token(number: int) -> str:
    """The token of an instance."""
    return f"token-{number:04}-of-the-bench"


def main() -> int:
    """Measure; returns the exit code."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        server = Server(directory / "postgres", embedded_bin())
        try:
            server.start()
            url = server.url("mindroom")
            config = stack_config(url, directory / "manifests")
            platform = Platform(url, config, run(config))
            instances(url)
            measure(platform.service_url("instance_gateway"), directory)
        finally:
            server.destroy()
    return 0


def instances(url: str) -> None:
    """Instances with their tokens."""
    with psycopg.connect(url) as db:
        db.execute("insert into auth.users (id, email) values (gen_random_uuid(), 'a@b.example')")
        rows = db.execute(
            """with plan as (
                 insert into subscriptions (account_id, tier) select id, 'enterprise' from accounts
                 returning account_id, id
               )
               insert into instances (account_id, subscription_id, app_name, subdomain, status)
               select account_id, id, 'i' || n, 'i' || n, 'running'
                 from plan, generate_series(1, %s) as n
               returning id""",
            [INSTANCES],
        ).fetchall()
        with db.cursor() as cursor:
            cursor.executemany(
                """insert into private.instance_secrets (instance_id, name, value)
                   values (%s, 'PLATFORM_USAGE_TOKEN', %s)""",
                [(instance, token(number)) for number, [instance] in enumerate(rows)],
            )


def measure(url: str, directory: Path) -> None:
    """The gateway and psycopg by turns, after a round of each that is not counted."""
    found: dict[str, list[list[float]]] = {"gateway": [], "record_usage": []}
    busy: list[float] = []
    with running_gateway(url, directory / "log") as service, SPAWN.Pool(1) as senders:
        process = psutil.Process(service.process.pid)
        for turn in range(ROUNDS + 1):
            for side, address in (("gateway", service.port), ("record_usage", url)):
                before, began = cpu_seconds(process), time.monotonic()
                taken = senders.apply(send_all, (address,))
                if not turn:
                    continue
                found[side].append(taken)
                if side == "gateway":
                    seconds = time.monotonic() - began
                    busy.append(100 * (cpu_seconds(process) - before) / seconds)
        memory = process.memory_info().rss / 2**20
    for side, rounds in found.items():
        times = (f"p50 {p(50, each):5.1f} p99 {p(99, each):6.1f} ms" for each in rounds)
        print(f"{side:<14}" + "   ".join(times))
    ours, bare = (statistics.median(p(99, each) for each in rounds) for rounds in found.values())
    print(f"p99 {ours:.1f} ms at the median, target {TARGET_MS:.0f}")
    print(f"    {ours / bare:.2f} times that of record_usage alone")
    print(f"    {statistics.median(busy):.0f} % of a core, {memory:.0f} MiB")


def cpu_seconds(process: psutil.Process) -> float:
    """Of a process."""
    times = process.cpu_times()
    return float(times.user + times.system)


def p(percent: int, taken: list[float]) -> float:
    """A percentile, in milliseconds."""
    return 1000 * statistics.quantiles(taken, n=100)[percent - 1]


# ---- the senders


def send_all(address: int | str) -> list[float]:
    """Seconds that each request took, to a port or to a database."""
    return asyncio.run(_send_all(address))


async def _send_all(address: int | str) -> list[float]:
    taken: list[float] = []
    if isinstance(address, int):

        async def to_gateway(number: int, events: str) -> None:
            body = f'{{"events": {events}}}'
            # As pods have: the gateway limits what comes from one address.
            own = (f"127.1.{number // 250}.{number % 250 + 1}", 0)
            reader, writer = await asyncio.open_connection("127.0.0.1", address, local_addr=own)
            writer.write(
                f"POST /v1/usage HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {token(number)}"
                f"\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
                f"\r\nConnection: close\r\n\r\n{body}".encode()
            )
            answer = await reader.read()
            writer.close()
            assert b'"counted":1,' in answer, answer

        await _each(to_gateway, taken)
        return taken
    async with Database(address) as database:

        async def to_database(number: int, events: str) -> None:
            hashed = hashlib.sha256(token(number).encode()).hexdigest()
            counted = await database.record_usage(hashed, events)
            assert counted is not None
            assert counted.counted == 1

        await _each(to_database, taken)
    return taken


async def _each(send: Send, taken: list[float]) -> None:
    """Every instance at times of its own, whether or not it was answered before."""

    async def once(number: int) -> None:
        event: dict[str, Any] = {"id": secrets.token_hex(16), "type": "sent"}
        events = json.dumps([event | {"agent": "ada", "platform": "matrix"}])
        began = time.perf_counter()
        await send(number, events)
        taken.append(time.perf_counter() - began)

    async def instance(number: int, group: asyncio.TaskGroup) -> None:
        await asyncio.sleep(EVERY_SECONDS * number / INSTANCES)
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            group.create_task(once(number))
            await asyncio.sleep(EVERY_SECONDS)

    async with asyncio.TaskGroup() as group:
        for number in range(INSTANCES):
            group.create_task(instance(number, group))


if __name__ == "__main__":
    sys.exit(main())
