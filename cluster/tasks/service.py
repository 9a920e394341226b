"""What a client may do with tasks: submit, look, cancel, move; and what an agent reports."""

import hmac
import random
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from cluster import tracing
from cluster.clock import Clock, utc_now
from cluster.errors import (
    AlreadyExists,
    DependencyNotFound,
    Forbidden,
    Invalid,
    StaleAttempt,
    TaskNotFound,
    Unauthenticated,
    VillageError,
)
from cluster.events import Event
from cluster.identity.model import Principal
from cluster.ids import new_id
from cluster.routing import strategies
from cluster.store import Store, Write
from cluster.tasks import machine
from cluster.tasks.archive import TaskArchive
from cluster.tasks.batching import Named, renamed, settle
from cluster.tasks.cancelling import Cancelled, cancel_many
from cluster.tasks.events import changed
from cluster.tasks.finished import Finished
from cluster.tasks.listing import Filter, Found
from cluster.tasks.model import FINAL, Task, TaskState
from cluster.tasks.verification import Verification


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
    verification: Verification | None = None
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

    def __init__(
        self, store: Store, clock: Clock = utc_now, jitter: Callable[[], float] = random.random,
        archive: TaskArchive | None = None,
    ) -> None:  # fmt: skip
        self.store, self.clock, self.jitter = store, clock, jitter
        self.finished = Finished(store, archive)

    async def submit(self, who: Principal, specs: Sequence[TaskSpec]) -> list[Task]:
        """Take all of the tasks or none, in one commit. Raises `UnknownStrategy`, `DependencyNotFound`, `Forbidden`."""
        writes = await self.prepare(who, specs)
        if not await self.store.commit(*writes):
            raise AlreadyExists("an id was drawn twice")  # 96 random bits: not in our time
        return [write.after for write in writes if isinstance(write.after, Task)]

    async def prepare(self, who: Principal, specs: Sequence[TaskSpec]) -> list[Write]:
        """What `submit` would commit, for whoever commits something else along with it. Raises as `submit`."""
        for spec in specs:
            check(who, spec)
        names = {name for spec in specs for name in spec.depends_on}
        known = await self._states(who, names)
        if missing := sorted(names - known.keys()):
            raise DependencyNotFound(f"no such task: {', '.join(missing)}", field="depends_on", missing=missing)
        at = self.clock()
        tasks = [self._task(who, spec, known, at) for spec in specs]
        return [Write(None, task, event=changed(None, task)) for task in tasks]

    async def submit_each(
        self, who: Principal, items: Sequence[tuple[str, TaskSpec | None]]
    ) -> tuple[dict[int, Task], dict[int, VillageError]]:
        """Take what can be taken of a batch of (ref, spec), in one commit: tasks and errors by place in the batch.

        `depends_on` may name `ref:NAME` of another item. None stands for an item that is known to be wrong.
        """
        failed: dict[int, VillageError] = {}
        for index, (_, spec) in enumerate(items):
            try:
                check(who, spec)
            except VillageError as error:
                failed[index] = error
        named = [Named(ref, spec.depends_on if spec else ()) for ref, spec in items]
        known = await self._states(who, {name for item in named for name in item.ids})
        errors = settle(named, failed, set(known))
        good = {index: spec for index, (_, spec) in enumerate(items) if spec is not None and index not in errors}
        ids = {index: new_id("task") for index in good}
        refs = {named[index].ref: task_id for index, task_id in ids.items() if named[index].ref}
        known |= dict.fromkeys(refs.values(), TaskState.PENDING)
        at = self.clock()
        tasks: dict[int, Task] = {}
        for index, spec in good.items():
            spec = spec.model_copy(update={"depends_on": renamed(named[index], refs)})
            tasks[index] = self._task(who, spec, known, at, ids[index])
        writes = [Write(None, task, event=changed(None, task)) for task in tasks.values()]
        if writes and not await self.store.commit(*writes):
            raise AlreadyExists("an id was drawn twice")
        return tasks, errors

    def _task(
        self, who: Principal, spec: TaskSpec, known: Mapping[str, TaskState], at: datetime, task_id: str = ""
    ) -> Task:
        waiting = tuple(name for name in dict.fromkeys(spec.depends_on) if known[name] is not TaskState.COMPLETED)
        # A dependency that has failed already stays in `waiting_for`: the router fails the task with the reason.
        return Task(
            **spec.model_dump(),
            task_id=task_id or new_id("task"),
            owner=who.owner,
            # The client of a key is known; what a user says it is would be one way to a larger share.
            share=spec.client_id if who.client_id or who.is_admin else who.owner,
            waiting_for=waiting,
            traceparent=tracing.traceparent(),
            created_at=at,
            updated_at=at,
        )

    async def _states(self, who: Principal, names: set[str]) -> dict[str, TaskState]:
        found = await self.finished.many(sorted(names))
        return {task.task_id: task.state for task in found if who.sees(task.owner)}

    async def get(self, who: Principal, task_id: str) -> Task:
        """Raises `TaskNotFound`."""
        task = await self.finished.find(task_id)
        if task is None or not who.sees(task.owner):
            raise TaskNotFound(f"no task {task_id}", task_id=task_id)
        return task

    async def page(
        self, who: Principal, wanted: Filter | None = None, *, newest_first: bool = True, cursor: str = "",
        offset: int = 0, limit: int = 50,
    ) -> Found:  # fmt: skip
        """A page of a list: see `listing.find`. Raises `Invalid`."""
        return await self.finished.page(
            who, wanted or Filter(), newest_first=newest_first, cursor=cursor, offset=offset, limit=limit
        )

    async def cancel(self, who: Principal, task_id: str, reason: str) -> Task:
        """Raises `TaskNotFound`, `NotCancellable`."""
        machine.cancel(await self.get(who, task_id), reason, self.clock())  # one that has ended may have left the store
        return await self.store.change(Task, task_id, lambda task: machine.cancel(task, reason, self.clock()), changed)

    async def cancel_many(
        self, who: Principal, *, client_id: str = "", parent_id: str = "", task_ids: Sequence[str] = (),
        reason: str = "",
    ) -> Cancelled:  # fmt: skip
        """See `cancelling.cancel_many`."""
        wanted = Filter(client_id=client_id, parent_id=parent_id)
        return await cancel_many(self.finished, who, wanted, task_ids, reason, self.clock())

    async def prioritise(self, who: Principal, task_id: str, priority: int) -> tuple[Task, int]:
        """The task and its former priority. Raises `TaskNotFound`, `Conflict`."""
        before = await self.get(who, task_id)
        machine.prioritise(before, priority, self.clock())  # one that has ended may have left the store
        task = await self.store.change(
            Task, task_id, lambda task: machine.prioritise(task, priority, self.clock()), changed
        )
        return task, before.priority

    async def dependencies(self, who: Principal, task_id: str) -> Dependencies:
        """Raises `TaskNotFound`."""
        task = await self.get(who, task_id)
        states = {other.task_id: other.state for other in await self.finished.many(task.depends_on)}
        blocking = tuple(name for name in task.depends_on if states.get(name) is not TaskState.COMPLETED)
        return Dependencies(
            task_id=task_id, depends_on=task.depends_on, states=states, blocking=blocking,
            ready=not blocking and task.state is TaskState.PENDING,
        )  # fmt: skip

    async def report(self, task_id: str, token: str, *, result_data: Any = None, error: str | None = None) -> Task:
        """An agent's own report of an attempt that it had accepted: `error` is None for a success.

        Raises `TaskNotFound`; `StaleAttempt` once the attempt is over; `Unauthenticated` for another's token.
        """
        attempt = reporting(await self._reported(task_id, token), token)

        def step(now: Task) -> Task:
            if error is None:
                return machine.finish(now, attempt, result_data, self.clock())
            return machine.fail(now, attempt, error, self.clock(), self.jitter())

        return await self.store.change(Task, task_id, step, changed)

    async def progress(
        self, task_id: str, token: str, progress: float, message: str = "", metrics: dict[str, Any] | None = None
    ) -> Task:
        """How far an agent is, in per cent. `metrics` go into the event and are not kept. Raises as `report`."""
        attempt = reporting(await self._reported(task_id, token), token)

        def told(before: Task, after: Task) -> Event:
            event = changed(before, after)
            return event.model_copy(update={"data": event.data | {"metrics": metrics}}) if metrics else event

        return await self.store.change(
            Task, task_id, lambda t: machine.report(t, attempt, self.clock(), progress=progress, message=message), told
        )

    async def heartbeat(self, task_id: str, token: str, extend_seconds: float = 0.0) -> Task:
        """An agent is at work. Only `extend_seconds` moves the deadline. Raises as `report`, and `Invalid`.

        To the agent whose task was cancelled it says so: the task comes back as it ended.
        """
        task = await self._reported(task_id, token)
        if task.state is TaskState.CANCELLED and same_token(task, token):
            return task
        attempt = reporting(task, token)
        return await self.store.change(
            Task, task_id, lambda t: machine.report(t, attempt, self.clock(), extend=extend_seconds), changed
        )

    async def _reported(self, task_id: str, token: str) -> Task:
        if not token:  # who has none learns not even whether there is such a task
            raise Unauthenticated("a task token is needed")
        task = await self.finished.find(task_id)
        if task is None:
            raise TaskNotFound(f"no task {task_id}", task_id=task_id)
        return task


def check(who: Principal, spec: TaskSpec | None) -> None:
    """What can be said of a task without the others. Raises `UnknownStrategy`, `Forbidden`, `Invalid`."""
    if spec is None:
        raise Invalid("it is not a task")
    strategies.named(spec.routing_strategy)
    if who.client_id and spec.client_id != who.client_id and not who.is_admin:
        raise Forbidden("the API key is another client's", client_id=spec.client_id)


def reporting(task: Task, token: str) -> int:
    """The attempt that the token is for. Raises `StaleAttempt`, `Unauthenticated`."""
    if task.state in FINAL or not task.task_token or machine.outdated(task, token):
        raise StaleAttempt("the task has no attempt that may report", task_id=task.task_id, status=task.state)
    if not same_token(task, token):
        raise Unauthenticated("the task token is not that of the current attempt")
    return task.attempt


def same_token(task: Task, token: str) -> bool:
    """Whether it is the current attempt's, compared in constant time."""
    return hmac.compare_digest(task.task_token.encode(), token.encode(errors="replace"))
