"""What one connection gets of the event stream: a listener that changes without a gap, before a bounded outbox."""

import asyncio
from collections.abc import Awaitable, Callable

from cluster.events.model import Event
from serve_apps.kit.connections import TRY_AGAIN_LATER, Connection
from serve_apps.kit.hub import Hub, Listener, Place, Render, Update, id_at
from serve_apps.kit.outbox import Outbox


class Feed:
    """Ends its connection with 1013 when the peer cannot keep up."""

    def __init__(
        self,
        hub: Hub,
        connection: Connection,
        render: Render,
        send: Callable[[bytes], Awaitable[None]],
        now: Callable[[bytes], bool] | None = None,
    ) -> None:
        self.hub, self.connection, self.render = hub, connection, render
        self.outbox = Outbox(send, self._lost, now)
        self._listener: Listener | None = None
        self._joining: asyncio.Task[None] | None = None
        self._told: Event | None = None

    def take(self, update: Update) -> None:
        """See `hub.Taker`."""
        if self.outbox.put(update.made(self.render)):
            self._told = update.event

    async def room(self) -> None:
        """See `hub.Taker`."""
        await self.outbox.room()

    @property
    def place(self) -> Place | None:
        """Of the last event that the connection has behind it; None while it follows nothing."""
        return self.hub.place_of(self._listener) if self._listener else None

    def follow(
        self,
        nouns: frozenset[str],
        owners: frozenset[str] | None,
        passes: Callable[[Event], bool] | None,
        place: Place,
    ) -> None:
        """From now on these events and no others, from this place on."""
        before, joining = self._listener, self._joining
        self._listener = Listener(self, nouns, owners, passes, place)
        # The new one enters before the old one leaves, so that the hub does not stop in between.
        entered = self.hub.enter(self._listener)
        self._joining = None if entered else asyncio.create_task(self.hub.join(self._listener))
        self._drop(before, joining)

    def stop(self) -> None:
        """No events any more; what has been put out before still goes."""
        before, joining = self._listener, self._joining
        self._listener = self._joining = None
        self._drop(before, joining)

    def _drop(self, listener: Listener | None, joining: asyncio.Task[None] | None) -> None:
        if joining is not None:
            joining.cancel()
        if listener is not None:
            self.hub.leave(listener)

    def close(self) -> None:
        """Give everything back."""
        self.stop()
        self.outbox.close()

    def _lost(self, stalled: bool) -> None:
        last = self._told.event_id if self._told else id_at(self.place or (0, 0))
        self.connection.end(TRY_AGAIN_LATER, f"too far behind: come back with last_event_id {last}", dead=stalled)
