"""Trials: the children of a run, one for each candidate of a search. Their records, and how a shell keeps them."""

import asyncio
from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar

from cluster.clock import Clock
from cluster.errors import Unavailable
from cluster.events import Event
from cluster.store import Index, Record, Store
from train.runs import Run

MOST_NUMBERS = 32  # of a trial's measurements that its record keeps


class TrialState(StrEnum):
    """Where a trial is."""

    RUNNING = "running"
    COMPLETED = "completed"
    STOPPED = "stopped"  # early: others did better
    FAILED = "failed"


class Trial(Record):
    """One candidate: what was tried and what it measured."""

    kind: ClassVar[str] = "trial"
    indexes: ClassVar[tuple[Index, ...]] = (
        Index("run", lambda trial: trial.number, lambda trial: [(trial.run_id, s) for s in ("any", trial.state)]),
    )

    trial_id: str
    run_id: str
    owner: str
    stage: int
    phase: str
    number: int  # over all the run's trials
    candidate: dict[str, Any]
    state: TrialState = TrialState.RUNNING
    step: int = 0
    metrics: dict[str, float] = {}
    created_at: datetime
    ended_at: datetime | None = None


class Children:
    """The trials of one stage as a search goes on. Blocking; while the store is away nothing is told, nothing fails."""

    def __init__(self, store: Store, run: Run, stage: int, clock: Clock) -> None:
        self.store, self.run, self.stage, self.clock = store, run, stage, clock
        self.loop = asyncio.Runner()

    def __reduce__(self) -> Any:
        return Children, (Store(self.store.url), self.run, self.stage, self.clock)  # Tune writes its callbacks down

    def told(
        self, number: int, candidate: dict[str, Any], state: TrialState, step: int = 0,
        metrics: dict[str, float] | None = None,
    ) -> None:  # fmt: skip
        """The trial of that number within its stage is so far."""
        at, run = self.clock(), self.run
        trial = Trial(
            trial_id=f"trial_{run.run_id}_{self.stage}_{number}", run_id=run.run_id, owner=run.owner, stage=self.stage,
            phase=run.stages[self.stage].phase, number=1000 * self.stage + number, candidate=candidate, created_at=at,
        )  # fmt: skip
        kept = dict(list((metrics or {}).items())[:MOST_NUMBERS])
        ended = None if state is TrialState.RUNNING else at

        def step_of(found: Trial) -> Trial:
            update = {"state": state, "step": step or found.step, "metrics": found.metrics | kept, "ended_at": ended}
            return found.model_copy(update=update)

        def event(_: Trial | None, found: Trial) -> Event:
            data = {
                "run_id": run.run_id, "phase": found.phase, "number": number, "status": state.value,
                "metrics": found.metrics, "model_id": run.model_id,
            }  # fmt: skip
            return Event(kind="training.trial", subject=run.run_id, owner=run.owner, at=at, data=data)

        try:
            self.loop.run(self.store.upsert(trial, step_of, event))
        except Unavailable:
            return
