"""The training of one assignment, in a thread of its own. It knows no network: files in, weights and measurements out.

It may be paused, ended or killed at any step. What it had saved last is where the next one of the same key goes on.
"""

import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import nn

from cluster.errors import Invalid, VillageError
from train.data.packing import Batch, Batches, Tokens, batch, pack
from train.data.sources import Document
from train.evaluate.perplexity import held_out_loss
from train.farm import models, snapshot
from train.farm.control import Control, Left, Stopped
from train.farm.data import dataset, shard, tokenizer
from train.farm.messages import Task
from train.farm.protocol import Status
from train.loop import Loop, LoopConfig, Progress
from train.manifest import Checkpoints
from train.model.shape import Shape
from train.model.tokenizer import PAD, Tokenizer

HELD_OUT_TOKENS = 8192  # measured on, at most
ROWS_AT_ONCE = 8  # in a measurement
MEASUREMENTS = 10  # of held-out text in the course of a training, beside the first
KEPT_POINTS = 100  # of the loss curve in a snapshot
PROGRESS_SECONDS = 1.0  # at most so often


@dataclass(frozen=True)
class Job:
    """What a training needs: everything is on this machine by now."""

    task: Task
    folder: Path  # of this piece of work alone
    model_folder: Path | None = None  # None: a fresh model
    weights: Path | None = None  # the round's global model
    local: dict[str, Path] = field(default_factory=dict)  # the operator's datasets
    device: str = "cpu"
    memory_mb: float = math.inf  # that this process may have
    checkpoint_seconds: float = 10.0


@dataclass(frozen=True)
class Trained:
    """How it ended. `weights` is there when it is completed."""

    status: Status
    metrics: dict[str, float]
    samples: int
    step: int
    weights: Path | None = None


Tell = Callable[[float, dict[str, float]], None]
NoteDown = Callable[[str], None]


class Watched(list[Batch]):
    """Batches that look up between two of them, so that a long measurement can be paused or ended too."""

    def __init__(self, batches: list[Batch], obey: Callable[[], None]) -> None:
        super().__init__(batches)
        self._obey = obey

    def __iter__(self) -> Iterator[Batch]:
        for each in super().__iter__():
            self._obey()
            yield each


def train(job: Job, control: Control, tell: Tell, note: NoteDown) -> Trained:
    """Train to the end of the assignment's steps, or until `control` wants otherwise.

    `tell(percent, metrics)` is called in this thread. Raises `VillageError` when it cannot be done, and `Left`.
    """
    control.obey()
    task, config = job.task, job.task.config
    torch.set_float32_matmul_precision("high")
    assets = models.from_registry(job.model_folder) if job.model_folder else models.fresh(tokenizer(), task.seed)
    if job.weights is not None:
        models.load_weights(assets.model, job.weights)
    fits(lower_bound_mb(assets.shape, config.batch_size), job)
    control.obey()
    batches, held_out = share(job, assets)
    steps = config.steps or math.ceil(len(batches.epoch(0)) * config.epochs / config.batch_size)
    torch.manual_seed(task.seed)
    device = torch.device(job.device)
    loop = loop_for(job, assets.model.to(device), batches, held_out, steps, control, device)
    checkpoints = Checkpoints(job.folder / "checkpoints", ".safetensors")
    if (found := checkpoints.newest()) is not None:
        resume(loop, found[1])
        note(f"going on from step {loop.progress.step} of {steps}")
    else:
        note(f"{assets.shape.parameters} parameters, {steps} steps of {config.batch_size} rows on {job.device}")
    loop.save = lambda step, state: save(checkpoints, step, state)
    loop.report = Reporter(job, loop, control, tell, steps)
    try:
        progress = loop.run()
    except Stopped:
        return Trained("stopped", measured(loop.progress), samples(loop), loop.progress.step)
    except torch.OutOfMemoryError as error:
        raise VillageError("the GPU has too little free memory for this task") from error
    weights = job.folder / "weights.safetensors"
    models.save_weights(assets.model, weights, {"step": str(progress.step), "samples": str(samples(loop))})
    return Trained("completed", measured(progress), samples(loop), progress.step, weights)


def resume(loop: Loop, path: Path) -> None:
    """Go on from a snapshot. One that does not fit, of another version perhaps, is removed. Raises `VillageError`."""
    try:
        loop.restore(snapshot.load(path))
    except (Invalid, RuntimeError, KeyError, ValueError, TypeError) as error:
        shutil.rmtree(path.parent, ignore_errors=True)
        raise VillageError("what was saved of this task does not fit it; the next try begins anew") from error


