"""A task: one piece of work that a worker may be given."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, ClassVar

from pydantic import Field

from cluster.store import Index, Record
from cluster.tasks.verification import Replication


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
AGEING_SECONDS = 300.0  # of waiting are worth one step of priority, so that nothing starves
MOST_PRIORITY = 10


def _when(task: "Task") -> float:
    return task.created_at.timestamp()


def _lists(task: "Task") -> Iterable[tuple[str, ...]]:
    yield ("all",)
    yield ("all", task.state)
    yield ("owner", task.owner)
    yield ("owner", task.owner, task.state)
    if task.owner != f"client_{task.client_id}":  # else the owner's lists are the client's
        yield ("client", task.client_id)
        yield ("client", task.client_id, task.state)


def place(priority: int, created_at: datetime) -> float:
    """Where a task stands in its queue, lower first: a time, since ageing is linear and moves all of them alike."""
    return created_at.timestamp() - priority * AGEING_SECONDS


def line(capability: str, share: str) -> tuple[str, str]:
    """Names the queue of one share for one capability; no two run together in a key."""
    return capability, share.replace("%", "%25").replace(":", "%3A")


def level(place: float, now: float) -> int:
    """The priority that a task of this place has come to by waiting until `now`."""
    return min(MOST_PRIORITY, int((now - place) // AGEING_SECONDS))


def _held(task: "Task") -> Iterable[tuple[str, ...]]:
    if task.state in HELD:
        yield (task.agent_id,)


def _inbox(task: "Task") -> Iterable[tuple[str, ...]]:
    if task.state in HELD and task.inbox:
        yield (task.inbox,)


class Task(Record):
    """Immutable: a change is a new `Task`, which `machine.advance` returns and the store commits."""

    kind: ClassVar[str] = "task"
    lean: ClassVar[bool] = True  # a queued task is 250 bytes instead of 830
    indexes: ClassVar[tuple[Index, ...]] = (
        Index("list", score=_when, parts=_lists),
        Index(
            "ready", score=lambda t: t.place, parts=lambda t: [line(t.capability_required, t.share)] if t.ready else []
        ),
        Index("delayed", score=lambda t: t.not_before.timestamp(), parts=lambda t: [()] if t.not_before else []),
        Index("deadline", score=lambda t: t.due.timestamp(), parts=lambda t: [()] if t.due else []),
        Index("held", score=_when, parts=_held),
        Index("inbox", score=lambda t: t.place, parts=_inbox),
        Index("parent", score=_when, parts=lambda t: [(t.parent_id,)] if t.parent_id else []),
        Index("waiting", score=_when, parts=lambda t: [()] if t.waiting_for else []),
        Index("dependents", score=_when, parts=lambda t: [(dependency,) for dependency in t.waiting_for]),
    )

    task_id: str
    owner: str  # who may see it: see identity.Principal.owner
    client_id: str
    share: str = ""  # who gets a fair share of the agents: the client, or the user where the client's name is a claim
    parent_id: str = ""  # the chain, schedule or verified task that it belongs to
    task_type: str
    capability_required: str
    input_data: dict[str, Any] = {}
    priority: int = Field(5, ge=1, le=10)
    timeout_seconds: int = Field(300, ge=1, le=86_400)
    max_retries: int = Field(3, ge=0, le=10)
    depends_on: tuple[str, ...] = ()
    waiting_for: tuple[str, ...] = ()  # dependencies that have not completed
    routing_strategy: str = "round_robin"
    trust_min: float = Field(0.0, ge=0, le=1)  # no agent below it gets the task
    excluded: tuple[str, ...] = ()  # agents that do not get it
    heartbeat_seconds: int = Field(0, ge=0, le=86_400)  # a running agent silent for longer has lost it; 0: no such rule
    verification: Replication | None = None  # then its replicas are routed, and the task itself is not
    metadata: dict[str, Any] = {}
    state: TaskState = TaskState.PENDING
    attempt: int = Field(0, ge=0)  # fencing: grows with each assignment, and only the current one may report
    retry_count: int = Field(0, ge=0)  # failures and time-outs that were followed by another try
    agent_id: str = ""
    task_token: str = ""  # lets the agent of the current attempt report its result
    accepted: bool = False  # the agent has it and will report by itself
    inbox: str = ""  # where an agent that pulls takes it from
    pickup_by: datetime | None = None  # and until when it has to
    suspect: bool = False  # a worker of the village died with it and others in hand: it is tried alone
    heartbeat_at: datetime | None = None
    progress: float | None = Field(None, ge=0, le=100)  # per cent, as the agent says
    progress_message: str = ""
    extended_seconds: float = 0.0  # what its agent was granted beyond the timeout, in this try
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
    def ready(self) -> bool:
        """Whether nothing but an agent is missing."""
        free = self.state is TaskState.PENDING and not self.waiting_for and self.not_before is None
        return free and self.verification is None

    @property
    def place(self) -> float:
        """See `place`."""
        return place(self.priority, self.created_at)

    @property
    def due(self) -> datetime | None:
        """When time alone changes it next: not picked up, silent, or past its deadline."""
        if self.state is TaskState.ASSIGNED and self.pickup_by and self.deadline:
            return min(self.pickup_by, self.deadline)
        if self.state is TaskState.RUNNING and self.heartbeat_seconds and self.heartbeat_at and self.deadline:
            return min(self.heartbeat_at + timedelta(seconds=self.heartbeat_seconds), self.deadline)
        return self.deadline

    @property
    def attempt_id(self) -> str:
        """Names one delivery of the task."""
        return f"{self.task_id}.{self.attempt}"
