"""What a client may do with tasks: submit, look, cancel, move; and what an agent reports."""

import hmac
import random
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from cluster import tracing
from cluster.clock import Clock, utc_now
from cluster.errors import AlreadyExists, DependencyNotFound, Forbidden, StaleAttempt, TaskNotFound, Unauthenticated
from cluster.identity.model import Principal
from cluster.ids import new_id
from cluster.routing import strategies
from cluster.store import Page, Store, Write
from cluster.store.indexes import index_key
from cluster.store.intersect import union_page
from cluster.tasks import machine
from cluster.tasks.events import changed
from cluster.tasks.model import FINAL, Task, TaskState


class TaskSpec(BaseModel):
    """What a client asks for."""

    model_config = ConfigDict(frozen=True)

    client_id: str
    task_type: str
    capability_required: str
    input_data: dict[str, Any]
    priority: int = Field(5, ge=1, le=10)
    timeout_seconds: int = Field(300, ge=1, le=86_400)
    max_retries: int = Field(3, ge=0, le=10)
    depends_on: tuple[str, ...] = ()
    routing_strategy: str = strategies.DEFAULT
    trust_min: float = Field(0.0, ge=0, le=1)
    heartbeat_seconds: int = Field(0, ge=0, le=86_400)
    metadata: dict[str, Any] = {}


class Dependencies(BaseModel):
    """How the dependencies of a task stand."""

    task_id: str
    depends_on: tuple[str, ...]
    states: dict[str, TaskState]
    blocking: tuple[str, ...]
    ready: bool


