"""Schedules over a real Redis: each time fires once, whatever is killed, late, or twice there."""

import asyncio
import os
import random
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from dying import Dying
from eventually import eventually
from hypothesis import given
from hypothesis import strategies as st
from workflow_harness import ANN, BEN, SCOPES, end

from cluster.clock import utc_now
from cluster.errors import BadSchedule, Conflict, Forbidden, ScheduleNotFound, UnknownStrategy
from cluster.identity.model import SYSTEM, Principal
from cluster.identity.records import User
from cluster.presence import Presence
from cluster.store import Store
from cluster.tasks.model import Task, TaskState
from cluster.tasks.service import Tasks
from cluster.workflows.schedules import scheduler as scheduling
from cluster.workflows.schedules import service as serving
from cluster.workflows.schedules.machine import LATE, Due, due
from cluster.workflows.schedules.model import Firing, Outcome, Schedule
from cluster.workflows.schedules.scheduler import Scheduler
from cluster.workflows.schedules.service import Schedules

ROOT = Path(__file__).resolve().parents[3]
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def schedules(store: Store, clock: Clock) -> Schedules:
    return Schedules(store, Tasks(store, clock), clock)


def fields(**own) -> dict:
    known = {
        "client_id": "ann", "name": "every minute", "cron_expression": "* * * * *", "timezone": "UTC",
        "task_type": "sum", "capability_required": "sums:v1", "input_data": {"a": 1},
    }  # fmt: skip
    return known | own


async def made(schedules: Schedules, who: Principal = ANN, **own) -> Schedule:
    return await schedules.create(who, **fields(client_id=who.client_id or "c", **own))


async def tick(store: Store, clock: Clock, to: datetime) -> Scheduler:
    """What a scheduler does that looks at the clock at that moment."""
    clock.now = to
    scheduler = Scheduler(store, Tasks(store, clock), clock)
    while await scheduler.step():
        pass
    return scheduler


async def tasks_of(store: Store) -> list[Task]:
    return await store.many(Task, await store.ids(Task, "list", "all"))


async def history(schedules: Schedules, schedule: Schedule) -> list[tuple]:
    """Outcome, time and task of each run, oldest first."""
    page = await schedules.runs(SYSTEM, schedule.schedule_id, limit=100)
    return [(f.outcome, f.scheduled_for, bool(f.task_id)) for f in reversed(page.items)]


async def test_a_schedule_fires_at_its_time_and_not_before(schedules: Schedules, store: Store, clock: Clock):
    schedule = await made(schedules, cron_expression="0 2 * * *", timezone="America/New_York", priority=7)
    first = datetime(2026, 1, 2, 7, tzinfo=UTC)
    assert schedule.next_run_at == first
    await tick(store, clock, first - timedelta(microseconds=1))
    assert not await tasks_of(store)
    await tick(store, clock, first)
    [task] = await tasks_of(store)
    assert (task.owner, task.client_id, task.priority, task.input_data) == ("client_ann", "ann", 7, {"a": 1})
    assert task.parent_id == schedule.schedule_id
    now = await schedules.get(ANN, schedule.schedule_id)
    assert (now.next_run_at, now.last_run_at, now.last_task_id) == (first + timedelta(days=1), first, task.task_id)
    assert (now.runs_fired, now.runs_skipped) == (1, 0)
    assert await history(schedules, schedule) == [(Outcome.FIRED, first, True)]
    kinds = [event.kind for event in await store.events() if event.subject == schedule.schedule_id]
    assert kinds == ["schedule.created", "schedule.fired"]


async def test_a_run_whose_predecessor_is_at_work_is_skipped_and_says_why(schedules: Schedules, store, clock):
    schedule = await made(schedules)
    await tick(store, clock, NOON + MINUTE)
    await tick(store, clock, NOON + 2 * MINUTE)
    [task] = await tasks_of(store)
    runs = (await schedules.runs(ANN, schedule.schedule_id, Outcome.SKIPPED)).items
    assert [(run.scheduled_for, run.task_id) for run in runs] == [(NOON + 2 * MINUTE, "")]
    assert task.task_id in runs[0].reason and "PENDING" in runs[0].reason
    await end(store, task.task_id)
    await tick(store, clock, NOON + 3 * MINUTE)
    assert len(await tasks_of(store)) == 2
    now = await schedules.get(ANN, schedule.schedule_id)
    assert (now.runs_fired, now.runs_skipped) == (2, 1)


