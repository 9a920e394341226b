"""Chains over a real Redis: what a client may do with them, and who is killed where."""

import asyncio
import os
import random
import sys
from pathlib import Path

import pytest
from dying import Dying
from eventually import eventually
from restartable import Redis
from workflow_harness import ANN, BEN, SCOPES, end

from cluster.clock import utc_now
from cluster.errors import ChainNotFound, Conflict, Forbidden, Invalid, NotCancellable, UnknownStrategy
from cluster.events.cursor import Cursor
from cluster.events.keeping import keep
from cluster.identity.model import SYSTEM, Principal
from cluster.identity.records import User
from cluster.presence import Presence
from cluster.store import Store
from cluster.tasks.model import Task, TaskState
from cluster.tasks.service import Tasks
from cluster.workflows.chains.model import Chain, ChainState, Plan, Step
from cluster.workflows.chains.runner import ChainRunner
from cluster.workflows.chains.service import Chains

ROOT = Path(__file__).resolve().parents[3]
RUNNING, COMPLETED, FAILED, CANCELLED = ChainState


@pytest.fixture
def chains(store: Store) -> Chains:
    return Chains(store, Tasks(store))


def steps(count: int = 3, **fields) -> list[Step]:
    known = {"task_type": "sum", "capability_required": "sums:v1"}
    return [
        Step(name=f"s{n}", input_data={"n": n}, use_previous_output=n > 0, **known | fields) for n in range(count)
    ]  # fmt: skip


async def made(chains: Chains, who: Principal = ANN, count: int = 3, **fields) -> Chain:
    chain, _ = await chains.create(who, client_id=who.client_id or "c", name="pipeline", steps=steps(count, **fields))
    return chain


async def moved(store: Store) -> ChainRunner:
    """Every chain as far on as the events so far bring it."""
    runner = ChainRunner(store, Tasks(store))
    await runner.open()
    while await runner.step(wait_seconds=0):
        pass
    return runner


async def done(chains: Chains, chain: Chain, count: int, result: str = "r") -> Chain:
    """After the next `count` steps have completed."""
    for _ in range(count):
        now = await chains.get(SYSTEM, chain.chain_id)
        await end(chains.store, now.current.task_id, result=f"{result}{now.current_step}")
        await moved(chains.store)
    return await chains.get(SYSTEM, chain.chain_id)


async def kinds(store: Store, chain: Chain) -> list[str]:
    return [event.kind for event in await store.events(limit=10_000) if event.subject == chain.chain_id]


async def all_tasks(store: Store) -> list[Task]:
    return await store.many(Task, await store.ids(Task, "list", "all"))


async def test_steps_run_one_after_the_other_each_with_the_result_before(chains: Chains, store: Store):
    chain = await made(chains)
    assert chain.state is RUNNING and [t.task_id for t in await all_tasks(store)] == [chain.current.task_id]
    chain = await done(chains, chain, 3)
    tasks = await store.many(Task, [step.task_id for step in chain.begun])
    assert [task.input_data for task in tasks] == [
        {"n": 0}, {"n": 1, "previous_output": "r0"}, {"n": 2, "previous_output": "r1"}
    ]  # fmt: skip
    assert {(t.owner, t.client_id, t.parent_id) for t in tasks} == {("client_ann", "ann", chain.chain_id)}
    assert chain.state is COMPLETED and len(await all_tasks(store)) == 3
    assert await kinds(store, chain) == ["chain.started", "chain.advanced", "chain.advanced", "chain.completed"]
    view = await chains.view(ANN, chain.chain_id)
    assert [view.tasks[step.task_id].result_data for step in view.chain.begun] == ["r0", "r1", "r2"]


async def test_a_failed_step_fails_the_chain_and_a_retry_goes_on_from_it(chains: Chains, store: Store):
    chain = await done(chains, await made(chains), 1)
    await end(store, chain.current.task_id, error="no disk")
    await moved(store)
    failed = await chains.get(ANN, chain.chain_id)
    assert (failed.state, failed.reason) == (FAILED, "step 's1' failed: no disk")
    again = await chains.retry(ANN, chain.chain_id)
    task = await store.get(Task, again.current.task_id)
    assert task.input_data == {"n": 1, "previous_output": "r0"} and task.state is TaskState.PENDING
    with pytest.raises(Conflict):
        await chains.retry(ANN, chain.chain_id)
    assert (await done(chains, chain, 2)).state is COMPLETED
    assert (await kinds(store, chain))[2:] == ["chain.failed", "chain.retried", "chain.advanced", "chain.completed"]
    assert len(await all_tasks(store)) == 4
    with pytest.raises(Conflict):
        await chains.retry(ANN, chain.chain_id)


