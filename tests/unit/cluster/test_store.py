import asyncio
import random
import secrets
from datetime import datetime, timedelta
from typing import ClassVar

import pytest
from eventually import eventually
from hypothesis import given
from hypothesis import strategies as st

from cluster.clock import utc_now
from cluster.errors import AlreadyExists, Invalid, NotFound, Unavailable
from cluster.events import Event
from cluster.events.model import START, stream_id
from cluster.store import Guard, Index, Record, Store, Write
from cluster.store.check import differences, everything
from cluster.store.indexes import EVENTS, SIGNALS, entries, index_key, record_key

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


# ---- every write by itself


async def things(store: Store, *ids: str) -> list[tuple[Thing, str]]:
    for name in ids:
        await store.create(Thing(thing_id=name))
    return await store.load_many(Thing, ids)


def growing(*found: tuple[Thing, str]) -> list[Write]:
    return [Write(thing, grown(thing), version, event(of=thing.thing_id)) for thing, version in found]


async def test_each_write_wins_or_loses_by_itself(store: Store):
    found = await things(store, "a", "b", "c")
    await store.change(Thing, "b", grown)  # somebody is faster
    writes = [*growing(*found), Write(None, Thing(thing_id="d"), event=event(of="d")), Write(None, Thing(thing_id="a"))]
    assert await store.commit_each(writes) == [True, False, True, True, False]
    assert [thing.size for thing in await store.many(Thing, "abcd")] == [1, 1, 1, 0]
    assert [e.data["of"] for e in await store.events()] == ["a", "c", "d"]
    assert await store.commit_each([]) == []
    [(a, version)] = await store.load_many(Thing, ["a"])
    assert await store.commit_each([Write(a, None, version)]) == [True] and await store.find(Thing, "a") is None


async def test_of_two_writes_of_the_same_record_in_one_commit_the_second_loses(store: Store, monkeypatch):
    # The bug: the second found the commit's own nonce at the record, and was told that it had been written.
    [(a, version)] = await things(store, "a")
    once, twice = Write(a, grown(a), version, event(n=1)), Write(a, grown(grown(a)), version, event(n=2))
    repeatable(store, monkeypatch, "0123456789abcdef")
    for _ in range(2):
        assert await store.commit_each([once, twice]) == [True, False]
        assert (await store.get(Thing, "a")).size == 1 and [e.data["n"] for e in await store.events()] == [1]


async def test_writes_of_one_commit_may_build_on_each_other(store: Store):
    [(a, version)] = await things(store, "a")
    then = Write(grown(a), grown(grown(a)), str(int(version) + 1), event(n=2))
    assert await store.commit_each([Write(a, grown(a), version, event(n=1)), then]) == [True, True]
    assert (await store.get(Thing, "a")).size == 2 and [e.data["n"] for e in await store.events()] == [1, 2]


async def test_several_events_of_one_write_are_in_their_order(store: Store):
    [(a, version)] = await things(store, "a")
    both = (event("thing.first", n=1), event("thing.second", n=2))
    assert await store.commit_each([Write(a, grown(a), version, both)]) == [True]
    assert await store.commit(Write(grown(a), a, str(int(version) + 1), both)) is True
    assert [e.kind for e in await store.events()] == ["thing.first", "thing.second"] * 2
    assert Write(None, a).events == () and Write(None, a, event=both[0]).events == both[:1]


async def test_a_guard_refuses_what_would_fill_a_set_beyond_its_most(store: Store):
    await store.create(Thing(thing_id="a", colour="blue"))
    found = await things(store, "b", "c", "d")
    guard = Guard("colour", ("blue",), 3)
    writes = [
        Write(thing, thing.model_copy(update={"colour": "blue"}), version, event(), guard) for thing, version in found
    ]
    assert await store.commit_each(writes) == [True, True, False]  # the later see what the earlier did
    assert await store.count(Thing, "colour", "blue") == 3 and len(await store.events()) == 2
    full = Write(found[2][0], grown(found[2][0]), found[2][1], event(), guard)
    assert await store.commit(full) is False and len(await store.events()) == 2
    await store.delete(Thing, "a")
    assert await store.commit(full) is True


