"""The process: `python -m provisioner.gateway`."""

import signal
import sys

import uvicorn

from provisioner import log
from provisioner.gateway.app import create_app
from provisioner.gateway.database import Database
from provisioner.gateway.settings import Settings
from provisioner.settings import SettingsError, load

MAX_CONNECTIONS = 2_000
"""Of senders: more are answered 503."""


def main() -> int:
    """Run the gateway until SIGTERM or SIGINT; returns the exit code."""
    try:
        settings = load(Settings)
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    log.configure(settings.log_level)
    # Once the server has stopped, it raises the signal again that stopped it.
    signal.signal(signal.SIGTERM, lambda *_: None)
    uvicorn.run(
        create_app(Database(settings.database_url.get_secret_value())),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        backlog=MAX_CONNECTIONS,
        timeout_graceful_shutdown=5,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
