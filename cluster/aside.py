"""Work beside a loop: tasks that somebody holds on to, and actions that go on until the store answers."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from cluster.errors import Unavailable

AGAIN_SECONDS = 0.25
T = TypeVar("T")


class Aside:
    """The tasks of one owner. What fails is told to its log; nobody else waits for it."""

    def __init__(self, log: logging.Logger) -> None:
        self.log = log
        self.tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self.tasks)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Begin it, and keep it from the garbage collector until it ends."""
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self.log.error("work beside the loops failed", exc_info=error)

    def cancel(self) -> None:
        """End all of them."""
        for task in self.tasks:
            task.cancel()

    async def close(self) -> None:
        """End all of them, and see them ended."""
        self.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def insist(action: Callable[[], Awaitable[T]]) -> T:
    """Until the store answers: what is in hand must not be lost because Redis is away."""
    while True:
        try:
            return await action()
        except Unavailable:
            await asyncio.sleep(AGAIN_SECONDS)
