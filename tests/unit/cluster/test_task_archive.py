"""Tasks that have ended move from Redis to LanceDB: what is read then, what stays, and who is killed where."""

import asyncio
import re
import subprocess
import sys
from dataclasses import fields
from datetime import timedelta
from pathlib import Path

import pytest
from dying import Dying
from eventually import eventually
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from task_archive_harness import NOON, a_task, all_read, end, filled, mover, tasks_of
from test_chains import moved
from test_tasks_listing import FILTERS, KEY, expected, run
from workflow_harness import ANN as SHOP_ANN

from cluster.errors import Conflict, NotCancellable, StaleAttempt, TaskNotFound, Unavailable
from cluster.identity.model import SYSTEM, Principal
from cluster.settings import Settings
from cluster.store import Store, Write
from cluster.store.check import differences
from cluster.tasks import archive as archives
from cluster.tasks import finished, listing
from cluster.tasks.archive import TaskArchive, predicate
from cluster.tasks.finished import Border
from cluster.tasks.listing import Filter, place_of
from cluster.tasks.model import FINAL, Task, TaskState
from cluster.tasks.mover import READERS, Foreign, Mover, move_tasks
from cluster.tasks.service import Tasks
from cluster.tasks.verification import Replication, replica_id
from cluster.workflows.chains.model import Step
from cluster.workflows.chains.service import Chains

ROOT = Path(__file__).resolve().parents[3]
ANN = Principal(principal_id="user_ann", owner="user_ann", username="ann")
BEN = Principal(principal_id="user_ben", owner="user_ben", username="ben")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "tasks"


async def left(store: Store) -> set[str]:
    """Ids of what is in Redis."""
    return set(await store.ids(Task, "list", "all"))


async def listed(tasks: Tasks, who: Principal = SYSTEM, wanted: Filter | None = None, limit: int = 40) -> list[Task]:
    """The whole list, page by page."""
    found, cursor, pages = [], "", 0
    while not pages or cursor:
        page = await tasks.page(who, wanted, cursor=cursor, limit=limit)
        found, cursor, pages = found + page.items, page.cursor, pages + 1
        assert wanted is not None or page.total is not None
    return found


@pytest.mark.parametrize("keep", [60, 20, 0])
async def test_a_list_across_the_border_is_what_a_plain_list_would_be(store, folder, monkeypatch, keep):
    tasks = await filled(store, 160)
    monkeypatch.setattr(listing, "CHUNK", 20)
    assert await mover(store, folder, keep).step() == sum(t.state in FINAL for t in tasks) - keep
    service = tasks_of(store, folder)

    @settings(max_examples=50, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from([SYSTEM, ANN, KEY]), FILTERS, st.booleans(), st.integers(1, 40), st.integers(0, 90))
    async def holds(who: Principal, wanted: Filter, newest_first: bool, limit: int, offset: int):
        right = expected(tasks, who, wanted, newest_first)
        page = await service.page(who, wanted, newest_first=newest_first, offset=offset, limit=limit)
        assert [task.task_id for task in page.items] == right[offset : offset + limit]
        assert page.total in (None, len(right)) and bool(page.cursor) == (len(right) > offset + limit)
        seen, cursor = [task.task_id for task in page.items], page.cursor
        while cursor:
            page = await service.page(who, wanted, newest_first=newest_first, cursor=cursor, limit=limit)
            assert page.items and page.total in (None, len(right))
            seen, cursor = seen + [task.task_id for task in page.items], page.cursor
        assert seen == right[offset:]

    await run(holds)


async def test_pages_that_end_where_they_have_looked_enough_leave_nothing_out(store, folder, monkeypatch):
    tasks = await filled(store, 160)
    monkeypatch.setattr(listing, "CHUNK", 10)
    monkeypatch.setattr(listing, "SCAN", 20)
    await mover(store, folder, 40).step()
    service = tasks_of(store, folder)

    @settings(max_examples=30, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from([SYSTEM, ANN, KEY]), FILTERS, st.booleans(), st.integers(1, 20))
    async def holds(who: Principal, wanted: Filter, newest_first: bool, limit: int):
        seen, cursor, pages = [], "", 0
        while not pages or cursor:
            page = await service.page(who, wanted, newest_first=newest_first, cursor=cursor, limit=limit)
            seen, cursor, pages = seen + [task.task_id for task in page.items], page.cursor, pages + 1
        assert seen == expected(tasks, who, wanted, newest_first)

    await run(holds)


