"""A schedule, and what became of each of its runs."""

from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar

from pydantic import Field

from cluster.routing.strategies import DEFAULT
from cluster.store import Index, Record
from cluster.workflows.model import Author, shelves

PREFIX = "sched_"
ACTIVE, PAUSED = "active", "paused"


class Schedule(Record):
    """A task, and when it is wanted. `next_run_at` is None while it is paused, and for a line that fires no more."""

    kind: ClassVar[str] = "schedule"
    indexes: ClassVar[tuple[Index, ...]] = (
        Index(
            "list",
            score=lambda s: s.created_at.timestamp(),
            parts=lambda s: shelves(s.author.owner, s.client_id, ACTIVE if s.active else PAUSED),
        ),
        Index("due", score=lambda s: s.next_run_at.timestamp(), parts=lambda s: [()] if s.next_run_at else []),
    )

    schedule_id: str
    author: Author
    client_id: str
    name: str
    description: str = ""
    cron_expression: str
    timezone: str
    task_type: str
    capability_required: str
    input_data: dict[str, Any] = {}
    priority: int = Field(5, ge=1, le=10)
    timeout_seconds: int = Field(300, ge=1, le=86_400)
    max_retries: int = Field(3, ge=0, le=10)
    routing_strategy: str = DEFAULT
    trust_min: float = Field(0.0, ge=0, le=1)
    heartbeat_seconds: int = Field(0, ge=0, le=86_400)
    metadata: dict[str, Any] = {}
    active: bool = True
    next_run_at: datetime | None = None  # UTC
    through: datetime | None = None  # the latest of its times that is dealt with: none before it comes again
    last_run_at: datetime | None = None
    last_task_id: str = ""
    runs_fired: int = 0
    runs_skipped: int = 0
    created_at: datetime
    updated_at: datetime


class Outcome(StrEnum):
    """What became of a run."""

    FIRED = "fired"
    SKIPPED = "skipped"


class Firing(Record):
    """One run of a schedule, by the clock or by hand: the task that it made, or why it made none."""

    kind: ClassVar[str] = "firing"
    indexes: ClassVar[tuple[Index, ...]] = (
        Index(
            "list",
            score=lambda f: f.created_at.timestamp(),
            parts=lambda f: [(f.schedule_id,), (f.schedule_id, f.outcome)],
        ),
    )

    firing_id: str
    schedule_id: str
    outcome: Outcome
    scheduled_for: datetime | None = None  # None for one by hand
    task_id: str = ""
    reason: str = ""
    created_at: datetime


def firing_id(schedule_id: str, at: datetime) -> str:
    """Follows from both, so that no time of a schedule has two outcomes."""
    return f"run_{schedule_id.removeprefix(PREFIX)}_{int(at.timestamp())}"


def task_id(schedule_id: str, at: datetime) -> str:
    """The task of a run; follows from both, so that no time of a schedule makes two."""
    return f"task_{schedule_id.removeprefix(PREFIX)}_{int(at.timestamp())}"
