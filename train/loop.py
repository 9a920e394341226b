"""The training loop: a model, batches, settings, and somebody to tell. It knows no Ray, no store and no phase."""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from cluster.hardware import Precision, computed_in
from train import parallel
from train.causes import Cause, Failed
from train.data.packing import IGNORED, Batch, Batches, Position
from train.grokfast import GrokFast


class LoopConfig(BaseModel):
    """How to optimise: AdamW, GrokFast, linear warm-up and cosine decay."""

    model_config = ConfigDict(frozen=True)

    max_steps: int = Field(200, ge=1)  # optimizer steps
    learning_rate: float = Field(2e-3, gt=0)
    final_learning_rate_ratio: float = Field(0.1, ge=0, le=1)
    warmup_steps: int = Field(20, ge=0)  # at most a tenth of max_steps is used
    weight_decay: float = Field(0.1, ge=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    clip_norm: float = Field(1.0, gt=0)
    grokfast_alpha: float = Field(0.98, ge=0, lt=1)
    grokfast_lamb: float = Field(2.0, ge=0)
    precision: Precision = "auto"
    accumulate: int = Field(1, ge=1)  # parts that a batch is taken in
    checkpoint_steps: int = Field(200, ge=1)
    checkpoint_seconds: float = Field(10.0, gt=0)  # a checkpoint is also due after so much time
    evaluate_steps: int = Field(0, ge=0)  # 0: only before and after


class Point(NamedTuple):
    """A step as it was measured; `loss` in nats per token, before the step."""

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float


class Held(NamedTuple):
    """A held-out measurement after `step` steps: nats per token, and the share of tokens guessed right."""

    step: int
    loss: float
    accuracy: float


@dataclass
class Progress:
    """Everything that a stage has measured. Goes into every checkpoint."""

    step: int = 0
    total_steps: int = 0
    seconds: float = 0.0  # spent in steps, over all attempts
    tokens: int = 0
    history: list[Point] = field(default_factory=list)
    held_out: list[Held] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)  # a phase's own numbers, the newest of each

    @property
    def tokens_per_second(self) -> float:
        """Measured over all steps so far."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def remaining_seconds(self) -> float | None:
        """At the measured rate; None before the first step."""
        return (self.total_steps - self.step) * self.seconds / self.step if self.step else None


Save = Callable[[int, dict[str, Any]], None]
Objective = Callable[[nn.Module, Batch, int], Tensor]  # of the step numbered from 0: the loss, nats per target token
Evaluate = Callable[[nn.Module], tuple[float, float]]
Report = Callable[[Progress], None]


def learning_rate(step: int, config: LoopConfig) -> float:
    """Of the step numbered from 0: linear warm-up, then a cosine down to the final ratio."""
    warmup = min(config.warmup_steps, config.max_steps // 10)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    along = (step - warmup) / max(1, config.max_steps - warmup)
    low = config.final_learning_rate_ratio
    return config.learning_rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * along)))


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """bf16 matrices over float32 weights, or nothing."""
    narrow = computed_in(precision, device) == "bf16"
    return torch.autocast(device.type, torch.bfloat16) if narrow else nullcontext()


def to_tensors(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The batch's arrays on the device."""
    return tuple(torch.from_numpy(array).to(device) for array in batch)  # type: ignore[return-value]


def next_token_loss(model: nn.Module, batch: Batch, precision: str, device: torch.device) -> Tensor:
    """Mean nats per target token."""
    tokens, targets, documents = to_tensors(batch, device)
    with autocast(precision, device):
        logits = model(tokens, documents)  # (B, T, V)
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


