"""The process: `python -m provisioner.gateway`."""

import resource
import signal
import sys

import uvicorn

from provisioner import log
from provisioner.gateway.app import create_app
from provisioner.gateway.connections import Connection
from provisioner.gateway.database import Database
from provisioner.gateway.settings import Settings
from provisioner.settings import SettingsError, load


def main() -> int:
    """Run the gateway until SIGTERM or SIGINT; returns the exit code."""
    try:
        settings = load(Settings)
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    log.configure(settings.log_level)
    # The soft limit of a container may be 1,024 files, and each connection is one.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    # Once the server has stopped, it raises the signal again that stopped it.
    signal.signal(signal.SIGTERM, lambda *_: None)
    uvicorn.run(
        create_app(Database(settings.database_url.get_secret_value())),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        http=Connection,
        timeout_graceful_shutdown=5,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