async def test_cancelling_a_chain_cancels_its_task_and_no_step_follows(chains: Chains, store: Store):
    chain = await done(chains, await made(chains), 1)
    stopped = await chains.cancel(ANN, chain.chain_id, "enough")
    assert stopped.state is CANCELLED
    task = await store.get(Task, stopped.current.task_id)
    assert (task.state, task.reason) == (TaskState.CANCELLED, "enough")
    await moved(store)
    assert await chains.get(ANN, chain.chain_id) == stopped and len(await all_tasks(store)) == 2
    with pytest.raises(NotCancellable):
        await chains.cancel(ANN, chain.chain_id, "again")
    assert (await done(chains, await chains.retry(ANN, chain.chain_id), 2)).state is COMPLETED


async def test_a_task_that_outlived_its_cancelled_chain_is_cancelled_by_the_runner(chains: Chains, store: Store):
    chain, dying = await made(chains), Dying(store.url, 1, after=True)
    with pytest.raises(asyncio.CancelledError):
        await Chains(dying, Tasks(dying)).cancel(ANN, chain.chain_id, "enough")
    await dying.close()
    assert (await store.get(Task, chain.current.task_id)).state is TaskState.PENDING
    await moved(store)
    assert (await store.get(Task, chain.current.task_id)).state is TaskState.CANCELLED


async def test_a_retry_right_after_a_cancel_leaves_one_task_at_work(chains: Chains, store: Store):
    chain, dying = await made(chains), Dying(store.url, 1, after=True)
    with pytest.raises(asyncio.CancelledError):
        await Chains(dying, Tasks(dying)).cancel(ANN, chain.chain_id, "enough")
    await dying.close()
    again = await chains.retry(ANN, chain.chain_id)
    await moved(store)  # reads of the cancellation only now
    states = {task.task_id: task.state for task in await all_tasks(store)}
    assert states == {chain.current.task_id: TaskState.CANCELLED, again.current.task_id: TaskState.PENDING}


async def test_a_step_whose_task_is_cancelled_ends_the_chain(chains: Chains, store: Store):
    chain = await made(chains)
    await Tasks(store).cancel(ANN, chain.current.task_id, "by hand")
    await moved(store)
    chain = await chains.get(ANN, chain.chain_id)
    assert (chain.state, chain.reason) == (CANCELLED, "step 's0' was cancelled: by hand")


async def test_anothers_chain_does_not_exist_and_an_admin_sees_all(chains: Chains, store: Store):
    chain = await made(chains)
    for ask in (
        lambda: chains.get(BEN, chain.chain_id), lambda: chains.view(BEN, chain.chain_id),
        lambda: chains.cancel(BEN, chain.chain_id, ""), lambda: chains.retry(BEN, chain.chain_id),
        lambda: chains.delete(BEN, chain.chain_id), lambda: chains.get(ANN, "chain_none"),
    ):  # fmt: skip
        with pytest.raises(ChainNotFound):
            await ask()
    assert (await chains.get(SYSTEM, chain.chain_id)) == chain
    assert [(await chains.page(who)).total for who in (ANN, BEN, SYSTEM)] == [1, 0, 1]


async def test_lists_are_by_client_and_state(chains: Chains, store: Store):
    first, second = await made(chains), await made(chains)
    await made(chains, BEN)
    await chains.cancel(ANN, first.chain_id, "")
    for who, filters, expected in (
        (ANN, {}, 2), (ANN, {"state": RUNNING}, 1), (ANN, {"state": CANCELLED}, 1), (ANN, {"client_id": "ann"}, 2),
        (ANN, {"client_id": "ben"}, 0), (SYSTEM, {"client_id": "ben"}, 1), (SYSTEM, {"state": RUNNING}, 2),
        (SYSTEM, {"client_id": "ann", "state": CANCELLED}, 1), (SYSTEM, {"client_id": "ann:CANCELLED"}, 0),
    ):  # fmt: skip
        assert (await chains.page(who, **filters)).total == expected, (who.username, filters)
    page = await chains.page(ANN, limit=1)
    assert (page.total, [c.chain_id for c in page.items]) == (2, [second.chain_id])


async def test_what_could_not_be_submitted_is_refused_with_the_whole_chain(chains: Chains, store: Store):
    with pytest.raises(Forbidden):
        await chains.create(ANN, client_id="ben", name="x", steps=steps())
    with pytest.raises(UnknownStrategy):
        await made(chains, routing_strategy="by_dice")
    with pytest.raises(Invalid):
        await chains.create(ANN, client_id="ann", name="x", steps=steps()[1:])
    assert await store.last_event_id() == "evt_0-0" and not await all_tasks(store)


