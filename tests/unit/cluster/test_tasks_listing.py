"""Lists of tasks against a plain list in memory: every filter, order, offset and cursor."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.errors import Invalid
from cluster.identity.model import SYSTEM, Principal
from cluster.store import Store, Write
from cluster.tasks import listing
from cluster.tasks.listing import Filter, find, place_of, read, written
from cluster.tasks.model import Task, TaskState

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
ANN = Principal(principal_id="user_ann", owner="user_ann", username="ann")
KEY = Principal(principal_id="key_1", owner="client_shop", username="shop", client_id="shop")
OWNERS = {"user_ann": ("shop", "bank"), "user_ben": ("shop",), "client_shop": ("shop",)}


def a_task(n: int) -> Task:
    """Many of one instant; every field in turn."""
    owner = list(OWNERS)[n % 3]
    at = NOON + timedelta(seconds=n // 7)
    return Task(
        task_id=f"task_{(n * 37) % 1000:04}", owner=owner, client_id=OWNERS[owner][n % len(OWNERS[owner])],
        task_type=("sum", "sort")[n % 2], capability_required=("a:v1", "b:v1")[n // 2 % 2], priority=1 + n % 10,
        parent_id=("", "chain_1")[n % 5 == 0], state=list(TaskState)[n % 7], agent_id=("", "ada", "bob")[n % 3],
        input_data={}, created_at=at, updated_at=at,
    )  # fmt: skip


async def filled(store: Store, count: int) -> list[Task]:
    tasks = [a_task(n) for n in range(count)]
    await store.commit_each([Write(None, task) for task in tasks])
    return tasks


def expected(tasks: list[Task], who: Principal, wanted: Filter, newest_first: bool) -> list[str]:
    found = [
        task for task in tasks
        if who.sees(task.owner) and wanted.matches(task)
        and (wanted.created_after is None or task.created_at >= wanted.created_after)
        and (wanted.created_before is None or task.created_at <= wanted.created_before)
    ]  # fmt: skip
    return [task.task_id for task in sorted(found, key=place_of, reverse=newest_first)]


FILTERS = st.builds(
    Filter, client_id=st.sampled_from(["", "shop", "bank", "none"]),
    states=st.frozensets(st.sampled_from(list(TaskState)), max_size=3), task_type=st.sampled_from(["", "sum"]),
    capability=st.sampled_from(["", "b:v1"]), agent_id=st.sampled_from(["", "ada"]),
    parent_id=st.sampled_from(["", "chain_1"]), priority=st.sampled_from([None, 3]),
    created_after=st.none() | st.integers(0, 30).map(lambda n: NOON + timedelta(seconds=n)),
    created_before=st.none() | st.integers(0, 30).map(lambda n: NOON + timedelta(seconds=n)),
)  # fmt: skip


async def test_a_list_is_what_a_plain_list_would_be(store: Store, monkeypatch: pytest.MonkeyPatch):
    tasks = await filled(store, 160)
    monkeypatch.setattr(listing, "CHUNK", 20)  # several rounds for a page

    @settings(max_examples=150, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from([SYSTEM, ANN, KEY]), FILTERS, st.booleans(), st.integers(1, 40), st.integers(0, 30))
    async def holds(who: Principal, wanted: Filter, newest_first: bool, limit: int, offset: int):
        right = expected(tasks, who, wanted, newest_first)
        page = await find(store, who, wanted, newest_first=newest_first, offset=offset, limit=limit)
        assert [task.task_id for task in page.items] == right[offset : offset + limit]
        assert page.total in (None, len(right)) and bool(page.cursor) == (len(right) > offset + limit)
        seen, cursor = [task.task_id for task in page.items], page.cursor
        while cursor:
            page = await find(store, who, wanted, newest_first=newest_first, cursor=cursor, limit=limit)
            assert page.items and page.total in (None, len(right))
            seen, cursor = seen + [task.task_id for task in page.items], page.cursor
        assert seen == right[offset:]

    await run(holds)


async def run(property_test) -> None:
    """Hypothesis calls plain functions: each example in this test's own loop."""
    import asyncio

    inner = property_test.hypothesis.inner_test
    loop = asyncio.get_running_loop()

    def plain(*arguments, **named):
        asyncio.run_coroutine_threadsafe(inner(*arguments, **named), loop).result(30)

    property_test.hypothesis.inner_test = plain
    await loop.run_in_executor(None, property_test)


async def test_a_page_looks_through_so_many_and_says_where_it_stopped(store: Store, monkeypatch: pytest.MonkeyPatch):
    tasks = await filled(store, 150)
    monkeypatch.setattr(listing, "SCAN", 40)
    monkeypatch.setattr(listing, "CHUNK", 20)
    rare = Filter(priority=3, task_type="sum")
    seen, cursor, pages = [], "", 0
    while pages == 0 or cursor:
        page = await find(store, SYSTEM, rare, cursor=cursor, limit=50)
        assert page.scanned <= 60
        seen, cursor, pages = seen + [task.task_id for task in page.items], page.cursor, pages + 1
    assert seen == expected(tasks, SYSTEM, rare, True) and pages >= 4
    with pytest.raises(Invalid):
        await find(store, SYSTEM, rare, offset=100, limit=5)


async def test_of_a_state_only_those_that_are_in_it_are_read(store: Store):
    await filled(store, 140)
    page = await find(store, SYSTEM, Filter(states=frozenset({TaskState.PENDING, TaskState.FAILED})), limit=10)
    assert page.total == 40 and len(page.items) == 10 and page.scanned <= 22


@pytest.mark.parametrize(
    "cursor", ["x", "bm9wZQ", written((float("nan"), "a")), "W10", "WzEsMiwzXQ", "\u00fc", "a" * 300]
)
def test_a_cursor_that_is_none_is_refused(cursor):
    with pytest.raises(Invalid):
        read(cursor)


@given(st.floats(allow_nan=False, allow_infinity=False), st.text())
def test_a_cursor_says_what_was_written(time, task_id):
    assert read(written((time, task_id))) == (time, task_id)
