"""In one warm process: nothing to do, a bare connection, reading the files, hashing them.

`python -m bench.migrations.warm DIRECTORY URL` prints medians in seconds as JSON.
"""

import contextlib
import hashlib
import io
import json
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

from migrate.__main__ import main as migrate

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS = 30


def main(directory: str, url: str) -> None:
    """Run the four in turns, the first round unmeasured."""

    def up() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            code = migrate(["--directory", directory, "--database-url", url, "up"])
        if code:
            raise SystemExit(f"up ended with exit code {code}")

    def connect() -> None:
        with psycopg.connect(url) as connection:
            connection.execute("select 1").fetchone()

    texts: list[bytes] = []

    def read() -> None:
        texts[:] = [path.read_bytes() for path in Path(directory, "migrations").iterdir()]

    def digest() -> None:
        for text in texts:
            hashlib.sha256(text).hexdigest()

    sides: dict[str, Callable[[], None]] = {
        "up": up,
        "connection": connect,
        "reading": read,
        "hashing": digest,
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(ROUNDS + 1):
        for name, side in sides.items():
            started = time.perf_counter()
            side()
            if number:
                times[name].append(time.perf_counter() - started)
    print(json.dumps({name: statistics.median(each) for name, each in times.items()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
