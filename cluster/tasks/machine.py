"""The life of a task, as a table. Pure: no clock, no store, no Ray.

PENDING -> ASSIGNED -> RUNNING -> COMPLETED
   ^          |           |----> FAILED, TIMEOUT   (or back to PENDING while retries are left)
   +----------+-----------+      an agent that does not answer gives the task back: RELEASE
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from cluster.errors import Conflict, Invalid, NotCancellable, StaleAttempt
from cluster.tasks.model import FINAL, Task, TaskState

MAX_BACKOFF_SECONDS = 60
MAX_TRY_SECONDS = 86_400


class TaskEvent(StrEnum):
    """What can happen to a task."""

    ASSIGN = "assign"
    START = "start"
    RELEASE = "release"
    FINISH = "finish"
    FAIL = "fail"
    EXPIRE = "expire"
    CANCEL = "cancel"
    AGREE = "agree"


S, E = TaskState, TaskEvent
NEXT: dict[tuple[TaskState, TaskEvent], TaskState] = {
    (S.PENDING, E.ASSIGN): S.ASSIGNED, (S.PENDING, E.CANCEL): S.CANCELLED,
    (S.PENDING, E.FAIL): S.FAILED, (S.PENDING, E.EXPIRE): S.TIMEOUT, (S.PENDING, E.AGREE): S.COMPLETED,
    (S.ASSIGNED, E.START): S.RUNNING, (S.ASSIGNED, E.RELEASE): S.PENDING, (S.ASSIGNED, E.EXPIRE): S.TIMEOUT,
    (S.ASSIGNED, E.CANCEL): S.CANCELLED, (S.ASSIGNED, E.FINISH): S.COMPLETED, (S.ASSIGNED, E.FAIL): S.FAILED,
    (S.RUNNING, E.RELEASE): S.PENDING, (S.RUNNING, E.FINISH): S.COMPLETED, (S.RUNNING, E.FAIL): S.FAILED,
    (S.RUNNING, E.EXPIRE): S.TIMEOUT, (S.RUNNING, E.CANCEL): S.CANCELLED,
}  # fmt: skip

# A task that no agent has, after one had it.
NOBODYS: dict[str, Any] = {
    "agent_id": "", "task_token": "", "accepted": False, "inbox": "", "pickup_by": None, "assigned_at": None,
    "started_at": None, "heartbeat_at": None, "progress": None, "progress_message": "",
}  # fmt: skip


def advance(task: Task, event: TaskEvent, at: datetime, **update: Any) -> Task:
    """The task after `event`, without retry rules. Raises `Conflict`, or `NotCancellable` for a cancel."""
    after = NEXT.get((task.state, event))
    if after is None:
        kind = NotCancellable if event is E.CANCEL else Conflict
        raise kind(f"cannot {event} a task that is {task.state}", task_id=task.task_id, status=task.state)
    update |= {"state": after, "updated_at": at}
    if after in FINAL:
        update |= {"completed_at": at, "deadline": None, "not_before": None, "waiting_for": (), "accepted": False}
    elif after is S.PENDING:
        update |= NOBODYS
    return task.model_copy(update=update)


def assign(
    task: Task, agent_id: str, task_token: str, at: datetime, *, inbox: str = "", pickup_seconds: float | None = None
) -> Task:
    """Give the task to an agent. The clock of a try starts at its first assignment, and no release stops it."""
    if not task.ready:
        raise Conflict("the task is not ready", task_id=task.task_id, status=task.state)
    return advance(
        task, E.ASSIGN, at, agent_id=agent_id, task_token=task_token, attempt=task.attempt + 1, assigned_at=at,
        deadline=task.deadline or at + timedelta(seconds=task.timeout_seconds), inbox=inbox,
        pickup_by=None if pickup_seconds is None else at + timedelta(seconds=pickup_seconds),
    )  # fmt: skip


def token(task: Task, chance: str) -> str:
    """The token of the task's next attempt. It says which: an old one is told from a wrong one."""
    return f"{task.attempt + 1}.{chance}"


def outdated(task: Task, token: str) -> bool:
    """Whether a token says that it is of an earlier attempt."""
    attempt = token.partition(".")[0]
    return attempt.isascii() and attempt.isdecimal() and len(attempt) < 10 and 0 < int(attempt) < task.attempt


def current(task: Task, attempt: int) -> Task:
    """The task, if `attempt` is the one that may report. Raises `StaleAttempt`."""
    if task.attempt != attempt or task.state in FINAL or task.state is S.PENDING:
        raise StaleAttempt("this attempt is no longer the current one", task_id=task.task_id, status=task.state)
    return task


def start(task: Task, attempt: int, at: datetime) -> Task:
    """The agent has the task. Repeating it changes nothing."""
    if current(task, attempt).state is S.RUNNING:
        return task
    return advance(task, E.START, at, started_at=at, heartbeat_at=at, pickup_by=None)


def accept(task: Task, attempt: int, at: datetime) -> Task:
    """The agent took the task and will report by itself."""
    return start(current(task, attempt), attempt, at).model_copy(update={"accepted": True})


def release(task: Task, attempt: int, at: datetime, *, suspect: bool = False) -> Task:
    """The agent did not answer: the task goes back to the queue and no retry is spent.

    `suspect`: it may be what its worker died of.
    """
    return advance(current(task, attempt), E.RELEASE, at, suspect=suspect or task.suspect)


