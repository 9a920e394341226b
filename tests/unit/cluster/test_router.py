import asyncio
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta

import pytest
from eventually import eventually
from working_agent import WorkingAgent, accept, complete, fail, forget

from cluster.clock import utc_now
from cluster.errors import StaleAttempt, Unauthenticated, Unavailable
from cluster.identity.model import SYSTEM
from cluster.presence import Presence
from cluster.routing import backlog as backlogs
from cluster.routing import timekeeper
from cluster.store import Store, Write
from cluster.tasks import machine
from cluster.tasks.events import changed
from cluster.tasks.model import Task


def raising(error: Exception):
    async def call(*_, **__):
        raise error

    return call


async def test_a_task_is_delivered_and_its_result_kept(village):
    agent = await village.agent("ada")
    village.route()
    task = await village.submit(input_data={"a": 2}, metadata={"x": 1})
    done = await eventually(village.reaches(task.task_id, "COMPLETED"))
    assert done.result_data == {"echo": {"a": 2}} and done.agent_id == "ada" and done.attempt == 1
    [delivery] = agent.tasks
    assert delivery["attempt_id"] == f"{task.task_id}.1" and delivery["metadata"] == {"x": 1}
    assert delivery["callback_url"].endswith(f"/ains/tasks/{task.task_id}/result") and delivery["task_token"]
    assert await eventually(lambda: not village.router.table.entries["ada"].held or None)


async def test_a_task_waits_for_an_agent_to_register(village):
    village.route()
    task = await village.submit()
    await asyncio.sleep(0.1)
    assert (await village.task(task.task_id)).state == "PENDING"
    await village.agent("ada")
    await eventually(village.reaches(task.task_id, "COMPLETED"))


async def test_the_more_urgent_task_goes_first_and_then_the_older(village):
    agent = await village.agent("ada", room=1)
    order = [await village.submit(priority=p, input_data={"n": n}) for n, p in enumerate((3, 9, 5, 9))]
    village.route()
    for task in order:
        await eventually(village.reaches(task.task_id, "COMPLETED"))
    assert [task["input_data"]["n"] for task in agent.tasks] == [1, 3, 2, 0]


async def test_a_waiting_task_that_is_given_another_priority_is_served_by_it(village):
    # The bug: the router kept its old place, took the task for one that had changed since, and forgot it.
    village.route()
    first, second = [await village.submit(input_data={"n": n}) for n in range(2)]
    await eventually(lambda: village.router.backlog.lines)
    await village.tasks.prioritise(SYSTEM, second.task_id, 9)
    await asyncio.sleep(0.1)
    agent = await village.agent("ada", room=1)
    for task in (first, second):
        await eventually(village.reaches(task.task_id, "COMPLETED"))
    assert [task["input_data"]["n"] for task in agent.tasks] == [1, 0]


async def test_tasks_that_nobody_may_have_keep_no_other_waiting_and_the_router_not_busy(village, monkeypatch):
    # The bug: with more of them than the router keeps of a queue, it asked for the same ones without a pause.
    monkeypatch.setattr(backlogs, "KEEP", 16)
    agent = await village.agent("ada")
    vain = [await village.submit(trust_min=0.99, priority=9) for _ in range(50)]
    tasks = [await village.submit() for _ in range(20)]

    class Counting(Store):
        reads = 0

        async def scored(self, *asked):
            self.reads += 1
            return await super().scored(*asked)

    village.route(store := Counting(village.store.url))
    for task in tasks:
        await eventually(village.reaches(task.task_id, "COMPLETED"))
    assert len(agent.tasks) == 20
    before = store.reads
    await asyncio.sleep(0.5)
    assert store.reads - before < 50
    await village.trust.adjust(SYSTEM, "ada", 0.45, "known to us")
    await village.trust.adjust(SYSTEM, "ada", 0.045, "and well")
    await eventually(village.reaches(vain[0].task_id, "COMPLETED"))


