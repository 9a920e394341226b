import asyncio
import secrets
from datetime import datetime, timedelta
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.clock import utc_now
from cluster.errors import AlreadyExists, Invalid, NotFound, Unavailable
from cluster.events import Event
from cluster.events.model import START, stream_id
from cluster.store import Index, Record, Store, Write
from cluster.store.indexes import EVENTS, entries, index_key, record_key

AT = utc_now()


class Thing(Record):
    kind: ClassVar[str] = "thing"
    indexes: ClassVar[tuple[Index, ...]] = (
        Index("size", score=lambda t: t.size),
        Index("colour", score=lambda t: t.size, parts=lambda t: [(t.colour,)] if t.colour else []),
    )

    thing_id: str
    size: int = 0
    colour: str = "red"
    text: str = ""


def event(kind: str = "thing.changed", **data) -> Event:
    return Event(kind=kind, subject="x", owner="user_1", at=AT, data=data)


def grown(thing: Thing) -> Thing:
    return thing.model_copy(update={"size": thing.size + 1})


async def test_a_record_is_created_once(store: Store):
    made = await store.create(Thing(thing_id="a", size=3))
    assert await store.get(Thing, "a") == made and await store.find(Thing, "b") is None
    with pytest.raises(AlreadyExists):
        await store.create(Thing(thing_id="a"))
    with pytest.raises(NotFound):
        await store.get(Thing, "b")


async def test_of_30_that_create_the_same_record_one_wins(store: Store):
    results = await asyncio.gather(
        *(store.create(Thing(thing_id="a", size=n)) for n in range(30)), return_exceptions=True
    )
    assert sum(isinstance(r, AlreadyExists) for r in results) == 29
    [winner] = [r for r in results if isinstance(r, Thing)]
    assert await store.get(Thing, "a") == winner


async def test_30_concurrent_writers_lose_no_change(store: Store):
    await store.create(Thing(thing_id="a"))
    stores = [Store(store.url) for _ in range(3)]

    async def write(n: int) -> None:
        await stores[n % 3].change(Thing, "a", grown, lambda _, after: event(size=after.size))

    await asyncio.gather(*(write(n) for n in range(30)))
    assert (await store.get(Thing, "a")).size == 30
    assert [e.data["size"] for e in await store.events()] == list(range(1, 31))
    for other in stores:
        await other.close()


async def test_a_step_that_changes_nothing_writes_nothing(store: Store):
    await store.create(Thing(thing_id="a"))
    _, before = await store.load(Thing, "a")
    await store.change(Thing, "a", lambda t: t, lambda *_: event())
    assert (await store.load(Thing, "a"))[1] == before and await store.events() == []


async def test_upsert_makes_what_is_missing_and_loses_no_change(store: Store):
    await asyncio.gather(*(store.upsert(Thing(thing_id="a"), grown) for _ in range(20)))
    assert (await store.get(Thing, "a")).size == 20


async def test_a_record_moves_between_index_sets(store: Store):
    await store.create(Thing(thing_id="a", size=1))
    assert await store.ids(Thing, "colour", "red") == ["a"]
    await store.change(Thing, "a", lambda t: t.model_copy(update={"colour": "blue", "size": 5}))
    assert await store.ids(Thing, "colour", "red") == [] and await store.ids(Thing, "colour", "blue", low=5) == ["a"]
    await store.change(Thing, "a", lambda t: t.model_copy(update={"colour": ""}))
    assert await store.count(Thing, "colour", "blue") == 0 and await store.ids(Thing, "size", low=5, high=5) == ["a"]


async def test_a_deleted_record_leaves_no_trace_but_its_event(store: Store):
    await store.create(Thing(thing_id="a"))
    gone = await store.delete(Thing, "a", event("thing.deleted"))
    assert gone.thing_id == "a" and await store.find(Thing, "a") is None
    assert await store.count(Thing, "size") == 0 and await store.count(Thing, "colour", "red") == 0
    assert [e.kind for e in await store.events()] == ["thing.deleted"]
    assert await store._redis.keys("*thing*") == []
    with pytest.raises(NotFound):
        await store.delete(Thing, "a")
    await store.create(Thing(thing_id="a", size=9))
    assert (await store.get(Thing, "a")).size == 9


async def test_pages_and_ranges(store: Store):
    for n in range(7):
        await store.create(Thing(thing_id=f"t{n}", size=n))
    page = await store.page(Thing, "size", offset=1, limit=3)
    assert [t.size for t in page.items] == [5, 4, 3] and page.total == 7
    page = await store.page(Thing, "size", low=2, high=4, newest_first=False, limit=2)
    assert [t.size for t in page.items] == [2, 3] and page.total == 3
    assert (await store.page(Thing, "size", offset=9)).items == []
    assert len((await store.page(Thing, "size", limit=-1)).items) == 7
    assert [t.size for t in await store.many(Thing, ["t3", "none", "t1"])] == [3, 1] and await store.many(
        Thing, []
    ) == []
    assert (
        await store.counts(Thing, "colour", [("red",), ("blue",)]) == [7, 0]
        and await store.counts(Thing, "x", []) == []
    )


async def test_a_commit_of_several_records_is_all_or_nothing(store: Store):
    await store.create(Thing(thing_id="a"))
    a, version = await store.load(Thing, "a")
    assert a is not None
    await store.change(Thing, "a", grown)  # somebody is faster
    stale = [Write(None, Thing(thing_id="b"), event=event()), Write(a, grown(a), version, event())]
    assert await store.commit(*stale) is False
    assert await store.find(Thing, "b") is None and await store.count(Thing, "size") == 1 and await store.events() == []
    a, version = await store.load(Thing, "a")
    assert a is not None
    assert await store.commit(Write(a, None, version), Write(None, Thing(thing_id="b"), event=event())) is True
    assert await store.ids(Thing, "size") == ["b"] and len(await store.events()) == 1