@pytest.mark.parametrize(
    ("line", "minutes", "expected"),
    [
        # At 12:00 it is next due at 12:01, and nobody looks until `minutes` later.
        ("* * * * *", 1, [(Outcome.FIRED, 1)]),
        ("* * * * *", 10, [(Outcome.SKIPPED, 1), (Outcome.FIRED, 10)]),
        ("* * * * *", 600, [(Outcome.SKIPPED, 1), (Outcome.FIRED, 600)]),
        ("0 13 * * *", 90, [(Outcome.FIRED, 60)]),
        ("0 13 * * *", 120, [(Outcome.FIRED, 60)]),
        ("0 13 * * *", 121, [(Outcome.SKIPPED, 60)]),
        ("0 13,14 * * *", 150, [(Outcome.SKIPPED, 60), (Outcome.FIRED, 120)]),
        ("0 13,14 * * *", 500, [(Outcome.SKIPPED, 60)]),
    ],
)
async def test_what_was_missed_is_made_up_for_once_and_only_within_the_hour(
    schedules: Schedules, store: Store, clock: Clock, line, minutes, expected
):
    schedule = await made(schedules, cron_expression=line)
    await tick(store, clock, NOON + minutes * MINUTE)
    await tick(store, clock, NOON + minutes * MINUTE)
    told = await schedules.runs(ANN, schedule.schedule_id)
    assert sorted((f.outcome, f.scheduled_for) for f in told.items) == sorted(
        (outcome, NOON + minute * MINUTE) for outcome, minute in expected
    )
    assert all("missed" in f.reason for f in told.items if f.outcome is Outcome.SKIPPED)
    assert len(await tasks_of(store)) == sum(outcome is Outcome.FIRED for outcome, _ in expected)
    now = await schedules.get(ANN, schedule.schedule_id)
    assert now.next_run_at and now.next_run_at > clock.now
    kinds = [event.kind for event in await store.events() if event.subject == schedule.schedule_id][1:]
    assert sorted(kinds) == sorted(f"schedule.{outcome}" for outcome, _ in expected)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=30, unique=True), st.integers(0, 400))
def test_what_is_due_is_the_latest_run_that_is_not_too_late(minutes: list[int], later: int):
    times = sorted(NOON + minute * MINUTE for minute in minutes)
    at = NOON + later * MINUTE
    if times[0] > at:
        return
    what = due(times[0], at, lambda after: next((time for time in times if time > after), None))
    past = [time for time in times if time <= at]
    fresh = [time for time in past if time > at - LATE or time == times[0] == at - LATE]
    fire = fresh[-1] if fresh else None
    missed = times[0] if fire != times[0] else None
    assert what == Due(missed, fire, next((time for time in times if time > at), None))


async def test_schedulers_at_once_fire_each_time_once(schedules: Schedules, store: Store, clock: Clock):
    for _ in range(40):
        await made(schedules)
    stores = [Store(store.url) for _ in range(3)]
    for minute in range(1, 4):
        await asyncio.gather(*(tick(other, clock, NOON + minute * MINUTE) for other in stores))
        for task in await tasks_of(store):
            await end(store, task.task_id)
    for other in stores:
        await other.close()
    assert len(await tasks_of(store)) == 120
    for schedule in (await schedules.page(ANN, limit=100)).items:
        assert await history(schedules, schedule) == [(Outcome.FIRED, NOON + m * MINUTE, True) for m in (1, 2, 3)]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", [1, 2, 3])
async def test_a_scheduler_killed_at_any_commit_fires_each_time_once(schedules: Schedules, store, clock, at, after):
    mine = [await made(schedules) for _ in range(3)]
    dying = Dying(store.url, at, after)
    scheduler = Scheduler(dying, Tasks(dying, clock), clock)
    clock.now = NOON + MINUTE
    with pytest.raises(asyncio.CancelledError):
        for schedule in mine:
            await scheduler._deal_with(schedule.schedule_id)
    await dying.close()
    await tick(store, clock, NOON + MINUTE + timedelta(seconds=5))
    assert len(await tasks_of(store)) == 3
    for schedule in mine:
        assert await history(schedules, schedule) == [(Outcome.FIRED, NOON + MINUTE, True)]


