"""Random histories of tasks in the real store, by several writers at once: the events that they leave have to be a life
that the pure machine allows, and the records, the sets and the indexes have to say the same.
"""

import asyncio
import random
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta

import pytest
from eventually import eventually
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from working_agent import accept, complete, fail

from cluster.clock import utc_now
from cluster.errors import Conflict
from cluster.events import Event
from cluster.identity.model import SYSTEM
from cluster.store import Guard, Store, Write
from cluster.store.check import differences, everything
from cluster.store.together import Together
from cluster.tasks import machine
from cluster.tasks.events import began, changed
from cluster.tasks.model import FINAL, Task, TaskState
from cluster.torture.replay import Replay, agree, replayed
from cluster.workers.model import Agent

NOON = utc_now().replace(hour=12, minute=0, second=0, microsecond=0)
ROOMS = {"ada": 1, "bob": 2}
TASKS = [f"task_{n}" for n in range(5)]


def task(name: str) -> Task:
    waits = ("task_0",) if name == "task_4" else ()
    return Task(
        task_id=name, owner="user_1", client_id="c", share="c", task_type="t", capability_required="x:v1",
        timeout_seconds=20, max_retries=int(name[-1]) % 3, heartbeat_seconds=10, depends_on=waits, waiting_for=waits,
        created_at=NOON, updated_at=NOON,
    )  # fmt: skip


STEPS = {
    "start": lambda t, at: machine.start(t, t.attempt, at),
    "accept": lambda t, at: machine.accept(t, t.attempt, at),
    "release": lambda t, at: machine.release(t, t.attempt, at),
    "finish": lambda t, at: machine.finish(t, t.attempt, {"attempt": t.attempt}, at),
    "late": lambda t, at: machine.finish(t, t.attempt - 1, {"attempt": t.attempt - 1}, at),
    "fail": lambda t, at: machine.fail(t, t.attempt, "no", at, 0.5),
    "beat": lambda t, at: machine.report(t, t.attempt, at, progress=50),
    "extend": lambda t, at: machine.report(t, t.attempt, at, extend=5),
    "lapse": lambda t, at: machine.lapse(t, at, 0.5),
    "wake": machine.wake,
    "cancel": lambda t, at: machine.cancel(t, "enough", at),
    "prioritise": lambda t, at: machine.prioritise(t, at.second % 10 + 1, at),
    "worker ends": lambda t, at: machine.orphaned(t, "ada/1", 1, at, 0.5),
}
one_step = st.tuples(
    st.sampled_from([*STEPS, *["assign"] * 6, *["finish"] * 2, "resolve"]), st.sampled_from(TASKS),
    st.sampled_from(sorted(ROOMS)), st.sampled_from(["change", "each", "together"]), st.integers(0, 6),
)  # fmt: skip


@dataclass
class Writer:
    """One of those who change tasks at the same time, each with its own connection."""

    store: Store
    together: Together
    time: list[float]
    told: list[Exception] = field(default_factory=list)

    async def live(self, steps: list[tuple[str, str, str, str, int]]) -> None:
        for what, task_id, agent_id, way, seconds in steps:
            self.time[0] += seconds / 4
            try:
                await self.act(what, task_id, agent_id, way)
            except Conflict as error:
                self.told.append(error)

    def now(self):
        return NOON + timedelta(seconds=self.time[0])

    async def act(self, what: str, task_id: str, agent_id: str, way: str) -> None:
        if what == "assign":
            await self.assign(task_id, agent_id, way)
            return
        step = STEPS.get(what)
        if what == "resolve":
            states = {other.task_id: other.state for other in await self.store.many(Task, TASKS)}

            def step(t, at):
                return machine.resolve(t, states, at)

        assert step is not None
        if way == "change":
            await self.store.change(Task, task_id, lambda t: step(t, self.now()), changed)
            return
        before, version = await self.store.load(Task, task_id)
        assert before is not None
        after = step(before, self.now())
        if after != before:
            await self.write(Write(before, after, version, changed(before, after)), way)

    async def assign(self, task_id: str, agent_id: str, way: str) -> None:
        before, version = await self.store.load(Task, task_id)
        assert before is not None
        given_out = machine.assign(before, agent_id, "token", self.now(), inbox="ada/1" if agent_id == "ada" else "")
        guard = Guard("held", (agent_id,), ROOMS[agent_id])
        if way == "change":  # given out, and started when it is picked up
            await self.store.commit(Write(before, given_out, version, changed(before, given_out), guard))
            return
        running = machine.start(given_out, given_out.attempt, self.now())
        await self.write(Write(before, running, version, began(before, given_out, running), guard), way)

    async def write(self, write: Write, way: str) -> None:
        await (self.together.commit(write) if way == "together" else self.store.commit_each([write]))


async def events_of(store: Store) -> list[Event]:
    found: list[Event] = []
    after = "evt_0-0"
    while batch := await store.events(after, limit=5000):
        found, after = found + batch, batch[-1].event_id
    return found


