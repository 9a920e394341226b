"""DukeNet AINS, task routes: parse, call the core, render. No rule lives here."""

import asyncio
import time
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field, WrapValidator
from starlette.requests import Request

from cluster.clock import iso
from cluster.errors import Invalid
from cluster.routing.strategies import DEFAULT
from cluster.tasks.listing import Filter, Found
from cluster.tasks.model import FINAL, Task, TaskState
from cluster.tasks.service import TaskSpec
from cluster.tasks.verification import Verification
from serve_apps.core import FromCore
from serve_apps.dialects.ains.fields import stamp
from serve_apps.dialects.ains.items import Wrong, in_order, malformed, or_wrong, refused
from serve_apps.dialects.ains.routes_trust import aware
from serve_apps.kit.auth import SignedIn
from serve_apps.kit.pagination import Limit50, Offset
from serve_apps.kit.waits import LONGEST_SECONDS

router = APIRouter(prefix="/ains/tasks")
MAX_BATCH = 100
MAX_CANCELLED = 1000
Word = Annotated[str, Query(max_length=200)]
TaskId = Annotated[str, Field(max_length=200)]


class Submission(BaseModel):
    """A task as a client asks for it.

    `trust_min`: no agent below that trust gets it. `heartbeat_seconds`: an agent that runs it and is silent for longer
    has lost it, and it is tried again while retries are left; 0 expects no heartbeats. `verification`: several agents
    do it, and their results are compared (docs/trust.md).
    """

    client_id: str = Field(min_length=1, max_length=200)
    task_type: str = Field(min_length=1, max_length=200)
    capability_required: str = Field(min_length=1, max_length=200)
    input_data: dict[str, Any]
    priority: int = Field(5, ge=1, le=10)
    timeout_seconds: int = Field(300, ge=1, le=3600)
    max_retries: int = Field(3, ge=0, le=10)
    depends_on: tuple[str, ...] = Field((), max_length=1000)
    routing_strategy: str = DEFAULT
    trust_min: float = Field(0.0, ge=0, le=1)
    heartbeat_seconds: int = Field(0, ge=0, le=3600)
    verification: Verification | None = None
    metadata: dict[str, Any] = {}

    def spec(self) -> TaskSpec:
        """In the core's words."""
        return TaskSpec(**dict(self))


class BatchItem(Submission):
    """A task of a batch. `depends_on` may name `ref:NAME` of another item beside ids of tasks."""

    ref: str = Field("", max_length=100, pattern=r"^[A-Za-z0-9._-]*$")

    def spec(self) -> TaskSpec:
        """In the core's words, where only the batch has refs."""
        return TaskSpec(**{name: value for name, value in self if name != "ref"})


class Batch(BaseModel):
    """Up to 100 tasks. Each is taken or refused by itself."""

    tasks: list[Annotated[BatchItem, WrapValidator(or_wrong)]] = Field(min_length=1, max_length=MAX_BATCH)


class Cancellation(BaseModel):
    """Why."""

    reason: str = Field("", max_length=2000)


class BulkCancellation(Cancellation):
    """Which tasks: those that fit all that is given. Without `task_ids` the ones that have not ended, 1000 at most."""

    client_id: str = Field("", max_length=200)
    parent_id: str = Field("", max_length=200)
    task_ids: list[TaskId] = Field([], max_length=MAX_CANCELLED)


class NewPriority(BaseModel):
    """Where in the queue."""

    priority: int = Field(ge=1, le=10)


def submitted(task: Task) -> dict[str, Any]:
    """The answer to a submission."""
    return {
        "task_id": task.task_id, "status": task.state, "priority": task.priority, "depends_on": task.depends_on,
        "is_blocked": bool(task.waiting_for), "routing_strategy": task.routing_strategy,
        "created_at": iso(task.created_at), "estimated_start_time": None,
    }  # fmt: skip