async def test_a_clock_that_is_set_back_repeats_nothing(schedules: Schedules, store: Store, clock: Clock):
    schedule = await made(schedules)
    await tick(store, clock, NOON + 5 * MINUTE)
    [task] = await tasks_of(store)
    await end(store, task.task_id)
    clock.now = NOON
    paused = await schedules.update(ANN, schedule.schedule_id, active=False)
    resumed = await schedules.update(ANN, schedule.schedule_id, active=True)
    assert paused.next_run_at is None and resumed.next_run_at == NOON + 6 * MINUTE
    await tick(store, clock, NOON + 5 * MINUTE)
    assert len(await tasks_of(store)) == 1


async def test_a_paused_schedule_makes_nothing_and_makes_nothing_up(schedules: Schedules, store: Store, clock: Clock):
    schedule, asleep = await made(schedules), await made(schedules, active=False)
    assert asleep.next_run_at is None
    await schedules.update(ANN, schedule.schedule_id, active=False)
    await tick(store, clock, NOON + 5 * MINUTE)
    assert not await tasks_of(store)
    assert (await schedules.page(ANN, active=True)).total == 0 and (await schedules.page(ANN, active=False)).total == 2
    resumed = await schedules.update(ANN, schedule.schedule_id, active=True)
    assert resumed.next_run_at == NOON + 6 * MINUTE
    again = await schedules.update(ANN, schedule.schedule_id, active=True)
    assert again == resumed
    kinds = [event.kind for event in await store.events() if event.subject == schedule.schedule_id]
    assert kinds == ["schedule.created", "schedule.paused", "schedule.resumed"]


async def test_a_change_of_the_line_or_the_zone_moves_the_next_run(schedules: Schedules, store: Store, clock: Clock):
    schedule = await made(schedules, cron_expression="0 9 * * *")
    renamed = await schedules.update(ANN, schedule.schedule_id, name="new", input_data={"b": 2})
    assert renamed.next_run_at == schedule.next_run_at and renamed.input_data == {"b": 2}
    moved = await schedules.update(ANN, schedule.schedule_id, timezone="Europe/Berlin")
    assert moved.next_run_at == datetime(2026, 1, 2, 8, tzinfo=UTC)
    moved = await schedules.update(ANN, schedule.schedule_id, cron_expression="30 12 * * *")
    assert moved.next_run_at == datetime(2026, 1, 2, 11, 30, tzinfo=UTC)
    for wrong, error in (
        ({"cron_expression": "0 0 30 2 *"}, BadSchedule), ({"timezone": "Mars/Olympus"}, BadSchedule),
        ({"routing_strategy": "by_dice"}, UnknownStrategy),
    ):  # fmt: skip
        with pytest.raises(error):
            await schedules.update(ANN, schedule.schedule_id, **wrong)
    assert await schedules.get(ANN, schedule.schedule_id) == moved


async def test_run_now_ignores_the_clock_and_does_not_overlap(schedules: Schedules, store: Store, clock: Clock):
    schedule = await made(schedules, active=False)
    task = await schedules.run_now(SYSTEM, schedule.schedule_id)
    assert (task.owner, task.client_id, task.state) == ("client_ann", "ann", TaskState.PENDING)
    with pytest.raises(Conflict) as refusal:
        await schedules.run_now(ANN, schedule.schedule_id)
    assert refusal.value.details["task_id"] == task.task_id
    await schedules.update(ANN, schedule.schedule_id, active=True)
    await tick(store, clock, NOON + MINUTE)
    assert len(await tasks_of(store)) == 1  # the clock does not overlap with it either
    await end(store, task.task_id)
    await schedules.run_now(ANN, schedule.schedule_id)
    assert sorted(await history(schedules, schedule), key=str) == [
        (Outcome.FIRED, None, True), (Outcome.FIRED, None, True), (Outcome.SKIPPED, NOON + MINUTE, False)
    ]  # fmt: skip


