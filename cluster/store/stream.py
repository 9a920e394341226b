"""The event stream in the store: append, read on after an event, forget. Mixed into `Store`."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

from redis.exceptions import ResponseError

from cluster.errors import Unavailable
from cluster.events.model import START, Event, stream_id
from cluster.origin import current
from cluster.store.indexes import EVENTS


class Stream:
    """What the store does with events. A change's own event is written by its commit."""

    _redis: Any

    async def _call(self, command: Any, wait_seconds: float = 0) -> Any:
        raise NotImplementedError

    async def publish(self, event: Event) -> str:
        """Append an event that belongs to no record's change, such as progress. Returns its id."""
        return "evt_" + await self._call(self._redis.xadd(EVENTS, {"event": entry(event)}))

    async def events(self, after: str = START, limit: int = 500, wait_seconds: float = 0) -> list[Event]:
        """Events after the id `after`, oldest first; waits up to `wait_seconds` for the first one."""
        block = int(wait_seconds * 1000) or None
        read = self._redis.xread({EVENTS: stream_id(after)}, count=limit, block=block)
        found = await self._call(read, wait_seconds)
        batches: Iterable[Any] = found.values() if isinstance(found, dict) else (rows for _, rows in found or ())
        events = []
        for rows in batches:
            for entry_id, fields in _flat(rows):
                events.append(
                    Event.model_validate_json(fields["event"]).model_copy(update={"event_id": f"evt_{entry_id}"})
                )
        return events

    async def follow(self, after: str) -> AsyncIterator[Event]:
        """Every event after `after`, for ever: a reader that remembers the last id misses none, whatever restarts."""
        while True:
            try:
                batch = await self.events(after, wait_seconds=4)
            except Unavailable:
                await asyncio.sleep(0.2)
                continue
            for event in batch:
                after = event.event_id
                yield event

    async def last_event_id(self) -> str:
        """Id of the newest event: where a reader starts that wants only what comes."""
        newest = await self._call(self._redis.xrevrange(EVENTS, count=1))
        return f"evt_{newest[0][0]}" if newest else START

    async def ends(self) -> tuple[str, str]:
        """Ids of the oldest event that is kept and of the newest that ever was; START, START for a stream without any.

        Where all events have been dropped the oldest is the newest: whoever has seen that one has missed nothing.
        """
        try:
            about = await self._call(self._redis.xinfo_stream(EVENTS))
        except ResponseError as error:
            if "no such key" not in str(error):
                raise
            return START, START
        newest, first = about["last-generated-id"], about["first-entry"]
        return f"evt_{first[0] if first else newest}", f"evt_{newest}"

    async def forget_events(self, before: str) -> int:
        """Drop events older than the id `before`; how many went. Whoever keeps a durable place calls this."""
        return await self._call(self._redis.xtrim(EVENTS, minid=stream_id(before), approximate=True))


def entry(event: Event) -> str:
    """What the stream holds of an event. Its origin is that of the request or event that is being worked on."""
    origin = event.origin or current()
    return event.model_copy(update={"origin": origin}).model_dump_json(exclude={"event_id"}, exclude_defaults=True)


def _flat(rows: Any) -> Iterable[tuple[str, dict[str, str]]]:
    # RESP3 nests one level deeper than RESP2 for a stream that was read alone.
    for row in rows:
        if row and isinstance(row[0], (list, tuple)):
            yield from _flat(row)
        else:
            yield row[0], row[1]
