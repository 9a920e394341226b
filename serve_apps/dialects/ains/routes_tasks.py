"""DukeNet AINS, task routes: parse, call the core, render. No rule lives here."""

import time
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query
from pydantic import BaseModel, Field

from cluster.clock import iso
from cluster.routing.strategies import DEFAULT
from cluster.tasks.model import Task, TaskState
from cluster.tasks.service import TaskSpec
from serve_apps.core import FromCore
from serve_apps.kit.auth import SignedIn

router = APIRouter(prefix="/ains/tasks")
MAX_BATCH = 100


class Submission(BaseModel):
    """A task as a client asks for it."""

    client_id: str = Field(min_length=1, max_length=200)
    task_type: str = Field(min_length=1, max_length=200)
    capability_required: str = Field(min_length=1, max_length=200)
    input_data: dict[str, Any]
    priority: int = Field(5, ge=1, le=10)
    timeout_seconds: int = Field(300, ge=1, le=3600)
    max_retries: int = Field(3, ge=0, le=10)
    depends_on: tuple[str, ...] = Field((), max_length=1000)
    routing_strategy: str = DEFAULT
    metadata: dict[str, Any] = {}

    def spec(self) -> TaskSpec:
        """In the core's words."""
        return TaskSpec(**dict(self))


class Batch(BaseModel):
    """Up to 100 tasks, taken all or none."""

    tasks: list[Submission] = Field(min_length=1, max_length=MAX_BATCH)


class Cancellation(BaseModel):
    """Why."""

    reason: str = Field("", max_length=2000)


class NewPriority(BaseModel):
    """Where in the queue."""

    priority: int = Field(ge=1, le=10)


class Report(BaseModel):
    """An agent's own report of a task that it had accepted with 202."""

    status: TaskState
    result_data: Any = None
    error: str = ""


def stamp(at: Any) -> str | None:
    """A time, or null."""
    return iso(at) if at is not None else None


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
        "metadata": task.metadata, "execution_time_seconds": task.execution_seconds,
        "created_at": iso(task.created_at), "assigned_at": stamp(task.assigned_at),
        "started_at": stamp(task.started_at), "completed_at": stamp(task.completed_at),
    }  # fmt: skip


@router.post("", status_code=201)
async def submit(body: Submission, who: SignedIn, core: FromCore) -> dict[str, Any]:
    """Submit a task."""
    [task] = await core.tasks.submit(who, [body.spec()])
    return submitted(task)


@router.post("/batch", status_code=201)
async def submit_batch(body: Batch, who: SignedIn, core: FromCore) -> dict[str, Any]:
    """Submit up to 100 tasks in one commit: all of them, or none."""
    begun = time.perf_counter()
    tasks = await core.tasks.submit(who, [item.spec() for item in body.tasks])
    return {
        "submitted": len(tasks), "failed": 0, "task_ids": [task.task_id for task in tasks],
        "submission_time_ms": round((time.perf_counter() - begun) * 1000, 3),
    }  # fmt: skip


@router.get("")
async def list_tasks(
    who: SignedIn,
    core: FromCore,
    client_id: str = "",
    status: TaskState | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 50,
    offset: Annotated[int, Query(ge=0)] = 0,
) -> dict[str, Any]:
    """Tasks, newest first."""
    page = await core.tasks.page(who, client_id=client_id, state=status, offset=offset, limit=limit)
    more = offset + len(page.items) < page.total
    return {
        "results": [shown(task) for task in page.items],
        "pagination": {
            "total": page.total, "limit": limit, "offset": offset, "has_more": more,
            "next_offset": offset + limit if more else None,
        },
    }  # fmt: skip


@router.get("/{task_id}")
async def get_task(task_id: str, who: SignedIn, core: FromCore) -> dict[str, Any]:
    """A task in full."""
    return shown(await core.tasks.get(who, task_id))


@router.post("/{task_id}/cancel")
async def cancel(task_id: str, body: Cancellation, who: SignedIn, core: FromCore) -> dict[str, Any]:
    """Cancel a task that has not ended."""
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


@router.post("/{task_id}/result", responses={401: {}})
async def report(
    task_id: str, body: Report, core: FromCore, x_task_token: Annotated[str, Header()] = ""
) -> dict[str, Any]:
    """Report the result of a task that was accepted with 202; `X-Task-Token` is the delivery's `task_token`."""
    error = None if body.status is TaskState.COMPLETED else body.error or "the agent gave no reason"
    task = await core.tasks.report(task_id, x_task_token, result_data=body.result_data, error=error)
    return {"task_id": task.task_id, "status": task.state, "updated_at": iso(task.updated_at)}
