"""One job of the database, run to its end: `python -m provisioner.job FILE`.

FILE holds one SQL statement, or a block that commits as it goes; DATABASE_URL says where to run it.
What came of it is one line of JSON on stdout.  The exit code is 0 when the job was done.
"""

import json
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg

LONGEST = "1h"
"""How long a job may take; the role's own limit is meant for a service's requests."""


def main(file: Path, url: str) -> int:
    """Run the job in a file on the database of a URL; returns the exit code."""
    began, messages = time.monotonic(), []
    outcome: dict[str, Any] = {}
    try:
        with psycopg.connect(url, autocommit=True, application_name=f"job {file.stem}") as database:
            database.add_notice_handler(lambda notice: messages.append(notice.message_primary))
            database.execute(f"set statement_timeout = '{LONGEST}'")
            cursor = database.execute(file.read_bytes())
            if cursor.description:
                outcome["rows"] = cursor.fetchall()
    except (OSError, psycopg.Error) as error:
        outcome["error"] = _readable(error)
    line = {
        "timestamp": datetime.now(UTC).isoformat(),
        "level": "error" if "error" in outcome else "info",
        "event": "job failed" if "error" in outcome else "job done",
        "job": file.stem,
        "seconds": round(time.monotonic() - began, 3),
        "messages": messages,
        **outcome,
    }
    print(json.dumps(line, default=str), flush=True)  # noqa: T201 its log
    return 1 if "error" in outcome else 0


def _readable(error: Exception) -> str:
    """What went wrong, without the URL, which holds a password."""
    if isinstance(error, psycopg.ProgrammingError) and error.sqlstate is None:
        return "DATABASE_URL cannot be parsed (it is not shown, since it holds a password)"
    if isinstance(error, psycopg.Error) and error.sqlstate:
        return f"{error.diag.message_primary} (SQLSTATE {error.sqlstate})"
    return str(error).strip()


if __name__ == "__main__":
    if len(sys.argv) != 2 or "DATABASE_URL" not in os.environ:
        sys.exit("usage: DATABASE_URL=postgresql://... python -m provisioner.job FILE")
    sys.exit(main(Path(sys.argv[1]), os.environ["DATABASE_URL"]))