class Tasks:
    """Task use cases. `who` sees its own tasks, an admin all; another's is a `TaskNotFound`."""

    def __init__(self, store: Store, clock: Clock = utc_now, jitter: Callable[[], float] = random.random) -> None:
        self.store, self.clock, self.jitter = store, clock, jitter

    async def submit(self, who: Principal, specs: Sequence[TaskSpec]) -> list[Task]:
        """Take all of the tasks or none, in one commit. Raises `UnknownStrategy`, `DependencyNotFound`, `Forbidden`."""
        writes = await self.prepare(who, specs)
        if not await self.store.commit(*writes):
            raise AlreadyExists("an id was drawn twice")  # 96 random bits: not in our time
        return [write.after for write in writes if isinstance(write.after, Task)]

    async def prepare(self, who: Principal, specs: Sequence[TaskSpec]) -> list[Write]:
        """What `submit` would commit, for whoever commits something else along with it. Raises as `submit`."""
        for spec in specs:
            strategies.named(spec.routing_strategy)
            if who.client_id and spec.client_id != who.client_id and not who.is_admin:
                raise Forbidden("the API key is another client's", client_id=spec.client_id)
        known = await self._dependencies(who, {name for spec in specs for name in spec.depends_on})
        at = self.clock()
        tasks = [self._task(who, spec, known, at) for spec in specs]
        return [Write(None, task, event=changed(None, task)) for task in tasks]

    def _task(self, who: Principal, spec: TaskSpec, known: dict[str, TaskState], at: datetime) -> Task:
        waiting = tuple(name for name in dict.fromkeys(spec.depends_on) if known[name] is not TaskState.COMPLETED)
        # A dependency that has failed already stays in `waiting_for`: the router fails the task with the reason.
        return Task(
            **spec.model_dump(),
            task_id=new_id("task"),
            owner=who.owner,
            # The client of a key is known; what a user says it is would be one way to a larger share.
            share=spec.client_id if who.client_id or who.is_admin else who.owner,
            waiting_for=waiting,
            traceparent=tracing.traceparent(),
            created_at=at,
            updated_at=at,
        )

    async def _dependencies(self, who: Principal, names: set[str]) -> dict[str, TaskState]:
        found = await self.store.many(Task, sorted(names))
        known = {task.task_id: task.state for task in found if who.sees(task.owner)}
        if missing := sorted(names - known.keys()):
            raise DependencyNotFound(f"no such task: {', '.join(missing)}", field="depends_on", missing=missing)
        return known

    async def get(self, who: Principal, task_id: str) -> Task:
        """Raises `TaskNotFound`."""
        task = await self.store.find(Task, task_id)
        if task is None or not who.sees(task.owner):
            raise TaskNotFound(f"no task {task_id}", task_id=task_id)
        return task

    async def page(
        self, who: Principal, *, client_id: str = "", state: TaskState | None = None, offset: int = 0, limit: int = 50
    ) -> Page[Task]:
        """Newest first."""
        wanted = [state] if state else []
        if who.is_admin and client_id:
            # A client's tasks are its keys', and those that people submitted in its name.
            sets = [
                index_key(Task.kind, "list", [*parts, *wanted])
                for parts in (("owner", f"client_{client_id}"), ("client", client_id))
            ]
            total, ids = await union_page(self.store, sets, offset, limit)
            return Page(await self.store.many(Task, ids), total)
        parts = ["all"] if who.is_admin else ["owner", who.owner]
        if client_id and client_id != who.client_id and not who.is_admin:
            # A person's own tasks under one of several client ids: few enough to look through.
            ids = await self.store.ids(Task, "list", *parts, *wanted, newest_first=True)
            mine = [task for task in await self.store.many(Task, ids) if task.client_id == client_id]
            return Page(mine[offset : offset + limit], len(mine))
        return await self.store.page(Task, "list", *parts, *wanted, offset=offset, limit=limit)

    async def cancel(self, who: Principal, task_id: str, reason: str) -> Task:
        """Raises `TaskNotFound`, `NotCancellable`."""
        await self.get(who, task_id)
        return await self.store.change(Task, task_id, lambda task: machine.cancel(task, reason, self.clock()), changed)

    async def prioritise(self, who: Principal, task_id: str, priority: int) -> tuple[Task, int]:
        """The task and its former priority. Raises `TaskNotFound`, `Conflict`."""
        before = (await self.get(who, task_id)).priority
        task = await self.store.change(
            Task, task_id, lambda task: machine.prioritise(task, priority, self.clock()), changed
        )
        return task, before

    async def dependencies(self, who: Principal, task_id: str) -> Dependencies:
        """Raises `TaskNotFound`."""
        task = await self.get(who, task_id)
        states = {other.task_id: other.state for other in await self.store.many(Task, task.depends_on)}
        blocking = tuple(name for name in task.depends_on if states.get(name) is not TaskState.COMPLETED)
        return Dependencies(
            task_id=task_id, depends_on=task.depends_on, states=states, blocking=blocking,
            ready=not blocking and task.state is TaskState.PENDING,
        )  # fmt: skip

    async def report(self, task_id: str, token: str, *, result_data: Any = None, error: str | None = None) -> Task:
        """An agent's own report of an attempt that it had accepted: `error` is None for a success.

        Raises `TaskNotFound`; `StaleAttempt` once the attempt is over; `Unauthenticated` for another's token.
        """
        if not token:  # who has none learns not even whether there is such a task
            raise Unauthenticated("a task token is needed")
        task = await self.store.find(Task, task_id)
        if task is None:
            raise TaskNotFound(f"no task {task_id}", task_id=task_id)
        if task.state in FINAL or not task.task_token or machine.outdated(task, token):
            raise StaleAttempt("the task has no attempt that may report", task_id=task_id, status=task.state)
        if not hmac.compare_digest(task.task_token.encode(), token.encode(errors="replace")):
            raise Unauthenticated("the task token is not that of the current attempt")
        attempt = task.attempt

        def step(now: Task) -> Task:
            if error is None:
                return machine.finish(now, attempt, result_data, self.clock())
            return machine.fail(now, attempt, error, self.clock(), self.jitter())

        return await self.store.change(Task, task_id, step, changed)