async def test_no_guard_is_passed_by_30_at_once(store: Store):
    stores = [Store(store.url) for _ in range(3)]
    guard = Guard("colour", ("blue",), 7)

    async def make(n: int) -> bool:
        write = Write(None, Thing(thing_id=f"t{n}", colour="blue"), guard=guard)
        return (await stores[n % 3].commit_each([write]))[0] if n % 2 else await stores[n % 3].commit(write)

    assert sum(await asyncio.gather(*(make(n) for n in range(30)))) == 7
    assert await store.count(Thing, "colour", "blue") == 7
    for other in stores:
        await other.close()


async def test_writes_whose_answer_was_lost_are_repeated_without_effect(store: Store, monkeypatch):
    found = await things(store, "a", "b")
    full = Guard("colour", ("red",), 3)
    writes = [*growing(*found), Write(None, Thing(thing_id="c"), event=event(of="c"), guard=full)]
    with monkeypatch.context() as patch:
        repeatable(store, patch, "0123456789abcdef")
        assert await store.commit_each(writes) == [True, True, True]
        assert await store.commit_each(writes) == [True, True, True]  # though the guard is full by now
    assert [e.data["of"] for e in await store.events()] == ["a", "b", "c"]
    assert await store.commit_each(writes) == [False, False, False]  # the same by somebody else is a lost race


async def test_a_batch_whose_answer_was_lost_is_told_lost_only_where_others_have_written_since(
    store: Store, monkeypatch
):
    found = await things(store, "a", "b")
    with monkeypatch.context() as patch:
        repeatable(store, patch, "0123456789abcdef")
        assert await store.commit_each(growing(*found)) == [True, True]
    [b] = await store.load_many(Thing, ["b"])
    assert await store.commit_each(growing(b)) == [True]
    with monkeypatch.context() as patch:
        repeatable(store, patch, "0123456789abcdef")
        assert await store.commit_each(growing(*found)) == [True, False]
    assert [thing.size for thing in await store.many(Thing, "ab")] == [1, 2]


async def test_a_commit_of_each_counts_its_arguments_right(store: Store):
    # The script reads them by counting: no number of events, index entries and guards may put it off.
    chance = random.Random(7)
    for turn in range(40):
        ids = [f"r{turn}t{n}" for n in range(chance.randint(1, 12))]
        writes, expected, told = [], [], []
        for name in ids:
            events = tuple(event(of=name) for _ in range(chance.randint(0, 3)))
            full, stale = chance.random() < 0.3, chance.random() < 0.3
            guard = Guard("colour", ("full",), 0 if full else 1) if full or chance.random() < 0.5 else None
            thing = Thing(thing_id=name, colour=chance.choice(["", "red", "blue"]))
            writes.append(Write(None, thing, "7" if stale else "0", events, guard))
            expected.append(not full and not stale)
            told += [name] * len(events) if expected[-1] else []
        after = await store.last_event_id()
        assert await store.commit_each(writes) == expected
        assert [e.data["of"] for e in await store.events(after)] == told
        found = {thing.thing_id for thing in await store.many(Thing, ids)}
        assert found == {name for name, won in zip(ids, expected, strict=True) if won}


async def test_only_the_wanted_kinds_are_read_and_the_place_moves_past_the_others(store: Store):
    ids = [await store.publish(event(kind, n=n)) for n, kind in enumerate(["a.x", "b.x", "a.x", "c.x"])]
    found, place = await store.batch(START, frozenset({"a.x"}))
    assert [e.data["n"] for e in found] == [0, 2] and place == ids[-1]
    assert await store.batch(place, frozenset({"a.x"})) == ([], place)
    found, place = await store.batch(START, frozenset({"b.x"}), limit=2)
    assert [e.data["n"] for e in found] == [1] and place == ids[1]
    found, place = await store.batch(START, frozenset({"none.x"}), limit=3)
    assert found == [] and place == ids[2]
    assert len((await store.batch(START))[0]) == 4


# ---- sets


def names(taken: list[tuple[Thing, str]]) -> list[str]:
    return [thing.thing_id for thing, _ in taken]


async def test_taking_gives_each_record_to_one_taker_lowest_first(store: Store):
    for n in range(5):
        await store.create(Thing(thing_id=f"t{n}", size=n))
    first = await store.take(Thing, "size", limit=2)
    assert names(first) == ["t0", "t1"] and first == await store.load_many(Thing, ["t0", "t1"])
    assert names(await store.take(Thing, "colour", "red", limit=9)) == [f"t{n}" for n in range(5)]
    assert names(await store.take(Thing, "size", limit=9)) == ["t2", "t3", "t4"]
    assert await store.take(Thing, "size") == [] and len(await store.many(Thing, ["t0", "t4"])) == 2  # they stay


