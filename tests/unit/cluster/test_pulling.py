"""Polls that wait for tasks: a real router, a real Redis, and several processes' desks beside each other."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import pytest
from eventually import eventually

from cluster.clock import utc_now
from cluster.errors import Unavailable
from cluster.identity.model import SYSTEM
from cluster.presence import Presence
from cluster.routing.router import Router
from cluster.store import Store
from cluster.tasks import machine
from cluster.tasks.events import changed
from cluster.tasks.model import Task
from cluster.tasks.service import TaskSpec
from cluster.workers import pulling
from cluster.workers.model import PULL, Agent
from cluster.workers.pulling import Poll, Pulling


def spec(**fields: Any) -> TaskSpec:
    wanted = {"client_id": "client", "task_type": "sum", "capability_required": "sums:v1", "input_data": {"a": 1}}
    return TaskSpec(**wanted | fields)


Make = Callable[[], Pulling]


@pytest.fixture
async def desk(village) -> AsyncIterator[Make]:
    """A gateway process' polls, as many processes as are asked for."""
    made: list[Pulling] = []

    def make() -> Pulling:
        made.append(Pulling(Store(village.store.url)))
        return made[-1]

    yield make
    for one in made:
        await one.close()
        await one.store.close()


async def puller(village, name: str = "ada", room: int = 10) -> Agent:
    return await village.register(name, PULL, room=room)


async def routed(village) -> asyncio.Task[None]:
    """A router that listens: one that does not yet hears of an offer at its renewal, two seconds later."""
    running = village.route()
    await eventually(lambda: village.store.find(Presence, Router.NAME))
    return running


async def counted(village, index: str, agent_id: str = "ada") -> int:
    return await village.store.count(Task, index, agent_id)


async def test_a_waiting_poll_gets_what_comes(village, desk: Make):
    agent = await puller(village)
    await routed(village)
    polls = desk()
    waiting = asyncio.create_task(polls.next(Poll(agent, 1), 10))
    await eventually(lambda: "ada" in polls.desks)
    task = await village.submit()
    [taken] = await asyncio.wait_for(waiting, 5)
    assert (taken.task_id, taken.state, taken.accepted, taken.attempt) == (task.task_id, "RUNNING", True, 1)
    assert taken == await village.task(task.task_id) and await counted(village, "inbox") == 0
    done = await village.tasks.report(task.task_id, taken.task_token, result_data=5)
    assert done.state == "COMPLETED"
    kinds = [event.kind for event in await village.store.events() if event.subject == task.task_id]
    assert kinds == ["task.created", "task.assigned", "task.started", "task.completed"]


async def test_a_poll_that_does_not_wait_gets_what_is_there_already(village, desk: Make):
    agent = await puller(village)
    await routed(village)
    task = await village.submit()
    [taken] = await desk().next(Poll(agent, 1), 0)
    assert taken.task_id == task.task_id


async def test_nothing_in_time_is_nothing_and_the_offer_ends_with_the_poll(village, desk: Make):
    agent = await puller(village)
    await routed(village)
    assert await desk().next(Poll(agent, 1), 0.1) == []

    def withdrawn() -> bool:
        entry = village.router.table.entries.get("ada")
        return entry is not None and not entry.offers

    await eventually(withdrawn)
    task = await village.submit()
    await asyncio.sleep(0.2)  # nobody is there to have it
    assert (await village.task(task.task_id)).state == "PENDING"


async def test_several_at_once_and_no_more_than_the_agent_may_hold(village, desk: Make):
    agent = await puller(village, room=3)
    await village.tasks.submit(SYSTEM, [spec(input_data={"n": n}) for n in range(10)])
    await routed(village)
    first = await desk().next(Poll(agent, 100), 5)
    assert 1 <= len(first) <= 3
    more = await desk().next(Poll(agent, 100), 1) if len(first) < 3 else []
    assert len(first) + len(more) == 3 == await counted(village, "held")
    assert await desk().next(Poll(agent, 100), 0.3) == []
    await village.tasks.report(first[0].task_id, first[0].task_token)
    assert len(await desk().next(Poll(agent, 100), 5)) == 1