@pytest.mark.usefixtures("retry_at_once")
@pytest.mark.parametrize("retries", [0, 2])
async def test_a_failure_is_retried_max_retries_times(village, retries):
    agent = await village.agent("ada", fail)
    village.route()
    task = await village.submit(max_retries=retries)
    done = await eventually(village.reaches(task.task_id, "FAILED"))
    assert agent.times(task.task_id) == retries + 1 and done.retry_count == retries and done.error == "asked to fail"


async def test_no_result_in_time_is_a_timeout_and_the_connection_is_closed(village):
    agent = await village.agent("ada", forget)
    village.route()
    task = await village.submit(timeout_seconds=1, max_retries=0)
    done = await eventually(village.reaches(task.task_id, "TIMEOUT"))
    assert done.error == "no result within 1 s" and 1.0 <= (done.completed_at - done.assigned_at).total_seconds() < 1.6
    await eventually(lambda: agent.dropped == 1)


async def test_a_task_runs_after_those_that_it_depends_on(village):
    agent = await village.agent("ada")
    first = await village.submit(input_data={"n": 1})
    second = await village.submit(input_data={"n": 2}, depends_on=(first.task_id,))
    third = await village.submit(input_data={"n": 3}, depends_on=(first.task_id, second.task_id))
    village.route()
    await eventually(village.reaches(third.task_id, "COMPLETED"))
    assert [task["input_data"]["n"] for task in agent.tasks] == [1, 2, 3]


async def test_a_failed_dependency_fails_its_dependents_with_the_reason(village):
    await village.agent("ada", fail)
    village.route()
    first = await village.submit(max_retries=0)
    second = await village.submit(depends_on=(first.task_id,))
    third = await village.submit(depends_on=(second.task_id,))
    done = await eventually(village.reaches(third.task_id, "FAILED"))
    assert done.reason == f"dependency {second.task_id} is FAILED" and done.attempt == 0
    assert (await village.task(second.task_id)).reason == f"dependency {first.task_id} is FAILED"
    late = await village.submit(depends_on=(first.task_id,))
    await eventually(village.reaches(late.task_id, "FAILED"))


async def test_an_accepted_task_is_reported_with_its_token_once(village):
    agent = await village.agent("ada", accept)
    village.route()
    task = await village.submit()
    await eventually(lambda: agent.tasks)

    async def accepted():
        return (await village.task(task.task_id)).accepted

    await eventually(accepted)
    token = agent.tasks[0]["task_token"]
    with pytest.raises(Unauthenticated):
        await village.tasks.report(task.task_id, "another's", result_data=1)
    done = await village.tasks.report(task.task_id, token, result_data={"sum": 3})
    assert done.state == "COMPLETED" and done.result_data == {"sum": 3}
    with pytest.raises(StaleAttempt):
        await village.tasks.report(task.task_id, token, result_data={"sum": 4})
    assert (await village.task(task.task_id)).result_data == {"sum": 3}
    await eventually(lambda: not village.router.table.entries["ada"].held)


@pytest.mark.usefixtures("retry_at_once")
async def test_a_result_that_comes_after_its_attempt_is_refused(village):
    agent = await village.agent("ada", accept)
    village.route()
    task = await village.submit(timeout_seconds=1, max_retries=1)
    await eventually(lambda: agent.times(task.task_id) == 2)
    first, second = (delivery["task_token"] for delivery in agent.tasks)
    with pytest.raises(StaleAttempt):
        await village.tasks.report(task.task_id, first, result_data="late")
    done = await village.tasks.report(task.task_id, second, result_data="in time")
    assert done.result_data == "in time" and done.attempt == 2 and done.retry_count == 1


async def test_an_agent_that_does_not_answer_costs_no_retry_and_another_gets_the_task(village):
    gone = await WorkingAgent().start()
    url = gone.url
    await gone.stop()
    await village.register("aaa", url)
    village.route()
    task = await village.submit(max_retries=0)
    await eventually(lambda: "aaa" in village.router.table.entries and village.router.table.entries["aaa"].silent)
    agent = await village.agent("bob")
    done = await eventually(village.reaches(task.task_id, "COMPLETED"))
    assert done.agent_id == "bob" and done.retry_count == 0 and done.attempt >= 2 and agent.times(task.task_id) == 1


