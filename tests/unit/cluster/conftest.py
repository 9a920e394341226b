"""The services of the core over a real Redis, and a router that runs in the test's own loop."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from typing import Any

import pytest
from working_agent import Work, WorkingAgent, complete, registration

from cluster.identity.model import SYSTEM, Principal
from cluster.routing import timekeeper
from cluster.routing.router import Router
from cluster.store import Store
from cluster.tasks.delivery import Delivery
from cluster.tasks.model import Task
from cluster.tasks.service import Tasks, TaskSpec
from cluster.trust.service import LedgerKeeper, Trust
from cluster.workers.model import Agent
from cluster.workers.service import Workers


class Village:
    """Services, agents and routers; everything ends with the test."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.trust = Trust(store)
        self.tasks = Tasks(store)
        self.workers = Workers(store, self.trust)
        self.running: list[asyncio.Task[Any]] = []
        self.stack = AsyncExitStack()

    async def agent(self, name: str, work: Work = complete, tags: tuple[str, ...] = ("sums:v1",), room: int = 10):
        """A registered agent that works."""
        agent = await WorkingAgent(work).start()
        self.stack.push_async_callback(agent.stop)
        await self.register(name, agent.url, tags, room)
        return agent

    async def register(self, name: str, url: str, tags: tuple[str, ...] = ("sums:v1",), room: int = 10) -> Agent:
        body = registration(name, url, list(tags), max_concurrent_tasks=room)
        signed = body.pop("signature")
        return await self.workers.register(SYSTEM, signed=signed, **body)

    def route(self, store: Store | None = None) -> asyncio.Task[Any]:
        """Start a router."""
        store = store or Store(self.store.url)
        delivery = Delivery("http://127.0.0.1:1", public_only=False)
        self.stack.push_async_callback(store.close)
        self.stack.push_async_callback(delivery.close)
        self.router = Router(store, Trust(store), delivery)
        task = asyncio.create_task(self.router.run())
        self.running.append(task)
        return task

    async def keep_ledger(self) -> LedgerKeeper:
        """Write every outcome so far into the ledger."""
        keeper = LedgerKeeper(self.store)
        await keeper.open()
        while await keeper.step(wait_seconds=0):
            pass
        return keeper

    async def submit(self, who: Principal = SYSTEM, **fields: Any) -> Task:
        [task] = await self.tasks.submit(who, [spec(**fields)])
        return task

    async def task(self, task_id: str) -> Task:
        return await self.store.get(Task, task_id)

    def reaches(self, task_id: str, state: str) -> Callable[[], Any]:
        """A probe for `eventually`: the task, once it is in that state."""

        async def probe() -> Task | None:
            task = await self.task(task_id)
            return task if task.state == state else None

        return probe

    async def close(self) -> None:
        for task in self.running:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await self.stack.aclose()


def spec(**fields: Any) -> TaskSpec:
    wanted: dict[str, Any] = {
        "client_id": "client", "task_type": "sum", "capability_required": "sums:v1", "input_data": {"a": 1}
    }  # fmt: skip
    return TaskSpec(**wanted | fields)


@pytest.fixture
async def village(store: Store, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Village]:
    """Without agents and without a router; deadlines are looked at more often than in earnest."""
    monkeypatch.setattr(timekeeper, "TICK_SECONDS", 0.05)
    made = Village(store)
    yield made
    await made.close()


@pytest.fixture
def retry_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The waits before retries are a table in test_task_machine; here they would only take time."""
    monkeypatch.setattr("cluster.tasks.machine.backoff_seconds", lambda retries, jitter: 0.02)