def repeatable(store: Store, monkeypatch: pytest.MonkeyPatch, nonce: str) -> None:
    monkeypatch.setattr(secrets, "token_hex", lambda _: nonce)


async def test_a_commit_whose_answer_was_lost_is_repeated_without_effect(store: Store, monkeypatch):
    await store.create(Thing(thing_id="a"))
    a, version = await store.load(Thing, "a")
    assert a is not None
    write = Write(a, grown(a), version, event())
    with monkeypatch.context() as patch:
        repeatable(store, patch, "0123456789abcdef")
        assert await store.commit(write) and await store.commit(write)
    assert (await store.get(Thing, "a")).size == 1 and len(await store.events()) == 1
    assert await store.commit(write) is False  # the same write by somebody else is a lost race


async def test_a_lost_answer_is_recognised_even_after_others_have_written(store: Store, monkeypatch):
    # The bug: only the last nonce was kept, so the step was applied a second time on top of the others.
    await store.create(Thing(thing_id="a"))
    a, version = await store.load(Thing, "a")
    assert a is not None
    write = Write(a, grown(a), version, event())
    with monkeypatch.context() as patch:
        repeatable(store, patch, "0123456789abcdef")
        assert await store.commit(write)
    for _ in range(3):
        await store.change(Thing, "a", grown)
    with monkeypatch.context() as patch:
        repeatable(store, patch, "0123456789abcdef")
        assert await store.commit(write)
    assert (await store.get(Thing, "a")).size == 4 and len(await store.events()) == 1


async def test_a_text_that_utf8_cannot_hold_is_the_callers_mistake(store: Store):
    with pytest.raises(Invalid):
        await store.create(Thing(thing_id="a").model_copy(update={"text": "\ud800"}))
    assert await store.find(Thing, "a") is None


async def test_events_are_in_order_and_resume_after_an_id(store: Store):
    sent = [await store.publish(event(n=n)) for n in range(5)]
    everything = await store.events()
    assert [e.event_id for e in everything] == sent and [e.data["n"] for e in everything] == list(range(5))
    assert [e.data["n"] for e in await store.events(sent[2])] == [3, 4]
    assert [e.data["n"] for e in await store.events(START, limit=2)] == [0, 1]
    assert await store.last_event_id() == sent[-1] and await store.events(sent[-1]) == []


async def test_an_empty_stream_starts_at_the_start(store: Store):
    assert await store.last_event_id() == START


async def test_waiting_for_events_ends_with_the_first_one(store: Store):
    waiting = asyncio.create_task(store.events(wait_seconds=4))
    await asyncio.sleep(0.05)
    begun = asyncio.get_running_loop().time()
    await store.publish(event(n=1))
    assert [e.data["n"] for e in await waiting] == [1]
    assert asyncio.get_running_loop().time() - begun < 1


async def test_forgotten_events_are_the_old_ones(store: Store):
    ids = [await store.publish(event(n=n, text="x" * 500)) for n in range(1000)]
    await store.forget_events(ids[900])
    left = [e.data["n"] for e in await store.events(limit=1000)]
    assert left[-100:] == list(range(900, 1000)) and len(left) < 1000


@pytest.mark.parametrize("bad", ["", "evt_", "evt_x-1", "nonsense"])
def test_an_event_id_is_checked(bad):
    with pytest.raises(ValueError):
        stream_id(bad)


async def test_a_store_pickles_as_its_url(store: Store):
    import pickle

    await store.create(Thing(thing_id="a"))
    other = pickle.loads(pickle.dumps(store))
    assert (await other.get(Thing, "a")).thing_id == "a"
    await other.close()


async def test_a_store_that_is_not_there_is_unavailable():
    nowhere = Store("unix:///nonexistent/redis.sock")
    for call in (nowhere.ping(), nowhere.find(Thing, "a"), nowhere.create(Thing(thing_id="a")), nowhere.events()):
        with pytest.raises(Unavailable):
            await call
    await nowhere.close()


async def test_a_cancelled_reader_ends(store: Store):
    # The bug: with a socket timeout, asyncio.wait_for of Python 3.11 swallowed a cancellation while a command was sent.
    for turns in range(12):
        reader = Store(store.url)

        async def read(reader: Store = reader) -> None:
            async for _ in reader.follow(START):
                pass

        task = asyncio.create_task(read())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=2)
        assert task in done, f"cancelled after {turns} turns of the loop"
        await reader.close()


@given(st.integers(-(2**40), 2**40), st.sampled_from(["", "red", "a:b", "ü"]))
def test_every_index_entry_is_under_the_records_kind(size, colour):
    found = entries(Thing(thing_id="a", size=size, colour=colour))
    assert set(found) == {index_key("thing", "size")} | ({index_key("thing", "colour", (colour,))} if colour else set())
    assert all(key.startswith("{village}:thing.") for key in found) and set(found.values()) == {float(size)}
    assert record_key("thing", "a") not in found and entries(None) == {} and EVENTS not in found


def test_a_record_says_its_own_id():
    assert Thing(thing_id="a").id == "a" and AT - timedelta(seconds=1) < datetime.now(AT.tzinfo)
