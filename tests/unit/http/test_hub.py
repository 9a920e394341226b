"""The hub over a real Redis: each listener gets exactly its own, in order, each once."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from eventually import eventually
from hypothesis import given, settings
from hypothesis import strategies as st
from socket_harness import NOON, progress

from cluster.events.model import START, Event, order
from cluster.store import Store
from serve_apps.kit import hub as hubs
from serve_apps.kit.hub import Hub, Listener, Update

NOUNS, OWNERS = ("task", "training", "p2p"), ("user_a", "user_b", "client_c")
BEGIN = order(START)


class Kept:
    """A taker that keeps all it gets."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.rendered: list[bytes] = []

    def take(self, update: Update) -> None:
        self.events.append(update.event)
        self.rendered.append(update.made(render))

    async def room(self) -> None:
        return


def render(event: Event) -> bytes:
    return event.event_id.encode()


def listener(nouns=("training",), owners=None, passes=None, place=BEGIN) -> tuple[Kept, Listener]:
    taker = Kept()
    return taker, Listener(taker, frozenset(nouns), None if owners is None else frozenset(owners), passes, place)


@pytest.fixture
async def hub(store: Store) -> AsyncIterator[Hub]:
    made = Hub(store)
    yield made
    await made.close()


def event(noun: str, owner: str, subject: str = "x") -> Event:
    return Event(kind=f"{noun}.changed", subject=subject, owner=owner, at=NOON)


Sets = st.frozensets(st.sampled_from(NOUNS), min_size=1)
Who = st.one_of(st.none(), st.frozensets(st.sampled_from(OWNERS)))


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.sampled_from(NOUNS), st.sampled_from(OWNERS)), max_size=30),
    st.lists(st.tuples(Sets, Who, st.integers(0, 30), st.booleans()), min_size=1, max_size=6),
)
def test_a_listener_sees_exactly_its_own_whenever_it_comes(redis_url, happened, listeners):
    async def told() -> None:
        store = Store(redis_url)
        await store._redis.flushall()
        hub, taken = Hub(store), []
        for n, (noun, owner) in enumerate([*happened, ("p2p", "user_a")]):
            for nouns, owners, when, picky in listeners:
                if when == n or (when > len(happened) == n):
                    passes = (lambda e: int(e.subject) % 2 == 0) if picky else None
                    taker, one = listener(nouns, owners, passes)
                    taken.append((taker, one))
                    await hub.join(one)
            await store.publish(event(noun, owner, str(n)))
        last = order(await store.last_event_id())
        await eventually(lambda: hub._done == last)
        for taker, one in taken:
            mine = [
                str(n)
                for n, (noun, owner) in enumerate([*happened, ("p2p", "user_a")])
                if noun in one.nouns
                and (one.owners is None or owner in one.owners)
                and (one.passes is None or n % 2 == 0)
            ]
            assert [e.subject for e in taker.events] == mine
        await hub.close()
        await store.close()

    asyncio.run(told())


async def test_an_event_is_rendered_once_for_all(hub: Hub, store: Store):
    told = [listener() for _ in range(5)]
    for _, one in told:
        await hub.join(one)
    await store.publish(progress("user_x"))
    await eventually(lambda: all(taker.rendered for taker, _ in told))
    assert len({id(taker.rendered[0]) for taker, _ in told}) == 1


async def test_nobody_is_asked_for_anothers_event(hub: Hub, store: Store):
    def never(_: Event) -> bool:
        raise AssertionError("asked")

    _, other = listener(owners=["user_b"], passes=never)
    taker, mine = listener(owners=["user_a"])
    for one in (other, mine):
        await hub.join(one)
    await store.publish(progress("user_a"))
    await eventually(lambda: taker.events)


async def test_an_event_that_cannot_be_told_does_not_stop_those_after_it(hub: Hub, store: Store):
    broken, one = listener()
    taker, two = listener()

    def fails(_: Update) -> None:
        raise ValueError("cannot be rendered")

    broken.take = fails  # type: ignore[method-assign]
    for each in (one, two):
        await hub.join(each)
    for _ in range(2):
        await store.publish(progress("user_x"))
    await eventually(lambda: len(taker.events) == 2)


async def test_the_past_is_read_in_pages_while_the_present_goes_on(hub: Hub, store: Store, monkeypatch):
    monkeypatch.setattr(hubs, "PAGE", 7)
    for n in range(40):
        await store.publish(progress("user_x", part=n))
    early, first = listener(place=order(await store.last_event_id()))
    await hub.join(first)
    late, second = listener()

    async def go_on() -> None:
        for n in range(40, 80):
            await store.publish(progress("user_x", part=n))

    await asyncio.gather(hub.join(second), go_on())
    await eventually(lambda: len(late.events) == 80 and len(early.events) == 40)
    assert [e.data["progress"] for e in late.events] == list(range(80))
    assert [e.data["progress"] for e in early.events] == list(range(40, 80))


async def test_who_leaves_while_it_catches_up_leaves_nothing_running(hub: Hub, store: Store):
    for n in range(10):
        await store.publish(progress("user_x", part=n))

    class Full(Kept):
        async def room(self) -> None:
            await asyncio.Event().wait()

    one = Listener(Full(), frozenset({"training"}), None)
    joining = asyncio.create_task(hub.join(one))
    await eventually(lambda: hub._reader is not None)
    joining.cancel()
    await asyncio.gather(joining, return_exceptions=True)
    assert hub._reader is None


async def test_one_who_changes_while_an_event_is_handed_out_gets_it_once(hub: Hub, store: Store, monkeypatch):
    monkeypatch.setattr(hubs, "BREATH", 1)
    old, one = listener()
    new, two = listener()
    other, three = listener()

    def change(update: Update) -> None:
        two.place = hub.place_of(one)
        assert hub.enter(two)
        hub.leave(one)

    for each in (one, three):
        await hub.join(each)
    old.take = change  # type: ignore[method-assign]
    for n in range(2):
        await store.publish(progress("user_x", part=n))
    await eventually(lambda: len(other.events) == 2)
    assert [e.data["progress"] for e in new.events] == [1]


async def test_a_place_is_taken_over_by_the_listener_that_replaces_another(hub: Hub, store: Store):
    taker, one = listener()
    await hub.join(one)
    for n in range(5):
        await store.publish(progress("user_x", part=n))
    await eventually(lambda: len(taker.events) == 5)
    after, two = listener(place=hub.place_of(one))
    assert hub.enter(two)
    hub.leave(one)
    await store.publish(progress("user_x", part=5))
    await eventually(lambda: after.events)
    assert [e.data["progress"] for e in after.events] == [5] and len(taker.events) == 5