async def test_no_two_polls_get_the_same_task(village, desk: Make):
    # The bug to fear: two polls of one agent, in one process or in two, both handed the task that woke them.
    agent = await puller(village, room=1000)
    await routed(village)
    processes = [desk(), desk()]
    got: Counter[str] = Counter()
    reported: set[str] = set()

    async def work(polls: Pulling, most: int) -> None:
        while True:
            for task in await polls.next(Poll(agent, most), 5):
                got[task.task_id] += 1
                await village.tasks.report(task.task_id, task.task_token)
                reported.add(task.task_id)

    working = [asyncio.create_task(work(polls, most)) for polls in processes for most in (1, 1, 5)]
    tasks = []
    for _ in range(4):
        tasks += await village.tasks.submit(SYSTEM, [spec() for _ in range(30)])
    await eventually(lambda: len(reported) == len(tasks), within=20)
    for one in working:
        one.cancel()
        with suppress(asyncio.CancelledError):
            await one
    assert set(got) == {task.task_id for task in tasks} and set(got.values()) == {1}
    ended = await village.store.many(Task, list(got))
    assert {task.state for task in ended} == {"COMPLETED"} and {task.attempt for task in ended} == {1}


async def test_who_left_while_it_waited_is_given_nothing(village, desk: Make):
    agent = await puller(village)
    await routed(village)
    polls = desk()
    poll = Poll(agent, 1)
    waiting = asyncio.create_task(polls.next(poll, 10))
    await eventually(lambda: "ada" in polls.desks)
    poll.leave()
    assert await asyncio.wait_for(waiting, 1) == []
    task = await village.submit()
    [taken] = await polls.next(Poll(agent, 1), 5)  # and the next one is
    assert taken.task_id == task.task_id and taken.attempt <= 2


async def test_a_task_that_was_taken_for_somebody_who_left_goes_back(
    village, desk: Make, monkeypatch: pytest.MonkeyPatch
):
    agent = await puller(village)
    await routed(village)
    polls = desk()
    poll = Poll(agent, 1)
    commit = polls.store.commit_each

    async def leaves_meanwhile(writes):
        won = await commit(writes)
        if writes:
            poll.leave()
        return won

    monkeypatch.setattr(polls.store, "commit_each", leaves_meanwhile)
    task = await village.submit()
    assert await polls.next(poll, 5) == []
    back = await village.task(task.task_id)
    assert back.attempt == 1 and back.retry_count == 0
    monkeypatch.undo()
    [again] = await polls.next(Poll(agent, 1), 5)
    assert (again.task_id, again.attempt) == (task.task_id, 2)


async def test_a_task_that_nobody_picks_up_goes_back(village, monkeypatch: pytest.MonkeyPatch, desk: Make):
    # Its poll's process was killed between the assignment and the answer.
    monkeypatch.setattr("cluster.routing.plan.PICKUP_SECONDS", 0.3)
    await puller(village)
    await routed(village)
    await eventually(lambda: "ada" in village.router.table.entries)
    await village.store.signal({"offers": [pulling.offer("ada", 1, 0.5)]})
    task = await village.submit()

    async def given() -> bool:
        return (await village.task(task.task_id)).attempt == 1

    await eventually(given)
    await village.store.take(Task, "inbox", "ada")  # taken out, and not accepted
    back = await eventually(village.reaches(task.task_id, "PENDING"))
    assert (back.retry_count, back.inbox) == (0, "")