async def test_what_has_left_is_gone_from_every_set_and_read_as_it_was(store: Store, folder: Path):
    tasks = await filled(store, 140)
    assert await mover(store, folder).step() == 80
    open_ones = [task for task in tasks if task.state not in FINAL]
    assert await left(store) == {task.task_id for task in open_ones}
    assert await differences(store, Task, open_ones) == []
    service = tasks_of(store, folder)
    assert await service.finished.many([task.task_id for task in tasks] + ["task_none"]) == tasks
    assert await listed(service) == sorted(tasks, key=place_of, reverse=True)
    for task in tasks:
        assert await service.get(SYSTEM, task.task_id) == task
        if task.owner != ANN.owner:
            with pytest.raises(TaskNotFound):
                await service.get(ANN, task.task_id)
    with pytest.raises(TaskNotFound):
        await service.get(SYSTEM, "task_none")


@pytest.mark.parametrize(("at", "after"), [(1, False), (1, True), (2, False), (2, True)])
async def test_a_move_killed_anywhere_shows_each_task_once_and_goes_on(store, folder, monkeypatch, at, after):
    monkeypatch.setattr("cluster.tasks.mover.AT_ONCE", 30)
    tasks = await filled(store, 140)
    right = sorted(tasks, key=place_of, reverse=True)
    dying = Dying(store.url, at, after)
    with pytest.raises(asyncio.CancelledError):
        await mover(dying, folder).step()
    await dying.close()
    gone = 30 * (at - (not after))
    assert len(await left(store)) == 140 - gone
    assert await TaskArchive(folder).count("true") == 80  # the rows are there, and those beyond the border do not count
    service = tasks_of(store, folder)
    assert await listed(service) == right and (await service.page(SYSTEM, limit=1)).total == 140
    assert (await service.page(SYSTEM, offset=100, limit=30)).items == right[100:130]
    assert await service.finished.many([task.task_id for task in tasks]) == tasks
    assert await mover(store, folder).step() == 80 - gone
    assert await listed(service) == right and await TaskArchive(folder).count("true") == 80
    assert (await store.get(Border, "tasks")).through == 80


async def test_two_that_move_at_once_move_each_task_once(store: Store, folder: Path):
    tasks = await filled(store, 140)
    other = Store(store.url)
    moved = await asyncio.gather(*(mover(s, folder).step() for s in (store, other, store)))
    await other.close()
    assert sum(moved) == 80 and await TaskArchive(folder).count("true") == 80
    assert await listed(tasks_of(store, folder)) == sorted(tasks, key=place_of, reverse=True)


async def test_lists_and_lookups_are_whole_while_tasks_move(store: Store, folder: Path, monkeypatch):
    monkeypatch.setattr("cluster.tasks.mover.AT_ONCE", 5)
    tasks = await filled(store, 210)
    right = sorted(tasks, key=place_of, reverse=True)
    other, service, looks = Store(store.url), tasks_of(store, folder), 0
    moving = asyncio.create_task(mover(other, folder).step())
    while not moving.done():
        page = await service.page(SYSTEM, offset=50, limit=100)
        assert page.items == right[50:150] and page.total == 210
        assert await listed(service, limit=100) == right
        assert await service.finished.many([task.task_id for task in tasks[:50]]) == tasks[:50]
        looks += 1
    assert await moving == 120 and looks > 1
    await other.close()


# ---- what stays


async def test_the_oldest_leave_those_that_are_too_many_or_too_old(store: Store, folder: Path):
    await filled(store, 140)
    ended = [t.task_id for n in range(140) if (t := a_task(n)).state in FINAL]
    assert await mover(store, folder, keep_tasks=80).step() == 0
    assert await mover(store, folder, keep_tasks=70).step() == 10
    assert not set(sorted(ended, key=lambda i: place_of_id(i))[:10]) & await left(store)

    def aged(seconds: float) -> Mover:
        at = NOON + timedelta(hours=1, seconds=seconds)
        return Mover(store, TaskArchive(folder), timedelta(hours=1), 1000, clock=lambda: at)

    late = a_task(1000, task_id="task_late", state=TaskState.FAILED, created_at=NOON, completed_at=NOON + timedelta(1))
    await store.create(late)
    assert await aged(-1).step() == 0
    assert await aged(10).step() > 0 and late.task_id in await left(store)  # it was made long ago, and ended just now
    assert await aged(100_000).step() > 0 and late.task_id not in await left(store)


