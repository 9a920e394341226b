"""A task: one piece of work that a worker may be given."""

from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar

from pydantic import Field

from cluster.store import Index, Record


class TaskState(StrEnum):
    """Where a task is; the words are those of AINS."""

    PENDING = "PENDING"
    ASSIGNED = "ASSIGNED"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMEOUT = "TIMEOUT"


FINAL = frozenset({TaskState.COMPLETED, TaskState.FAILED, TaskState.CANCELLED, TaskState.TIMEOUT})
HELD = frozenset({TaskState.ASSIGNED, TaskState.RUNNING})
PRIORITY_STEP = 1e13  # more milliseconds than any queue lasts, so priority sorts before age


def _when(task: "Task") -> float:
    return task.created_at.timestamp()


def _lists(task: "Task") -> Iterable[tuple[str, ...]]:
    yield ("all",)
    yield ("all", task.state)
    yield ("owner", task.owner)
    yield ("owner", task.owner, task.state)
    yield ("client", task.client_id)
    yield ("client", task.client_id, task.state)


def _queue_place(task: "Task") -> float:
    return -task.priority * PRIORITY_STEP + task.created_at.timestamp() * 1000


def _ready(task: "Task") -> Iterable[tuple[str, ...]]:
    if task.state is TaskState.PENDING and not task.waiting_for and task.not_before is None:
        yield (task.capability_required,)


class Task(Record):
    """Immutable: a change is a new `Task`, which `machine.advance` returns and the store commits."""

    kind: ClassVar[str] = "task"
    indexes: ClassVar[tuple[Index, ...]] = (
        Index("list", score=_when, parts=_lists),
        Index("ready", score=_queue_place, parts=_ready),
        Index("delayed", score=lambda t: t.not_before.timestamp(), parts=lambda t: [()] if t.not_before else []),
        Index("deadline", score=lambda t: t.deadline.timestamp(), parts=lambda t: [()] if t.deadline else []),
        Index("held", score=_when, parts=lambda t: [(t.agent_id,)] if t.state in HELD else []),
        Index("waiting", score=_when, parts=lambda t: [()] if t.waiting_for else []),
        Index("dependents", score=_when, parts=lambda t: [(dependency,) for dependency in t.waiting_for]),
    )

    task_id: str
    owner: str  # who may see it: see identity.Principal.owner
    client_id: str
    task_type: str
    capability_required: str
    input_data: dict[str, Any] = {}
    priority: int = Field(5, ge=1, le=10)
    timeout_seconds: int = Field(300, ge=1, le=86_400)
    max_retries: int = Field(3, ge=0, le=10)
    depends_on: tuple[str, ...] = ()
    waiting_for: tuple[str, ...] = ()  # dependencies that have not completed
    routing_strategy: str = "round_robin"
    metadata: dict[str, Any] = {}
    state: TaskState = TaskState.PENDING
    attempt: int = Field(0, ge=0)  # fencing: grows with each assignment, and only the current one may report
    retry_count: int = Field(0, ge=0)  # failures and time-outs that were followed by another try
    agent_id: str = ""
    task_token: str = ""  # lets the agent of the current attempt report its result
    accepted: bool = False  # the agent answered 202 and will report by itself
    not_before: datetime | None = None  # a retry waits until then
    deadline: datetime | None = None  # of the current try, across agents that did not answer
    result_data: Any = None
    error: str = ""
    traceparent: str = ""  # of the request that submitted it, where requests are traced
    reason: str = ""  # why it was cancelled, or failed without running
    created_at: datetime
    updated_at: datetime
    assigned_at: datetime | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None

    @property
    def execution_seconds(self) -> float | None:
        """From start to end; None while there is no end, or if it never started."""
        if self.started_at is None or self.completed_at is None:
            return None
        return (self.completed_at - self.started_at).total_seconds()

    @property
    def attempt_id(self) -> str:
        """Names one delivery of the task."""
        return f"{self.task_id}.{self.attempt}"
