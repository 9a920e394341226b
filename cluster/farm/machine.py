"""The life of a farm task and of a rank, as two tables. Pure: no clock, no store.

task  pending -> running <-> paused        rank  open -> held -> completed
         |          |-> completed                 ^       |---> failed, lost, released --> open, or dead
         +----------+-> failed, cancelled         +-------------------------------+
                                                 held --> cut, when the round goes on without it
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from cluster.errors import Conflict
from cluster.farm.model import FINAL, FarmTask, Rank, RankState, Round, TaskState

MAX_LOSSES = 20  # a rank that this many clients vanished with is one that makes them vanish
KEPT_AVERAGES = 3
KEPT_ROUNDS = 100


class TaskEvent(StrEnum):
    """What can happen to a task."""

    BEGIN = "begin"
    PAUSE = "pause"
    RESUME = "resume"
    CANCEL = "cancel"
    COMPLETE = "complete"
    FAIL = "fail"


class RankEvent(StrEnum):
    """What can happen to a rank."""

    ASSIGN = "assign"
    COMPLETE = "complete"
    FAIL = "fail"
    LOSE = "lose"
    RELEASE = "release"
    CUT = "cut"
    REOPEN = "reopen"
    DROP = "drop"


T, TE, R, RE = TaskState, TaskEvent, RankState, RankEvent
TASK: dict[tuple[TaskState, TaskEvent], TaskState] = {
    (T.PENDING, TE.BEGIN): T.RUNNING, (T.PENDING, TE.PAUSE): T.PAUSED, (T.PENDING, TE.CANCEL): T.CANCELLED,
    (T.RUNNING, TE.PAUSE): T.PAUSED, (T.RUNNING, TE.CANCEL): T.CANCELLED, (T.RUNNING, TE.COMPLETE): T.COMPLETED,
    (T.RUNNING, TE.FAIL): T.FAILED, (T.PAUSED, TE.RESUME): T.RUNNING, (T.PAUSED, TE.CANCEL): T.CANCELLED,
    (T.PAUSED, TE.FAIL): T.FAILED,
}  # fmt: skip
RANK: dict[tuple[RankState, RankEvent], RankState] = {
    (R.OPEN, RE.ASSIGN): R.HELD, (R.HELD, RE.COMPLETE): R.COMPLETED, (R.HELD, RE.FAIL): R.FAILED,
    (R.HELD, RE.LOSE): R.LOST, (R.HELD, RE.RELEASE): R.RELEASED, (R.HELD, RE.CUT): R.CUT,
    (R.FAILED, RE.REOPEN): R.OPEN, (R.LOST, RE.REOPEN): R.OPEN, (R.RELEASED, RE.REOPEN): R.OPEN,
    (R.FAILED, RE.DROP): R.DEAD, (R.LOST, RE.DROP): R.DEAD,
}  # fmt: skip
ENDED = (R.FAILED, R.LOST, R.RELEASED)  # what the keeper decides about


def advance(task: FarmTask, event: TaskEvent, at: datetime, **update: Any) -> FarmTask:
    """The task after `event`. Raises `Conflict`."""
    after = TASK.get((task.state, event))
    if after is None or task.deleted:
        raise Conflict(f"cannot {event} a task that is {task.state}", task_id=task.task_id, status=task.state)
    update |= {"state": after, "updated_at": at}
    if after in FINAL:
        # Clients may hold ranks of it: the keeper takes them back, one commit each.
        update |= {"completed_at": at, "tidy": False, "cut_at": None}
    return task.model_copy(update=update)


def move(rank: Rank, event: RankEvent, **update: Any) -> Rank:
    """The rank after `event`. Raises `Conflict`."""
    after = RANK.get((rank.state, event))
    if after is None:
        raise Conflict(f"cannot {event} a rank that is {rank.state}", rank_id=rank.rank_id, status=rank.state)
    return rank.model_copy(update=update | {"state": after})


# ---- what an owner does


def pause(task: FarmTask, reason: str, at: datetime) -> FarmTask:
    """No rank is handed out and no clock of it runs. Pausing it again changes nothing."""
    if task.state is T.PAUSED:
        return task
    return advance(task, TE.PAUSE, at, paused_at=at, reason=reason)


def resume(task: FarmTask, reason: str, at: datetime) -> FarmTask:
    """Go on. A task that is running, or waits for its first client, stays as it is."""
    if task.state in (T.RUNNING, T.PENDING):
        return task
    told = advance(task, TE.RESUME, at, reason=reason, paused_seconds=paused_seconds(task, at), paused_at=None)
    if told.started_at is None:
        told = told.model_copy(update={"state": T.PENDING})
    if task.cut_at is not None and task.paused_at is not None:
        told = told.model_copy(update={"cut_at": task.cut_at + (at - task.paused_at)})
    return told


def cancel(task: FarmTask, reason: str, at: datetime) -> FarmTask:
    """Stop it for good. Cancelling it again changes nothing."""
    return task if task.state is T.CANCELLED else advance(task, TE.CANCEL, at, reason=reason)


def deleted(task: FarmTask, at: datetime) -> FarmTask:
    """Out of sight, and stopped if it runs."""
    ended = task if task.state in FINAL else cancel(task, "deleted", at)
    return ended.model_copy(update={"deleted": True, "tidy": False, "updated_at": at})


# ---- time


def paused_seconds(task: FarmTask, at: datetime) -> float:
    """For how long the task has been paused so far."""
    now = max(0.0, (at - task.paused_at).total_seconds()) if task.paused_at else 0.0
    return task.paused_seconds + now


def worked_seconds(task: FarmTask, rank: Rank, at: datetime) -> float:
    """For how long the rank has been with its client, without pauses."""
    paused = paused_seconds(task, at) - rank.paused_before
    return max(0.0, (at - rank.assigned_at).total_seconds() - paused)


def deadline(task: FarmTask, rank: Rank, at: datetime) -> datetime:
    """When the rank's time is up, as far as is known now."""
    paused = paused_seconds(task, at) - rank.paused_before
    return rank.assigned_at + timedelta(seconds=task.order.timeout_seconds + paused)


