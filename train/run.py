"""The training job: `python -m train.run RUN_ID`. Ends the run, or leaves it to be given another attempt."""

import argparse
import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from typing import TypeVar

from cluster import logs, tracing
from cluster.clock import utc_now
from cluster.errors import Conflict, Unavailable
from cluster.origin import within
from cluster.settings import Settings
from cluster.store import Store
from train.phases import catalogue
from train.phases.phase import PhaseConfig, run_folder
from train.registry import Registry
from train.reporting import RunLog, move
from train.runs import FINAL, Run, RunEvent

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
        model = await patiently(lambda: registry.register(run))
        update = {"step": run.total_steps, "metrics": latest.metrics | model.metrics, "error": ""}
        return await patiently(lambda: move(store, run.run_id, RunEvent.COMPLETE, utc_now, **update))
    finally:
        await store.close()


def train(run: Run, config: PhaseConfig, settings: Settings) -> None:
    """Inside a Ray job: on its cluster. Alone: on a small one of its own."""
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
        fit(run, config, settings)
    finally:
        ray.shutdown()


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
    with tracing.span("training.run", run.traceparent, run_id=run.run_id, phase=run.phase, attempt=run.attempt):
        end_well(settings, run)
    tracing.close()
    return 0


def end_well(settings: Settings, run: Run) -> None:
    """Train unless the model is there already, then register it."""
    log = RunLog(run_folder(settings.home, run.run_id), utc_now)
    log.note("attempt", attempt=run.attempt, phase=run.phase, config=run.config)
    if not (settings.home / "models" / run.model_id).exists():
        train(run, catalogue.phase(run.phase, run.config).config, settings)
    with within(tracing.origin()):
        ended = asyncio.run(finish(settings, run))
    log.note(f"the run is {ended.state}", model_id=ended.model_id, error=ended.error)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
