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
from train.runs import Run, RunEvent, RunState, advance

EVERY_SECONDS = 0.5  # between two progress events
LOG = "log.jsonl"


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
    """Progress of one attempt, from the rank-0 worker. Blocking; it has an event loop of its own.

    While the store is away training goes on, and the next report tells what was missed.
    """

    def __init__(self, store: Store, run: Run, clock: Clock) -> None:
        self.store, self.run, self.clock = store, run, clock
        self.loop = asyncio.Runner()
        self.told_at, self.told_step = 0.0, 0

    def report(self, progress: Progress) -> None:
        """Tell, at most twice a second, but always the first and the last step. Raises `Ended`."""
        last = progress.step == progress.total_steps
        if self.told_step and not last and time.monotonic() - self.told_at < EVERY_SECONDS:
            return
        metrics = current(progress, since=self.told_step)
        try:
            self.loop.run(self._commit(progress, metrics))
        except Unavailable:
            return
        finally:
            self.told_at = time.monotonic()
        self.told_step = progress.step

    async def _commit(self, progress: Progress, metrics: dict[str, float]) -> None:
        def step(run: Run) -> Run:
            if run.state is not RunState.RUNNING or run.attempt != self.run.attempt:
                raise Ended(f"run {run.run_id} is {run.state}, attempt {run.attempt}")
            update = {
                "step": progress.step, "metrics": run.metrics | metrics, "updated_at": self.clock(),
                "remaining_seconds": progress.remaining_seconds,
            }  # fmt: skip
            return run.model_copy(update=update)

        def event(_: Run, run: Run) -> Event:
            data = {
                "progress": progress.step / progress.total_steps, "phase": run.phase, "status": "training",
                "step": progress.step, "total_steps": progress.total_steps, "metrics": metrics,
                "remaining_seconds": progress.remaining_seconds, "model_id": run.model_id,
            }  # fmt: skip
            return Event(kind="training.progress", subject=run.run_id, owner=run.owner, at=self.clock(), data=data)

        try:
            await self.store.change(Run, self.run.run_id, step, event)
        except NotFound as error:
            raise Ended("the run is gone") from error


def current(progress: Progress, since: int) -> dict[str, float]:
    """The numbers of a progress event; the loss is the mean over the steps after `since`."""
    recent = [point.loss for point in progress.history if point.step > since] or [progress.history[-1].loss]
    held = progress.held_out[-1]
    return {
        "loss": sum(recent) / len(recent), "learning_rate": progress.history[-1].learning_rate,
        "gradient_norm": progress.history[-1].gradient_norm, "tokens_per_second": progress.tokens_per_second,
        "held_out_loss": held.loss, "accuracy": held.accuracy,
    }  # fmt: skip


def changed(run: Run, verb: str, clock: Clock, **data: Any) -> Event:
    """The event of a run's change of state."""
    told = {"phase": run.phase, "status": run.state.value, "progress": run.progress, "model_id": run.model_id}
    return Event(kind=f"training.{verb}", subject=run.run_id, owner=run.owner, at=clock(), data=told | data)


VERBS = {
    RunEvent.START: "started", RunEvent.RETRY: "retried", RunEvent.COMPLETE: "completed", RunEvent.FAIL: "failed",
    RunEvent.CANCEL: "cancelled",
}  # fmt: skip


async def move(store: Store, run_id: str, event: RunEvent, clock: Clock, **update: Any) -> Run:
    """Advance the run and say so in the event stream. Raises `Conflict`, `NotFound`."""
    return await store.change(
        Run, run_id, lambda run: advance(run, event, clock(), **update),
        lambda _, run: changed(run, VERBS[event], clock, metrics=run.metrics, error=run.error),
    )  # fmt: skip


async def fail(store: Store, run_id: str, error: str, clock: Clock) -> None:
    """End the run as failed, unless it has ended."""
    try:
        await move(store, run_id, RunEvent.FAIL, clock, error=error)
    except (Conflict, NotFound):
        return
