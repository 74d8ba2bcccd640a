"""The database's own speed: `python -m bench.database [TARGET...]`.

Each target is a pgbench script beside a bare statement's, in turns within each round, with 1 and 8
clients, on PostgreSQL 15 and 18, fsync on, prepared statements; what counts is the ratio of the
medians.  cleanup is a measure of its own.  What is found is kept in .state/bench/database.json;
document puts it, with the scripts, into docs/performance.md.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import Any

from bench.database.data import connect, prepare, server
from bench.database.targets import NO_LIMIT, ONE, TARGETS, Script, Target
from bench.migrations import ROOT, STATE
from embedded.postgres import Server

CLIENTS = (1, 8)
RESULTS = STATE / "database.json"
DOCUMENT = ROOT / "docs" / "performance.md"
CLEANUP = "cleanup"


def main(arguments: Sequence[str]) -> int:
    """Measure what is asked for, keep and print what is found."""
    parser = argparse.ArgumentParser(prog="python -m bench.database", description=__doc__)
    names = [*TARGETS, CLEANUP, "document"]
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(names))
    parser.add_argument("--postgres", default="15,18", help="majors (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="of each target (default: 9)")
    parser.add_argument("--seconds", type=int, default=2, help="of each run (default: 2)")
    options = parser.parse_intermixed_args(arguments)
    if unknown := sorted(set(options.targets) - set(names)):
        parser.error(f"no such target: {', '.join(unknown)}; there are {', '.join(names)}")
    wanted = options.targets or [*TARGETS, CLEANUP]
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for major in options.postgres.split(",") if set(wanted) - {"document"} else []:
        postgres = server(int(major))
        found = results.setdefault(major, {})
        try:
            for name in wanted:
                if name == CLEANUP:
                    found[name] = cleanup(postgres)
                    print(f"{major} {name}: {found[name]}", flush=True)
                elif name in TARGETS:
                    found[name] = measure(postgres, TARGETS[name], options.rounds, options.seconds)
                    ratios = ", ".join(
                        f"{number} clients {_ratio(runs):.2f}"
                        for number, runs in found[name].items()
                    )
                    print(
                        f"{major} {name}: {ratios} (at least {TARGETS[name].bound:.2f})", flush=True
                    )
                RESULTS.parent.mkdir(parents=True, exist_ok=True)
                RESULTS.write_text(json.dumps(results, indent=1))
        finally:
            postgres.stop()
    if "document" in wanted:
        before, begin, rest = DOCUMENT.read_text().partition("<!-- measured -->\n")
        _, end, after = rest.partition("\n<!-- end of measured -->")
        DOCUMENT.write_text(before + begin + _markdown(results) + end + after)
    return 0


Runs = dict[str, list[float]]
"""Side (ours, baseline) -> transactions per second of each run."""


def measure(postgres: Server, target: Target, rounds: int, seconds: int) -> dict[str, Runs]:
    """Both sides in turns, after a round that is not counted; by the number of clients."""
    sides = {"baseline": target.baseline, "ours": target.ours}
    for script in sides.values():
        prepare(postgres, script.database)
    for name in {script.database for script in sides.values()}:
        with connect(postgres, name) as connection:
            connection.execute(NO_LIMIT)
            if target.before:
                connection.execute(target.before.encode())
                connection.execute("select count(track_usage(id)) from instances")
    # What the calls fill has statistics, as it has on a server that runs for some minutes.
    for script in sides.values():
        pgbench(postgres, script, 1, seconds)
    for name in {script.database for script in sides.values()}:
        with connect(postgres, name) as connection:
            connection.execute("vacuum analyze")
            connection.execute("checkpoint")
    found: dict[str, Runs] = {str(number): {side: [] for side in sides} for number in CLIENTS}
    for number in CLIENTS:
        for turn in range(rounds + 1):
            for side, script in sides.items():
                speed = pgbench(postgres, script, number, seconds)
                if turn:
                    found[str(number)][side].append(speed)
    return found


def pgbench(postgres: Server, script: Script, clients: int, seconds: int) -> float:
    """Transactions per second of a script, sent as real clients do: prepared, each its own."""
    environment = os.environ | {"PGPASSWORD": postgres.password, "PGSSLMODE": "disable"}
    if script.user:
        with connect(postgres, script.database) as connection:
            [account] = connection.execute(f"select {ONE}".encode()).fetchone() or [None]
        claims = json.dumps({"role": "authenticated", "sub": str(account)}, separators=(",", ":"))
        environment["PGOPTIONS"] = f"-c role=authenticated -c request.jwt.claims={claims}"
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as file:
        file.write(script.text)
        file.flush()
        command = [str(postgres.bin / "pgbench"), "--no-vacuum", "--protocol=prepared"]
        command += [
            "--host=127.0.0.1",
            f"--port={postgres.port}",
            f"--username={postgres.superuser}",
        ]
        command += [f"--client={clients}", f"--jobs={min(clients, os.cpu_count() or 1)}"]
        command += [f"--time={seconds}", f"--file={file.name}", script.database]
        done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    found = re.search(r"^tps = ([\d.]+)", done.stdout, re.MULTILINE)
    if done.returncode or not found:
        raise SystemExit(f"pgbench failed:\n{done.stdout}{done.stderr}")
    return float(found[1])


def cleanup(postgres: Server) -> dict[str, float]:
    """Remove 10 million expired rows, while messages are counted and bare upserts run."""
    database = "ten_million"
    prepare(postgres, database)
    done = threading.Event()
    longest = {"track_usage": 0.0, "upsert": 0.0}

    def repeat(name: str, query: str) -> None:
        with connect(postgres, database) as connection:
            while not done.is_set():
                started = time.perf_counter()
                connection.execute(query.encode())
                longest[name] = max(longest[name], time.perf_counter() - started)

    def size() -> float:
        query = "select pg_total_relation_size('usage_metrics') / 2^20"
        return float(connection.execute(query).fetchone()[0])  # type: ignore[index]

    queries = {
        "track_usage": TARGETS["track_one"].ours.text,
        "upsert": TARGETS["track_one"].baseline.text,
    }
    threads = [threading.Thread(target=repeat, args=each) for each in queries.items()]
    with connect(postgres, database) as connection:
        before = size()
        connection.execute(
            "update private.retention set keep_days = 0 where table_name = 'usage_metrics'"
        )
        for thread in threads:
            thread.start()
        started, calls, removed, slowest = time.perf_counter(), 0, 0, 0.0
        while True:
            called = time.perf_counter()
            [[found]] = connection.execute("select cleanup_expired_data()").fetchall()
            slowest = max(slowest, time.perf_counter() - called)
            calls, removed = calls + 1, removed + found["usage_metrics"]
            if not any(found.values()):
                break
        seconds = time.perf_counter() - started
        done.set()
        for thread in threads:
            thread.join()
        connection.execute("vacuum usage_metrics")
        after = size()
    with connect(postgres) as connection:
        connection.execute(f"drop database {database} with (force)".encode())
    return {
        "rows": removed,
        "seconds": seconds,
        "calls": calls,
        "slowest_call": slowest,
        "longest_track_usage_ms": longest["track_usage"] * 1000,
        "longest_upsert_ms": longest["upsert"] * 1000,
        "mib_before": before,
        "mib_after_vacuum": after,
    }


# --- as Markdown -----------------------------------------------------------------------------


def _ratio(runs: Runs) -> float:
    return statistics.median(runs["ours"]) / statistics.median(runs["baseline"])


def _markdown(results: dict[str, Any]) -> str:
    header = [
        "",
        "at least",
        *(f"{major}, {n} client{'s'[: n - 1]}" for major in results for n in CLIENTS),
    ]
    rows = [header, ["---"] * len(header)]
    for name, target in TARGETS.items():
        cells = []
        for found in results.values():
            for number in CLIENTS:
                runs = found.get(name, {}).get(str(number))
                cells.append(
                    f"{_ratio(runs):.2f} ({statistics.median(runs['ours']):.0f}/s)" if runs else ""
                )
        rows.append([target.title, f"{target.bound:.2f}", *cells])
    parts = ["\n".join(f"| {' | '.join(row)} |" for row in rows)]
    for major, found in results.items():
        if each := found.get(CLEANUP):
            parts.append(
                f"`cleanup_expired_data` on {major}: {each['rows']:,.0f} rows in "
                f"{each['seconds']:.0f} s and {each['calls']:.0f} calls, the slowest "
                f"{each['slowest_call']:.1f} s. Meanwhile the slowest `track_usage` took "
                f"{each['longest_track_usage_ms']:.0f} ms, the slowest bare upsert "
                f"{each['longest_upsert_ms']:.0f} ms. The table with its indexes had "
                f"{each['mib_before']:,.0f} MiB before, {each['mib_after_vacuum']:,.0f} MiB after "
                "a vacuum."
            )
    parts.append("#### The scripts")
    for target in TARGETS.values():
        parts.append(f"{target.title[0].upper()}{target.title[1:]}:")
        for script in (target.ours, target.baseline):
            about = f"-- {script.database}{', as a user' if script.user else ''}\n"
            parts.append(f"```sql\n{about}{script.text}```")
    return "\n\n".join(parts)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
