"""Whether the indexes say what the records say. Walks everything: for tests, and for whoever doubts a store."""

from collections.abc import Sequence

from cluster.store.indexes import Record, entries, index_key, record_key
from cluster.store.store import Store

AT_ONCE = 500


async def everything(store: Store, kind: type[Record]) -> list[Record]:
    """All records of the kind."""
    prefix = record_key(kind.kind, "")
    keys = [key async for key in _scan(store, prefix, "hash")]
    found: list[Record] = []
    for start in range(0, len(keys), AT_ONCE):
        found += await store.many(kind, [key.removeprefix(prefix) for key in keys[start : start + AT_ONCE]])
    return found


async def differences(store: Store, kind: type[Record], records: Sequence[Record]) -> list[str]:
    """Where a sorted set lacks a record, has one too many, or has it elsewhere. Nobody may write meanwhile."""
    expected: dict[str, dict[str, float]] = {}
    for record in records:
        for key, score in entries(record).items():
            expected.setdefault(key, {})[record.id] = float(score)
    found: dict[str, dict[str, float]] = {}
    for index in kind.indexes:
        async for key in _scan(store, index_key(kind.kind, index.name), "zset"):
            found[key] = dict((await store.heads([key], 0))[0][0])
    return [
        f"{key}: {member} stands at {there.get(member)}, not at {wanted.get(member)}"
        for key in sorted(expected.keys() | found.keys())
        for there, wanted in [(found.get(key, {}), expected.get(key, {}))]
        for member in sorted(there.keys() | wanted.keys())
        if there.get(member) != wanted.get(member)
    ]


async def _scan(store: Store, prefix: str, kind: str):
    """Every key that begins so, and is the whole name or goes on after a colon."""
    pattern = prefix.replace("{", "\\{").replace("}", "\\}") + "*"
    cursor: int | str = 0
    while True:
        cursor, keys = await store._call(store._redis.scan(cursor, match=pattern, count=5000, _type=kind))
        for key in keys:
            if prefix.endswith(":") or key == prefix or key[len(prefix)] == ":":
                yield key
        if int(cursor) == 0:
            return
