"""The training job: `python -m train.run RUN_ID`. Ends the run, or leaves it to be given another attempt."""

import argparse
import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from cluster import logs, tracing
from cluster.clock import iso, utc_now
from cluster.errors import Conflict, Unavailable
from cluster.origin import within
from cluster.settings import ROOT, Settings
from cluster.store import Store
from train.bases import fetched
from train.data.prepared import prepare
from train.phases.phase import Work, run_folder
from train.registry import Registry, write_model
from train.reporting import Ended, Reporter, RunLog, move
from train.runs import FINAL, Run, RunEvent
from train.stage import configured, ended
from train.stages import groups, in_job, through
from train.trials import Children

T = TypeVar("T")
PATIENCE_SECONDS = 600.0  # for a store that is away
# A worker that spins at every parallel region's end stands still when something else wants a core (docs/log.md).
WORKER_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE"}
TRAIN_DEFAULTS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # Ray's two seconds cost as much at the start, the end and a failure
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",  # a busy laptop needs more than Ray's 60
}


async def patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """The answer, however long the store takes to come back, within reason."""
    deadline = asyncio.get_running_loop().time() + PATIENCE_SECONDS
    while True:
        try:
            return await ask()
        except Unavailable:
            if asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(0.5)


async def begin(settings: Settings, run_id: str, attempt: int | None) -> Run | None:
    """Take the run up. None when it has ended or another attempt has it."""
    store = Store(settings.redis)
    try:
        run = await patiently(lambda: store.get(Run, run_id))
        if run.state in FINAL or attempt not in (None, run.attempt):
            return None
        return await patiently(lambda: move(store, run_id, RunEvent.START, utc_now))
    except Conflict:
        return None
    finally:
        await store.close()


async def finish(settings: Settings, run: Run) -> Run:
    """Register the model and complete the run; both at most once, in that order."""
    store = Store(settings.redis)
    registry = Registry(store, settings.home, utc_now)
    try:
        latest = await patiently(lambda: store.get(Run, run.run_id))
        if latest.state in FINAL:
            await patiently(lambda: registry.give_up(latest))
            return latest
        await patiently(lambda: registry.register(run))
        return await patiently(lambda: move(store, run.run_id, RunEvent.COMPLETE, utc_now, error="", cause=""))
    finally:
        await store.close()


def train(run: Run, bases: tuple[Path, ...], settings: Settings) -> None:
    """All stages that are not over. Inside a Ray job: on its cluster. Alone: on a small one of its own."""
    for name, value in TRAIN_DEFAULTS.items():
        os.environ.setdefault(name, value)
    import ray

    from train.trainer import fit

    address = os.environ.get("RAY_ADDRESS") or settings.ray_address or "local"
    # A job's own environment is inherited, and Ray refuses to name one of its variables twice.
    inherited = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    environment = WORKER_ENVIRONMENT if inherited else WORKER_ENVIRONMENT | settings.environment()
    ray.init(address=address, runtime_env={"env_vars": environment}, include_dashboard=False)
    try:
        for numbers in groups(run):
            if in_job(configured(run, numbers[0])):
                search(run, numbers, bases, settings)
            else:
                fit(run, numbers, bases, settings)
            if any(ended(settings.home, run, number) is None for number in numbers):
                return  # the run has failed or was cancelled
    finally:
        ray.shutdown()


def search(run: Run, numbers: list[int], bases: tuple[Path, ...], settings: Settings) -> None:
    """Stages that search: the phase runs here, its candidates or trials in Tune's processes."""
    import torch

    from train.trying import tried
    from train.tune import evolver

    store, log = Store(settings.redis), RunLog(run_folder(settings.home, run.run_id), utc_now)
    reporter, children = Reporter(store, run, utc_now), Children(Store(settings.redis), run, numbers[0], utc_now)
    through(
        numbers, bases, reporter,
        Work(
            run=run, number=numbers[0], home=settings.home, root=ROOT, rank=0, world=1, device=torch.device("cpu"),
            wrap=lambda module: module, report=reporter.report, note=log.note,
            evolve=evolver(run_folder(settings.home, run.run_id) / "ray" / str(numbers[0]), children),
        ),
        tried=partial(tried, children),
    )  # fmt: skip


def main(arguments: list[str]) -> int:
    """Exit status 0 when the run has ended, whichever way."""
    parser = argparse.ArgumentParser(prog="python -m train.run")
    parser.add_argument("run_id")
    parser.add_argument("--attempt", type=int, help="do nothing unless the run is at this attempt")
    given = parser.parse_args(arguments)
    settings = Settings()
    logs.configure("training")
    tracing.configure(settings, "training")
    run = asyncio.run(begin(settings, given.run_id, given.attempt))
    if run is None:
        return 0
    with tracing.span("training.run", run.traceparent, run_id=run.run_id, attempt=run.attempt):
        end_well(settings, run)
    tracing.close()
    return 0


def end_well(settings: Settings, run: Run) -> None:
    """Go through the stages unless the model is there already, then register it."""
    log = RunLog(run_folder(settings.home, run.run_id), utc_now)
    log.note("attempt", attempt=run.attempt, asked_at=iso(run.created_at), phases=[stage.phase for stage in run.stages])
    if not (settings.home / "models" / run.model_id).exists() and not staged(settings, run, log):
        return
    with within(tracing.origin()):
        done = asyncio.run(finish(settings, run))
    log.note(f"the run is {done.state}", model_id=done.model_id, error=done.error)


def staged(settings: Settings, run: Run, log: RunLog) -> bool:
    """Whether all stages are over and the model is written. A run that failed is told so; so is one that was ended."""
    try:
        first = configured(run, 0).config
        bases = fetched(first.base_models)
        prepare(run_folder(settings.home, run.run_id) / "data", ROOT, first)
        train(run, bases, settings)
        if ended(settings.home, run, len(run.stages) - 1) is not None:
            write_model(settings.home, run, bases)
            return True
    except Ended as over:
        log.note("stopped", why=str(over))
    except Exception as error:
        from train.trainer import end

        if not end(Store(settings.redis), run, log, error):
            raise
    asyncio.run(give_up(settings, run))
    return False


async def give_up(settings: Settings, run: Run) -> None:
    """There will be no model of a run that has ended without one."""
    store = Store(settings.redis)
    try:
        latest = await patiently(lambda: store.get(Run, run.run_id))
        if latest.state in FINAL:
            await patiently(lambda: Registry(store, settings.home, utc_now).give_up(latest))
    finally:
        await store.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