def place_of_id(task_id: str) -> tuple[float, str]:
    return next(place_of(t) for n in range(140) if (t := a_task(n)).task_id == task_id)


async def test_a_few_wait_for_more(store: Store, folder: Path):
    await filled(store, 14)
    moving = mover(store, folder)
    assert await moving.step() == 8
    await filled(store, 28)  # of these ids some are in the archive: a repeated id is another matter
    assert await moving.step() == 0  # the last move was just now
    moving._moved_at -= 7200
    assert await moving.step() == 16


async def test_what_waits_for_a_task_keeps_it(store: Store, folder: Path):
    old = [a_task(n, state=TaskState.FAILED, completed_at=NOON) for n in range(2)]
    waiting = a_task(2, state=TaskState.PENDING, waiting_for=(old[0].task_id,), depends_on=(old[0].task_id,))
    await store.commit_each([Write(None, task) for task in (*old, waiting)])
    await all_read(store)
    assert await mover(store, folder).step() == 1
    assert await left(store) == {old[0].task_id, waiting.task_id}


async def test_a_task_that_somebody_depends_on_in_the_last_moment_stays(store: Store, folder: Path):
    tasks = await filled(store, 5, state=TaskState.FAILED, completed_at=NOON)
    late = a_task(99, state=TaskState.PENDING, waiting_for=(tasks[2].task_id,))

    class Late(TaskArchive):
        async def add(self, *arguments) -> None:
            await super().add(*arguments)
            if not await store.find(Task, late.task_id):
                await store.create(late)

    moving = Mover(store, Late(folder), timedelta(days=36_500), 0)
    assert await moving.step() == 0
    moving._moved_at -= 7200
    assert await moving.step() == 4
    assert await left(store) == {tasks[2].task_id, late.task_id}
    assert len(await listed(tasks_of(store, folder))) == 6


async def test_steps_of_a_running_chain_and_parts_of_an_open_verification_stay(store: Store, folder: Path):
    service = tasks_of(store, folder)
    chains = Chains(store, service)
    step = Step(name="s", task_type="sum", capability_required="sums:v1")
    running, _ = await chains.create(SHOP_ANN, client_id="ann", name="p", steps=[step])
    over, _ = await chains.create(SHOP_ANN, client_id="ann", name="p", steps=[step])
    await end(store, running.current.task_id, result=1)
    await chains.cancel(SHOP_ANN, over.chain_id, "")
    asked = Replication(asked=2)
    ended = {"state": TaskState.COMPLETED, "completed_at": NOON}
    alone = {"task_id": "task_v", "parent_id": "", "verification": asked}
    parts = [
        a_task(1, **alone, state=TaskState.PENDING, completed_at=None),
        a_task(1, task_id=replica_id("task_v", 1), parent_id="task_v", **ended),
        a_task(1, task_id="task_w", parent_id="", verification=asked, **ended),
        a_task(1, task_id=replica_id("task_w", 1), parent_id="task_w", **ended),
        a_task(1, task_id=replica_id("task_w", 2), parent_id="task_w", state=TaskState.RUNNING, completed_at=None),
        a_task(1, task_id=replica_id("task_gone", 1), parent_id="task_gone", **ended),
    ]
    await store.commit_each([Write(None, task) for task in parts])
    await all_read(store)
    moving = mover(store, folder)
    assert await moving.step() == 3
    names = {task.task_id for task in parts}
    kept = {running.current.task_id, "task_v", "task_v_r1", "task_w", "task_w_r2"}
    assert await left(store) & (names | {running.current.task_id, over.current.task_id}) == kept


