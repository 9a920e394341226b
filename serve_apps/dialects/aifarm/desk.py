"""The desk: one per process, between the event stream and the clients whose connections are here.

What concerns a client is an event like any other, so it does not matter which process an owner's request came to.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

import structlog

from cluster.errors import Unavailable
from cluster.events.model import Event, order
from cluster.farm import events
from cluster.farm.service import Farm
from cluster.ids import new_id
from cluster.presence import BEAT_SECONDS
from serve_apps.kit.hub import Hub, Listener, Update

log = structlog.get_logger()


class Guest(Protocol):
    """A client's connection."""

    client_id: str
    connection_id: str

    @property
    def task_id(self) -> str:
        """What it works on."""
        ...

    def notice(self, event: Event) -> None:
        """Something that concerns it. Must not wait."""
        ...


class Desk:
    """Hands each farm event to the connection that it concerns; says that this process lives while it has any."""

    def __init__(self, hub: Hub, farm: Farm) -> None:
        self.hub, self.farm, self.desk_id = hub, farm, new_id("desk")
        self._guests: dict[str, Guest] = {}  # by connection
        self._listener: Listener | None = None
        self._running: list[asyncio.Task[None]] = []
        self._back: set[asyncio.Task[None]] = set()
        self._opening = asyncio.Lock()

    def __bool__(self) -> bool:
        return True

    async def enter(self, guest: Guest) -> None:
        """From now on the guest gets its events. Raises `Unavailable`."""
        async with self._opening:
            if self._listener is None:
                await self.farm.fleet.sit(self.desk_id)
                place = order(await self.hub.store.last_event_id())
                self._listener = Listener(self, frozenset({events.NOUN}), None, None, place)
                self._running = [asyncio.create_task(self._beat())]
                if not self.hub.enter(self._listener):
                    self._running.append(asyncio.create_task(self.hub.join(self._listener)))
            self._guests[guest.connection_id] = guest

    async def leave(self, guest: Guest) -> None:
        """The last one to leave closes the desk."""
        async with self._opening:
            self._guests.pop(guest.connection_id, None)
            if not self._guests:
                self._close()
                with suppress(Unavailable):
                    await self.farm.fleet.leave(self.desk_id)

    def _close(self) -> None:
        listener, self._listener = self._listener, None
        for task in self._running:
            task.cancel()
        self._running = []
        if listener is not None:
            self.hub.leave(listener)

    async def close(self) -> None:
        """Nobody is served here any more."""
        self._close()
        for task in tuple(self._back):
            task.cancel()

    async def room(self) -> None:
        """See `hub.Taker`: whatever comes goes to queues that are short."""

    def take(self, update: Update) -> None:
        """See `hub.Taker`."""
        event = update.event
        if event.kind == "farm.rank_assigned":
            self._assigned(event)
        elif event.kind in events.STATUS:
            self._tell(event, lambda guest: guest.task_id == event.subject)
        elif event.kind in ("farm.rank_cut", "farm.rank_timeout"):
            self._tell(event, lambda guest: guest.client_id == event.data["client_id"])
        elif event.kind == "farm.client_connected":
            newer = event.data["connection"]
            self._tell(event, lambda guest: guest.client_id == event.subject and guest.connection_id != newer)

    def _tell(self, event: Event, concerns: Callable[[Guest], bool]) -> None:
        for guest in self._guests.values():
            if concerns(guest):
                guest.notice(event)

    def _assigned(self, event: Event) -> None:
        guest = self._guests.get(event.data["connection"])
        if guest is not None:
            guest.notice(event)
        elif event.data["desk"] == self.desk_id:
            # The connection ended while a rank was being found for it.
            task = asyncio.create_task(self._give_back(event))
            self._back.add(task)
            task.add_done_callback(self._back.discard)

    async def _give_back(self, event: Event) -> None:
        about = event.data
        try:
            await self.farm.fleet.give_back(about["client_id"], about["rank_id"], about["connection"], about["attempt"])
        except Exception:  # its lease will end
            log.warning("a rank could not be given back", rank_id=about["rank_id"])

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            try:
                await self.farm.fleet.sit(self.desk_id)
            except Unavailable:
                continue
