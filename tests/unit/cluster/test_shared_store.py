"""Several readers of one process share what one of them reads."""

import asyncio
import pickle

from eventually import eventually

from cluster.clock import utc_now
from cluster.events import Event
from cluster.store import Store, shared
from cluster.store.shared import SharedStore


def event(kind: str, n: int) -> Event:
    return Event(kind=kind, subject=f"x_{n}", owner="user_1", at=utc_now(), data={"n": n})


async def follow(store: Store, after: str, seen: list[int], kinds: frozenset[str] | None = None) -> None:
    while True:
        batch, after = await store.batch(after, kinds, limit=7, wait_seconds=1)
        seen += [found.data["n"] for found in batch]


async def test_each_reader_sees_every_event_once_and_in_order(store: Store, monkeypatch):
    monkeypatch.setattr(shared, "KEPT", 20)
    for n in range(30):
        await store.publish(event("a.b", n))
    one = SharedStore(store.url)
    middle = (await store.events(limit=10))[-1].event_id
    seen: list[list[int]] = [[], [], []]
    readers = [
        asyncio.create_task(follow(one, "evt_0-0", seen[0])),
        asyncio.create_task(follow(one, middle, seen[1])),  # ahead of what is shared, at first
        asyncio.create_task(follow(one, await store.last_event_id(), seen[2], frozenset({"c.d"}))),
    ]
    for n in range(30, 60):
        await store.publish(event("c.d" if n % 2 else "a.b", n))
    wanted = [list(range(60)), list(range(10, 60)), [n for n in range(30, 60) if n % 2]]
    await eventually(lambda: seen == wanted)
    late: list[int] = []  # behind what is still kept
    readers.append(asyncio.create_task(follow(one, "evt_0-0", late)))
    await eventually(lambda: late == list(range(60)))
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
    await one.close()


async def test_six_readers_cost_one_read(store: Store):
    one = SharedStore(store.url)
    after = await store.last_event_id()
    seen: list[list[int]] = [[] for _ in range(6)]
    readers = [asyncio.create_task(follow(one, after, each)) for each in seen]
    await asyncio.sleep(0.05)
    await store._redis.config_resetstat()
    for n in range(5):
        await store.publish(event("a.b", n))
        await eventually(lambda n=n: all(each and each[-1] == n for each in seen))
    assert (await store._redis.info("commandstats"))["cmdstat_xread"]["calls"] <= 6
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
    await one.close()


async def test_a_reader_that_waits_for_nothing_comes_back_in_time(store: Store):
    one = SharedStore(store.url)
    loop = asyncio.get_running_loop()
    begun = loop.time()
    assert await one.batch(await store.last_event_id(), wait_seconds=0.2) == ([], await store.last_event_id())
    assert 0.15 < loop.time() - begun < 1.0
    assert isinstance(pickle.loads(pickle.dumps(one)), SharedStore)
    await one.close()
