"""The hub: one reader of the event stream in each process, and a bounded queue for each listener."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable

import structlog

from cluster.events.model import Event, order
from cluster.store import Store

log = structlog.get_logger()
ROOM = 512  # events that a slow listener may fall behind

Wants = Callable[[Event], bool]


class TooSlow(Exception):
    """The listener fell more than `ROOM` events behind. It may come back with the last id that it saw."""


class Listener:
    """One reader's place: events that it wants, in order, each once."""

    def __init__(self, wants: Wants) -> None:
        self.wants = wants
        self.queue: asyncio.Queue[Event] = asyncio.Queue(ROOM)
        self.behind = False

    def offer(self, event: Event) -> None:
        """Called by the hub; never waits for anybody."""
        if self.behind or not self.wants(event):
            return
        try:
            self.queue.put_nowait(event)
        except asyncio.QueueFull:
            self.behind = True


class Hub:
    """Hands each event of the stream to all listeners of this process."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._listeners: set[Listener] = set()
        self._following: asyncio.Task[None] | None = None

    async def listen(self, wants: Wants, after: str) -> AsyncGenerator[Event]:
        """Every wanted event after the event `after`, and on. Raises `TooSlow`, `Unavailable`."""
        listener = Listener(wants)
        self._listeners.add(listener)
        try:
            await self._follow()
            last = order(after)
            # Live events gather in the queue meanwhile; those that the backlog held too are dropped by their place.
            async for event in self._backlog(after):
                last = order(event.event_id)
                if wants(event):
                    yield event
            while not (listener.behind and listener.queue.empty()):
                event = await listener.queue.get()
                if order(event.event_id) > last:
                    last = order(event.event_id)
                    yield event
            raise TooSlow
        finally:
            self._listeners.discard(listener)

    async def _backlog(self, after: str) -> AsyncIterator[Event]:
        while batch := await self.store.events(after):
            for event in batch:
                yield event
            after = batch[-1].event_id

    async def _follow(self) -> None:
        if self._following is None:
            begin = await self.store.last_event_id()
            if self._following is None:  # another listener may have been faster
                self._following = asyncio.create_task(self._run(begin))

    async def _run(self, after: str) -> None:
        while True:
            try:
                async for event in self.store.follow(after):
                    after = event.event_id
                    for listener in tuple(self._listeners):
                        listener.offer(event)
            except Exception:
                log.exception("the event reader failed and starts again", after=after)
                await asyncio.sleep(1)

    async def close(self) -> None:
        """Stop reading."""
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
