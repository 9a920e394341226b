"""A training run: its record and its life, as a table. Pure: no clock, no store, no Ray."""

from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar

from pydantic import Field

from cluster.errors import Conflict
from cluster.store import Index, Record


class RunState(StrEnum):
    """Where a run is."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class RunEvent(StrEnum):
    """What can happen to a run."""

    START = "start"  # a worker began, or began again after a crash
    RETRY = "retry"  # its job is gone: it waits for another one
    COMPLETE = "complete"
    FAIL = "fail"
    CANCEL = "cancel"


S, E = RunState, RunEvent
FINAL = frozenset({S.COMPLETED, S.FAILED, S.CANCELLED})
NEXT: dict[tuple[RunState, RunEvent], RunState] = {
    (S.PENDING, E.START): S.RUNNING, (S.PENDING, E.RETRY): S.PENDING, (S.PENDING, E.FAIL): S.FAILED,
    (S.PENDING, E.CANCEL): S.CANCELLED, (S.PENDING, E.COMPLETE): S.COMPLETED,
    (S.RUNNING, E.START): S.RUNNING, (S.RUNNING, E.RETRY): S.PENDING, (S.RUNNING, E.FAIL): S.FAILED,
    (S.RUNNING, E.CANCEL): S.CANCELLED, (S.RUNNING, E.COMPLETE): S.COMPLETED,
}  # fmt: skip


def _sets(run: "Run") -> list[tuple[str, ...]]:
    return [(scope, state) for scope in ("all", run.owner) for state in ("any", run.state)]


class Run(Record):
    """One training of one phase. Its id begins with `task_`: the API calls a run a task."""

    kind: ClassVar[str] = "run"
    indexes: ClassVar[tuple[Index, ...]] = (
        Index("created", lambda run: run.created_at.timestamp(), _sets),
        Index(
            "unfinished",
            lambda run: run.created_at.timestamp(),
            lambda run: [] if run.state in FINAL else [()],
        ),
    )

    run_id: str
    owner: str
    phase: str
    config: dict[str, Any]  # the phase's configuration, resolved
    model_id: str  # decided before the run begins, so that no retry makes a second model
    model_name: str
    public: bool = False  # everybody may use the model
    state: RunState = RunState.PENDING
    attempt: int = Field(default=1, ge=1)  # fencing number: a worker of another attempt may not report
    max_attempts: int = Field(default=3, ge=1)
    step: int = 0
    total_steps: int
    metrics: dict[str, float] = {}
    remaining_seconds: float | None = None  # at the measured rate
    error: str = ""
    traceparent: str = ""  # of the request that started it, where requests are traced
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None

    @property
    def progress(self) -> float:
        """0 to 1: the share of steps done; 1 only for a completed run."""
        if self.state is RunState.COMPLETED:
            return 1.0
        return min(self.step / self.total_steps, 0.999)

    @property
    def job_id(self) -> str:
        """The job of the current attempt."""
        return f"{self.run_id}-{self.attempt}"


def advance(run: Run, event: RunEvent, at: datetime, **update: Any) -> Run:
    """The run after `event`. Raises `Conflict`."""
    after = NEXT.get((run.state, event))
    if after is None:
        raise Conflict(f"cannot {event} a run that is {run.state}", run_id=run.run_id, status=run.state)
    update |= {"state": after, "updated_at": at}
    if event is E.START and run.started_at is None:
        update["started_at"] = at
    if event is E.RETRY:
        update["attempt"] = run.attempt + 1
    if after in FINAL:
        update |= {"ended_at": at, "remaining_seconds": None}
    return run.model_copy(update=update)


def lost(run: Run, at: datetime, why: str) -> Run:
    """The run after its job ended without finishing it: another attempt, or failure when there were enough."""
    event = E.RETRY if run.attempt < run.max_attempts else E.FAIL
    return advance(run, event, at, error=why)
