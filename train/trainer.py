"""The wiring to Ray Train: how many workers, on what, and what each of them is given. The phases know nothing of it."""

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
from cluster.origin import within
from cluster.settings import ROOT, Settings
from cluster.store import Store
from train.causes import cause_of
from train.phases.phase import Work, run_folder
from train.reporting import Ended, Reporter, RunLog, fail
from train.runs import Run
from train.stages import through

NICENESS = 5  # the gateway and the engines come first
MAX_FAILURES = 5  # of a worker, within one attempt
SCRAP_OF_A_CPU = 0.01


def fit(run: Run, numbers: list[int], bases: tuple[Path, ...], settings: Settings) -> None:
    """Run these stages in training workers until they are over or the run has failed.

    A worker that dies is started again and goes on from the newest checkpoint. Raises Ray's error after too many.
    """
    config = run.stages[numbers[0]].config
    trainer = TorchTrainer(
        work,
        train_loop_config={
            "run": run.model_dump_json(),
            "numbers": numbers,
            "bases": [str(base) for base in bases],
            "home": str(settings.home),
            "redis": settings.redis,
            "traceparent": tracing.traceparent(),
        },
        scaling_config=scaling(config["workers"] or 1, ray.available_resources()),
        run_config=RunConfig(
            name=f"{run.job_id}-{numbers[0]}",
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
    """What a training worker does. An error that has a cause ends the run; anything else is Ray's to repeat."""
    os.nice(NICENESS)
    logs.configure("training")
    tracing.configure(Settings(), "training")
    run, home = Run.model_validate_json(given["run"]), Path(given["home"])
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    # Ray gives a worker as many threads as it reserved CPUs, which says nothing about the cores that are idle.
    cores, threads = len(os.sched_getaffinity(0)), run.stages[given["numbers"][0]].config["threads"]
    torch.set_num_threads(threads or max(1, cores // context.get_local_world_size()))
    torch.set_float32_matmul_precision("high")
    store, log = Store(given["redis"]), RunLog(run_folder(home, run.run_id), utc_now)
    reporter, leads = Reporter(store, run, utc_now), rank == 0
    if leads:
        log.note("worker started", pid=os.getpid(), attempt=run.attempt, threads=torch.get_num_threads(), workers=world)
    try:
        with (
            tracing.span("training.stages", given["traceparent"], run_id=run.run_id, rank=rank),
            within(tracing.origin()),
        ):
            through(
                given["numbers"], tuple(Path(base) for base in given["bases"]), reporter if leads else None,
                Work(
                    run=run, number=0, home=home, root=ROOT, rank=rank, world=world, device=get_device(),
                    wrap=prepare_model, report=reporter.report if leads else lambda _: None,
                    note=log.note if leads else lambda *_, **__: None,
                ),
            )  # fmt: skip
    except Ended as ended:
        log.note("stopped", why=str(ended))
    except Exception as error:
        if not end(Store(given["redis"]), run, log, error):
            raise
    finally:
        tracing.close()  # a worker may be taken for another phase, or away, as soon as this returns


def end(store: Store, run: Run, log: RunLog, error: Exception) -> bool:
    """End the run where the error has a cause that repeating would only repeat; else False."""
    cause = cause_of(error)
    if cause is None:
        return False
    message = getattr(error, "message", None) or f"{type(error).__name__}: {error}"
    log.note(message, level="error", cause=cause.value)
    asyncio.run(fail(store, run.run_id, message, cause.value, utc_now))
    return True