def shown(task: Task) -> dict[str, Any]:
    """A task in full."""
    return {
        "task_id": task.task_id, "client_id": task.client_id, "task_type": task.task_type, "status": task.state,
        "capability_required": task.capability_required, "priority": task.priority,
        "assigned_agent_id": task.agent_id or None, "input_data": task.input_data, "result_data": task.result_data,
        "error": task.error or None, "reason": task.reason or None, "retry_count": task.retry_count,
        "max_retries": task.max_retries, "timeout_seconds": task.timeout_seconds, "attempt": task.attempt,
        "depends_on": task.depends_on, "is_blocked": bool(task.waiting_for), "routing_strategy": task.routing_strategy,
        "parent_id": task.parent_id or None, "trust_min": task.trust_min, "heartbeat_seconds": task.heartbeat_seconds,
        "progress": task.progress, "progress_message": task.progress_message or None,
        "last_heartbeat_at": stamp(task.heartbeat_at if task.heartbeat_at != task.started_at else None),
        "verification": task.verification.model_dump(mode="json") if task.verification else None,
        "deadline": stamp(task.deadline), "metadata": task.metadata,
        "execution_time_seconds": task.execution_seconds, "created_at": iso(task.created_at),
        "assigned_at": stamp(task.assigned_at), "started_at": stamp(task.started_at),
        "completed_at": stamp(task.completed_at),
    }  # fmt: skip


def listed(found: Found, limit: int, offset: int, cursor: str) -> dict[str, Any]:
    """A page. `total` is null where other tasks than these would have to be read to tell."""
    more = bool(found.cursor)
    return {
        "results": [shown(task) for task in found.items],
        "pagination": {
            "total": found.total, "limit": limit, "offset": offset, "has_more": more,
            "next_offset": offset + limit if more and len(found.items) == limit and not cursor else None,
            "next_cursor": found.cursor or None, "scanned": found.scanned,
        },
    }  # fmt: skip


def states_of(status: str) -> frozenset[TaskState]:
    """`PENDING` or `PENDING,RUNNING`. Raises `Invalid`."""
    words = [word.strip() for word in status.split(",")] if status else []
    if unknown := [word for word in words if word not in TaskState.__members__]:
        raise Invalid(f"no such status: {unknown[0][:40]}", field="status", allowed_values=list(TaskState))
    return frozenset(TaskState(word) for word in words)


@router.post("", status_code=201)
async def submit(body: Submission, who: SignedIn, core: FromCore) -> dict[str, Any]:
    """Submit a task."""
    [task] = await core.tasks.submit(who, [body.spec()])
    return submitted(task)


@router.post("/batch", status_code=201)
async def submit_batch(body: Batch, who: SignedIn, core: FromCore) -> dict[str, Any]:
    """Submit up to 100 tasks: those that can be taken, in one commit, and an error for each other one.

    400 if none could be taken.
    """
    begun = time.perf_counter()
    items: list[BatchItem | Wrong] = list(body.tasks)
    refs = [item.ref for item in items]
    specs = [None if isinstance(item, Wrong) else item.spec() for item in items]
    taken, failed = await core.tasks.submit_each(who, list(zip(refs, specs, strict=True)))
    errors = {
        index: malformed(item) if isinstance(item, Wrong) else refused(failed[index])
        for index, item in enumerate(items)
        if index in failed
    }
    if not taken:
        raise Invalid("no task of the batch could be taken", field="tasks", errors=in_order(errors, refs))
    return {
        "submitted": len(taken), "failed": len(failed), "task_ids": [task.task_id for task in taken.values()],
        "tasks": [
            {"index": index, "ref": refs[index] or None, "task_id": task.task_id} for index, task in taken.items()
        ],
        "errors": in_order(errors, refs), "submission_time_ms": round((time.perf_counter() - begun) * 1000, 3),
    }  # fmt: skip


@router.post("/cancel")
async def cancel_several(body: BulkCancellation, who: SignedIn, core: FromCore) -> dict[str, Any]:
    """Cancel many tasks: by id, or all that have not ended of a client or a parent."""
    if not (body.client_id or body.parent_id or body.task_ids):
        raise Invalid("one of client_id, parent_id and task_ids is needed", field="task_ids")
    done = await core.tasks.cancel_many(
        who, client_id=body.client_id, parent_id=body.parent_id, task_ids=body.task_ids, reason=body.reason
    )
    return {
        "cancelled": len(done.task_ids), "failed": len(done.refused), "task_ids": done.task_ids,
        "errors": [{"task_id": name, **refused(error)} for name, error in done.refused.items()],
        "has_more": done.more, "reason": body.reason,
    }  # fmt: skip


