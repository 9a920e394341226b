"""The event stream in the store: append, read on after an event, forget. Mixed into `Store`."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

from redis.exceptions import ResponseError

from cluster.errors import Unavailable
from cluster.events.model import START, Event, stream_id
from cluster.origin import current
from cluster.store.indexes import EVENTS, SIGNALS

SIGNALS_KEPT = 1000
UNKEPT = {"event_id"}


class Stream:
    """What the store does with events. A change's own event is written by its commit."""

    _redis: Any

    async def _call(self, command: Any, wait_seconds: float = 0) -> Any:
        raise NotImplementedError

    async def publish(self, event: Event) -> str:
        """Append an event that belongs to no record's change, such as progress. Returns its id."""
        return "evt_" + await self._call(self._redis.xadd(EVENTS, {"kind": event.kind, "event": entry(event)}))

    async def events(self, after: str = START, limit: int = 500, wait_seconds: float = 0) -> list[Event]:
        """Events after the id `after`, oldest first; waits up to `wait_seconds` for the first one."""
        return (await self.batch(after, limit=limit, wait_seconds=wait_seconds))[0]

    async def batch(
        self,
        after: str,
        kinds: frozenset[str] | None = None,
        limit: int = 500,
        wait_seconds: float = 0,
        marks: tuple[str, ...] = (),
    ) -> tuple[list[Event], str]:
        """The next events of these kinds (None: all), and the id to go on after. What is not wanted is not parsed.

        `marks`: texts of which the event's JSON has one somewhere, for readers that few events of a kind concern.
        """
        rows = await self._rows(EVENTS, stream_id(after), limit, wait_seconds)
        events = [
            _event(entry_id, fields[3])
            for entry_id, fields in rows
            if (kinds is None or fields[1] in kinds) and (not marks or any(mark in fields[3] for mark in marks))
        ]
        return events, f"evt_{rows[-1][0]}" if rows else after

    async def _rows(self, key: str, after: str, limit: int, wait_seconds: float) -> list[tuple[str, list[str]]]:
        """Ids, and fields as Redis sends them: names and values in turn."""
        block = int(wait_seconds * 1000) or None
        found = await self._call(self._redis.xread({key: after}, count=limit, block=block), wait_seconds)
        return found[key] if found else []

    async def follow(self, after: str, kinds: frozenset[str] | None = None) -> AsyncIterator[Event]:
        """Every event after `after`, for ever: a reader that remembers the last id misses none, whatever restarts."""
        while True:
            try:
                batch, after = await self.batch(after, kinds, wait_seconds=4)
            except Unavailable:
                await asyncio.sleep(0.2)
                continue
            for event in batch:
                yield event

    async def signal(self, data: Mapping[str, Any]) -> None:
        """Tell the other processes something that is stale in seconds: who is not listening now never hears it."""
        await self._call(self._redis.xadd(SIGNALS, {"json": json.dumps(data)}, maxlen=SIGNALS_KEPT, approximate=True))

    async def signals(self) -> AsyncIterator[dict[str, Any]]:
        """What is signalled from now on, for ever."""
        after = "$"
        while True:
            try:
                rows = await self._rows(SIGNALS, after, 500, 4)
            except Unavailable:
                await asyncio.sleep(0.2)
                continue
            for entry_id, fields in rows:
                after = entry_id
                yield json.loads(fields[1])

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
    origin = None if event.origin else current()
    if origin is not None:
        event = event.model_copy(update={"origin": origin})
    return event.model_dump_json(exclude=UNKEPT, exclude_defaults=True)


def _event(entry_id: str, body: str) -> Event:
    event = Event.model_validate_json(body)
    vars(event)["event_id"] = f"evt_{entry_id}"  # it is nobody else's yet, and a copy would cost as much as parsing
    return event