async def check(store: Store, rooms: dict[str, int]) -> Replay:
    """Nobody writes any more: everything has to agree."""
    records = {record.id: record for record in await everything(store, Task)}
    tasks = {name: record for name, record in records.items() if isinstance(record, Task)}
    held = {name: await store.ids(Task, "held", name) for name in rooms}
    after = {name: t.depends_on for name, t in tasks.items()}
    replay = replayed(await events_of(store), rooms, after)
    assert replay.findings == [] and agree(replay, tasks, held) == []
    assert await differences(store, Task, list(records.values())) == []
    for name, t in tasks.items():
        assert replay.stories[name].ends == (t.state in FINAL)
        if t.state is TaskState.COMPLETED and isinstance(t.result_data, dict) and "attempt" in t.result_data:
            assert t.result_data["attempt"] == t.attempt
    return replay


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(one_step, min_size=4, max_size=25), min_size=2, max_size=4))
def test_whatever_several_writers_do_at_once_is_a_life_that_the_machine_allows(redis_url, writers):
    async def live() -> Replay:
        stores = [Store(redis_url) for _ in writers]
        await stores[0]._redis.flushall()
        await stores[0].commit(*(Write(None, task(name), event=changed(None, task(name))) for name in TASKS))
        together, time = Together(stores[0]), [0.0]
        try:
            await asyncio.gather(
                *(Writer(s, together, time).live(steps) for s, steps in zip(stores, writers, strict=True))
            )
            return await check(stores[0], ROOMS)
        finally:
            for store in stores:
                await store.close()

    replay = asyncio.run(live())
    assert all(replay.most.get(name, 0) <= room for name, room in ROOMS.items())


def test_histories_reach_every_kind_of_event(redis_url):
    # The test above would hold nothing if its random steps were mostly refused.
    chance, kinds = random.Random(3), set()

    async def live() -> None:
        store = Store(redis_url)
        for _ in range(12):
            await store._redis.flushall()
            await store.commit(*(Write(None, task(name), event=changed(None, task(name))) for name in TASKS))
            writer = Writer(store, Together(store), [0.0])
            choices = [*STEPS, *["assign"] * 6, *["finish"] * 2, "resolve", "resolve"]
            await writer.live(
                [
                    (chance.choice(choices), chance.choice(TASKS), chance.choice(["ada", "bob"]),
                     chance.choice(["change", "each", "together"]), chance.randint(0, 6))
                    for _ in range(120)
                ]
            )  # fmt: skip
            await check(store, ROOMS)
            kinds.update(event.kind for event in await events_of(store))
        await store.close()

    asyncio.run(live())
    assert kinds == {
        f"task.{verb}" for verb in
        ("created", "assigned", "started", "accepted", "progress", "extended", "released", "retry", "ready", "updated",
         "completed", "failed", "timeout", "cancelled")
    }  # fmt: skip


async def swallow(work) -> None:
    """Another attempt is the current one by now, or the task is over: whoever asked is told so."""
    with suppress(Conflict):
        await work


class Moody:
    """Agents that fail, are busy, or take a task and report it a little later, perhaps too late."""

    def __init__(self, village, chance: random.Random) -> None:
        self.village, self.chance = village, chance

    async def __call__(self, delivery):
        number = int(delivery["attempt_id"].rpartition(".")[2])
        await asyncio.sleep(self.chance.random() * 0.02)
        work = self.chance.choice([complete, complete, fail, self.busy, self.late]) if number < 3 else complete
        return await work(delivery)

    async def busy(self, _):
        return 503

    async def late(self, delivery):
        async def report() -> None:
            await asyncio.sleep(self.chance.random() * 0.05)
            await self.village.tasks.report(delivery["task_id"], delivery["task_token"], result_data="late")

        self.village.running.append(asyncio.create_task(swallow(report())))
        return await accept(delivery)


@pytest.mark.usefixtures("retry_at_once")
async def test_two_routers_at_once_keep_every_promise(village):
    # There is one router; a second may still run for a while, when the first is cut off and not dead.
    chance = random.Random(11)
    rooms = {"ada": 1, "bob": 2, "eve": 4}
    for name, room in rooms.items():
        await village.agent(name, Moody(village, chance), room=room)
    for _ in range(2):
        village.route()
    tasks: list[Task] = []
    for n in range(120):
        fields = {
            "depends_on": (chance.choice(tasks).task_id,) if tasks and chance.random() < 0.2 else (),
            "priority": chance.randint(1, 10), "client_id": f"c{n % 3}", "max_retries": 3, "timeout_seconds": 30,
            "routing_strategy": chance.choice(["round_robin", "least_loaded", "trust_weighted"]),
        }  # fmt: skip
        tasks.append(await village.submit(**fields))
        if chance.random() < 0.05:
            await swallow(village.tasks.cancel(SYSTEM, chance.choice(tasks).task_id, "no longer"))

    async def ended() -> bool:
        return all(t.state in FINAL for t in await village.store.many(Task, [t.task_id for t in tasks]))

    await eventually(ended, within=30)
    replay = await check(village.store, rooms)
    assert len(replay.stories) == 120 and replay.held == {name: set() for name in rooms}
    assert await differences(village.store, Agent, await everything(village.store, Agent)) == []
