"""How a worker tells the world: the run's own log, and its progress in the record and the event stream."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

from cluster.clock import Clock, iso
from cluster.errors import Conflict, NotFound, Unavailable
from cluster.events import Event
from cluster.store import Store
from train.loop import Progress
from train.phases.phase import Outcome
from train.runs import Run, RunEvent, RunState, StageState, advance, remaining, with_stage
from train.stage import Ended as StageEnded

EVERY_SECONDS = 0.5  # between two progress events
LOG = "log.jsonl"
STATES = {Outcome.PASS: StageState.PASSED, Outcome.KEEP: StageState.KEPT, Outcome.FAIL: StageState.FAILED}


class Ended(Exception):
    """The run is over or another attempt has it: this worker is to stop, and nothing is wrong."""


class RunLog:
    """`log.jsonl` of a run: one object a line, written as it happens, kept whatever becomes of Ray."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self.path, self.clock = folder / LOG, clock

    def note(self, message: str, **fields: Any) -> None:
        """Append a line. `level` is info unless given."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = {"at": iso(self.clock()), "level": "info", "message": message, **fields}
        with self.path.open("a") as file:
            file.write(json.dumps(line, default=str) + "\n")


class Reporter:
    """Progress of one attempt, from its rank-0 worker. Blocking; it has an event loop of its own.

    While the store is away training goes on, and the next report tells what was missed.
    """

    def __init__(self, store: Store, run: Run, clock: Clock) -> None:
        self.store, self.run, self.clock = store, run, clock
        self.loop = asyncio.Runner()
        self.told_at, self.told_step, self.number = 0.0, 0, 0

    def __reduce__(self) -> Any:
        return Reporter, (Store(self.store.url), self.run, self.clock)  # Tune writes its callbacks down

    def begin(self, number: int) -> None:
        """Stage `number` is on. Raises `Ended`."""
        self.number, self.told_at, self.told_step = number, 0.0, 0

        def step(run: Run) -> Run:
            return with_stage(self._mine(run), number, state=StageState.RUNNING)

        self._change(step, lambda run: changed(run, "stage_started", self.clock, **about(run, number)))

    def end(self, number: int, outcome: StageEnded) -> None:
        """Stage `number` is over. Telling it again changes nothing. Raises `Ended`."""
        state = STATES[outcome.verdict.outcome]

        def step(run: Run) -> Run:
            stage = self._mine(run).stages[number]
            if stage.state is state and stage.digest == outcome.digest:
                return run
            return with_stage(
                run, number, state=state, step=stage.total_steps, metrics=stage.metrics | outcome.metrics,
                before=outcome.before.model_dump(), after=outcome.after.model_dump(), reason=outcome.verdict.reason,
                digest=outcome.digest, seconds=outcome.seconds,
            )  # fmt: skip

        self._change(step, lambda run: changed(run, "stage_ended", self.clock, **about(run, number)))

    def report(self, progress: Progress) -> None:
        """Tell, at most twice a second, but always the first and the last step. Raises `Ended`."""
        last = progress.step == progress.total_steps
        if self.told_step and not last and time.monotonic() - self.told_at < EVERY_SECONDS:
            return
        metrics, number = current(progress, since=self.told_step), self.number

        def step(run: Run) -> Run:
            stage = self._mine(run).stages[number]
            run = with_stage(
                run, number, step=progress.step, total_steps=progress.total_steps, metrics=stage.metrics | metrics
            )
            return run.model_copy(
                update={"updated_at": self.clock(), "remaining_seconds": remaining(run, progress.remaining_seconds)}
            )

        def event(run: Run) -> Event:
            stage = run.stages[number]
            data = {
                "progress": run.progress, "phase": stage.phase, "phase_progress": stage.progress, "status": "training",
                "step": progress.step, "total_steps": progress.total_steps, "metrics": metrics,
                "remaining_seconds": run.remaining_seconds, "model_id": run.model_id,
            }  # fmt: skip
            return Event(kind="training.progress", subject=run.run_id, owner=run.owner, at=self.clock(), data=data)

        if self._change(step, event):
            self.told_step = progress.step
        self.told_at = time.monotonic()

    def _mine(self, run: Run) -> Run:
        if run.state is not RunState.RUNNING or run.attempt != self.run.attempt:
            raise Ended(f"run {run.run_id} is {run.state}, attempt {run.attempt}")
        return run

    def _change(self, step: Any, event: Any) -> bool:
        async def commit() -> None:
            try:
                await self.store.change(Run, self.run.run_id, step, lambda _, run: event(run))
            except NotFound as error:
                raise Ended("the run is gone") from error

        try:
            self.loop.run(commit())
        except Unavailable:
            return False
        return True


def current(progress: Progress, since: int) -> dict[str, float]:
    """The numbers of a progress event; the loss is the mean over the steps after `since`."""
    numbers = dict(progress.metrics)
    if progress.history:
        recent = [point.loss for point in progress.history if point.step > since] or [progress.history[-1].loss]
        numbers |= {
            "loss": sum(recent) / len(recent), "learning_rate": progress.history[-1].learning_rate,
            "gradient_norm": progress.history[-1].gradient_norm, "tokens_per_second": progress.tokens_per_second,
        }  # fmt: skip
    if progress.held_out:
        numbers |= {"held_out_loss": progress.held_out[-1].loss, "accuracy": progress.held_out[-1].accuracy}
    return numbers


def about(run: Run, number: int) -> dict[str, Any]:
    """What an event tells of a stage."""
    stage = run.stages[number]
    return {
        "phase": stage.phase, "stage": number, "stage_state": stage.state.value, "reason": stage.reason,
        "before": stage.before, "after": stage.after, "digest": stage.digest,
    }  # fmt: skip


def changed(run: Run, verb: str, clock: Clock, **data: Any) -> Event:
    """The event of a run's change of state."""
    told = {"phase": run.phase, "status": run.state.value, "progress": run.progress, "model_id": run.model_id}
    return Event(kind=f"training.{verb}", subject=run.run_id, owner=run.owner, at=clock(), data=told | data)


VERBS = {
    RunEvent.START: "started", RunEvent.RETRY: "retried", RunEvent.RESUME: "resumed",
    RunEvent.COMPLETE: "completed", RunEvent.FAIL: "failed", RunEvent.CANCEL: "cancelled",
}  # fmt: skip


async def move(store: Store, run_id: str, event: RunEvent, clock: Clock, **update: Any) -> Run:
    """Advance the run and say so in the event stream. Raises `Conflict`, `NotFound`."""
    return await store.change(
        Run, run_id, lambda run: advance(run, event, clock(), **update),
        lambda _, run: changed(
            run, VERBS[event], clock, metrics=run.metrics, error=run.error, cause=run.cause
        ),
    )  # fmt: skip


async def fail(store: Store, run_id: str, error: str, cause: str, clock: Clock) -> None:
    """End the run as failed, unless it has ended."""
    try:
        await move(store, run_id, RunEvent.FAIL, clock, error=error, cause=cause)
    except (Conflict, NotFound):
        return
