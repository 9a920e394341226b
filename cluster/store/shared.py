"""One read of the event stream for several readers of a process: each keeps its own place, all see the same rows.

A process with six loops would else have every event sent and taken apart six times.
"""

import asyncio
import bisect
from typing import Any

from cluster.events.model import order
from cluster.store.indexes import EVENTS
from cluster.store.store import Store

KEPT = 4000  # rows behind the newest; a reader that is further back reads for itself
READ_AT_ONCE = 500
WAIT_SECONDS = 4.0

Row = tuple[str, list[str]]


class SharedStore(Store):
    """A store whose readers of the event stream share what one of them has read."""

    def __init__(self, url: str, linger_seconds: float = 0.005) -> None:
        """`linger_seconds`: after events have come, what follows them is waited for, and read in one go.

        A reader that is woken by every event takes the processor from those who do the work that the events tell of.
        """
        super().__init__(url)
        self._linger = linger_seconds
        self._kept: list[Row] = []
        self._places: list[tuple[int, int]] = []  # of the kept rows
        self._begin: tuple[int, int] | None = None  # every event after it, up to `_end`, is kept
        self._end = ""
        self._reading: asyncio.Task[None] | None = None
        self._busy = False

    def __reduce__(self) -> tuple[Any, ...]:
        return SharedStore, (self.url, self._linger)

    async def close(self) -> None:
        """Give the connections back."""
        if self._reading is not None:
            self._reading.cancel()
        await super().close()

    async def _rows(self, key: str, after: str, limit: int, wait_seconds: float) -> list[Row]:
        if key != EVENTS or not wait_seconds:
            return await super()._rows(key, after, limit, wait_seconds)
        place, loop = order(after), asyncio.get_running_loop()
        if self._begin is None:
            self._begin, self._end = place, after
        deadline = loop.time() + wait_seconds
        while True:
            if place < self._begin or place > order(self._end):  # behind what is shared, or ahead of it
                return await super()._rows(key, after, limit, max(0.0, deadline - loop.time()))
            start = bisect.bisect_right(self._places, place)
            if start < len(self._kept):
                return self._kept[start : start + limit]
            if (left := deadline - loop.time()) <= 0:
                return []
            if self._reading is None:
                self._reading = asyncio.create_task(self._extend())
                self._reading.add_done_callback(_heard)
            reading = self._reading
            await asyncio.wait([reading], timeout=left)
            if reading.done():
                reading.result()

    async def _extend(self) -> None:
        try:
            if self._busy:
                await asyncio.sleep(self._linger)
            rows = await super()._rows(EVENTS, self._end, READ_AT_ONCE, WAIT_SECONDS)
        finally:
            self._reading = None
        self._busy = bool(rows)
        if rows:
            self._end = rows[-1][0]
        self._kept += rows
        self._places += [order(row[0]) for row in rows]
        if (over := len(self._kept) - KEPT) > KEPT // 4:
            self._begin = self._places[over - 1]
            del self._kept[:over], self._places[:over]


def _heard(reading: asyncio.Task[None]) -> None:
    """What went wrong is told to those who wait, and to nobody where all of them have left."""
    if not reading.cancelled():
        reading.exception()
