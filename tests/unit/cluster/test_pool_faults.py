"""What a worker of the village, and its router, do about calls that were lost, and silences that mean nothing."""

import asyncio
from datetime import timedelta

import pytest
from eventually import eventually
from pool_process import CALLABLES

from cluster.clock import utc_now
from cluster.errors import Unavailable
from cluster.routing.router import Router
from cluster.routing.table import Offer
from cluster.routing.timekeeper import DEAF_SECONDS, OFFER_SECONDS, TICK_SECONDS
from cluster.store import Store, Write
from cluster.tasks import machine
from cluster.tasks.events import began
from cluster.tasks.model import Task
from cluster.workers import pool
from cluster.workers.keeper import PoolKeeper
from cluster.workers.pool import PoolWorker
from cluster.workers.work import PoolConfig

NAME = "sums:v1"


class NoHands:
    async def names(self) -> list[str]:
        return []

    async def start(self, name: str) -> None: ...

    async def retire(self, name: str) -> None: ...

    async def most(self) -> int:
        return 4


@pytest.fixture
async def registered(village) -> None:
    tags = {name: f"pool_process:{name}" for name in CALLABLES}
    await PoolKeeper(village.store, PoolConfig(agent_id="pool", callables=tags), NoHands()).register(4)


def worker(village, store: Store | None = None) -> PoolWorker:
    made = PoolWorker(store or Store(village.store.url), "pool", "here", CALLABLES)
    village.stack.push_async_callback(made.store.close)
    return made


async def given(village, **fields) -> Task:
    """A task that lies in the worker's inbox."""
    task = await village.submit(capability_required=NAME, max_retries=0, timeout_seconds=300, **fields)
    before, version = await village.store.load(Task, task.task_id)
    at = utc_now()
    assigned = machine.assign(before, "pool", f"token/{task.task_id}", at, inbox="pool/here")
    running = machine.accept(assigned, 1, at)
    assert await village.store.commit(Write(before, running, version, began(before, assigned, running)))
    return running


@pytest.mark.usefixtures("registered")
async def test_a_worker_that_starts_again_leaves_what_lies_in_its_inbox(village):
    # The bug: it threw out of the inbox what had come since its former process ended, and nobody ever did it.
    in_hand = await given(village)
    await village.store.take(Task, "inbox", "pool/here")
    waiting = await given(village)
    await worker(village).recover()
    assert (await village.task(in_hand.task_id)).state == "FAILED"  # it was alone, so that was it
    assert (await village.task(waiting.task_id)).state == "RUNNING"
    assert await village.store.ids(Task, "inbox", "pool/here") == [waiting.task_id]


class Losing(Store):
    """The answer to a call that took something never comes."""

    lost = False

    async def take(self, *asked, **more):
        found = await super().take(*asked, **more)
        if found and not self.lost:
            self.lost = True
            raise Unavailable("away")
        return found


@pytest.mark.usefixtures("registered")
async def test_a_task_that_was_taken_by_a_call_whose_answer_was_lost_goes_back(village, monkeypatch):
    # The bug: the task stood with a worker that had never heard of it, until its deadline.
    monkeypatch.setattr(pool, "LOST_SECONDS", 0.1)
    monkeypatch.setattr(pool, "RENEW_SECONDS", 0.1)
    store = Losing(village.store.url)
    village.running.append(asyncio.create_task(worker(village, store).run()))
    village.route()
    task = await village.submit(capability_required=NAME, max_retries=0, timeout_seconds=300)
    done = await eventually(village.reaches(task.task_id, "COMPLETED"))
    assert store.lost and done.attempt == 2 and done.retry_count == 0


class Time:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.at = utc_now()

    def __call__(self):
        return self.at

    def pass_by(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)


async def routing(village, time: Time) -> Router:
    """A router whose time passes by hand, and that has heard an offer of the worker just now."""
    router = Router(village.store, village.trust, delivery=None, clock=time)  # type: ignore[arg-type]
    await router.recover()
    router.table.offer("pool", "pool/here", Offer(4, time.at + timedelta(seconds=OFFER_SECONDS)), time.at)
    return router


async def until_all_is_done(router: Router) -> None:
    await eventually(lambda: not len(router.aside))


@pytest.mark.usefixtures("registered")
async def test_a_worker_that_falls_silent_is_taken_for_gone_and_what_it_had_is_told_apart(village):
    taken = [await given(village) for _ in range(2)]
    await village.store.take(Task, "inbox", "pool/here", limit=2)
    waiting = await given(village)
    time = Time()
    router = await routing(village, time)
    for _ in range(int((OFFER_SECONDS + 1) / TICK_SECONDS)):
        time.pass_by(TICK_SECONDS)
        await router.timekeeper.tick()
    await until_all_is_done(router)
    for task in taken:  # together: nobody knows which of them it was
        back = await village.task(task.task_id)
        assert (back.state, back.suspect) == ("PENDING", True)
    back = await village.task(waiting.task_id)  # nobody had it in hand
    assert (back.state, back.suspect, back.retry_count) == ("PENDING", False, 0)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("away", [DEAF_SECONDS + 0.5, OFFER_SECONDS + 1, 60.0])
async def test_nobody_is_taken_for_gone_while_the_store_or_the_router_was_away(village, away):
    # The bug: after a pause of the store every worker's task was a failure, though all of them were at work.
    task = await given(village)
    await village.store.take(Task, "inbox", "pool/here")
    time = Time()
    router = await routing(village, time)
    await router.timekeeper.tick()
    time.pass_by(away)
    await router.timekeeper.tick()
    time.pass_by(OFFER_SECONDS - 0.5)  # it had so long to renew its offer, and does now
    router.table.offer("pool", "pool/here", Offer(4, time.at + timedelta(seconds=OFFER_SECONDS)), time.at)
    await router.timekeeper.tick()
    await until_all_is_done(router)
    assert (await village.task(task.task_id)).state == "RUNNING"


@pytest.mark.usefixtures("registered")
async def test_a_worker_that_ended_while_the_store_was_away_is_found_out_afterwards(village):
    # The bug: that its offer had run out was noticed, and forgotten when the store did not answer just then.
    task = await given(village)
    await village.store.take(Task, "inbox", "pool/here")
    time = Time()
    router = await routing(village, time)
    await router.timekeeper.tick()
    time.pass_by(30)
    await router.timekeeper.tick()
    for _ in range(int((OFFER_SECONDS + 1) / TICK_SECONDS)):
        time.pass_by(TICK_SECONDS)
        await router.timekeeper.tick()
    await until_all_is_done(router)
    assert (await village.task(task.task_id)).state == "FAILED"
