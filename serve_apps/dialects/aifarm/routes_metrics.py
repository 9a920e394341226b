"""AI Farm, metrics: counts, and means over what clients told last."""

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from cluster.clock import iso
from cluster.farm.service import usage
from serve_apps.core import FromCore
from serve_apps.kit.auth import SignedIn

router = APIRouter(prefix="/api/metrics")


class ClientCounts(BaseModel):
    """Active: heard of within 60 s."""

    total: int
    active: int


class TaskCounts(BaseModel):
    """By state."""

    total: int
    pending: int
    running: int
    paused: int
    completed: int
    failed: int
    cancelled: int


class Usage(BaseModel):
    """Means in percent over the clients' last heartbeats; null where none told."""

    cpu_usage: float | None
    ram_usage: float | None
    gpu_usage: float | None


class FarmMetrics(BaseModel):
    """Of the caller's tasks and clients, for an admin of all."""

    clients: ClientCounts
    tasks: TaskCounts
    resources: Usage
    timestamp: str


class TaskMetrics(BaseModel):
    """Of one task; `resources` of the clients that hold a rank of it now."""

    progress: float
    metrics: dict[str, Any]
    resources: Usage
    timestamp: str


@router.get("")
async def farm_metrics(who: SignedIn, core: FromCore) -> FarmMetrics:
    """How many clients and tasks there are, and how busy the active clients are."""
    active = await core.farm.fleet.active(who)
    return FarmMetrics(
        clients=ClientCounts(total=await core.farm.fleet.total(who), active=len(active)),
        tasks=TaskCounts(**await core.farm.counts(who)), resources=Usage(**usage(active)),
        timestamp=iso(core.clock()),
    )  # fmt: skip


@router.get("/tasks/{task_id}")
async def task_metrics(task_id: str, who: SignedIn, core: FromCore) -> TaskMetrics:
    """How a task goes: the mean of what its ranks told last."""
    view = await core.farm.view(who, task_id)
    return TaskMetrics(
        progress=view.progress, metrics=view.metrics, resources=Usage(**usage(await core.farm.working_on(view))),
        timestamp=iso(core.clock()),
    )  # fmt: skip