async def test_a_taken_record_may_go_on_and_come_back(store: Store):
    await store.create(Thing(thing_id="a"))
    [(a, version)] = await store.take(Thing, "colour", "red")
    blue = a.model_copy(update={"colour": "blue"})
    assert await store.commit(Write(a, blue, version)) and await store.count(Thing, "colour", "blue") == 1
    await store.change(Thing, "a", lambda _: a)
    assert names(await store.take(Thing, "colour", "red")) == ["a"]


async def test_a_taker_waits_for_the_first_and_gets_what_else_is_there(store: Store):
    loop, others = asyncio.get_running_loop(), [Store(store.url) for _ in range(3)]
    begun = loop.time()
    assert await store.take(Thing, "size", wait_seconds=0.1) == [] and loop.time() - begun < 2
    waiting = [asyncio.create_task(some.take(Thing, "size", limit=3, wait_seconds=2)) for some in others]
    await asyncio.sleep(0.05)
    await store.commit(*(Write(None, Thing(thing_id=f"t{n}", size=n)) for n in range(2)))
    taken = [name for task in waiting for name in names(await task)]
    assert sorted(taken) == ["t0", "t1"]
    for other in others:
        await other.close()


async def test_scores_heads_and_firsts(store: Store):
    for n, colour in enumerate(["red", "blue", "red", "red", "a:b"]):
        await store.create(Thing(thing_id=f"t{n}", size=n, colour=colour))
    sets = [("red",), ("none",), ("blue",)]
    assert await store.scored(Thing, "colour", sets, 2) == [[("t0", 0.0), ("t2", 2.0)], [], [("t1", 1.0)]]
    assert await store.scored(Thing, "colour", [], 2) == []
    firsts = await store.first_of_each(Thing, "colour")
    assert sorted(thing.thing_id for thing in firsts) == ["t0", "t1", "t4"]
    keys = [index_key("thing", "colour", parts) for parts in sets]
    assert await store.heads(keys, 1) == [([("t3", 3.0)], 3), ([], 0), ([("t1", 1.0)], 1)]


async def test_first_of_each_finds_every_set_of_many_and_no_other_indexes(store: Store):
    await store.commit(*(Write(None, Thing(thing_id=f"t{n}", size=n, colour=f"c{n % 700}")) for n in range(1000)))
    firsts = await store.first_of_each(Thing, "colour")
    assert sorted(thing.size for thing in firsts) == list(range(700))


async def test_the_check_finds_every_difference_between_indexes_and_records(store: Store):
    for n, colour in enumerate(["red", "blue", "a:b"]):
        await store.create(Thing(thing_id=f"t{n}", size=n, colour=colour))
    things = await everything(store, Thing)
    assert {thing.id for thing in things} == {"t0", "t1", "t2"} and await differences(store, Thing, things) == []
    await store._redis.zrem(index_key("thing", "colour", ("red",)), "t0")
    await store._redis.zadd(index_key("thing", "colour", ("green",)), {"t1": 1})
    await store._redis.zadd(index_key("thing", "size"), {"t2": 7})
    found = await differences(store, Thing, things)
    assert [text.partition(": ")[2] for text in found] == [
        "t1 stands at 1.0, not at None", "t0 stands at None, not at 0.0", "t2 stands at 7.0, not at 2.0",
    ]  # fmt: skip


# ---- signals


async def test_signals_reach_whoever_listens_and_nobody_later(store: Store):
    heard: list[list[int]] = [[], []]
    stores = [Store(store.url) for _ in heard]

    async def listen(which: int) -> None:
        async for signal in stores[which].signals():
            heard[which].append(signal["n"])

    await store.signal({"n": 0})
    listeners = [asyncio.create_task(listen(which)) for which in range(2)]
    await asyncio.sleep(0.1)
    for n in range(1, 4):
        await store.signal({"n": n})
    await eventually(lambda: heard == [[1, 2, 3], [1, 2, 3]])
    assert await store.events() == []  # they are no events
    for task in listeners:
        task.cancel()
        await asyncio.wait([task])
    for other in stores:
        await other.close()


async def test_old_signals_are_dropped(store: Store):
    for _ in range(3000):
        await store.signal({"n": 1})
    assert await store._redis.xlen(SIGNALS) < 3000


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