def share(job: Job, assets: models.Assets) -> tuple[Batches, list[Batch]]:
    """This rank's batches, and the held-out rows, which are the same on every rank. Raises `Invalid`."""
    config, cut, context = job.task.config, assets.tokenizer, assets.shape.context
    text = dataset(config.dataset, job.local)
    in_order = sorted(text.training, key=lambda document: document.fingerprint)
    mine = shard(in_order, config.rank, config.world_size)
    if not mine:
        raise Invalid(f"{len(in_order)} documents are too few for {config.world_size} ranks")
    pad = cut.ids[PAD]
    batches = Batches(
        {"all": [encode(cut, document) for document in mine]}, {}, context=context, size=config.batch_size, pad=pad,
        seed=(job.task.seed * 1_000_003 + config.round) * 10_007 + config.rank,
    )  # fmt: skip
    rows = pack([encode(cut, document) for document in text.held_out], context)
    wanted = max(1, HELD_OUT_TOKENS // context)
    rows = rows[:: max(1, len(rows) // wanted)][:wanted]
    return batches, [batch(rows[i : i + ROWS_AT_ONCE], context, pad) for i in range(0, len(rows), ROWS_AT_ONCE)]


def encode(cut: Tokenizer, document: Document) -> Tokens:
    """(tokens,) int32."""
    return np.array(cut.chat(document.turns) if document.turns else cut.text(document.text), dtype=np.int32)


def loop_for(
    job: Job, model: nn.Module, batches: Batches, held_out: list[Batch], steps: int, control: Control,
    device: torch.device,
) -> Loop:  # fmt: skip
    """AdamW without GrokFast.

    A task of one round has the project's warm-up and cosine. One of several has a constant rate: each round begins
    anew, and no rank's last steps may count for less than another's.
    """
    config, rounds = job.task.config, job.task.config.rounds > 1
    rows = Watched(held_out, control.obey)
    given = {
        "max_steps": steps, "learning_rate": config.learning_rate, "grokfast_lamb": 0,
        "warmup_steps": 0 if rounds else 20, "final_learning_rate_ratio": 1.0 if rounds else 0.1,
        "checkpoint_steps": steps, "checkpoint_seconds": job.checkpoint_seconds,
        "evaluate_steps": max(1, steps // MEASUREMENTS),
    }  # fmt: skip
    settings = LoopConfig.model_validate(given)
    return Loop(
        model, batches, settings, device=device, save=lambda *_: None, report=lambda _: None,
        evaluate=lambda model: held_out_loss(model, rows, device=device),
    )  # fmt: skip


def save(checkpoints: Checkpoints, step: int, state: dict[str, Any]) -> None:
    """Durable when it returns."""
    content = snapshot.dump(state)
    checkpoints.save(step, lambda file: file.write(content))


class Reporter:
    """Called by the loop after every step: obeys, watches the memory, and tells how far it is."""

    def __init__(self, job: Job, loop: Loop, control: Control, tell: Tell, steps: int) -> None:
        self.job, self.loop, self.control, self.tell, self.steps = job, loop, control, tell, steps
        self.told_at = -math.inf
        self.process = psutil.Process()

    def __call__(self, progress: Progress) -> None:
        """See `train.loop.Report`."""
        del progress.history[:-KEPT_POINTS]
        used = self.process.memory_info().rss / models.MEGABYTE
        if used > self.job.memory_mb:
            raise VillageError(f"the worker has {used:.0f} MB and may have {self.job.memory_mb:.0f}")
        if time.monotonic() - self.told_at >= PROGRESS_SECONDS or progress.step == self.steps:
            self.speak(progress)
        if self.control.ended is Left:
            self.keep()
        self.control.obey(before_pause=self.rest)

    def rest(self) -> None:
        """Before a pause: whatever happens in it, nothing is lost."""
        self.keep()
        self.speak(self.loop.progress)

    def keep(self) -> None:
        """Save now."""
        self.loop.save(self.loop.progress.step, self.loop.state())

    def speak(self, progress: Progress) -> None:
        """The last step's loss and rate, and the accuracy that was measured last."""
        point = progress.history[-1]
        metrics = {
            "loss": point.loss, "accuracy": progress.held_out[-1].accuracy, "learning_rate": point.learning_rate,
            "held_out_loss": progress.held_out[-1].loss, "step": progress.step, "steps": self.steps,
        }  # fmt: skip
        self.tell(100.0 * progress.step / self.steps, metrics)
        self.told_at = time.monotonic()


def measured(progress: Progress) -> dict[str, float]:
    """Held-out loss in nats per token and next-token accuracy, as measured last; seconds spent in steps."""
    if not progress.held_out:
        return {"training_time": progress.seconds}
    last, first = progress.held_out[-1], progress.held_out[0]
    return {
        "final_loss": last.loss, "final_accuracy": last.accuracy, "training_time": progress.seconds,
        "loss_before": first.loss, "accuracy_before": first.accuracy, "tokens": progress.tokens,
        "tokens_per_second": progress.tokens_per_second,
    }  # fmt: skip


def samples(loop: Loop) -> int:
    """Rows that steps were made of in this round."""
    return loop.progress.step * loop.batches.size


def lower_bound_mb(shape: Shape, rows: int) -> float:
    """What a training cannot do without: weights, gradients, two moments, and the logits with their gradient."""
    return (16 * shape.parameters + 8 * rows * shape.context * shape.vocab_size) / models.MEGABYTE


def fits(needed: float, job: Job) -> None:
    """Raises `VillageError` when the task is certain not to fit."""
    if job.device.startswith("cuda"):
        free = torch.cuda.mem_get_info()[0] / models.MEGABYTE
    else:
        used = psutil.Process().memory_info().rss / models.MEGABYTE
        free = min(job.memory_mb - used, psutil.virtual_memory().available / models.MEGABYTE)
    if needed > free:
        raise VillageError(f"the task needs at least {needed:.0f} MB on {job.device}, and {free:.0f} MB are free")