async def test_an_agent_that_comes_back_gets_the_task_after_its_rest(village):
    agent = WorkingAgent()
    await agent.start()
    port = int(agent.url.split(":")[2].split("/")[0])
    await agent.stop()
    await village.register("ada", agent.url)
    village.route()
    task = await village.submit(max_retries=0)
    await eventually(lambda: "ada" in village.router.table.entries and village.router.table.entries["ada"].silent)
    await agent.start(port)
    village.stack.push_async_callback(agent.stop)
    done = await eventually(village.reaches(task.task_id, "COMPLETED"))
    assert done.retry_count == 0


async def test_a_busy_agent_is_not_a_failed_one(village):
    async def busy_once(task):
        return 503 if task["attempt_id"].endswith(".1") else await complete(task)

    agent = await village.agent("ada", busy_once)
    village.route()
    task = await village.submit(max_retries=0)
    done = await eventually(village.reaches(task.task_id, "COMPLETED"))
    assert agent.times(task.task_id) == 2 and done.retry_count == 0


async def test_an_agent_never_holds_more_than_its_room(village):
    async def slow(task):
        await asyncio.sleep(0.02)
        return await complete(task)

    small, large = await village.agent("small", slow, room=2), await village.agent("large", slow, room=5)
    tasks = [await village.submit(input_data={"n": n}, routing_strategy="least_loaded") for n in range(60)]
    village.route()
    for task in tasks:
        await eventually(village.reaches(task.task_id, "COMPLETED"), within=10)
    assert small.peak == 2 and large.peak == 5 and len(small.tasks) + len(large.tasks) == 60


async def test_an_accepted_task_takes_room_until_it_is_reported(village):
    agent = await village.agent("ada", accept, room=1)
    village.route()
    first, second = await village.submit(), await village.submit()
    await eventually(lambda: agent.tasks)
    await asyncio.sleep(0.15)
    assert agent.times(second.task_id) == 0 and await village.workers.load("ada") == 1
    await village.tasks.report(first.task_id, agent.tasks[0]["task_token"], result_data=1)
    await eventually(lambda: agent.times(second.task_id) == 1)


async def test_round_robin_gives_each_agent_its_turn(village):
    agents = [await village.agent(name) for name in ("ada", "bob", "eve")]
    tasks = [await village.submit() for _ in range(9)]
    village.route()
    for task in tasks:
        await eventually(village.reaches(task.task_id, "COMPLETED"))
    assert [len(agent.tasks) for agent in agents] == [3, 3, 3]


async def test_trust_weighted_gives_the_trusted_agent_the_task(village):
    plain, trusted = await village.agent("aaa"), await village.agent("zed")
    await village.trust.adjust(SYSTEM, "zed", 0.2, "known to us")
    village.route()
    tasks = [await village.submit(routing_strategy="trust_weighted") for _ in range(4)]
    for task in tasks:
        await eventually(village.reaches(task.task_id, "COMPLETED"))
    assert len(trusted.tasks) == 4 and not plain.tasks
    await village.trust.adjust(SYSTEM, "zed", -0.4, "no longer")
    await eventually(lambda: village.router.table.entries["zed"].standing.evidence.mean < 0.4)
    task = await village.submit(routing_strategy="trust_weighted")
    await eventually(village.reaches(task.task_id, "COMPLETED"))
    assert len(plain.tasks) == 1


async def test_cancelling_a_task_in_flight_closes_its_connection_and_frees_the_agent(village):
    agent = await village.agent("ada", forget, room=1)
    village.route()
    task = await village.submit()
    await eventually(lambda: agent.inside == 1)
    await village.tasks.cancel(SYSTEM, task.task_id, "no longer needed")
    await eventually(lambda: agent.dropped == 1)
    agent.work = complete
    other = await village.submit()
    await eventually(village.reaches(other.task_id, "COMPLETED"))
    assert (await village.task(task.task_id)).state == "CANCELLED"