async def test_anothers_schedule_does_not_exist(schedules: Schedules):
    schedule = await made(schedules)
    for ask in (
        lambda: schedules.get(BEN, schedule.schedule_id), lambda: schedules.delete(BEN, schedule.schedule_id),
        lambda: schedules.update(BEN, schedule.schedule_id, active=False),
        lambda: schedules.run_now(BEN, schedule.schedule_id), lambda: schedules.runs(BEN, schedule.schedule_id),
        lambda: schedules.get(ANN, "sched_none"),
    ):  # fmt: skip
        with pytest.raises(ScheduleNotFound):
            await ask()
    assert await schedules.get(SYSTEM, schedule.schedule_id) == schedule
    assert [(await schedules.page(who)).total for who in (ANN, BEN, SYSTEM)] == [1, 0, 1]
    with pytest.raises(Forbidden):
        await schedules.create(ANN, **fields(client_id="ben"))


async def test_a_deleted_schedule_leaves_its_tasks_and_nothing_else(schedules: Schedules, store: Store, clock: Clock):
    schedule = await made(schedules)
    await tick(store, clock, NOON + MINUTE)
    await schedules.delete(ANN, schedule.schedule_id)
    with pytest.raises(ScheduleNotFound):
        await schedules.get(ANN, schedule.schedule_id)
    assert await store.count(Firing, "list", schedule.schedule_id) == 0 and len(await tasks_of(store)) == 1
    await tick(store, clock, NOON + 5 * MINUTE)
    assert len(await tasks_of(store)) == 1


async def test_the_history_is_bounded(schedules: Schedules, store: Store, clock: Clock, monkeypatch):
    monkeypatch.setattr(serving, "KEEP", 3)
    schedule = await made(schedules)
    for minute in range(1, 7):
        await tick(store, clock, NOON + minute * MINUTE)
    runs = await history(schedules, schedule)
    assert [time for _, time, _ in runs] == [NOON + m * MINUTE for m in (4, 5, 6)]
    assert (await schedules.get(ANN, schedule.schedule_id)).runs_skipped == 5


async def test_an_owner_has_a_bounded_number_of_schedules(schedules: Schedules, monkeypatch):
    monkeypatch.setattr(serving, "MAX_PER_OWNER", 2)
    for _ in range(2):
        await made(schedules)
    with pytest.raises(Conflict):
        await made(schedules)
    await made(schedules, BEN)


async def test_the_schedule_of_a_user_who_was_disabled_makes_no_task(schedules: Schedules, store: Store, clock: Clock):
    await store.create(User(user_id="user_eve", username="eve", password_hash="", scopes=SCOPES, created_at=utc_now()))
    eve = Principal(principal_id="user_eve", owner="user_eve", username="eve", scopes=SCOPES)
    schedule = await made(schedules, eve)
    await store.change(User, "user_eve", lambda u: u.model_copy(update={"disabled": True}))
    await tick(store, clock, NOON + MINUTE)
    assert not await tasks_of(store)
    [run] = (await schedules.runs(SYSTEM, schedule.schedule_id)).items
    assert run.outcome is Outcome.SKIPPED and "may not sign in" in run.reason


async def test_what_nobody_foresaw_skips_one_run_and_no_other(schedules: Schedules, store, clock, monkeypatch):
    bad, good = await made(schedules, name="bad"), await made(schedules, name="good")
    task_of = scheduling.task_of

    async def broken(tasks: Tasks, schedule: Schedule, task_id: str = ""):
        if schedule.name == "bad":
            raise ZeroDivisionError
        return await task_of(tasks, schedule, task_id)

    monkeypatch.setattr(scheduling, "task_of", broken)
    await tick(store, clock, NOON + MINUTE)
    assert [outcome for outcome, *_ in await history(schedules, bad)] == [Outcome.SKIPPED]
    assert [outcome for outcome, *_ in await history(schedules, good)] == [Outcome.FIRED]


