"""A client and the one rank that it may hold: lease, result, and what is remembered of it. Pure."""

from datetime import datetime, timedelta
from typing import Any

from cluster.events import Event
from cluster.farm import events, machine
from cluster.farm.machine import RankEvent
from cluster.farm.model import Client, FarmTask, Past, Rank, RankState

KEPT_PASTS = 20
OVER = frozenset({RankState.COMPLETED, RankState.FAILED, RankState.RELEASED})  # ended by the client's own word


def heard(client: Client, at: datetime, lease: timedelta, **update: Any) -> Client:
    """The client has spoken: the lease on what it holds begins anew."""
    until = at + lease if client.holds else None
    return client.model_copy(update=update | {"last_seen": at, "lease_until": until})


def given(client: Client, rank: Rank, at: datetime, lease: timedelta) -> Client:
    """The client with a rank in its hands."""
    return client.model_copy(update={"waiting_since": None, "holds": rank.rank_id, "lease_until": at + lease})


def let_go(client: Client, rank: Rank, seconds: float) -> Client:
    """The client after `rank` has ended, as it ended."""
    past = Past(
        task_id=rank.task_id, round=rank.round, rank=rank.rank, attempt=rank.attempt, state=rank.state,
        progress=rank.progress,
    )  # fmt: skip
    good, bad = rank.state is RankState.COMPLETED, rank.state in (RankState.FAILED, RankState.LOST)
    return client.model_copy(
        update={
            "holds": "", "lease_until": None, "recent": (*client.recent, past)[-KEPT_PASTS:],
            "completed": client.completed + good, "failed": client.failed + bad,
            "busy_seconds": client.busy_seconds + (seconds if good else 0.0),
        }
    )  # fmt: skip


def ended(
    task: FarmTask | None, rank: Rank, client: Client | None, event: RankEvent, at: datetime, **update: Any
) -> tuple[Rank, Client | None, Event]:
    """The rank and its client after `event`, which takes it out of the client's hands, and what is told of it."""
    seconds = machine.worked_seconds(task, rank, at) if task else 0.0
    if event is RankEvent.FAIL:
        update["failures"] = rank.failures + 1
    after = machine.move(rank, event, ended_at=at, **update)
    free = let_go(client, after, seconds) if client is not None and client.holds == rank.rank_id else client
    return after, free, events.ended(task, after, seconds, at)


def taken(
    task: FarmTask | None, rank: Rank, client: Client | None, at: datetime, reason: str, late: bool = False
) -> tuple[Rank, Client | None, Event]:
    """`ended`, without the client's word: its lease is over, or it is too `late`, which spends a retry."""
    if task is None or not task.live or task.round != rank.round:
        return ended(task, rank, client, RankEvent.CUT, at, error="its task or its round has ended")
    update = {"error": reason, "losses": rank.losses + (not late), "failures": rank.failures + late}
    return ended(task, rank, client, RankEvent.LOSE, at, **update)


def belongs(client: Client, rank: Rank | None, task: FarmTask | None) -> bool:
    """Whether the client holds the rank, and the task still wants it."""
    return (
        rank is not None and task is not None and task.live and rank.round == task.round
        and rank.state is RankState.HELD and rank.client_id == client.client_id and client.holds == rank.rank_id
    )  # fmt: skip


def why_not(client: Client, task_id: str, round_: int | None, attempt: int | None) -> str:
    """Why a word about a task is not taken: it was said before, it is too late, or it was never this client's."""
    for past in reversed(client.recent):
        if past.task_id == task_id and round_ in (None, past.round) and attempt in (None, past.attempt):
            return "duplicate" if past.state in OVER else "stale"
    return "not_assigned"
