"""How long events are kept: a day behind the slowest reader, and less where they are too many."""

from hypothesis import given
from hypothesis import strategies as st

from cluster.clock import utc_now
from cluster.events import Event
from cluster.events.cursor import KEEP_EVENTS, KEEP_EVENTS_MS, Cursor, forget_what_all_have_read, keep_from
from cluster.store import Store
from cluster.store.gauge import events_kept

DAY = KEEP_EVENTS_MS


def test_a_day_is_kept_and_no_more():
    assert keep_from(10 * DAY, 0, 10 * DAY, 1000) == 9 * DAY
    assert keep_from(5 * DAY, 0, 10 * DAY, 1000) == 4 * DAY  # the slowest reader counts
    assert keep_from(DAY // 2, 0, DAY // 2, 10) == 0


def test_too_many_go_sooner_but_none_that_has_not_been_read():
    assert keep_from(DAY, 0, DAY, 2 * KEEP_EVENTS) == DAY // 2
    assert keep_from(DAY // 4, 0, DAY, 2 * KEEP_EVENTS) == DAY // 4


@given(st.integers(0, 2**50), st.integers(0, 2**50), st.integers(0, 2**50), st.integers(1, 2**40))
def test_never_beyond_the_slowest_reader(read, a, b, count):
    assert 0 <= keep_from(read, min(a, b), max(a, b), count) <= read


async def test_the_stream_is_trimmed_to_what_is_kept(store: Store, monkeypatch):
    monkeypatch.setattr("cluster.events.cursor.KEEP_EVENTS", 100)
    for n in range(1000):
        await store.publish(Event(kind="a.b", subject=f"x_{n}", owner="u", at=utc_now()))
    place = Cursor(cursor_id="slow", event_id=(await store.events(limit=500))[-1].event_id)
    await store.upsert(place, lambda _: place)
    await forget_what_all_have_read(store)
    assert 500 <= await events_kept(store) < 1000  # what the slow one has before it stays
    place = Cursor(cursor_id="slow", event_id=await store.last_event_id())
    await store.upsert(place, lambda _: place)
    for _ in range(5):
        await forget_what_all_have_read(store)
    assert await events_kept(store) < 400  # the stream drops whole nodes of a hundred
