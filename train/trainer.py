"""The wiring to Ray Train: how many workers, on what, and what each of them is given. The loop knows nothing of it."""

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device, prepare_model

from cluster import logs, tracing
from cluster.clock import utc_now
from cluster.errors import VillageError
from cluster.origin import within
from cluster.settings import ROOT, Settings
from cluster.store import Store
from train.phases import catalogue
from train.phases.phase import PhaseConfig, Work, run_folder
from train.reporting import Ended, Reporter, RunLog, fail
from train.runs import Run

NICENESS = 5  # the gateway and the engines come first
MAX_FAILURES = 5  # of a worker, within one attempt
SCRAP_OF_A_CPU = 0.01


def fit(run: Run, config: PhaseConfig, settings: Settings) -> None:
    """Run the phase in training workers until the model's folder is there or the run has failed.

    A worker that dies is started again and goes on from the newest checkpoint. Raises Ray's error after too many.
    """
    trainer = TorchTrainer(
        work,
        train_loop_config={
            "run": run.model_dump_json(),
            "home": str(settings.home),
            "redis": settings.redis,
            "traceparent": tracing.traceparent(),
        },
        scaling_config=scaling(config.workers, ray.available_resources()),
        run_config=RunConfig(
            name=run.job_id,
            storage_path=str(run_folder(settings.home, run.run_id) / "ray"),
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
        ),
    )
    trainer.fit()


def scaling(workers: int, free: Mapping[str, float]) -> ScalingConfig:
    """A GPU each where there are enough, else a CPU each; a scrap of one where replicas hold them all.

    What is reserved decides where a worker is placed, not how fast it is: it shares the cores, and is nice about it.
    """
    if free.get("GPU", 0) >= workers:
        return ScalingConfig(num_workers=workers, use_gpu=True)
    share = 1.0 if free.get("CPU", 0) >= workers else SCRAP_OF_A_CPU
    return ScalingConfig(num_workers=workers, resources_per_worker={"CPU": share})


def work(given: dict[str, Any]) -> None:
    """What a training worker does. A `VillageError` ends the run as failed; anything else is Ray's to repeat."""
    os.nice(NICENESS)
    logs.configure("training")
    tracing.configure(Settings(), "training")
    run, home = Run.model_validate_json(given["run"]), Path(given["home"])
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    phase = catalogue.phase(run.phase, run.config)
    # Ray gives a worker as many threads as it reserved CPUs, which says nothing about the cores that are idle.
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(phase.config.threads or max(1, cores // context.get_local_world_size()))
    store, log = Store(given["redis"]), RunLog(run_folder(home, run.run_id), utc_now)
    reporter = Reporter(store, run, utc_now)
    leads = rank == 0
    if leads:
        log.note("worker started", pid=os.getpid(), attempt=run.attempt, threads=torch.get_num_threads(), workers=world)
    about = {"run_id": run.run_id, "phase": run.phase, "rank": rank}
    try:
        with tracing.span("training.phase", given["traceparent"], **about), within(tracing.origin()):
            phase.run(
                Work(
                    run=run, home=home, root=ROOT, rank=rank, world=world, device=get_device(), wrap=prepare_model,
                    report=reporter.report if leads else lambda _: None,
                    note=log.note if leads else lambda *_, **__: None,
                )
            )  # fmt: skip
    except Ended as ended:
        log.note("stopped", why=str(ended))
    except VillageError as error:
        log.note(error.message, level="error", **error.details)
        asyncio.run(fail(Store(given["redis"]), run.run_id, error.message, utc_now))
    finally:
        tracing.close()  # a worker may be taken for another phase, or away, as soon as this returns