@router.get("")
async def list_tasks(
    who: SignedIn, core: FromCore, client_id: Word = "",
    status: Annotated[str, Query(max_length=200, description="Only those in one of these, as `PENDING,RUNNING`")] = "",
    task_type: Word = "",
    capability: Annotated[str, Query(max_length=200, description="Only those that need this capability")] = "",
    agent_id: Annotated[str, Query(max_length=200, description="Only those that this agent has, or had last")] = "",
    parent_id: Annotated[str, Query(max_length=200, description="Only those of this chain, schedule or task")] = "",
    priority: Annotated[int | None, Query(ge=1, le=10)] = None,
    created_after: datetime | None = None, created_before: datetime | None = None,
    sort: Annotated[Literal["asc", "desc"], Query(description="By creation; `desc` is newest first")] = "desc",
    cursor: Annotated[str, Query(max_length=300, description="`next_cursor` of the page before")] = "",
    limit: Limit50 = 50, offset: Offset = 0,
) -> dict[str, Any]:  # fmt: skip
    """Tasks, newest first.

    Filters by client and status are answered from an index. Others look through at most 1000 tasks a page, which says
    how many in `scanned`; with `has_more` a page may be short, and `next_cursor` goes on.
    """
    if cursor and offset:
        raise Invalid("a cursor and an offset exclude each other", field="offset")
    wanted = Filter(
        client_id=client_id, states=states_of(status), task_type=task_type, capability=capability, agent_id=agent_id,
        parent_id=parent_id, priority=priority, created_after=aware(created_after),
        created_before=aware(created_before),
    )  # fmt: skip
    newest = sort == "desc"
    found = await core.tasks.page(who, wanted, newest_first=newest, cursor=cursor, offset=offset, limit=limit)
    return listed(found, limit, offset, cursor)


@router.get("/{task_id}")
async def get_task(
    task_id: str, request: Request, who: SignedIn, core: FromCore,
    wait: Annotated[int, Query(ge=0, le=LONGEST_SECONDS, description="Seconds to wait for its end")] = 0,
) -> dict[str, Any]:  # fmt: skip
    """A task in full."""
    task = await core.tasks.get(who, task_id)
    if wait and task.state not in FINAL:
        gone = asyncio.Event()
        async with core.waits.watched(request, gone.set):
            task = await core.waits.endings.until(
                task_id, core.waits.seconds(wait), lambda: core.tasks.get(who, task_id), gone
            )
    return shown(task)


@router.post("/{task_id}/cancel")
async def cancel(task_id: str, body: Cancellation, who: SignedIn, core: FromCore) -> dict[str, Any]:
    """Cancel a task that has not ended. What depends on it fails with the reason."""
    task = await core.tasks.cancel(who, task_id, body.reason)
    return {
        "task_id": task.task_id, "status": task.state, "cancelled_at": stamp(task.completed_at), "reason": task.reason
    }  # fmt: skip


@router.patch("/{task_id}/priority")
async def prioritise(task_id: str, body: NewPriority, who: SignedIn, core: FromCore) -> dict[str, Any]:
    """Move a waiting task in the queue."""
    task, before = await core.tasks.prioritise(who, task_id, body.priority)
    return {
        "task_id": task.task_id, "priority": task.priority, "previous_priority": before,
        "updated_at": iso(task.updated_at),
    }  # fmt: skip


@router.get("/{task_id}/dependencies")
async def dependencies(task_id: str, who: SignedIn, core: FromCore) -> dict[str, Any]:
    """What the task waits for."""
    found = await core.tasks.dependencies(who, task_id)
    return {
        "task_id": found.task_id, "depends_on": found.depends_on, "dependencies_status": found.states,
        "is_blocked": bool(found.blocking), "ready_to_run": found.ready, "blocking_tasks": found.blocking,
    }  # fmt: skip