def report(
    task: Task, attempt: int, at: datetime, *, progress: float | None = None, message: str = "", extend: float = 0.0
) -> Task:
    """A sign of life of the agent that runs the task. The deadline moves only by what `extend` asks, in seconds.

    Raises `Invalid` where an extension would keep the try longer than a day.
    """
    running = start(current(task, attempt), attempt, at)
    assert running.deadline is not None
    update: dict[str, Any] = {"heartbeat_at": at, "updated_at": at}
    if progress is not None:
        update |= {"progress": progress, "progress_message": message}
    if extend:
        if running.timeout_seconds + running.extended_seconds + extend > MAX_TRY_SECONDS:
            raise Invalid(
                f"a try lasts {MAX_TRY_SECONDS} s at most", field="extend_seconds",
                allowed_range=[0, MAX_TRY_SECONDS - running.timeout_seconds - running.extended_seconds],
            )  # fmt: skip
        update |= {
            "deadline": running.deadline + timedelta(seconds=extend),
            "extended_seconds": running.extended_seconds + extend,
        }
    return running.model_copy(update=update)


def finish(task: Task, attempt: int, result_data: Any, at: datetime) -> Task:
    """The agent's result."""
    return advance(start(task, attempt, at), E.FINISH, at, result_data=result_data, error="")


def fail(task: Task, attempt: int, error: str, at: datetime, jitter: float) -> Task:
    """The agent reported a failure: another try while retries are left. `jitter` is uniform in [0, 1)."""
    return _again(current(task, attempt), E.FAIL, error, at, jitter)


def lapse(task: Task, at: datetime, jitter: float) -> Task:
    """What time alone does to a task that is `due`; nothing before that, or to one that has ended.

    Not picked up: it goes back to the queue. Its agent silent for too long, or past its deadline: another try while
    retries are left. `jitter` is uniform in [0, 1).
    """
    if task.due is None or at < task.due:
        return task
    assert task.deadline is not None
    if at >= task.deadline:
        return _again(
            task, E.EXPIRE, f"no result within {task.timeout_seconds + task.extended_seconds:g} s", at, jitter
        )
    if task.state is S.ASSIGNED:
        return advance(task, E.RELEASE, at)
    return _again(task, E.EXPIRE, f"no heartbeat within {task.heartbeat_seconds} s", at, jitter)


def orphaned(task: Task, inbox: str, together: int, at: datetime, jitter: float) -> Task:
    """The worker behind `inbox` ended with `together` tasks in hand.

    With one, that was it: it failed. With several nobody knows: they go back and are tried alone.
    """
    if task.inbox != inbox or task.state is not S.RUNNING:
        return task
    if together == 1:
        return _again(task, E.FAIL, "the worker ended while it ran the task", at, jitter)
    return release(task, task.attempt, at, suspect=True)


def _again(task: Task, event: TaskEvent, error: str, at: datetime, jitter: float) -> Task:
    ended = advance(task, event, at, error=error)
    if task.retry_count >= task.max_retries:
        return ended
    again = {
        "state": S.PENDING, "retry_count": task.retry_count + 1, "error": error, "updated_at": at, "deadline": None,
        "extended_seconds": 0.0, "not_before": at + timedelta(seconds=backoff_seconds(task.retry_count, jitter)),
    }  # fmt: skip
    return task.model_copy(update=NOBODYS | again)


def backoff_seconds(retries: int, jitter: float) -> float:
    """`min(2^n, 60)` s, of which up to a half is jitter, so that many that failed together return apart."""
    return min(2.0 ** min(retries, 10), MAX_BACKOFF_SECONDS) * (0.5 + 0.5 * jitter)


def wake(task: Task, at: datetime) -> Task:
    """The wait before a retry is over."""
    if task.not_before is None or at < task.not_before:
        return task
    return task.model_copy(update={"not_before": None, "updated_at": at})


def resolve(task: Task, dependencies: Mapping[str, TaskState], at: datetime) -> Task:
    """What its dependencies' states mean for a waiting task: still waiting, ready, or failed with them."""
    if task.state is not S.PENDING or not task.waiting_for:
        return task
    for dependency, state in dependencies.items():
        if dependency in task.waiting_for and state in FINAL and state is not S.COMPLETED:
            reason = f"dependency {dependency} is {state}"
            return advance(task, E.FAIL, at, error=reason, reason=reason)
    left = tuple(name for name in task.waiting_for if dependencies.get(name) is not S.COMPLETED)
    if left == task.waiting_for:
        return task
    return task.model_copy(update={"waiting_for": left, "updated_at": at})


def cancel(task: Task, reason: str, at: datetime) -> Task:
    """Raises `NotCancellable` once the task has ended."""
    return advance(task, E.CANCEL, at, reason=reason)


def prioritise(task: Task, priority: int, at: datetime) -> Task:
    """Only what waits can move in the queue. Raises `Conflict`."""
    if task.state is not S.PENDING:
        raise Conflict(f"the priority of a task that is {task.state} has no effect", task_id=task.task_id)
    return task.model_copy(update={"priority": priority, "updated_at": at})
