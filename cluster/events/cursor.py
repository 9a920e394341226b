"""Places of durable readers: each goes on where it stopped, and nothing is dropped that one of them has not read."""

from typing import ClassVar

from cluster.events.model import START, order
from cluster.store import Index, Record, Store

KEEP_EVENTS_MS = 24 * 3600 * 1000  # for readers without a cursor, such as a WebSocket that resumes


class Cursor(Record):
    """How far a durable reader of the stream has come."""

    kind: ClassVar[str] = "cursor"
    indexes: ClassVar[tuple[Index, ...]] = (Index("all", lambda c: order(c.event_id)[0]),)

    cursor_id: str
    event_id: str = START


async def forget_what_all_have_read(store: Store) -> None:
    """Drop events a day older than the slowest reader's place."""
    slowest = (await store.page(Cursor, "all", limit=1, newest_first=False)).items
    if slowest:
        milliseconds, _ = order(slowest[0].event_id)
        await store.forget_events(f"evt_{max(0, milliseconds - KEEP_EVENTS_MS)}-0")
