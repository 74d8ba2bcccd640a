"""The service: `python -m provisioner`."""

import asyncio
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
import uvicorn
from lightkube.core.exceptions import ConfigError

from provisioner import health_watch, listener, log, resync
from provisioner.api import Dependencies, create_app
from provisioner.cluster import Cluster
from provisioner.context import Context
from provisioner.database import Database
from provisioner.health_watch import HealthWatch
from provisioner.listener import Listener
from provisioner.measure import Measure
from provisioner.reachability import Reachability
from provisioner.reconciler import Reconciler
from provisioner.resync import Resync
from provisioner.settings import Settings, SettingsError, load


class Server(uvicorn.Server):
    """A server that leaves the handling of signals to `serve`."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


async def serve(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT."""
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    async with Database(settings) as database, Cluster(settings) as cluster:
        cluster_reachability = Reachability("cluster", [*health_watch.TASKS, resync.TASK])
        context = Context(
            settings,
            database,
            cluster,
            Reachability("database", [listener.TASK]),
            cluster_reachability,
            HealthWatch(database, cluster, cluster_reachability),
        )
        await _run_tasks(context, stopping)


async def _run_tasks(context: Context, stopping: asyncio.Event) -> None:
    settings = context.settings
    reconciler = Reconciler(context)
    resyncs = Resync(context)
    notifications = Listener(context)
    app = create_app(
        Dependencies(
            settings.api_token,
            context.database,
            notifications,
            (context.database_reachability, context.cluster_reachability),
            stopping,
        )
    )
    server = Server(
        uvicorn.Config(
            app,
            settings.host,
            settings.port,
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=1,
        )
    )
    logger = structlog.get_logger()
    logger.info("started", lease_owner=settings.lease_owner, workers=settings.workers)
    async with asyncio.TaskGroup() as group:
        background = [
            group.create_task(context.health_watch.run()),
            group.create_task(resyncs.run(reconciler.wake.set)),
            group.create_task(notifications.run(reconciler.wake.set, resyncs.requested.set)),
        ]
        if settings.measure == "kubelet":
            background.append(group.create_task(Measure(context).run()))
        serving = group.create_task(server.serve())
        await reconciler.run(stopping)
        notifications.wake_all()
        server.should_exit = True
        await serving
        for task in background:
            task.cancel()
    logger.info("stopped")


def main() -> int:
    """Run the service; returns the exit code."""
    try:
        settings = load(Settings)
        log.configure(settings.log_level)
        asyncio.run(serve(settings))
    except (SettingsError, ConfigError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