async def test_nothing_leaves_that_a_reader_of_the_events_has_not_come_past(store: Store, folder: Path, monkeypatch):
    monkeypatch.setattr("cluster.tasks.mover.READING_SECONDS", 0)
    await filled(store, 14)
    task = a_task(200, state=TaskState.PENDING)
    await store.create(task)
    await Tasks(store).cancel(SYSTEM, task.task_id, "")
    last = await store.last_event_id()
    await all_read(store, "evt_1-0")
    assert await mover(store, folder).step() == 0
    await all_read(store, last, "ledger")
    assert await mover(store, folder).step() == 0
    await all_read(store, last)
    assert await mover(store, folder).step() == 9


def test_the_readers_that_are_waited_for_are_those_that_keep_a_cursor():
    named = set()
    for file in (ROOT / "cluster").rglob("*.py"):
        text = file.read_text()
        if "keep_place(self.store, self.NAME" in text:
            named |= set(re.findall(r'^    NAME = "(\w+)"', text, re.M))
    assert named == READERS


# ---- what is done with it


async def test_a_dependency_that_has_left_counts_by_its_end(village, folder: Path):
    store, archive = village.store, TaskArchive(folder)
    mine = {"owner": SYSTEM.owner, "completed_at": NOON}
    done, failed = a_task(1, state=TaskState.COMPLETED, **mine), a_task(2, state=TaskState.FAILED, **mine)
    await store.commit_each([Write(None, done), Write(None, failed)])
    await all_read(store)
    assert await mover(store, folder).step() == 2
    village.tasks = tasks_of(store, folder)
    free = await village.submit(depends_on=(done.task_id,))
    assert free.ready
    late = await village.submit(depends_on=(done.task_id, failed.task_id))
    assert late.waiting_for == (failed.task_id,)
    told = await village.tasks.dependencies(SYSTEM, late.task_id)
    assert told.states == {done.task_id: "COMPLETED", failed.task_id: "FAILED"} and told.blocking == (failed.task_id,)
    village.route()
    village.router.dependents.finished = finished.Finished(store, archive)
    ended = await eventually(village.reaches(late.task_id, "FAILED"))
    assert failed.task_id in ended.reason


async def test_a_chain_shows_and_goes_on_from_steps_that_have_left(store: Store, folder: Path):
    service = tasks_of(store, folder)
    chains = Chains(store, service)
    steps = [
        Step(name=f"s{n}", task_type="sum", capability_required="sums:v1", use_previous_output=n > 0) for n in range(2)
    ]
    chain, _ = await chains.create(SHOP_ANN, client_id="ann", name="p", steps=steps)
    await end(store, chain.current.task_id, result={"sum": 7})
    await moved(store)
    chain = await chains.get(SHOP_ANN, chain.chain_id)
    await end(store, chain.current.task_id, error="broken")
    await moved(store)
    await all_read(store)
    assert await mover(store, folder).step() == 2 and await left(store) == set()
    view = await chains.view(SHOP_ANN, chain.chain_id)
    assert [view.tasks[step.task_id].result_data for step in view.chain.begun] == [{"sum": 7}, None]
    again = await chains.retry(SHOP_ANN, chain.chain_id)
    task = await service.get(SHOP_ANN, again.current.task_id)
    assert task.input_data == {"previous_output": {"sum": 7}}


async def test_a_task_that_has_left_is_as_final_as_before(store: Store, folder: Path):
    task = a_task(1, state=TaskState.TIMEOUT, completed_at=NOON, attempt=1, task_token="1.secret", parent_id="")
    await store.create(task)
    await all_read(store)
    assert await mover(store, folder).step() == 1
    service = tasks_of(store, folder)
    for late in (service.report(task.task_id, "1.secret", result_data=1), service.heartbeat(task.task_id, "1.secret")):
        with pytest.raises(StaleAttempt):
            await late
    with pytest.raises(NotCancellable):
        await service.cancel(SYSTEM, task.task_id, "")
    with pytest.raises(Conflict):
        await service.prioritise(SYSTEM, task.task_id, 9)
    refused = (await service.cancel_many(SYSTEM, task_ids=[task.task_id, "task_none"])).refused
    assert [type(refused[name]) for name in (task.task_id, "task_none")] == [NotCancellable, TaskNotFound]


async def test_the_loop_moves_what_is_due(store: Store, tmp_path: Path):
    await filled(store, 14)
    made = Settings(home=tmp_path, redis_url=store.url, tasks_keep=3, tasks_keep_days=36_500)
    loop = asyncio.create_task(move_tasks(store, made))

    async def moved() -> bool:
        return len(await left(store)) == 9

    await eventually(moved)
    loop.cancel()