def optimizer_for(model: nn.Module, config: LoopConfig) -> torch.optim.AdamW:
    """AdamW; vectors (norms, biases) are not decayed."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True)


class Loop:
    """One worker's training. `model` may be wrapped for data parallelism; `batches` yields this worker's share.

    `save(step, state)` makes a checkpoint durable before it returns; `report(progress)` is called at every step and may
    raise to end the run. Both see only what was measured. `objective` is what is minimised: next tokens unless given.
    """

    def __init__(
        self, model: nn.Module, batches: Batches, config: LoopConfig, *, evaluate: Evaluate, save: Save, report: Report,
        device: torch.device | None = None, objective: Objective | None = None,
    ) -> None:  # fmt: skip
        self.model, self.batches, self.config = model, batches, config
        self.evaluate, self.save, self.report = evaluate, save, report
        self.device = device or torch.device("cpu")
        self.objective = objective or self._next_token
        self.optimizer = optimizer_for(model, config)
        self.grokfast = GrokFast(
            (p for p in model.parameters() if p.requires_grad), config.grokfast_alpha, config.grokfast_lamb
        )
        self.progress = Progress(total_steps=config.max_steps)

    def state(self) -> dict[str, Any]:
        """All that the rest of the run depends on, in types that `torch.load` reads with `weights_only`."""
        progress = vars(self.progress) | {
            "history": [tuple(point) for point in self.progress.history],
            "held_out": [tuple(held) for held in self.progress.held_out],
        }
        if parallel.sharded(self.model):
            weights, moments = parallel.state(self.model, self.optimizer)
        else:
            weights, moments = bare(self.model).state_dict(), self.optimizer.state_dict()
        return {
            "model": weights, "optimizer": moments,
            "grokfast": self.grokfast.state_dict(), "random": torch.get_rng_state(),
            "position": tuple(self.batches.position), "progress": progress,
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Go on as if there had been no break."""
        if parallel.sharded(self.model):
            parallel.restore(self.model, self.optimizer, state["model"], state["optimizer"])
        else:
            bare(self.model).load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        self.grokfast.load_state_dict(state["grokfast"])
        torch.set_rng_state(state["random"])
        self.batches.position = Position(*state["position"])
        kept = state["progress"]
        self.progress = Progress(
            **kept | {"history": [Point(*p) for p in kept["history"]], "held_out": [Held(*h) for h in kept["held_out"]]}
        )

    def run(self, until: int | None = None) -> Progress:
        """Train to the last step, or to step `until` of the same schedule.

        The held-out loss is measured before the first step and after the last one taken.
        """
        if not self.progress.held_out:
            self._measure()
        end = min(until or self.config.max_steps, self.config.max_steps)
        data, saved_at = iter(self.batches), time.monotonic()
        while self.progress.step < end:
            self._step(next(data))
            step, last = self.progress.step, self.progress.step == end
            every = self.config.evaluate_steps
            if last or (every and step % every == 0):
                self._measure()
            due = step % self.config.checkpoint_steps == 0
            if last or due or time.monotonic() - saved_at > self.config.checkpoint_seconds:
                self.save(step, self.state())
                saved_at = time.monotonic()
            self.report(self.progress)
        return self.progress

    def _next_token(self, model: nn.Module, batch: Batch, step: int) -> Tensor:
        return next_token_loss(model, batch, self.config.precision, self.device)

    def _measure(self) -> None:
        loss, accuracy = self.evaluate(self.model)
        self.progress.held_out.append(Held(self.progress.step, loss, accuracy))

    def _gradients(self, batch: Batch) -> float:
        """Leave the batch's gradients; returns its loss."""
        pieces, value = parts(batch, self.config.accumulate), 0.0
        targets = [max(1, int((piece.targets != IGNORED).sum())) for piece in pieces]
        for number, (piece, share) in enumerate(zip(pieces, targets, strict=True)):
            last = number == len(pieces) - 1
            # Data parallel workers exchange gradients once a batch, with its last part.
            with nullcontext() if last else getattr(self.model, "no_sync", nullcontext)():
                loss = self.objective(self.model, piece, self.progress.step) * (share / sum(targets))
                loss.backward()
            value += loss.item()
        return value

    def _step(self, batch: Batch) -> None:
        begun = time.monotonic()
        rate = learning_rate(self.progress.step, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        value = self._gradients(batch)
        if not math.isfinite(value):
            raise Failed(f"the loss is {value} at step {self.progress.step + 1}", Cause.NOT_FINITE)
        self.grokfast.filter()
        norm = parallel.whole(nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)).item()
        if not math.isfinite(norm):
            raise Failed(f"the gradient's norm is {norm} at step {self.progress.step + 1}", Cause.EXPLODING)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.progress.step += 1
        self.progress.seconds += time.monotonic() - begun
        self.progress.tokens += batch.tokens.size * self.batches.part[1]
        self.progress.history.append(Point(self.progress.step, value, rate, norm))


def parts(batch: Batch, count: int) -> list[Batch]:
    """The batch's rows in `count` parts, as even as can be; fewer where there are fewer rows."""
    count = min(count, len(batch.tokens))
    return [Batch(*(array[i::count] for array in batch)) for i in range(count)] if count > 1 else [batch]


def bare(model: nn.Module) -> Any:
    """The model inside a data-parallel wrapper."""
    return getattr(model, "module", model)
