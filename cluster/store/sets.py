"""What the store does with the sorted sets of its indexes: count, list, page, take out. Mixed into `Store`."""

import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from cluster.store.indexes import Record, index_key, key_pattern, record_key

R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Page(Generic[R]):
    """Some records of a list, and how many there are in all."""

    items: list[R]
    total: int


EVERYTHING = (("-inf", "+inf"), (-math.inf, math.inf))


class Sets:
    """See the module."""

    _redis: Any

    async def _call(self, command: Any, wait_seconds: float = 0) -> Any:
        raise NotImplementedError

    async def load_many(self, kind: type[R], record_ids: Sequence[str]) -> list[tuple[R, str]]:
        """See `Store`."""
        raise NotImplementedError

    async def many(self, kind: type[R], record_ids: Sequence[str]) -> list[R]:
        """See `Store`."""
        raise NotImplementedError

    async def count(self, kind: type[R], index: str, *parts: str) -> int:
        """How many records stand in the sorted set."""
        return await self._call(self._redis.zcard(index_key(kind.kind, index, parts)))

    async def counts(self, kind: type[R], index: str, sets: Sequence[tuple[str, ...]]) -> list[int]:
        """`count` for several sets, in one round trip."""
        pipe = self._redis.pipeline(transaction=False)
        for parts in sets:
            pipe.zcard(index_key(kind.kind, index, parts))
        return await self._call(pipe.execute()) if sets else []

    async def ids(
        self, kind: type[R], index: str, *parts: str, low: float | str = "-inf", high: float | str = "+inf",
        offset: int = 0, limit: int = -1, newest_first: bool = False,
    ) -> list[str]:  # fmt: skip
        """Ids of the set with `low <= score <= high`, by rising score unless `newest_first`."""
        key, a, b = index_key(kind.kind, index, parts), low, high
        if (a, b) in EVERYTHING:  # by rank, which finds a far offset at once
            last = -1 if limit < 0 else offset + limit - 1
            return await self._call(self._redis.zrange(key, offset, last, desc=newest_first)) if limit else []
        if newest_first:
            return await self._call(self._redis.zrevrangebyscore(key, b, a, start=offset, num=limit))
        return await self._call(self._redis.zrangebyscore(key, a, b, start=offset, num=limit))

    async def page(
        self, kind: type[R], index: str, *parts: str, low: float | str = "-inf", high: float | str = "+inf",
        offset: int = 0, limit: int = 50, newest_first: bool = True,
    ) -> Page[R]:  # fmt: skip
        """A page of records of the set, newest (highest score) first, and the set's size within the range."""
        key = index_key(kind.kind, index, parts)
        total = await self._call(self._redis.zcount(key, low, high))
        ids = await self.ids(
            kind, index, *parts, low=low, high=high, offset=offset, limit=limit, newest_first=newest_first
        )
        return Page(await self.many(kind, ids), total)

    async def take(
        self, kind: type[R], index: str, *parts: str, limit: int = 1, wait_seconds: float = 0.0
    ) -> list[tuple[R, str]]:
        """Take the lowest records out of the set, with their versions, waiting for the first: one of several gets it.

        The records themselves still stand there as far as they know; for sets that are an inbox of one reader.
        """
        key = index_key(kind.kind, index, parts)
        ids = [member for member, _ in await self._call(self._redis.zpopmin(key, limit))]
        if ids or not wait_seconds:
            return await self.load_many(kind, ids)
        first = await self._call(self._redis.bzpopmin(key, wait_seconds), wait_seconds)
        if first is None:
            return []
        pipe = self._redis.pipeline(transaction=False)
        pipe.zpopmin(key, limit - 1)
        pipe.hmget(record_key(kind.kind, first[1]), "version", "body")
        more, (version, body) = await self._call(pipe.execute())
        found = [] if body is None else [(kind.model_validate_json(body), version)]
        return found + await self.load_many(kind, [member for member, _ in more])

    async def first_of_each(self, kind: type[R], index: str) -> list[R]:
        """The record of lowest score in every set of the index. Walks all keys: for a start, not for a path."""
        keys = [key async for key in self._scan(key_pattern(kind.kind, index))]
        found: list[R] = []
        for start in range(0, len(keys), 500):
            pipe = self._redis.pipeline(transaction=False)
            for key in keys[start : start + 500]:
                pipe.zrange(key, 0, 0)
            ids = [row[0] for row in await self._call(pipe.execute()) if row]
            found += await self.many(kind, ids)
        return found

    async def _scan(self, pattern: str) -> AsyncIterator[str]:
        cursor: int | str = 0
        while True:
            cursor, keys = await self._call(self._redis.scan(cursor, match=pattern, count=5000, _type="zset"))
            for key in keys:
                yield key
            if int(cursor) == 0:
                return

    async def heads(self, keys: Sequence[str], limit: int) -> list[tuple[list[tuple[str, float]], int]]:
        """Of each set the ids and scores of its highest `limit`, and its size, in one round trip."""
        pipe = self._redis.pipeline(transaction=False)
        for key in keys:
            pipe.zrevrange(key, 0, limit - 1, withscores=True)
            pipe.zcard(key)
        rows = await self._call(pipe.execute())
        return [([(name, float(score)) for name, score in rows[i]], rows[i + 1]) for i in range(0, len(rows), 2)]

    async def scored(
        self, kind: type[R], index: str, sets: Sequence[tuple[str, ...]], limit: int
    ) -> list[list[tuple[str, float]]]:
        """Ids and scores of the lowest `limit` of several sets, in one round trip."""
        pipe = self._redis.pipeline(transaction=False)
        for parts in sets:
            pipe.zrange(index_key(kind.kind, index, parts), 0, limit - 1, withscores=True)
        rows = await self._call(pipe.execute()) if sets else []
        return [[(member, float(score)) for member, score in row] for row in rows]
