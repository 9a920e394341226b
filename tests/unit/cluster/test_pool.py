"""Workers of the village: real ones, in this process or in one that is killed."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from eventually import eventually
from pool_process import CALLABLES

from cluster.identity.model import SYSTEM
from cluster.settings import Settings
from cluster.store import Store
from cluster.tasks.model import Task
from cluster.workers import pool
from cluster.workers.keeper import PoolKeeper
from cluster.workers.model import Agent
from cluster.workers.pool import MOST_AHEAD, PoolWorker, ahead
from cluster.workers.scaling import wanted
from cluster.workers.work import Job, PoolConfig, configured, resolve

SCRIPT = Path(__file__).parents[2] / "pool_process.py"


class NoHands:
    """Runs nothing: for a pool whose workers the test starts itself."""

    def __init__(self) -> None:
        self.running: list[str] = []
        self.gone: list[str] = []

    async def names(self) -> list[str]:
        return list(self.running)

    async def start(self, name: str) -> None:
        self.running.append(name)

    async def retire(self, name: str) -> None:
        self.running.remove(name)
        self.gone.append(name)

    async def most(self) -> int:
        return 4


CONFIGURED = PoolConfig(agent_id="pool", callables={name: f"pool_process:{name}" for name in CALLABLES})


@pytest.fixture
async def keeper(village) -> PoolKeeper:
    made = PoolKeeper(village.store, CONFIGURED, NoHands())
    await made.register(4)
    return made


@pytest.fixture
async def process(village) -> AsyncIterator[Callable[[str], subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def start(name: str) -> subprocess.Popen[bytes]:
        environment = {"PYTHONPATH": f"{SCRIPT.parents[1]}:{SCRIPT.parent}", "PATH": "/usr/bin:/bin"}
        started.append(subprocess.Popen([sys.executable, str(SCRIPT), village.store.url, name], env=environment))
        return started[-1]

    yield start
    for child in started:
        child.kill()
        child.wait()


def work(village, **callables: Any) -> PoolWorker:
    """A worker in this process."""
    worker = PoolWorker(Store(village.store.url), "pool", "here", CALLABLES | callables)
    village.stack.push_async_callback(worker.store.close)
    village.running.append(asyncio.create_task(worker.run()))
    return worker


async def test_a_callable_runs_and_its_result_is_the_tasks(village, keeper):
    village.route()
    worker = work(village)
    tasks = [await village.submit(input_data={"a": n}) for n in range(20)]
    done = [await eventually(village.reaches(task.task_id, "COMPLETED")) for task in tasks]
    assert [task.result_data["sum"] for task in done] == list(range(1, 21))
    assert {task.agent_id for task in done} == {"pool"} and worker.done == 20
    assert await village.store.count(Task, "held", "pool") == 0
    kinds = [e.kind for e in await village.store.events() if e.subject == tasks[0].task_id]
    assert kinds == ["task.created", "task.assigned", "task.started", "task.completed"]


async def test_what_a_callable_raises_fails_the_task(village, keeper):
    def broken(data: dict[str, Any], job: Job) -> Any:
        raise ValueError("no such column \ud800")

    def unsayable(data: dict[str, Any], job: Job) -> Any:
        return object()

    village.route()
    work(village, **{"sums:v1": broken, "spin:v1": unsayable})
    first = await village.submit(max_retries=0)
    second = await village.submit(max_retries=0, capability_required="spin:v1")
    failed = await eventually(village.reaches(first.task_id, "FAILED"))
    assert failed.error.startswith("ValueError: no such column")
    assert "object" in (await eventually(village.reaches(second.task_id, "FAILED"))).error


async def test_progress_is_told_and_a_cancelled_callable_hears_of_it(village, keeper, monkeypatch):
    monkeypatch.setattr(pool, "LOOK_SECONDS", 0.05)
    village.route()
    worker = work(village)
    task = await village.submit(capability_required="spin:v1", input_data={"steps": True}, timeout_seconds=60)

    async def half() -> bool:
        return (await village.task(task.task_id)).progress == 50.0

    await eventually(half)
    await village.tasks.cancel(SYSTEM, task.task_id, "enough")
    after = await village.submit()
    await eventually(village.reaches(after.task_id, "COMPLETED"))
    assert (await village.task(task.task_id)).state == "CANCELLED" and worker.done == 1


async def test_a_worker_that_dies_of_a_task_fails_only_that_task(village, keeper, process, monkeypatch):
    monkeypatch.setattr("cluster.tasks.machine.backoff_seconds", lambda retries, jitter: 0.02)
    village.route()
    child = process("0")
    good = [await village.submit(input_data={"a": n}) for n in range(5)]
    for task in good:
        await eventually(village.reaches(task.task_id, "COMPLETED"))
    bad = await village.submit(capability_required="death:v1", max_retries=1)
    for _ in range(2):  # once for each try
        await asyncio.to_thread(child.wait, 20)
        child = process("0")
    failed = await eventually(village.reaches(bad.task_id, "FAILED"))
    assert failed.error == "the worker ended while it ran the task" and failed.retry_count == 1
    last = await village.submit()
    await eventually(village.reaches(last.task_id, "COMPLETED"))
    assert await village.store.count(Task, "held", "pool") == 0


async def test_a_dead_worker_that_nobody_starts_again_gives_its_task_to_another(village, keeper, process, monkeypatch):
    monkeypatch.setattr(pool, "OFFER_SECONDS", 0.6)
    monkeypatch.setattr(pool, "RENEW_SECONDS", 0.2)
    village.route()
    child = process("0")
    task = await village.submit(capability_required="spin:v1", max_retries=1, timeout_seconds=600)
    await eventually(village.reaches(task.task_id, "RUNNING"))
    child.kill()
    again = await eventually(village.reaches(task.task_id, "PENDING"), 15)  # its offer ran out
    assert again.retry_count == 1 and again.error == "the worker ended while it ran the task"


async def test_a_callable_that_does_not_stop_costs_its_process_and_nothing_else(village, keeper, process):
    village.route()
    child = process("0")
    task = await village.submit(
        capability_required="spin:v1", input_data={"deaf": True}, timeout_seconds=1, max_retries=0
    )
    await eventually(village.reaches(task.task_id, "TIMEOUT"), 15)
    assert await asyncio.to_thread(child.wait, 20) == 1


async def test_a_retired_worker_finishes_and_takes_nothing_more(village, keeper):
    village.route()
    worker = work(village)
    first = await village.submit()
    await eventually(village.reaches(first.task_id, "COMPLETED"))
    worker.retire()
    await asyncio.wait_for(village.running[-1], 10)
    late = await village.submit()
    await asyncio.sleep(0.3)
    assert (await village.task(late.task_id)).state == "PENDING"


async def test_the_keeper_registers_once_and_follows_the_configuration(village, keeper):
    agent = await village.store.get(Agent, "pool")
    assert agent.pulls and set(agent.tags) == set(CALLABLES) and agent.max_concurrent_tasks == 4 * MOST_AHEAD
    fewer = CONFIGURED.model_copy(update={"callables": {"sums:v1": "x:y"}})
    await PoolKeeper(village.store, fewer, NoHands()).register(1)
    assert (await village.store.get(Agent, "pool")).tags == ("sums:v1",)


async def test_workers_are_started_as_tasks_wait_and_retired_when_idle(village, keeper, monkeypatch):
    hands = keeper.hands
    await keeper.step()
    assert hands.running == ["0"]  # the least
    village.route()
    for _ in range(20):
        await village.submit()

    async def grown() -> bool:
        await keeper.step()
        return len(hands.running) == 4

    await eventually(grown, 10)
    for task_id in await village.store.ids(Task, "list", "all"):
        await village.tasks.cancel(SYSTEM, task_id, "")
    keeper.busy_at -= 1000

    async def shrunk() -> bool:
        await keeper.step()
        keeper.busy_at -= 1000
        return hands.running == ["0"]

    await eventually(shrunk, 10)
    assert hands.gone == ["3", "2", "1"]


@pytest.mark.parametrize(
    ("now", "waiting", "idle", "expected"),
    [
        (0, 0, 0, 1),
        (1, 1, 0, 2),
        (1, 8, 0, 2),
        (1, 9, 0, 3),
        (1, 999, 0, 4),
        (3, 0, 10, 3),
        (3, 0, 60, 2),
        (1, 0, 60, 1),
    ],
)
def test_scaling(now, waiting, idle, expected):
    assert wanted(PoolConfig(), 4, now, waiting, idle) == expected


def test_a_worker_takes_many_short_tasks_and_one_long_one():
    assert ahead(0.00001) == MOST_AHEAD and ahead(0.01) == 5 and ahead(1.0) == 1 and ahead(0.0) == MOST_AHEAD


def test_the_shipped_configuration_names_callables_that_are_there():
    config = configured(Settings().workers_config)
    found = resolve(config.callables)
    job = Job("task_1", 1, {})
    assert found["echo:v1"]({"a": 1}, job) == {"a": 1}
    assert found["text-count:v1"]({"text": "two words"}, job) == {"characters": 9, "words": 2, "lines": 1}
    assert found["digest:v1"]({"text": ""}, job)["sha256"].startswith("e3b0c44298fc1c14")
