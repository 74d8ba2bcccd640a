"""The service: `python -m provisioner`."""

import asyncio
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
import uvicorn
from lightkube.core.exceptions import ConfigError

from provisioner import api, health, listener, log, resync
from provisioner.cluster import Cluster
from provisioner.database import Database
from provisioner.handlers import Parts
from provisioner.health import HealthWatch
from provisioner.listener import Listener
from provisioner.reach import Reach
from provisioner.reconcile import Loop
from provisioner.resync import Resync
from provisioner.settings import Settings, SettingsError, load


class Server(uvicorn.Server):
    """Leaves the signals to us."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


async def serve(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT."""
    stopping = asyncio.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(each, stopping.set)
    reach_database = Reach("database", (listener.TASK,))
    reach_cluster = Reach("cluster", (*health.TASKS, resync.TASK))
    async with Database(settings) as database, Cluster(settings) as cluster:
        parts = Parts(settings, database, cluster)
        watch = HealthWatch(database, cluster, reach_cluster)
        loop = Loop(parts, watch, reach_database, reach_cluster)
        syncing = Resync(parts, watch, reach_database, reach_cluster)
        listening = Listener(settings, database, reach_database)
        app = api.create(settings, database, listening, [reach_database, reach_cluster], stopping)
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
        structlog.get_logger().info("started", worker=settings.worker, workers=settings.workers)
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(watch.run()),
                group.create_task(syncing.run(loop.wake.set)),
                group.create_task(listening.run(loop.wake.set, syncing.wanted.set)),
                group.create_task(server.serve()),
            ]
            await loop.run(stopping)
            listening.wake_all()
            server.should_exit = True
            await tasks.pop()
            for task in tasks:
                task.cancel()
        structlog.get_logger().info("stopped")


def main() -> int:
    """Run the service; returns the exit code."""
    try:
        settings = load()
        log.configure(settings.log_level)
        asyncio.run(serve(settings))
    except (SettingsError, ConfigError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
