"""Counters in Redis, through the `limits` library's storage and its script; every gateway replica counts in the same.

Whatever wants counting while a round trip is under way waits for it and goes along in the next one: a busy replica
sends few pipelines of many counts, and an idle one sends each count at once.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from limits.aio.storage import RedisStorage

from cluster.errors import Unavailable
from cluster.store.indexes import LIMITS

TIMEOUT_SECONDS = 2.0  # a request that cannot be counted is refused, not kept waiting
Field = tuple[str, str]  # key and name of a hash's field


@dataclass(slots=True)
class _Wanted:
    keys: Sequence[str]
    expiries: Sequence[int]
    beside: Field | None
    answer: "asyncio.Future[tuple[list[int], str]]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Counters:
    """Adds one to counters that expire. Raises `Unavailable` within `TIMEOUT_SECONDS`."""

    def __init__(self, url: str) -> None:
        # No socket_timeout: `add` keeps the time, and redis-py's own costs a task per command on Python 3.11.
        storage = RedisStorage(
            storage_url(url),
            implementation="redispy",
            socket_connect_timeout=TIMEOUT_SECONDS,
            max_connections=512,
        )
        bridge: Any = storage.bridge
        self._redis, self._increment = bridge.get_connection(), bridge.lua_incr_expire
        self._failures: tuple[type[Exception], ...] = (*bridge.base_exceptions, TimeoutError, OSError)
        self._waiting: list[_Wanted] = []
        self._sending: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """Give the connections back."""
        await self._redis.aclose()

    async def add(self, keys: Sequence[str], expiries: Sequence[int], beside: Field | None) -> tuple[list[int], str]:
        """Add one to each counter; what they hold then, and what the field `beside` holds ("" for nothing)."""
        wanted = _Wanted(keys, expiries, beside)
        self._waiting.append(wanted)
        if self._sending is None:
            self._sending = asyncio.create_task(self._send_all())
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                return await wanted.answer
        except self._failures as error:
            raise Unavailable("requests cannot be counted: the store does not answer", component="redis") from error

    async def take_back(self, keys: Sequence[str], expiries: Sequence[int]) -> None:
        """Undo one count of each. Raises `Unavailable`."""
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                await self._pipeline([(key, expiry, -1) for key, expiry in zip(keys, expiries, strict=True)], [])
        except self._failures as error:
            raise Unavailable("requests cannot be counted: the store does not answer", component="redis") from error

    async def _send_all(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                async with asyncio.timeout(TIMEOUT_SECONDS):
                    await self._send(batch)
            except Exception as error:  # it is theirs who wait, not this loop's
                for wanted in batch:
                    if not wanted.answer.done():
                        wanted.answer.set_exception(error)
                        wanted.answer.exception()  # whoever stopped waiting does not look any more
        self._sending = None

    async def _send(self, batch: list[_Wanted]) -> None:
        fields = list({wanted.beside: None for wanted in batch if wanted.beside})
        counts = [(key, s, 1) for wanted in batch for key, s in zip(wanted.keys, wanted.expiries, strict=True)]
        answers = await self._pipeline(counts, fields)
        found = dict(zip(fields, answers[len(counts) :], strict=True))
        used = iter(answers)
        for wanted in batch:
            mine = [next(used) for _ in wanted.keys]
            beside = found.get(wanted.beside) if wanted.beside else None
            if not wanted.answer.done():
                wanted.answer.set_result((mine, beside.decode() if beside else ""))

    async def _pipeline(self, counts: list[tuple[str, int, int]], fields: list[Field]) -> list[Any]:
        for last in (False, True):
            pipe = self._redis.pipeline(transaction=False)
            for key, expiry, amount in counts:
                pipe.evalsha(self._increment.sha, 1, key, expiry, amount)
            for name in fields:
                pipe.hget(*name)
            answers = await pipe.execute(raise_on_error=last)
            if not any(isinstance(answer, Exception) for answer in answers):
                return answers
            # A Redis that was started anew does not know the script, and has counted nothing of all this.
            await self._redis.script_load(self._increment.script)
        return []


def storage_url(url: str) -> str:
    """A redis-py URL as the `limits` library wants it."""
    return f"async+redis+{url}" if url.startswith("unix:") else f"async+{url}"


def counter_key(*parts: str) -> str:
    """The key of a counter."""
    return ":".join((LIMITS, *parts))
