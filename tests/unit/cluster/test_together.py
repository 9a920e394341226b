import asyncio

import pytest
from test_store import Thing, event, grown

from cluster.errors import Invalid, Unavailable
from cluster.origin import Origin, within
from cluster.store import Store, Write
from cluster.store.together import MOST, Together


class Counting(Store):
    """Counts round trips; may be away."""

    trips: list[int]
    away = False

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.trips = []

    async def commit_each(self, writes):
        self.trips.append(len(writes))
        if self.away:
            raise Unavailable("away")
        return await super().commit_each(writes)


@pytest.fixture
async def counting(store: Store):
    made = Counting(store.url)
    yield made
    await made.close()


def new(n: int) -> Write:
    return Write(None, Thing(thing_id=f"t{n}"), event=event(n=n))


async def test_commits_that_come_at_once_go_together(counting: Counting):
    together = Together(counting)
    assert await together.commit(new(0)) is True and counting.trips == [1]
    assert all(await asyncio.gather(*(together.commit(new(n)) for n in range(1, 301))))
    assert sum(counting.trips) == 301 and len(counting.trips) <= 2 + 300 // MOST + 1 and max(counting.trips) <= MOST
    assert [e.data["n"] for e in await counting.events()] == list(range(301))  # in the order in which they came


async def test_each_learns_whether_it_won(counting: Counting):
    together = Together(counting)
    await counting.create(Thing(thing_id="a"))
    a, version = await counting.load(Thing, "a")
    assert a is not None
    writes = [*(Write(a, grown(a), some) for some in ("9", version, "8", version)), new(1)]
    results = await asyncio.gather(*(together.commit(write) for write in writes))
    assert results == [False, True, False, False, True] and (await counting.get(Thing, "a")).size == 1


async def test_what_cannot_be_written_hurts_nobody_else(counting: Counting):
    together = Together(counting)
    bad = Write(None, Thing(thing_id="bad").model_copy(update={"text": "\ud800"}))
    results = await asyncio.gather(*(together.commit(w) for w in (new(1), bad, new(2))), return_exceptions=True)
    assert results[0] is True and isinstance(results[1], Invalid) and results[2] is True
    assert len(await counting.many(Thing, ["t1", "t2"])) == 2


async def test_all_are_told_that_the_store_is_away_and_the_next_are_written(counting: Counting):
    together = Together(counting)
    counting.away = True
    results = await asyncio.gather(*(together.commit(new(n)) for n in range(5)), return_exceptions=True)
    assert all(isinstance(result, Unavailable) for result in results)
    counting.away = False
    assert await together.commit(new(1)) is True


async def test_one_that_no_longer_waits_keeps_no_other_from_its_answer(counting: Counting):
    together = Together(counting)
    tasks = [asyncio.create_task(together.commit(new(n))) for n in range(3)]
    await asyncio.sleep(0)
    tasks[0].cancel()  # the first is the one whose arrival began the round trip
    assert await asyncio.gather(*tasks[1:]) == [True, True]
    assert await together.commit(new(9)) is True


async def test_an_event_is_signed_by_whoever_committed_it_and_by_nobody_else(counting: Counting):
    # The bug: the round trip ran in the context of the first to come, whose name then stood under all of them.
    together = Together(counting)

    async def commit(n: int, by: str) -> None:
        if by:
            with within(Origin(principal_id=by)):
                await together.commit(new(n))
        else:
            await together.commit(new(n))

    await asyncio.gather(*(commit(n, by) for n, by in enumerate(["ann", "", "ben", ""])))
    origins = [e.origin.principal_id if e.origin else "" for e in await counting.events()]
    assert origins == ["ann", "", "ben", ""]
