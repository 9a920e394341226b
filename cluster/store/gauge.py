"""Sizes, read off the store's sets: what metrics want to know of records without reading one."""

from collections.abc import Sequence

from cluster.store.indexes import EVENTS, Record, index_key
from cluster.store.store import Store


async def up_to(store: Store, kind: type[Record], index: str, bounds: Sequence[float], *parts: str) -> list[int]:
    """How many records of the set score at most each of the bounds, in one round trip."""
    pipe = store._redis.pipeline(transaction=False)
    for bound in bounds:
        pipe.zcount(index_key(kind.kind, index, parts), "-inf", bound)
    return await store._call(pipe.execute())


async def events_kept(store: Store) -> int:
    """Length of the event stream."""
    return await store._call(store._redis.xlen(EVENTS))
