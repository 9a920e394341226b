"""A training run: its stages, its record and its life, as a table. Pure: no clock, no store, no Ray."""

from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

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
    RESUME = "resume"  # somebody wants it taken up again where it failed or was cancelled
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
    (S.FAILED, E.RESUME): S.PENDING, (S.CANCELLED, E.RESUME): S.PENDING,
}  # fmt: skip


class StageState(StrEnum):
    """Where a stage is, and once it has ended what its gate said."""

    WAITING = "waiting"
    RUNNING = "running"
    PASSED = "passed"  # its model goes on
    KEPT = "kept"  # its model was not good enough: the one before it goes on
    FAILED = "failed"


ENDED = frozenset({StageState.PASSED, StageState.KEPT, StageState.FAILED})


class Stage(BaseModel):
    """One phase of a run: what it was asked, how far it is, what it measured."""

    model_config = ConfigDict(frozen=True)

    phase: str
    config: dict[str, Any]  # the phase's configuration, resolved
    total_steps: int
    state: StageState = StageState.WAITING
    step: int = 0
    metrics: dict[str, float] = {}  # the last that were reported; at the end all that was measured
    before: dict[str, float] | None = None  # `train.evaluate.quality.Quality` of the model that it began with
    after: dict[str, float] | None = None  # and of the one that it made
    reason: str = ""  # the gate's
    digest: str = ""  # of the model's folder that the next stage reads
    seconds: float = 0.0  # of work, over all attempts
    expected_seconds: float | None = None  # as such a stage took here lately; None where none did

    @property
    def progress(self) -> float:
        """0 to 1: the share of steps done; 1 only once the stage has ended."""
        return 1.0 if self.state in ENDED else min(self.step / max(1, self.total_steps), 0.999)


def _sets(run: "Run") -> list[tuple[str, ...]]:
    return [(scope, state) for scope in ("all", run.owner) for state in ("any", run.state)]


class Run(Record):
    """One model in the making, stage by stage. Its id begins with `task_`: the API calls a run a task."""

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
    stages: tuple[Stage, ...] = Field(min_length=1)
    model_id: str  # decided before the run begins, so that no retry makes a second model
    model_name: str
    public: bool = False  # everybody may use the model
    state: RunState = RunState.PENDING
    attempt: int = Field(default=1, ge=1)  # fencing number: a worker of another attempt may not report
    max_attempts: int = Field(default=3, ge=1)  # before it counts as failed; a resumed run gets as many again
    remaining_seconds: float | None = None  # at the measured rates; None where nothing was measured yet
    error: str = ""
    cause: str = ""  # a word for the error, `train.causes`
    traceparent: str = ""  # of the request that started it, where requests are traced
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None

    @property
    def current(self) -> int:
        """The number of the stage that is on: the first that has not ended, or the last."""
        unended = (number for number, stage in enumerate(self.stages) if stage.state not in ENDED)
        return next(unended, len(self.stages) - 1)

    @property
    def stage(self) -> Stage:
        """The stage that is on."""
        return self.stages[self.current]

    @property
    def phase(self) -> str:
        """Of the stage that is on."""
        return self.stage.phase

    @property
    def config(self) -> dict[str, Any]:
        """Of the stage that is on."""
        return self.stage.config

    @property
    def step(self) -> int:
        """Of the stage that is on."""
        return self.stage.step

    @property
    def total_steps(self) -> int:
        """Of the stage that is on."""
        return self.stage.total_steps

    @property
    def metrics(self) -> dict[str, float]:
        """Of the stage that is on."""
        return self.stage.metrics

    @property
    def stages_ended(self) -> int:
        """How many stages are over."""
        return sum(stage.state in ENDED for stage in self.stages)

    @property
    def progress(self) -> float:
        """0 to 1: every stage counts alike; 1 only for a completed run."""
        if self.state is RunState.COMPLETED:
            return 1.0
        return min(sum(stage.progress for stage in self.stages) / len(self.stages), 0.999)

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
    if event is E.RESUME:
        stages = tuple(again(stage) for stage in run.stages)
        update |= {
            "attempt": run.attempt + 1, "max_attempts": run.attempt + 3, "stages": stages, "ended_at": None,
            "error": "", "cause": "",
        }  # fmt: skip
    if after in FINAL:
        update |= {"ended_at": at, "remaining_seconds": None}
    return run.model_copy(update=update)


def again(stage: Stage) -> Stage:
    """The stage as a resumed run takes it up: what failed is waiting once more."""
    failed = stage.state in (StageState.FAILED, StageState.RUNNING)
    return stage.model_copy(update={"state": StageState.WAITING}) if failed else stage


def with_stage(run: Run, number: int, **update: Any) -> Run:
    """The run with that stage changed."""
    stages = list(run.stages)
    stages[number] = stages[number].model_copy(update=update)
    return run.model_copy(update={"stages": tuple(stages)})


def size(stage: Stage) -> float:
    """How much work a stage is, beside others of the same phase: steps, and tokens a step where it has them."""
    return stage.total_steps * stage.config.get("batch_size", 1) * stage.config.get("context_length", 1)


def expected(stage: Stage, past: Iterable[Run]) -> float | None:
    """Seconds that the newest `past` run with this phase took for it, scaled by size; None where none had it."""
    done = (each for run in past for each in run.stages if each.phase == stage.phase and each.seconds)
    last = next(done, None)
    return None if last is None else last.seconds * size(stage) / size(last)


def remaining(run: Run, seconds: float | None) -> float | None:
    """Of the whole run: `seconds` of the stage that is on, and what is expected of those to come; None if unknown."""
    to_come = [stage.expected_seconds for stage in run.stages[run.current + 1 :]]
    if seconds is None or None in to_come:
        return None
    return seconds + sum(each for each in to_come if each is not None)


def lost(run: Run, at: datetime, why: str) -> Run:
    """The run after its job ended without finishing it: another attempt, or failure when there were enough."""
    event = E.RETRY if run.attempt < run.max_attempts else E.FAIL
    return advance(run, event, at, error=why, cause="job_lost")