# ---- another archive, or none


async def test_an_archive_that_is_gone_is_said_to_be_and_gets_nothing_more(store: Store, folder: Path):
    await filled(store, 70)
    assert await mover(store, folder, 20).step() == 20
    elsewhere = folder.parent / "elsewhere"
    service = tasks_of(store, elsewhere)
    with pytest.raises(Unavailable):
        await service.get(SYSTEM, "task_none")
    with pytest.raises(Unavailable):
        await service.page(SYSTEM)
    assert await service.finished.ends(["task_none"]) == {}
    with pytest.raises(Foreign):
        await mover(store, elsewhere).step()
    assert await mover(store, folder).step() == 20


async def test_rows_of_another_redis_are_not_dropped(store: Store, folder: Path):
    await filled(store, 70)
    await mover(store, folder, 20).step()
    await store._redis.flushall()
    await filled(store, 7, owner="new")
    await store.delete(Task, a_task(3).task_id)
    with pytest.raises(Foreign):
        await mover(store, folder).step()
    assert await TaskArchive(folder).count("true") == 20


async def test_files_are_joined_now_and_then(store: Store, folder: Path, monkeypatch):
    monkeypatch.setattr("cluster.tasks.mover.BATCH", 4)
    monkeypatch.setattr("cluster.tasks.mover.AT_ONCE", 4)
    monkeypatch.setattr(archives, "WRITES_PER_UPKEEP", 5)
    tasks = await filled(store, 70)
    assert await mover(store, folder).step() == 40
    table = await (await _lance()).connect_async(str(folder))
    assert (await (await table.open_table("tasks")).stats())["fragment_stats"]["num_fragments"] < 6
    assert await listed(tasks_of(store, folder)) == sorted(tasks, key=place_of, reverse=True)


async def _lance():
    import lancedb

    return lancedb


def test_every_filter_of_a_list_is_in_the_predicate():
    at, plain = NOON, predicate(SYSTEM, Filter(), 9, None, True)
    given_ = {
        "client_id": "x", "states": frozenset({TaskState.FAILED}), "task_type": "x", "capability": "x", "agent_id": "x",
        "parent_id": "x", "priority": 3, "created_after": at, "created_before": at,
    }  # fmt: skip
    assert given_.keys() == {field.name for field in fields(Filter)}
    assert len({predicate(SYSTEM, Filter(**{name: value}), 9, None, True) for name, value in given_.items()}) == 9
    assert plain == "number <= 9" and predicate(ANN, Filter(), 9, None, True) == "number <= 9 AND owner = 'user_ann'"
    assert predicate(SYSTEM, Filter(states=frozenset({TaskState.PENDING})), 9, None, True) is None


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(st.text(), st.floats(allow_nan=False, allow_infinity=False))
def test_a_cursor_and_a_filter_may_say_anything(text, time):
    where = predicate(SYSTEM, Filter(task_type="'" + text.encode(errors="replace").decode()), 9, (time, text), False)
    assert where is not None and where.encode()


async def test_odd_texts_are_looked_for_and_not_run(store: Store, folder: Path):
    odd_one = a_task(99, task_type="it's\\\n", parent_id="", state=TaskState.FAILED, completed_at=NOON)
    await store.create(odd_one)
    await filled(store, 14)
    await mover(store, folder).step()
    service = tasks_of(store, folder)
    assert (await service.page(SYSTEM, Filter(task_type=odd_one.task_type))).items == [odd_one]
    for odd in ("' OR true --", "\\", "\x00", "%", "ü\n'", "--", "a" * 200):
        assert (await service.page(SYSTEM, Filter(task_type=odd, parent_id=odd))).items == []
        assert (await service.page(SYSTEM, Filter(task_type="sum"), cursor=listing.written((-1e300, odd)))).items == []
        with pytest.raises(TaskNotFound):
            await service.get(SYSTEM, odd)


def test_a_gateway_does_not_load_the_archives_library_until_somebody_looks_back():
    code = "import sys, cluster.tasks.service, cluster.tasks.mover; print('lancedb' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
