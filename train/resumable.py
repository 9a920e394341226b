"""A phase's training loop with its checkpoints: begins, or goes on from the newest checkpoint that is whole."""

import json
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn

from cluster.hardware import computed_in
from train import parallel
from train.causes import Cause, Failed
from train.data.packing import START, Batches
from train.evaluate.perplexity import perplexity
from train.loop import Loop, LoopConfig, Objective, Progress
from train.manifest import Checkpoints, write_durably
from train.phases.phase import TrainedConfig, Work
from train.scale import threads

CURVE = "curve.json"


def train(
    work: Work, config: TrainedConfig, model: nn.Module, batches: Batches, *,
    evaluate: Callable[[nn.Module], tuple[float, float]], objective: Objective | None = None, name: str = "checkpoints",
    until: int | None = None, branch_of: str = "",
) -> Progress:  # fmt: skip
    """Train to the last step. Every worker calls it; rank 0 saves and reports. `name` tells two loops of a stage apart.

    `until` ends the loop in the middle of its schedule; a `branch_of` such a loop goes on from there, with batches and
    a seed of its own. Leaves `curve.json` in the stage's folder: every step's loss, and the held-out measurements.
    """
    checkpoints = Checkpoints(work.folder / name)

    def save(step: int, state: dict[str, Any]) -> None:
        if work.rank == 0:
            begun = time.monotonic()
            checkpoints.save(step, lambda file: torch.save(state, file))
            work.note("checkpoint", step=step, seconds=round(time.monotonic() - begun, 4))

    def measure(model: nn.Module) -> tuple[float, float]:
        begun = time.monotonic()
        loss, accuracy = evaluate(model)
        spent = round(time.monotonic() - begun, 4)
        work.note("held-out text", loss=round(loss, 4), accuracy=round(accuracy, 4), seconds=spent)
        return loss, accuracy

    weights = sum(parameter.numel() for parameter in model.parameters())
    shared = work.wrap(model)
    settings = LoopConfig.model_validate(config.model_dump(include=set(LoopConfig.model_fields)))
    loop = Loop(
        shared, batches, settings, evaluate=measure, save=save, report=work.report, device=work.device,
        objective=objective,
    )  # fmt: skip
    if (found := checkpoints.newest()) is not None:
        loop.restore(torch.load(found[1], weights_only=True))
        work.note("resumed", step=found[0].step)
    elif branch_of:
        found = Checkpoints(work.folder / branch_of).newest()
        if found is None:
            raise Failed(f"there is no checkpoint of {branch_of} to branch off", Cause.DAMAGED)
        loop.restore(torch.load(found[1], weights_only=True) | elsewhere(batches.seed))
        work.note("branched off", step=found[0].step, of=branch_of, branch=name)
    else:
        work.note("training from the start", parameters=weights, precision=computed_in(config.precision, work.device))
    with threaded(threads(config.threads, torch.get_num_threads(), weights)):
        progress = loop.run(until)
    if parallel.sharded(shared):
        parallel.gather(shared, model)
    if work.rank == 0:
        keep_curve(work.folder / (CURVE if name == "checkpoints" else f"{name}.{CURVE}"), progress)
    return progress


@contextmanager
def threaded(count: int) -> Iterator[None]:
    """Compute with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def elsewhere(seed: int) -> dict[str, Any]:
    """What a branch does not take over from the loop that it comes from: the place in the data, and chance."""
    return {"position": tuple(START), "random": torch.Generator().manual_seed(seed).get_state()}


def keep_curve(path: Path, progress: Progress) -> None:
    """Every step as (step, loss, learning rate, gradient norm), and every held-out measurement."""
    curve = {"steps": [tuple(p) for p in progress.history], "held_out": [tuple(h) for h in progress.held_out]}
    write_durably(path, lambda file: file.write(json.dumps(curve).encode()))


def together(work: Work) -> None:
    """Wait until every worker is here."""
    if work.world > 1:
        distributed.barrier()


def measured(progress: Progress) -> dict[str, float]:
    """The loop's numbers, each of them measured."""
    first, last = progress.held_out[0], progress.held_out[-1]
    tail = [point.loss for point in progress.history[-10:]]
    return progress.metrics | {
        "loss": sum(tail) / len(tail), "held_out_loss_before": first.loss, "held_out_loss": last.loss,
        "perplexity_before": perplexity(first.loss), "perplexity": perplexity(last.loss),
        "accuracy_before": first.accuracy, "accuracy": last.accuracy, "training_seconds": progress.seconds,
        "tokens": float(progress.tokens), "tokens_per_second": progress.tokens_per_second,
    }  # fmt: skip


def peak_memory_bytes() -> float:
    """The most that this process has held at once, since it began or since `forget_peak`."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def forget_peak() -> None:
    """Count the peak from now on, where the system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return
