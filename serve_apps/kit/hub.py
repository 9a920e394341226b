"""The hub: one reader of the event stream in each process, which hands each event to those who want it.

Listeners are found by the first word of an event's kind and by its owner, so an event costs what its readers cost and
not what all do. It is parsed once, and rendered once for all who get it in the same form.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import structlog

from cluster.errors import Unavailable
from cluster.events.model import Event, order
from cluster.store import Store

log = structlog.get_logger()

PAGE = 100  # events that one who catches up reads at a time
AT_ONCE = 4  # readers of the past at one time; the others wait for their turn, page by page
AWAY_SECONDS = 0.2  # between two looks at a store that does not answer
BREATH = 256  # listeners served before anybody else of this process may go on

Render = Callable[[Event], bytes]
Place = tuple[int, int]  # in the stream, see `cluster.events.model.order`


class Update:
    """An event, and what has been made of it."""

    __slots__ = ("_made", "event")

    def __init__(self, event: Event) -> None:
        self.event = event
        self._made: dict[Render, bytes] = {}

    def made(self, render: Render) -> bytes:
        """The event in this form, which is made once."""
        found = self._made.get(render)
        if found is None:
            found = self._made[render] = render(self.event)
        return found


class Taker(Protocol):
    """Where a listener's events go."""

    def take(self, update: Update) -> None:
        """The next event. Must not wait: whoever is behind drops it and says so to its peer."""
        ...

    async def room(self) -> None:
        """Return when it can take one more; asked before each event of the past."""
        ...


@dataclass(eq=False)
class Listener:
    """Who gets events of these nouns and owners (None: of everybody), if `passes` says yes (None: always)."""

    taker: Taker
    nouns: frozenset[str]
    owners: frozenset[str] | None
    passes: Callable[[Event], bool] | None = None
    place: Place = (0, 0)  # of the last event that it has behind it

    def wants(self, event: Event) -> bool:
        """Whether an event of the past is for it. Of the present it is asked for the events that the index finds."""
        if event.kind.partition(".")[0] not in self.nouns:
            return False
        if self.owners is not None and event.owner not in self.owners:
            return False
        return self.passes is None or self.passes(event)

    def offer(self, update: Update, place: Place) -> None:
        """An event of the present."""
        if place > self.place:
            self.place = place
            if self.passes is None or self.passes(update.event):
                self.taker.take(update)

    def sets(self) -> Iterable[tuple[str, str | None]]:
        """Where it stands in the hub's index."""
        owners: Iterable[str | None] = (None,) if self.owners is None else self.owners
        return [(noun, owner) for noun in self.nouns for owner in owners]


class Hub:
    """Reads while somebody listens; goes on from its place whatever happens to Redis."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._index: dict[tuple[str, str | None], dict[Listener, None]] = {}
        self._listeners: set[Listener] = set()
        self._joining = 0
        self._reader: asyncio.Task[None] | None = None
        self._begun: Place | None = None  # of the event that was handed out last, or is being handed out
        self._done: Place = (0, 0)  # of the last event that everybody has
        self._starting = asyncio.Lock()
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def newest(self) -> str:
        """An event after which all is still to come: of this process's place, else of the stream. `Unavailable`."""
        return id_at(self._done) if self._begun else await self.store.last_event_id()

    def enter(self, listener: Listener, at_end: Place | None = None) -> bool:
        """Have the listener follow the present, if nothing lies between that and its place: else it must `join`.

        `at_end`: where the hub was when the listener had read to the end of the stream.
        """
        if self._begun is None or not (self._begun <= listener.place or self._begun == at_end):
            return False
        self._listeners.add(listener)
        for key in listener.sets():
            self._index.setdefault(key, {})[listener] = None
        return True

    async def join(self, listener: Listener) -> None:
        """Tell the listener all that it wants after its place; return when it follows the present.

        While the store is away it waits. May be cancelled; `place_of` says how far it came.
        """
        at_end: Place | None = None
        self._joining += 1
        try:
            while not self.enter(listener, at_end):
                try:
                    await self._start()
                    seen = self._begun
                    async with self._turns:
                        page = await self.store.events(id_at(listener.place), PAGE)
                except Unavailable:
                    await asyncio.sleep(AWAY_SECONDS)
                    continue
                for event in page:
                    if listener.wants(event):
                        await listener.taker.room()
                        listener.taker.take(Update(event))
                    listener.place = order(event.event_id)
                at_end = None if page else seen
        finally:
            self._joining -= 1
            self._rest()

    def place_of(self, listener: Listener) -> Place:
        """Of the last event that the listener has behind it, whether it wanted it or not."""
        return max(listener.place, self._done) if listener in self._listeners else listener.place

    def leave(self, listener: Listener) -> None:
        """Tell it nothing more. The last to leave stops the reader."""
        if listener not in self._listeners:
            return
        listener.place = self.place_of(listener)
        self._listeners.discard(listener)
        for key in listener.sets():
            standing = self._index[key]
            standing.pop(listener, None)
            if not standing:
                del self._index[key]
        self._rest()

    async def _start(self) -> None:
        async with self._starting:
            if self._reader is None:
                self._done = self._begun = order(await self.store.last_event_id())
                self._reader = asyncio.create_task(self._run())

    def _rest(self) -> None:
        if not self._listeners and not self._joining:
            self._stop()

    def _stop(self) -> asyncio.Task[None] | None:
        reader, self._reader, self._begun = self._reader, None, None
        if reader is not None:
            reader.cancel()
        return reader

    async def _run(self) -> None:
        while True:
            try:
                async for event in self.store.follow(id_at(self._done)):
                    self._begun = place = order(event.event_id)
                    await self._hand_out(event, place)
                    self._done = place
            except Exception:
                log.exception("the event reader failed and starts again", after=id_at(self._done))
                await asyncio.sleep(1)

    async def _hand_out(self, event: Event, place: Place) -> None:
        noun = event.kind.partition(".")[0]
        found = [*self._index.get((noun, event.owner), ()), *self._index.get((noun, None), ())]
        if not found:
            return
        update = Update(event)
        for n, listener in enumerate(found, 1):
            if listener in self._listeners:  # it may have left while others had their turn
                try:
                    listener.offer(update, place)
                except Exception:
                    # One event that cannot be rendered must not keep everybody from those after it.
                    log.exception("an event could not be told", event_id=event.event_id, kind=event.kind)
            if n % BREATH == 0:
                await asyncio.sleep(0)

    async def close(self) -> None:
        """Stop reading."""
        reader = self._stop()
        if reader is not None:
            await asyncio.gather(reader, return_exceptions=True)


def id_at(place: Place) -> str:
    """The id of the event there."""
    return f"evt_{place[0]}-{place[1]}"
