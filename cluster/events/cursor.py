"""Places of durable readers: each goes on where it stopped, and nothing is dropped that one of them has not read."""

from typing import ClassVar

from cluster.events.model import START, order
from cluster.store import Index, Record, Store
from cluster.store.gauge import events_kept

KEEP_EVENTS_MS = 24 * 3600 * 1000  # for readers without a cursor, such as a WebSocket that resumes
KEEP_EVENTS = 1_000_000  # about 500 MB


class Cursor(Record):
    """How far a durable reader of the stream has come."""

    kind: ClassVar[str] = "cursor"
    indexes: ClassVar[tuple[Index, ...]] = (Index("all", lambda c: order(c.event_id)[0]),)

    cursor_id: str
    event_id: str = START


async def place_of(store: Store, reader: str) -> str:
    """The id of the event up to which the reader, or one before it of this name, has come."""
    cursor = await store.find(Cursor, reader)
    return cursor.event_id if cursor else START


async def keep_place(store: Store, reader: str, event_id: str) -> None:
    """Note how far the reader has come. Never back: whoever is ahead has done all that lies behind."""
    place = Cursor(cursor_id=reader, event_id=event_id)
    await store.upsert(place, lambda now: max(place, now, key=lambda cursor: order(cursor.event_id)))


async def forget_what_all_have_read(store: Store) -> None:
    """Drop events a day older than the slowest reader's place, and sooner where there are too many of them."""
    slowest = (await store.page(Cursor, "all", limit=1, newest_first=False)).items
    if slowest:
        read, _ = order(slowest[0].event_id)
        oldest, newest = (order(end)[0] for end in await store.ends())
        await store.forget_events(f"evt_{keep_from(read, oldest, newest, await events_kept(store))}-0")


def keep_from(read: int, oldest: int, newest: int, count: int) -> int:
    """The time, in milliseconds, from which events are kept: never one that the slowest reader has before it. Pure.

    Where more are kept than shall be, as large a share of the time goes as of the events is too much: they come about
    evenly, and it is looked at again in seconds.
    """
    keep = newest - oldest if count <= KEEP_EVENTS else (newest - oldest) * KEEP_EVENTS // count
    return max(0, min(read, max(read - KEEP_EVENTS_MS, newest - keep)))