class Slow(Store):
    """A store whose answer to an assignment is read late: `meanwhile` happens between the commit and its answer."""

    meanwhile = None

    async def commit_each(self, writes):
        results = await super().commit_each(writes)
        for write in writes:
            if write.guard is not None and self.meanwhile is not None:
                meanwhile, self.meanwhile = self.meanwhile, None
                await meanwhile(write.after)
        return results


async def test_a_task_that_is_cancelled_before_it_is_on_its_way_is_never_sent(village):
    # The bug: the answer of the assigning commit was read after the event of the cancellation.
    agent = await village.agent("ada", room=1)
    slow = Slow(village.store.url)

    async def cancel(task: Task) -> None:
        await village.tasks.cancel(SYSTEM, task.task_id, "at once")
        await eventually(lambda: not village.router.table.entries["ada"].held)

    slow.meanwhile = cancel
    village.route(slow)
    task, other = await village.submit(priority=9), await village.submit()
    await eventually(village.reaches(other.task_id, "COMPLETED"))
    assert agent.times(task.task_id) == 0 and (await village.task(task.task_id)).state == "CANCELLED"
    assert not village.router.table.entries["ada"].held


async def test_a_second_router_finishes_what_the_first_had_on_its_way(village):
    entered: dict[str, int] = {}
    gate = asyncio.Event()

    async def hang_at_first(task):
        number = entered[task["task_id"]] = entered.get(task["task_id"], 0) + 1
        if number == 1 and not gate.is_set():
            await asyncio.Event().wait()
        return await complete(task)

    agent = await village.agent("ada", hang_at_first, room=5)
    tasks = [await village.submit(input_data={"n": n}) for n in range(12)]
    first = village.route()
    await eventually(lambda: agent.inside == 5)
    first.cancel()
    with suppress(asyncio.CancelledError):
        await first
    await eventually(lambda: agent.inside == 0)  # a router that is killed closes its connections
    gate.set()
    village.route()
    for task in tasks:
        done = await eventually(village.reaches(task.task_id, "COMPLETED"))
        assert done.retry_count == 0
    kinds = [e.kind for e in await village.store.events(limit=5000) if e.kind == "task.completed"]
    assert len(kinds) == 12  # once in effect, though five of them were delivered twice
    assert sum(agent.times(task.task_id) for task in tasks) == 17


async def test_what_another_router_gave_out_and_did_not_live_to_deliver_is_taken_over(village, monkeypatch):
    # A router that was cut off, not dead, and died later: the one that lives never starts again to look for its tasks.
    monkeypatch.setattr(timekeeper, "ALONE_SECONDS", 0.3)
    monkeypatch.setattr(timekeeper, "SLOW_TICK_SECONDS", 0.1)
    agent = await village.agent("ada")
    village.route()
    await eventually(lambda: "ada" in village.router.table.entries)
    task = await village.submit(capability_required="other:v1", max_retries=0, timeout_seconds=60)
    at = utc_now()
    await village.store.change(
        Task, task.task_id, lambda t: machine.start(machine.assign(t, "ada", "token", at), 1, at), changed
    )
    back = await eventually(village.reaches(task.task_id, "PENDING"))
    assert back.attempt == 1 and back.retry_count == 0 and not agent.tasks


async def test_what_another_router_gave_out_that_lives_is_left_to_it(village, monkeypatch):
    monkeypatch.setattr(timekeeper, "ALONE_SECONDS", 0.3)
    monkeypatch.setattr(timekeeper, "SLOW_TICK_SECONDS", 0.1)
    await village.agent("ada")
    village.route()
    await eventually(lambda: "ada" in village.router.table.entries)
    task = await village.submit(capability_required="other:v1")
    at = utc_now()
    await village.store.change(
        Task, task.task_id, lambda t: machine.start(machine.assign(t, "ada", "token", at), 1, at), changed
    )
    other = Presence(presence_id="router", pid=1, host="elsewhere", at=at)
    for _ in range(8):
        await village.store.upsert(other, lambda _: other)
        await asyncio.sleep(0.1)
    assert (await village.task(task.task_id)).state == "RUNNING"


