"""Runs one job on the database: `python -m provisioner.job FILE`.

FILE holds one SQL statement, or a DO block that commits in between; DATABASE_URL names the
database. The result is one line of JSON on stdout; the exit code is 0 if the job succeeded.
"""

import json
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg

STATEMENT_TIMEOUT = "1h"
"""Instead of the role's own limit, which is meant for the requests of a service."""


def main(file: Path, url: str) -> int:
    """Run the SQL in a file on the database of a URL; returns the exit code."""
    started, messages = time.monotonic(), []
    result: dict[str, Any] = {}
    try:
        with psycopg.connect(
            url, autocommit=True, application_name=f"job {file.stem}"
        ) as connection:
            connection.add_notice_handler(lambda notice: messages.append(notice.message_primary))
            connection.execute(f"set statement_timeout = '{STATEMENT_TIMEOUT}'")
            cursor = connection.execute(file.read_bytes())
            if cursor.description:
                result["rows"] = cursor.fetchall()
    except (OSError, psycopg.Error) as error:
        result["error"] = _error_message(error)
    line = {
        "timestamp": datetime.now(UTC).isoformat(),
        "level": "error" if "error" in result else "info",
        "event": "job failed" if "error" in result else "job done",
        "job": file.stem,
        "seconds": round(time.monotonic() - started, 3),
        "messages": messages,
        **result,
    }
    print(json.dumps(line, default=str), flush=True)  # noqa: T201 - its log
    return 1 if "error" in result else 0


def _error_message(error: Exception) -> str:
    """The message of an error, without the URL, which holds a password."""
    if isinstance(error, psycopg.ProgrammingError) and error.sqlstate is None:
        return "DATABASE_URL cannot be parsed (it is not shown, since it holds a password)"
    if isinstance(error, psycopg.Error) and error.sqlstate:
        return f"{error.diag.message_primary} (SQLSTATE {error.sqlstate})"
    return str(error).strip()


if __name__ == "__main__":
    if len(sys.argv) != 2 or "DATABASE_URL" not in os.environ:
        sys.exit("usage: DATABASE_URL=postgresql://... python -m provisioner.job FILE")
    sys.exit(main(Path(sys.argv[1]), os.environ["DATABASE_URL"]))
