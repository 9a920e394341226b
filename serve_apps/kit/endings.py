"""Requests that wait for the end of a task: one listener at the hub for all of this process."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from cluster.events.model import Event, order
from cluster.tasks.model import FINAL, Task
from serve_apps.kit.hub import Hub, Listener, Update

ENDS = frozenset({"task.completed", "task.failed", "task.cancelled", "task.timeout"})
LINGER_SECONDS = 5.0  # the listener stays so long after the last wait: most callers come back at once


class Endings:
    """A wait costs an entry in a dictionary; an event of a task costs one look into it, however many wait."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.waiting: dict[str, dict[asyncio.Event, None]] = {}
        self._listener: Listener | None = None
        self._joined: asyncio.Future[None] | None = None

    async def until(
        self, task_id: str, seconds: float, look: Callable[[], Awaitable[Task]], bell: asyncio.Event
    ) -> Task:
        """The task as `look` finds it once it has ended, the time is over, or somebody rings. Raises as `look`."""
        self.waiting.setdefault(task_id, {})[bell] = None
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._follow()
                    task = await look()  # it may have ended before anybody listened
                    if task.state in FINAL:
                        return task
                    await bell.wait()
        finally:
            del self.waiting[task_id][bell]
            if not self.waiting[task_id]:
                del self.waiting[task_id]
            if not self.waiting:
                asyncio.get_running_loop().call_later(LINGER_SECONDS, self._rest)
        return await look()

    def take(self, update: Update) -> None:
        """See `hub.Taker`."""
        for bell in self.waiting.get(update.event.subject, ()):
            bell.set()

    async def room(self) -> None:
        """See `hub.Taker`."""

    def _ends(self, event: Event) -> bool:
        return event.subject in self.waiting and event.kind in ENDS

    async def _follow(self) -> None:
        if self._joined is None or (self._joined.done() and (self._joined.cancelled() or self._joined.exception())):
            self._joined = asyncio.ensure_future(self._join())
        await asyncio.shield(self._joined)

    async def _join(self) -> None:
        place = order(await self.hub.newest())
        self._listener = Listener(self, frozenset({"task"}), None, self._ends, place)
        await self.hub.join(self._listener)

    def _rest(self) -> None:
        if not self.waiting:
            self.close()

    def close(self) -> None:
        """Everybody looks once more and goes; the hub is left."""
        for bells in self.waiting.values():
            for bell in bells:
                bell.set()
        listener, joined = self._listener, self._joined
        self._listener = self._joined = None
        if joined is not None:
            joined.cancel()
        if listener is not None:
            self.hub.leave(listener)
