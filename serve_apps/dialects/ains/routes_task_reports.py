"""DukeNet AINS, what agents say of the tasks they have: their credential is the task's token, and no other."""

from typing import Annotated, Any

from fastapi import APIRouter, Header
from pydantic import BaseModel, Field

from cluster.clock import iso
from cluster.tasks.model import Task, TaskState
from serve_apps.core import Core, FromCore
from serve_apps.dialects.ains.fields import stamp

router = APIRouter(prefix="/ains/tasks/{task_id}")
Token = Annotated[str, Header()]
Metrics = dict[Annotated[str, Field(max_length=100)], float | int | bool | Annotated[str, Field(max_length=500)]]


class Report(BaseModel):
    """An agent's own report of a task that it had accepted with 202, or pulled."""

    status: TaskState
    result_data: Any = None
    error: str = ""


class Progress(BaseModel):
    """How far the agent is. `metrics` are told to those who follow the task's events, and not kept."""

    progress: float = Field(ge=0, le=100, allow_inf_nan=False, description="Per cent")
    message: str = Field("", max_length=500)
    metrics: Metrics = Field({}, max_length=50)


class Beat(BaseModel):
    """A sign of life. Nothing but `extend_seconds` moves the deadline, and that by so much."""

    extend_seconds: float = Field(0.0, ge=0, le=86_400, allow_inf_nan=False)


def told_by(path: str) -> str:
    """Under what a report without a principal counts against the limits: its own path; "" for any other request."""
    says = path.startswith("/ains/tasks/") and path.endswith(("/result", "/progress", "/heartbeat"))
    return f"token_{path}" if says else ""


def alive(task: Task) -> dict[str, Any]:
    """What an agent learns by a sign of life."""
    return {
        "task_id": task.task_id, "status": task.state, "deadline": stamp(task.deadline),
        "cancelled": task.state is TaskState.CANCELLED,
    }  # fmt: skip


async def heard(core: Core, task: Task) -> None:
    """Whoever reports is there."""
    if task.agent_id and core.workers:
        await core.workers.heard(task.agent_id)


@router.post("/result", responses={401: {}})
async def report(task_id: str, body: Report, core: FromCore, x_task_token: Token = "") -> dict[str, Any]:
    """Report the result of a task that was accepted or pulled; `X-Task-Token` is the delivery's `task_token`."""
    error = None if body.status is TaskState.COMPLETED else body.error or "the agent gave no reason"
    task = await core.tasks.report(task_id, x_task_token, result_data=body.result_data, error=error)
    await heard(core, task)
    return {"task_id": task.task_id, "status": task.state, "updated_at": iso(task.updated_at)}


@router.post("/progress", responses={401: {}})
async def task_progress(task_id: str, body: Progress, core: FromCore, x_task_token: Token = "") -> dict[str, Any]:
    """Say how far a task is. It does not move the deadline."""
    task = await core.tasks.progress(task_id, x_task_token, body.progress, body.message, body.metrics or None)
    await heard(core, task)
    return alive(task) | {"progress": task.progress}


@router.post("/heartbeat", responses={401: {}})
async def task_heartbeat(
    task_id: str, core: FromCore, body: Beat | None = None, x_task_token: Token = ""
) -> dict[str, Any]:  # fmt: skip
    """Say that a task is being worked on, ask for more time, and learn whether it was cancelled."""
    task = await core.tasks.heartbeat(task_id, x_task_token, body.extend_seconds if body else 0.0)
    await heard(core, task)
    return alive(task)