async def test_a_task_that_moved_on_is_not_handed_out(village, desk: Make):
    agent = await puller(village)
    task = await village.submit()
    at = utc_now()
    await village.store.change(
        Task, task.task_id, lambda t: machine.assign(t, "ada", "1.x", at, inbox="ada", pickup_seconds=15), changed
    )
    polls = desk()
    take = polls.store.take

    async def cancelled_meanwhile(*arguments, **named):
        found = await take(*arguments, **named)
        if found:
            await village.tasks.cancel(SYSTEM, task.task_id, "enough")
        return found

    polls.store.take = cancelled_meanwhile  # type: ignore[method-assign]
    assert await polls.next(Poll(agent, 1), 0.1) == []
    assert (await village.task(task.task_id)).state == "CANCELLED"


async def test_another_router_hears_of_the_offers(village, desk: Make):
    agent = await puller(village)
    first = await routed(village)
    polls = desk()
    waiting = asyncio.create_task(polls.next(Poll(agent, 1), 20))
    await eventually(lambda: "ada" in polls.desks)
    first.cancel()
    with suppress(asyncio.CancelledError):
        await first
    task = await village.submit()
    village.route()
    [taken] = await asyncio.wait_for(waiting, 10)
    assert taken.task_id == task.task_id


async def test_a_store_that_went_away_is_told_to_the_poll(village, desk: Make):
    agent = await puller(village)
    polls = desk()

    async def away(*_, **__):
        raise Unavailable("the store does not answer")

    polls.store.take = away  # type: ignore[method-assign]
    with pytest.raises(Unavailable):
        await polls.next(Poll(agent, 1), 5)
    assert not polls.desks


async def test_a_commit_whose_answer_was_lost_is_taken_back(village, desk: Make, monkeypatch: pytest.MonkeyPatch):
    agent = await puller(village)
    await routed(village)
    polls = desk()
    commit = polls.store.commit_each

    async def lost(writes):
        await commit(writes)
        if writes:
            raise Unavailable("the store does not answer")
        return []

    monkeypatch.setattr(polls.store, "commit_each", lost)
    task = await village.submit()
    with pytest.raises(Unavailable):
        await polls.next(Poll(agent, 1), 5)
    monkeypatch.undo()
    [again] = await polls.next(Poll(agent, 1), 5)
    assert (again.task_id, again.attempt, again.retry_count) == (task.task_id, 2, 0)


async def test_the_reader_goes_a_while_after_the_last_poll(village, desk: Make, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pulling, "LINGER_SECONDS", 0.1)
    monkeypatch.setattr(pulling, "SHORTEST_SECONDS", 0.05)
    agent = await puller(village)
    polls = desk()
    await polls.next(Poll(agent, 1), 0)
    assert len(polls.aside) == 2
    await eventually(lambda: len(polls.aside) == 0)
    await routed(village)
    task = await village.submit()
    [taken] = await polls.next(Poll(agent, 1), 5)
    assert taken.task_id == task.task_id


async def test_closing_lets_every_poll_go(village, desk: Make):
    polls = desk()
    agents = [await puller(village, name) for name in ("ada", "bob")]
    waiting = [asyncio.create_task(polls.next(Poll(agent, 1), 30)) for agent in agents for _ in range(2)]
    await eventually(lambda: len(polls.desks) == 2)
    await polls.close()
    assert await asyncio.wait_for(asyncio.gather(*waiting), 1) == [[], [], [], []]


async def test_many_polls_share_one_reader_and_one_writer(village, desk: Make):
    agents = [await puller(village, f"agent_{n}") for n in range(60)]
    await routed(village)
    polls = desk()
    waiting = {a.agent_id: asyncio.create_task(polls.next(Poll(a, 1), 20)) for a in agents}
    await eventually(lambda: len(polls.desks) == 60)

    async def connected() -> int:
        about = await polls.store._redis.info("clients")
        return about["connected_clients"]

    before = await connected()
    await village.tasks.submit(SYSTEM, [spec(routing_strategy="least_loaded") for _ in range(60)])
    found = await asyncio.wait_for(asyncio.gather(*waiting.values()), 15)
    assert sorted(len(tasks) for tasks in found) == [1] * 60
    assert {tasks[0].agent_id for tasks in found} == set(waiting)
    assert before < 90 and len(polls.aside) == 2
