"""A chain and its plan, as they are kept. Results stay with the tasks: a chain that moves on rewrites no data."""

from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from cluster.routing.strategies import DEFAULT
from cluster.store import Index, Record
from cluster.tasks.model import TaskState
from cluster.workflows.model import Author, shelves

PREFIX = "chain_"
MOST_STEPS = 100


class ChainState(StrEnum):
    """Where a chain is."""

    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


class Step(BaseModel):
    """One step as its author wants it. With `use_previous_output` its input has the last result beside its own data."""

    model_config = ConfigDict(frozen=True)

    name: str
    task_type: str
    capability_required: str
    input_data: dict[str, Any] = {}
    use_previous_output: bool = False
    priority: int = Field(5, ge=1, le=10)
    timeout_seconds: int = Field(300, ge=1, le=86_400)
    max_retries: int = Field(3, ge=0, le=10)
    routing_strategy: str = DEFAULT
    trust_min: float = Field(0.0, ge=0, le=1)
    heartbeat_seconds: int = Field(0, ge=0, le=86_400)
    metadata: dict[str, Any] = {}


class Begun(BaseModel):
    """A step that has a task. `state` is how the task ended, None before that."""

    model_config = ConfigDict(frozen=True)

    name: str
    task_id: str
    task_type: str
    capability: str
    state: TaskState | None = None
    error: str = ""
    begun_at: datetime
    completed_at: datetime | None = None


class Plan(Record):
    """The steps of a chain. Never changes, so moving the chain on does not write them again."""

    kind: ClassVar[str] = "chain_plan"

    chain_plan_id: str  # the chain's id
    steps: tuple[Step, ...]


class Chain(Record):
    """How far a chain has come: `begun` has one entry for each step up to the current one."""

    kind: ClassVar[str] = "chain"
    indexes: ClassVar[tuple[Index, ...]] = (
        Index(
            "list",
            score=lambda c: c.created_at.timestamp(),
            parts=lambda c: shelves(c.author.owner, c.client_id, c.state),
        ),
    )

    chain_id: str
    author: Author
    client_id: str
    name: str
    description: str = ""
    total_steps: int
    state: ChainState = ChainState.RUNNING
    begun: tuple[Begun, ...] = ()
    retries: int = 0
    reason: str = ""  # why it failed or was cancelled
    created_at: datetime
    updated_at: datetime
    completed_at: datetime | None = None

    @property
    def current(self) -> Begun:
        """The step that runs, or the last one that did."""
        return self.begun[-1]

    @property
    def current_step(self) -> int:
        """Its index."""
        return len(self.begun) - 1

    @property
    def completed_steps(self) -> int:
        """How many steps are done."""
        return sum(step.state is TaskState.COMPLETED for step in self.begun)


def task_id(chain_id: str, step: int, retries: int) -> str:
    """The task of a step follows from both, so that no keeper that is killed and comes again submits it twice."""
    return f"task_{chain_id.removeprefix(PREFIX)}_{step}_{retries}"
