"""The events of the farm. An owner's events are those of its tasks and ranks; a client's own go to who owns it."""

from datetime import datetime
from typing import Any

from cluster.events import Event
from cluster.farm.model import Client, FarmTask, Rank, RankState, TaskState

NOUN = "farm"
CHANGED = {
    TaskState.PENDING: "farm.task_resumed",
    TaskState.RUNNING: "farm.task_resumed",
    TaskState.PAUSED: "farm.task_paused",
    TaskState.COMPLETED: "farm.task_completed",
    TaskState.FAILED: "farm.task_failed",
    TaskState.CANCELLED: "farm.task_cancelled",
}
STATUS = frozenset(CHANGED.values()) | {"farm.task_deleted"}  # what those who hold a rank of the task are told
ENDED = {
    RankState.COMPLETED: "farm.rank_completed",
    RankState.FAILED: "farm.rank_failed",
    RankState.LOST: "farm.rank_timeout",
    RankState.RELEASED: "farm.rank_released",
    RankState.CUT: "farm.rank_cut",
}
OUTCOMES = {RankState.COMPLETED: "COMPLETED", RankState.FAILED: "FAILED", RankState.LOST: "TIMEOUT"}  # for the ledger


def of_task(task: FarmTask, at: datetime, kind: str = "", **data: Any) -> Event:
    """A change of a task; by its state where `kind` does not say."""
    told = {
        "task_id": task.task_id, "type": task.order.type, "status": task.state, "round": task.round,
        "reason": task.reason,
    }  # fmt: skip
    kind = kind or CHANGED[task.state]
    return Event(kind=kind, subject=task.task_id, owner=task.owner, at=at, data=told | data)


def of_rank(rank: Rank, at: datetime, kind: str, **data: Any) -> Event:
    """Something about a rank and the client that has it."""
    told = {
        "task_id": rank.task_id, "rank_id": rank.rank_id, "round": rank.round, "rank": rank.rank,
        "attempt": rank.attempt, "client_id": rank.client_id, "agent_id": f"farm_{rank.client_id}",
    }  # fmt: skip
    return Event(kind=kind, subject=rank.task_id, owner=rank.owner, at=at, data=told | data)


def ended(task: FarmTask | None, rank: Rank, seconds: float, at: datetime) -> Event:
    """A rank has left its client's hands. The ledger reads those that have an outcome."""
    told: dict[str, Any] = {"error": rank.error}
    if rank.state in OUTCOMES:
        told |= {
            "outcome": OUTCOMES[rank.state], "execution_time_seconds": seconds,
            "timeout_seconds": task.order.timeout_seconds if task else 0,
        }  # fmt: skip
    return of_rank(rank, at, ENDED[rank.state], **told)


def of_client(client: Client, at: datetime, kind: str) -> Event:
    """Something about a client itself."""
    told = {"farm_client": client.client_id, "connection": client.connection, "desk": client.desk}
    return Event(kind=kind, subject=client.client_id, owner=client.owner, at=at, data=told)
