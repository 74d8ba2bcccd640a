"""Whether database and cluster can be reached: reported by /ready, and awaited by the tasks."""

import asyncio
from collections.abc import Iterable

import structlog

from provisioner import metrics

log = structlog.get_logger()


class Reachability:
    """Of the database or the cluster, as the tasks that use it report.

    Attributes:
        name: "database" or "cluster".
        problems: task -> its last error; empty while every task reaches it.
    """

    def __init__(self, name: str, tasks: Iterable[str]) -> None:
        """It counts as unreachable until each of these tasks has reached it."""
        self.name = name
        self.problems = dict.fromkeys(tasks, "not reached yet")
        self._reachable = asyncio.Event()
        metrics.reachable.labels(name).set(0)

    def failed(self, task: str, error: BaseException) -> None:
        """Report that a task could not reach it."""
        text = str(error).partition("\n")[0] or type(error).__name__
        if self.problems.get(task) != text:
            log.warning("unreachable", target=self.name, task=task, error=text)
        self.problems[task] = text
        self._reachable.clear()
        metrics.reachable.labels(self.name).set(0)

    def ok(self, task: str) -> None:
        """Report that a task reached it."""
        if self.problems.pop(task, None) is not None and not self.problems:
            log.info("reachable", target=self.name)
            metrics.reachable.labels(self.name).set(1)
            self._reachable.set()

    async def wait(self) -> None:
        """Wait until every task reaches it."""
        await self._reachable.wait()