async def test_a_second_router_leaves_an_accepted_task_with_its_agent(village):
    agent = await village.agent("ada", accept, room=1)
    first = village.route()
    task = await village.submit()

    async def accepted():
        return (await village.task(task.task_id)).accepted

    await eventually(accepted)
    first.cancel()
    with suppress(asyncio.CancelledError):
        await first
    village.route()
    waiting = await village.submit()
    await asyncio.sleep(0.2)
    assert agent.times(task.task_id) == 1 and agent.times(waiting.task_id) == 0
    await village.tasks.report(task.task_id, agent.tasks[0]["task_token"], result_data=1)
    await eventually(lambda: agent.times(waiting.task_id) == 1)


class Flaky(Store):
    """A store that is away when the test says so, as Redis is in the middle of a restart."""

    away: set[str] = set()
    lose_answer = False

    async def _write(self, mode: str, writes: Sequence[Write]) -> list[bool]:
        if "commit" in self.away:
            if self.lose_answer:
                await super()._write(mode, writes)
            raise Unavailable("away")
        return await super()._write(mode, writes)

    async def find(self, kind, record_id):
        if "find" in self.away:
            raise Unavailable("away")
        return await super().find(kind, record_id)


@pytest.mark.parametrize("lose_answer", [False, True])
async def test_a_store_that_goes_away_while_a_task_is_assigned_loses_nothing(village, lose_answer):
    # The bug: an assignment that was written unheard waited for its deadline; one that was not, for the next event.
    await village.agent("ada")
    flaky = Flaky(village.store.url)
    flaky.away, flaky.lose_answer = set(), lose_answer
    village.route(flaky)
    await eventually(lambda: "ada" in village.router.table.entries and not village.router.due)
    flaky.away = {"commit"}
    task = await village.submit(timeout_seconds=60)
    await asyncio.sleep(0.3)
    flaky.away = set()
    done = await eventually(village.reaches(task.task_id, "COMPLETED"))
    assert done.retry_count == 0


async def test_a_store_that_goes_away_while_an_event_is_seen_loses_no_event(village):
    # The bug: an agent that registered just then was not known until the router's next start.
    flaky = Flaky(village.store.url)
    flaky.away = set()
    village.route(flaky)
    await eventually(lambda: len(village.router.aside) == 0)
    await asyncio.sleep(0.1)
    flaky.away = {"find"}
    first = await village.submit(max_retries=0)
    await village.tasks.cancel(SYSTEM, first.task_id, "")
    dependent = await village.submit(depends_on=(first.task_id,))
    agent = await village.agent("ada")
    await asyncio.sleep(0.2)
    flaky.away = set()
    task = await village.submit()
    await eventually(village.reaches(task.task_id, "COMPLETED"))
    await eventually(village.reaches(dependent.task_id, "FAILED"))
    assert agent.times(task.task_id) == 1


async def test_a_task_put_off_after_its_id_was_read_does_not_end_the_router(village):
    # The bug: a task that expired between the two reads of a dispatch raised out of the loop.
    agent = await village.agent("ada")

    class Late(Store):
        async def read(self, *wanted):
            for kind, task_id in wanted:
                if kind is Task and task_id == put_off.task_id:
                    await village.store.change(Task, task_id, later)
            return await super().read(*wanted)

    def later(task: Task) -> Task:
        return task if task.not_before else task.model_copy(update={"not_before": utc_now() + timedelta(seconds=60)})

    put_off, other = await village.submit(priority=9), await village.submit()
    village.route(Late(village.store.url))
    await eventually(village.reaches(other.task_id, "COMPLETED"))
    assert agent.times(put_off.task_id) == 0 and not village.router.table.entries["ada"].held


async def test_an_answer_that_is_not_unicode_is_a_failure_and_not_a_silence(village):
    # The bug: the record could not be written, so the task stood still until its deadline.
    async def broken(_):
        return b'{"status": "COMPLETED", "result_data": "\\ud800"}'

    await village.agent("ada", broken)
    village.route()
    task = await village.submit(max_retries=0)
    done = await eventually(village.reaches(task.task_id, "FAILED"))
    assert "not an object with a status" in done.error
