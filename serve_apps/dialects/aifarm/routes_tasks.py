"""AI Farm, tasks: order, look, pause, resume, stop, remove."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from cluster.clock import iso
from cluster.farm.model import FarmTask, Rank, TaskState
from cluster.farm.order import Order
from cluster.farm.service import View, Wish
from serve_apps.core import FromCore
from serve_apps.dialects.aifarm import pages
from serve_apps.kit.auth import SignedIn

router = APIRouter(prefix="/api/tasks")

APART = {"type", "requirements"}  # of an order: what the document shows beside `config`


class Ordered(BaseModel):
    """A task that has been taken."""

    id: str
    status: str
    created_at: str


class Glance(BaseModel):
    """A task in a list. `progress` in percent, the mean over ranks and rounds."""

    id: str
    type: str
    status: str
    progress: float
    created_at: str
    updated_at: str


class TaskList(BaseModel):
    """A page of tasks, newest first."""

    tasks: list[Glance]
    total: int
    page: int


class RankAnswer(BaseModel):
    """A rank of this round, from the moment that it was first handed out."""

    rank: int
    status: str
    client_id: str
    attempt: int
    progress: float
    samples: int | None
    uploaded: bool
    refused: str  # why its checkpoint is not in the average
    error: str


class RoundAnswer(BaseModel):
    """How a round ended; `aggregated` false: nobody had uploaded a checkpoint that fits."""

    round: int
    completed: int
    left_out: int
    samples: int | None
    aggregated: bool
    refused: dict[str, str]
    ended_at: str


class TaskAnswer(Glance):
    """A task in full. `round` counts from 0; `checkpoint` is where its newest average is."""

    metrics: dict[str, Any]
    config: dict[str, Any]
    requirements: dict[str, Any]
    round: int
    rounds: int
    n_clients: int
    ranks: list[RankAnswer]
    history: list[RoundAnswer]
    aggregated: bool | None
    checkpoint: str | None
    reason: str
    error: str
    started_at: str | None
    completed_at: str | None


class StatusRequest(BaseModel):
    """What shall become of the task; whoever works on it is told."""

    status: Wish
    reason: str = Field("", max_length=500)


class StatusAnswer(BaseModel):
    """The task's status now. `running` for a task that waits for its first client leaves it `pending`."""

    id: str
    status: str
    updated_at: str


def glance(view: View) -> dict[str, Any]:
    """The document's shape."""
    task = view.task
    return {
        "id": task.task_id, "type": task.order.type, "status": task.state.value, "progress": view.progress,
        "created_at": iso(task.created_at), "updated_at": iso(task.updated_at),
    }  # fmt: skip


def rank_answer(rank: Rank) -> RankAnswer:
    """Without its metrics, which the task's are the mean of."""
    return RankAnswer(
        rank=rank.rank, status=rank.state.value, client_id=rank.client_id, attempt=rank.attempt,
        progress=rank.progress, samples=rank.samples, uploaded=bool(rank.upload), refused=rank.refused,
        error=rank.error,
    )  # fmt: skip


def rounds(task: FarmTask) -> list[RoundAnswer]:
    """The last rounds, oldest first."""
    return [
        RoundAnswer(
            round=ended.round, completed=ended.completed, left_out=ended.left_out, samples=ended.samples,
            aggregated=ended.aggregated, refused={str(rank): why for rank, why in ended.refused.items()},
            ended_at=iso(ended.ended_at),
        )
        for ended in task.history
    ]  # fmt: skip


@router.get("", responses={200: {"headers": pages.HEADERS}})
async def list_tasks(
    who: SignedIn, core: FromCore, request: Request, response: Response, page: pages.Page = 1, limit: pages.Limit = 10,
    status: Annotated[TaskState | None, Query(description="Only those in this state")] = None,
    type: Annotated[  # the document's word
        str, Query(max_length=64, pattern=r"^[A-Za-z0-9._-]*$", description="Only those of this type")
    ] = "",
) -> TaskList:  # fmt: skip
    """Tasks, newest first."""
    offset = (page - 1) * limit
    views, total = await core.farm.page(who, state=status, type_=type, offset=offset, limit=limit)
    pages.say(request, response, page, limit, total)
    return TaskList(tasks=[Glance(**glance(view)) for view in views], total=total, page=page)


@router.post("", status_code=201)
async def order_task(body: Order, who: SignedIn, core: FromCore) -> Ordered:
    """Order a task: `n_clients` ranks, each for one client, `rounds` times."""
    task = await core.farm.order(who, body)
    return Ordered(id=task.task_id, status=task.state.value, created_at=iso(task.created_at))


@router.get("/{task_id}")
async def get_task(task_id: str, who: SignedIn, core: FromCore) -> TaskAnswer:
    """A task in full, with the ranks of its round."""
    view: View = await core.farm.view(who, task_id)
    task = view.task
    return TaskAnswer(
        **glance(view), metrics=view.metrics, config=task.order.model_dump(exclude=APART),
        requirements=task.order.requirements.model_dump(), round=task.round, rounds=task.order.rounds,
        n_clients=task.order.n_clients, ranks=[rank_answer(rank) for rank in view.ranks], history=rounds(task),
        aggregated=task.aggregated, checkpoint=f"/api/tasks/{task_id}/checkpoint" if task.averages else None,
        reason=task.reason, error=task.error, started_at=iso(task.started_at) if task.started_at else None,
        completed_at=iso(task.completed_at) if task.completed_at else None,
    )  # fmt: skip


@router.put("/{task_id}/status", responses={409: {}})
async def set_status(task_id: str, body: StatusRequest, who: SignedIn, core: FromCore) -> StatusAnswer:
    """Pause, resume or stop a task; the clients that work on it are told over their sockets."""
    task = await core.farm.set_status(who, task_id, body.status, body.reason)
    return StatusAnswer(id=task.task_id, status=task.state.value, updated_at=iso(task.updated_at))


@router.delete("/{task_id}", status_code=204)
async def delete_task(task_id: str, who: SignedIn, core: FromCore) -> None:
    """Stop a task and remove it, with its checkpoints."""
    await core.farm.delete(who, task_id)