async def test_a_schedule_whose_zone_is_gone_is_paused(schedules: Schedules, store: Store, clock: Clock):
    schedule = await made(schedules)
    await store.change(Schedule, schedule.schedule_id, lambda s: s.model_copy(update={"timezone": "Mars/Olympus"}))
    await tick(store, clock, NOON + MINUTE)
    now = await schedules.get(ANN, schedule.schedule_id)
    assert not now.active and now.next_run_at is None


async def test_the_loop_fires_within_a_second_beats_and_outlives_a_store_that_is_away(store: Store, monkeypatch):
    skew = datetime(2026, 1, 1, 11, 59, 59, 200_000, UTC) - utc_now()
    clock = lambda: utc_now() + skew  # noqa: E731 - a real clock, 0.8 s before noon
    schedules = Schedules(store, Tasks(store, clock), clock)
    schedule = await made(schedules, cron_expression="0 12 * * *")
    mine = Store(store.url)
    running = asyncio.create_task(Scheduler(mine, Tasks(mine, clock), clock).run())
    [task] = await eventually(lambda: tasks_of(store))
    lateness = (task.created_at - NOON).total_seconds()
    assert 0 <= lateness < 1.0 and (await schedules.get(ANN, schedule.schedule_id)).runs_fired == 1
    assert (await store.get(Presence, "schedules")).data.keys() == {"handled"}
    running.cancel()
    await mine.close()
    monkeypatch.setattr(scheduling, "TICK_SECONDS", 0.01)
    away = Store("unix:///nonexistent/redis.sock")
    running = asyncio.create_task(Scheduler(away, Tasks(away)).run())
    await asyncio.sleep(0.1)
    assert not running.done()
    running.cancel()


SCHEDULER = """
import asyncio, sys
from datetime import datetime, timedelta
from cluster.clock import utc_now
from cluster.store import Store
from cluster.tasks.service import Tasks
from cluster.workflows.schedules import scheduler

begun, start = float(sys.argv[2]), datetime.fromisoformat(sys.argv[3])
clock = lambda: start + timedelta(seconds=(utc_now().timestamp() - begun) * 600)  # a minute in a tenth of a second
scheduler.TICK_SECONDS = 0.01
store = Store(sys.argv[1])
asyncio.run(scheduler.Scheduler(store, Tasks(store, clock), clock).run())
"""


async def test_scheduler_processes_that_are_killed_again_and_again_fire_no_time_twice(store: Store):
    begun = utc_now()
    clock = lambda: NOON + (utc_now() - begun) * 600  # noqa: E731
    schedules = Schedules(store, Tasks(store, clock), clock)
    mine = [await made(schedules) for _ in range(5)]

    async def spawn() -> asyncio.subprocess.Process:
        arguments = (store.url, str(begun.timestamp()), NOON.isoformat())
        return await asyncio.create_subprocess_exec(
            sys.executable, "-c", SCHEDULER, *arguments, cwd=ROOT, env={**os.environ}
        )

    async def work() -> None:
        while True:
            for task in await store.many(Task, await store.ids(Task, "list", "all", "PENDING")):
                await end(store, task.task_id)
            await asyncio.sleep(0.005)

    async def fired() -> int:
        return min([(await schedules.get(ANN, s.schedule_id)).runs_fired for s in mine])

    working, lives = asyncio.create_task(work()), [await spawn(), await spawn()]
    try:
        for _ in range(3):
            before = await fired()
            await eventually(lambda seen=before: _more(fired, seen), within=30)
            await asyncio.sleep(random.random() * 0.05)
            victim = lives.pop(0)
            victim.kill()
            await victim.wait()
            lives.append(await spawn())
    finally:
        working.cancel()
        for process in lives:
            process.kill()
            await process.wait()
    tasks = {task.task_id for task in await tasks_of(store)}
    counted = 0
    for schedule in mine:
        runs = (await schedules.runs(SYSTEM, schedule.schedule_id, limit=1000)).items
        times = [run.scheduled_for for run in runs]
        assert len(times) == len(set(times))
        assert {run.task_id for run in runs if run.outcome is Outcome.FIRED} <= tasks
        counted += sum(run.outcome is Outcome.FIRED for run in runs)
    assert counted == len(tasks) > 0


async def _more(fired, seen: int) -> bool:
    return await fired() > seen
