"""The wiring to Ray Train: how many workers, on what, and what each of them is given. The phases know nothing of it."""

import asyncio
import os
from collections.abc import Callable
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
from train import parallel, scale
from train.causes import cause_of
from train.phases.phase import Work, run_folder
from train.reporting import Ended, Reporter, RunLog, fail
from train.runs import Run
from train.scale import Scale
from train.stages import through

NICENESS = 5  # the gateway and the engines come first
MAX_FAILURES = 5  # of a worker, within one attempt


def fit(run: Run, numbers: list[int], bases: tuple[Path, ...], settings: Settings) -> None:
    """Run these stages in training workers until they are over or the run has failed.

    A worker that dies is started again and goes on from the newest checkpoint. Raises Ray's error after too many.
    """
    config = run.stages[numbers[0]].config
    with_gpu = sum(bool(node["Resources"].get("GPU")) for node in ray.nodes() if node["Alive"])
    whole = ray.cluster_resources()
    name = scale.suggested(whole, with_gpu) if config["scale"] == "auto" else config["scale"]
    shape = scale.fitted(scale.known(name), config["workers"], whole, ray.available_resources())
    elastic = 0 < shape.least_workers < shape.workers
    trainer = TorchTrainer(
        work,
        train_loop_config={
            "run": run.model_dump_json(),
            "numbers": numbers,
            "bases": [str(base) for base in bases],
            "home": str(settings.home),
            "redis": settings.redis,
            "strategy": shape.strategy,
            "traceparent": tracing.traceparent(),
        },
        scaling_config=ScalingConfig(
            num_workers=(shape.least_workers, shape.workers) if elastic else shape.workers,
            use_gpu=shape.gpus_per_worker > 0,
            resources_per_worker=resources(shape),
            placement_strategy=shape.placement,
        ),
        run_config=RunConfig(
            name=f"{run.job_id}-{numbers[0]}",
            storage_path=str(run_folder(settings.home, run.run_id) / "ray"),
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
        ),
    )
    trainer.fit()


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
                    wrap=wrapper(given["strategy"], world), report=reporter.report if leads else lambda _: None,
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


def resources(shape: Scale) -> dict[str, float]:
    """What a worker reserves."""
    gpus = {"GPU": shape.gpus_per_worker} if shape.gpus_per_worker else {}
    return {"CPU": shape.cpus_per_worker} | gpus


def wrapper(strategy: str, world: int) -> Callable[[Any], Any]:
    """How a module is shared by the workers."""
    if strategy == "fsdp" and world > 1:
        return lambda module: parallel.shard(module, get_device())
    return prepare_model


def end(store: Store, run: Run, log: RunLog, error: Exception) -> bool:
    """End the run where the error has a cause that repeating would only repeat; else False."""
    cause = cause_of(error)
    if cause is None:
        return False
    message = getattr(error, "message", None) or f"{type(error).__name__}: {error}"
    log.note(message, level="error", cause=cause.value)
    asyncio.run(fail(store, run.run_id, message, cause.value, utc_now))
    return True