# ---- handing out


def next_rank(task: FarmTask) -> int | None:
    """The rank that is handed out next: one that came back goes first."""
    if not task.has_work:
        return None
    return task.open_ranks[0] if task.open_ranks else task.handed


def handed_out(task: FarmTask, number: int, at: datetime) -> FarmTask:
    """The task once the rank `number`, its `next_rank`, is with a client."""
    left = tuple(rank for rank in task.open_ranks if rank != number)
    task = task.model_copy(update={"open_ranks": left, "handed": max(task.handed, number + 1)})
    return advance(task, TE.BEGIN, at, started_at=at) if task.state is T.PENDING else task


# ---- ending rounds


@dataclass(frozen=True)
class Fates:
    """What becomes of ranks that ended without a result."""

    reopened: tuple[Rank, ...] = ()
    dropped: tuple[Rank, ...] = ()


def exhausted(rank: Rank, max_retries: int) -> bool:
    """Whether nobody else shall try."""
    return rank.failures > max_retries or rank.losses >= MAX_LOSSES


def fates(task: FarmTask, ranks: Iterable[Rank]) -> Fates:
    """Each rank that ended without a result is handed on, or given up."""
    ended = [rank for rank in ranks if rank.state in ENDED]
    gone = [rank.state is not R.RELEASED and exhausted(rank, task.order.max_retries) for rank in ended]
    return Fates(
        tuple(move(rank, RE.REOPEN) for rank, dead in zip(ended, gone, strict=True) if not dead),
        tuple(move(rank, RE.DROP) for rank, dead in zip(ended, gone, strict=True) if dead),
    )


class Verdict(StrEnum):
    """What is to be done with a round."""

    WAIT = "wait"
    CLOSE = "close"
    FAIL = "fail"


def verdict(task: FarmTask, completed: int, dead: int, at: datetime) -> Verdict:
    """Whether the round is over. Late and dead ranks may be left out only where the owner named `straggler_seconds`."""
    lenient = task.order.straggler_seconds is not None
    if dead and (not lenient or task.order.n_clients - dead < task.order.enough):
        return Verdict.FAIL
    if completed and completed + dead == task.order.n_clients:
        return Verdict.CLOSE
    late = task.cut_at is not None and at >= task.cut_at
    return Verdict.CLOSE if late and completed >= task.order.enough else Verdict.WAIT


def cut_from(task: FarmTask, first_completed: datetime) -> FarmTask:
    """The clock for stragglers runs from the round's first result on."""
    if task.order.straggler_seconds is None or task.cut_at is not None:
        return task
    return task.model_copy(update={"cut_at": first_completed + timedelta(seconds=task.order.straggler_seconds)})


def closed(task: FarmTask, ended: Round, metrics: dict[str, Any], at: datetime) -> FarmTask:
    """The task after its round: the next one begins, or it is completed."""
    kept = (*task.averages, task.round + 1)[-KEPT_AVERAGES:] if ended.aggregated else task.averages
    update: dict[str, Any] = {
        "averages": kept, "history": (*task.history, ended)[-KEPT_ROUNDS:], "metrics": metrics or task.metrics,
        "aggregated": ended.aggregated, "cut_at": None, "open_ranks": (),
    }  # fmt: skip
    if task.round + 1 >= task.order.rounds:
        return advance(task, TE.COMPLETE, at, handed=task.order.n_clients, **update)
    return task.model_copy(update=update | {"round": task.round + 1, "handed": 0, "updated_at": at})


# ---- what is told of a task


def progress(task: FarmTask, completed: int, held: Iterable[float]) -> float:
    """Percent: the mean over ranks and rounds."""
    if task.state is T.COMPLETED:
        return 100.0
    n = task.order.n_clients
    here = min(100.0, (100.0 * completed + sum(held)) / n)
    return round((100.0 * task.round + here) / task.order.rounds, 4)


def mean_metrics(ranks: Sequence[Rank]) -> dict[str, Any]:
    """What one rank said; of several the means of the numbers, weighed by samples where all told them."""
    told = [rank for rank in ranks if rank.metrics]
    if len(told) == 1:
        return dict(told[0].metrics)
    weights = [float(rank.samples or 0) for rank in told]
    if not all(weights):
        weights = [1.0] * len(told)
    means: dict[str, Any] = {}
    for name in dict.fromkeys(name for rank in told for name in rank.metrics):
        pairs = [(r.metrics[name], w) for r, w in zip(told, weights, strict=True) if _is_number(r.metrics.get(name))]
        if pairs:
            means[name] = sum(value * weight for value, weight in pairs) / sum(weight for _, weight in pairs)
    return means


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def begins_with(task: FarmTask, round_: int | None = None) -> int | None:
    """Which average a round begins with (None: the newest one); None where there is none yet, or it is not kept."""
    good = [average for average in task.averages if round_ is None or average <= round_]
    return max(good, default=None)