async def test_only_a_chain_that_has_ended_is_deleted_and_its_tasks_stay(chains: Chains, store: Store):
    chain = await made(chains, count=1)
    with pytest.raises(Conflict):
        await chains.delete(ANN, chain.chain_id)
    await done(chains, chain, 1)
    await chains.delete(ANN, chain.chain_id)
    with pytest.raises(ChainNotFound):
        await chains.get(ANN, chain.chain_id)
    assert await store.find(Plan, chain.chain_id) is None and (await chains.page(SYSTEM)).total == 0
    assert len(await all_tasks(store)) == 1 and (await kinds(store, chain))[-1] == "chain.deleted"


async def test_an_estimate_comes_from_earlier_chains_of_the_owner(chains: Chains, store: Store):
    _, nothing = await chains.create(ANN, client_id="ann", name="x", steps=steps(2))
    assert nothing is None
    await done(chains, await made(chains, count=2), 2)
    _, measured = await chains.create(ANN, client_id="ann", name="x", steps=steps(2))
    assert measured is not None and 0 <= (measured - utc_now()).total_seconds() < 60
    _, bens = await chains.create(BEN, client_id="ben", name="x", steps=steps(2))
    assert bens is None


async def test_the_chain_of_a_user_who_was_disabled_goes_no_further(chains: Chains, store: Store):
    user = User(
        user_id="user_eve", username="eve", password_hash="", scopes=SCOPES, created_at=utc_now()
    )  # fmt: skip
    await store.create(user)
    eve = Principal(principal_id="user_eve", owner="user_eve", username="eve", scopes=SCOPES)
    chain = await done(chains, await made(chains, eve), 1)
    assert chain.current_step == 1
    await store.change(User, "user_eve", lambda u: u.model_copy(update={"disabled": True}))
    chain = await done(chains, chain, 1)
    assert chain.state is FAILED and "may not sign in" in chain.reason and chain.completed_steps == 2
    await store.change(User, "user_eve", lambda u: u.model_copy(update={"disabled": False}))
    await chains.retry(eve, chain.chain_id)
    assert (await done(chains, chain, 1)).state is COMPLETED


async def test_a_chain_whose_result_is_gone_fails_and_says_so(chains: Chains, store: Store):
    chain = await made(chains)
    await end(store, chain.current.task_id, result="lost")
    await store.delete(Task, chain.current.task_id)
    await moved(store)
    chain = await chains.get(ANN, chain.chain_id)
    assert chain.state is FAILED and "not kept" in chain.reason


async def test_what_nobody_foresaw_fails_one_chain_and_no_other(chains: Chains, store: Store, monkeypatch):
    good, bad = await made(chains), await made(chains)
    prepare = Tasks.prepare

    async def broken(self: Tasks, who: Principal, specs):
        if specs[0].input_data.get("previous_output") == "poison":
            raise ZeroDivisionError
        return await prepare(self, who, specs)

    monkeypatch.setattr(Tasks, "prepare", broken)
    await end(store, bad.current.task_id, result="poison")
    await end(store, good.current.task_id, result="good")
    await moved(store)
    bad, good = await chains.get(ANN, bad.chain_id), await chains.get(ANN, good.chain_id)
    assert (bad.state, bad.completed_steps) == (FAILED, 1) and (good.state, good.current_step) == (RUNNING, 1)


@pytest.mark.parametrize("after", [False, True])
async def test_a_chain_and_its_first_task_are_there_together_or_not_at_all(store: Store, after: bool):
    dying = Dying(store.url, 1, after)
    with pytest.raises(asyncio.CancelledError):
        await made(Chains(dying, Tasks(dying)))
    await dying.close()
    counts = [await store.count(kind, "list", "all") for kind in (Chain, Task)]
    assert counts == ([1, 1] if after else [0, 0])


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", range(1, 8))
async def test_a_runner_killed_at_any_commit_leaves_out_no_step_and_begins_none_twice(chains: Chains, store, at, after):
    chain = await made(chains)
    dying = Dying(store.url, at, after)

    async def live() -> None:
        runner = ChainRunner(dying, Tasks(dying))
        await runner.open()
        while (now := await chains.get(ANN, chain.chain_id)).state is RUNNING:
            await end(store, now.current.task_id, result="r")
            while await runner.step(wait_seconds=0):
                pass
            await runner.beat()

    with pytest.raises(asyncio.CancelledError):
        await live()
    await dying.close()
    chain = await done(chains, chain, 3)  # ends what is left; a task that has ended stays as it is
    assert chain.state is COMPLETED and len(await all_tasks(store)) == 3
    assert (await kinds(store, chain)).count("chain.advanced") == 2


async def test_two_runners_at_once_begin_each_step_once(chains: Chains, store: Store):
    mine = [await made(chains) for _ in range(20)]
    other = Store(store.url)
    for _ in range(3):
        for chain in mine:
            await end(store, (await chains.get(ANN, chain.chain_id)).current.task_id, result="r")
        await asyncio.gather(moved(store), moved(other))
    await other.close()
    assert (await chains.page(ANN, state=COMPLETED)).total == 20 and len(await all_tasks(store)) == 60


