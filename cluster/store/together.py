"""Commits that come at the same time go together: while one round trip is on its way, what arrives waits for the next.

Alone, a write costs what it always does; under load a hundred of them cost one round trip.
"""

import asyncio
from contextvars import Context
from dataclasses import replace

from cluster.errors import Unavailable
from cluster.origin import current
from cluster.store.store import Store, Write

MOST = 128  # writes of one commit: Redis does nothing else meanwhile


class Together:
    """One queue of writes before a store. Every write wins or loses by itself."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._waiting: list[tuple[Write, asyncio.Future[bool]]] = []
        self._flushing: asyncio.Task[None] | None = None

    async def commit(self, write: Write) -> bool:
        """Whether the write won. Raises `Unavailable`; then it may have been written all the same."""
        if (origin := current()) is not None:  # the flush is nobody's, so the event is signed here
            signed = tuple(e if e.origin else e.model_copy(update={"origin": origin}) for e in write.events)
            write = replace(write, event=signed)
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((write, answer))
        if self._flushing is None:
            self._flushing = asyncio.create_task(self._flush(), context=Context())
        return await answer

    async def _flush(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
                try:
                    results: list[bool | BaseException] = [*await self.store.commit_each([w for w, _ in batch])]
                except Unavailable as error:
                    results = [error] * len(batch)
                except Exception:
                    results = await self._one_by_one(batch)
                for (_, answer), result in zip(batch, results, strict=True):
                    if answer.done():
                        continue
                    if isinstance(result, BaseException):
                        answer.set_exception(result)
                    else:
                        answer.set_result(result)
        finally:
            self._flushing = None

    async def _one_by_one(self, batch: list[tuple[Write, asyncio.Future[bool]]]) -> list[bool | BaseException]:
        """One of them cannot be written at all: the others do not suffer for it."""
        results: list[bool | BaseException] = []
        for write, _ in batch:
            try:
                results += await self.store.commit_each([write])
            except Exception as error:
                results.append(error)
        return results
