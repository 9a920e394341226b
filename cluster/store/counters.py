"""Counters that many processes add to: hashes that expire, and batches that count once however often they are sent."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.store.indexes import batch_key, counters_key
from cluster.store.store import Store

SCRIPT = (Path(__file__).parent / "counters.lua").read_text()
REMEMBER_SECONDS = 24 * 3600  # for how long a batch whose answer was lost may be sent again


@dataclass(frozen=True)
class Counters:
    """A hash of counters, named by `parts`, and what to add to them."""

    parts: tuple[str, ...]
    expires_at: int  # Unix seconds
    add: Mapping[str, int]


async def add_counts(store: Store, name: str, writer: str, batch: int, counters: Sequence[Counters]) -> None:
    """Add them all, or nothing; the batch of this number of this writer counts once. Raises `Unavailable`."""
    keys, arguments = [batch_key(name, writer)], [batch, REMEMBER_SECONDS]
    for some in counters:
        keys.append(counters_key(name, some.parts))
        arguments += [some.expires_at, len(some.add), *(part for pair in some.add.items() for part in pair)]
    await store.run(SCRIPT, keys, arguments)


async def read_counts(store: Store, name: str, wanted: Sequence[tuple[str, ...]]) -> list[dict[str, int]]:
    """The counters of each hash, in one round trip; empty for one that is not there."""
    pipe = store._redis.pipeline(transaction=False)
    for parts in wanted:
        pipe.hgetall(counters_key(name, parts))
    return [{field: int(count) for field, count in row.items()} for row in await store._call(pipe.execute())]
