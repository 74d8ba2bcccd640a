"""Whether database and cluster are reached: what /ready says, and what the loop waits for."""

import asyncio

import structlog

from provisioner import metrics

log = structlog.get_logger()


class Reach:
    """One of the two, as several tasks see it.

    Attributes:
        name: "database" or "cluster".
        problems: task -> what it ran into last; empty while all is well.
    """

    def __init__(self, name: str, tasks: tuple[str, ...]) -> None:
        """Nothing is known to be well before each of the tasks says so."""
        self.name = name
        self.problems = dict.fromkeys(tasks, "not reached yet")
        self._well = asyncio.Event()
        metrics.reachable.labels(name).set(0)

    def lost(self, task: str, error: BaseException | str) -> None:
        """A task could not reach it."""
        text = str(error).partition("\n")[0] or type(error).__name__
        if self.problems.get(task) != text:
            log.warning("unreachable", what=self.name, task=task, error=text)
        self.problems[task] = text
        self._well.clear()
        metrics.reachable.labels(self.name).set(0)

    def found(self, task: str) -> None:
        """A task reached it."""
        if self.problems.pop(task, None) is not None and not self.problems:
            log.info("reached", what=self.name)
            metrics.reachable.labels(self.name).set(1)
            self._well.set()

    async def wait(self) -> None:
        """Until every task reaches it."""
        await self._well.wait()