async def test_an_idle_chain_goes_on_after_redis_was_killed_and_the_runner_with_it(tmp_path: Path):
    redis = Redis(tmp_path)
    redis.start()
    try:
        await redis.answers()
        store = Store(redis.url)
        chains = Chains(store, Tasks(store))
        running = asyncio.create_task(keep(ChainRunner(Store(redis.url), Tasks(Store(redis.url)))))
        chain = await made(chains)
        await end(store, chain.current.task_id, result="r0")

        async def at(step: int) -> Chain | None:
            now = await chains.get(ANN, chain.chain_id)
            return now if now.current_step == step or now.state is COMPLETED else None

        chain = await eventually(lambda: at(1))
        redis.kill()
        redis.start()
        await redis.answers()
        await end(store, chain.current.task_id, result="r1")  # the same runner, which found Redis gone
        chain = await eventually(lambda: at(2))
        running.cancel()
        redis.kill()
        redis.start()
        await redis.answers()
        await end(store, chain.current.task_id, result="r2")  # nobody is there to see it
        await moved(store)
        assert (await chains.get(ANN, chain.chain_id)).state is COMPLETED and len(await all_tasks(store)) == 3
        await store.close()
    finally:
        redis.kill()


async def test_a_runner_says_that_it_lives_and_keeps_its_place(chains: Chains, store: Store):
    await done(chains, await made(chains, count=1), 1)
    runner = await moved(store)
    await runner.beat()
    assert (await store.get(Presence, "chains")).data["cursor"] == (await store.get(Cursor, "chains")).event_id
    behind = ChainRunner(store, Tasks(store))
    await behind.beat()  # its place is the beginning: nobody's cursor goes back
    assert (await store.get(Cursor, "chains")).event_id == runner.cursor


RUNNER = """
import asyncio, sys
from cluster.settings import Settings
from cluster.store import Store
from cluster.workflows.chains.runner import run_chains

asyncio.run(run_chains(Store(sys.argv[1]), Settings()))
"""


async def test_a_runner_process_that_is_killed_again_and_again_runs_each_step_once(chains: Chains, store: Store):
    count, length = 15, 10
    mine = [(await made(chains, count=length)).chain_id for _ in range(count)]
    ended = 0

    async def work() -> None:  # the agents: each task ends soon after it is there
        nonlocal ended
        while True:
            for task in await store.many(Task, await store.ids(Task, "list", "all", "PENDING")):
                await end(store, task.task_id, result=task.input_data["n"])
                ended += 1
            await asyncio.sleep(0.01)

    async def moves(more: int) -> bool:
        return await store.count(Task, "list", "all") >= min(more, count * length)

    async def all_done() -> bool:
        return (await chains.page(ANN, state=COMPLETED)).total == count

    working = asyncio.create_task(work())
    try:
        for life in range(5):
            before = await store.count(Task, "list", "all")
            runner = await asyncio.create_subprocess_exec(
                sys.executable, "-c", RUNNER, store.url, cwd=ROOT, env={**os.environ}
            )
            try:
                if life == 4:
                    await eventually(all_done, within=30)
                else:
                    await eventually(lambda seen=before: moves(seen + 5), within=30)
                    await asyncio.sleep(random.random() * 0.02)  # somewhere in its work
            finally:
                runner.kill()
                await runner.wait()
    finally:
        working.cancel()
    tasks = {task.task_id: task for task in await all_tasks(store)}
    assert len(tasks) == ended == count * length
    for chain in await store.many(Chain, mine):
        got = [tasks[step.task_id].input_data for step in chain.begun]
        assert got == [{"n": n} | ({"previous_output": n - 1} if n else {}) for n in range(length)]


async def test_a_chain_runs_through_the_router_and_a_working_agent(village):
    async def add(task: dict) -> dict:
        return {
            "status": "COMPLETED",
            "result_data": {"sum": task["input_data"].get("previous_output", {"sum": 1})["sum"] + 1},
        }

    await village.agent("ada", add)
    village.route()
    runner_store = Store(village.store.url)
    village.stack.push_async_callback(runner_store.close)
    village.running.append(asyncio.create_task(keep(ChainRunner(runner_store, Tasks(runner_store)))))
    chains = Chains(village.store, village.tasks)
    chain = await made(chains, count=10)

    async def finished() -> bool:
        return (await chains.get(ANN, chain.chain_id)).state is COMPLETED

    await eventually(finished, within=10)
    view = await chains.view(ANN, chain.chain_id)
    assert [view.tasks[step.task_id].result_data["sum"] for step in view.chain.begun] == list(range(2, 12))
