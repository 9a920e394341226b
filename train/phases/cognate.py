"""Cognate, the first phase: a tokenizer and a small Llama from nothing, or further training of a base model.

AdamW with GrokFast-EMA (arXiv:2405.20233). The gateway reads this file, so torch is imported only where a worker runs.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field

from cluster.errors import Invalid
from train.model.shape import choose
from train.phases.phase import Phase, PhaseConfig, Quality, Verdict, Work


class CognateConfig(PhaseConfig):
    """Values come from `configs/phases/cognate.yaml`; what a request may set is exactly these fields."""

    base_models: tuple[str, ...] = ()  # hub ids or local folders; none: from nothing
    target_architecture: str = "auto"
    merge_strategy: Literal["evolutionary", "linear"] = "evolutionary"  # how several base models become one
    parameter_budget: int = Field(1_500_000, ge=1)  # what `auto` may spend
    vocab_size: int = Field(2048, ge=512, le=65_536)
    context_length: int = Field(512, ge=64, le=8192)  # tokens
    max_steps: int = Field(300, ge=1, le=1_000_000)  # optimizer steps
    batch_size: int = Field(4, ge=1, le=4096)  # rows of context_length tokens a step, over all workers
    learning_rate: float = Field(4e-3, gt=0, le=1)
    final_learning_rate_ratio: float = Field(0.05, ge=0, le=1)
    warmup_steps: int = Field(30, ge=0)
    weight_decay: float = Field(0.1, ge=0, le=1)
    clip_norm: float = Field(1.0, gt=0)
    grokfast_alpha: float = Field(0.98, ge=0, lt=1)
    grokfast_lamb: float = Field(2.0, ge=0, le=10)
    precision: Literal["bf16", "fp32"] = "bf16"
    mix: dict[str, float] = {}  # how often an epoch takes each source's documents; 1 where none is given
    held_out: float = Field(0.04, gt=0, lt=0.5)  # share of documents
    held_out_tokens: int = Field(8192, ge=256)  # at most so many are measured on
    evaluate_steps: int = Field(0, ge=0)  # held-out loss every so many steps; 0: only before and after
    checkpoint_steps: int = Field(500, ge=1)
    checkpoint_seconds: float = Field(10.0, gt=0)


class Cognate(Phase[CognateConfig]):
    """See the module."""

    name = "cognate"
    Config = CognateConfig

    @property
    def total_steps(self) -> int:
        """Optimizer steps."""
        return self.config.max_steps

    def check(self) -> None:
        """A local base model must exist, and an architecture of that size must be there."""
        config = self.config
        for name in config.base_models:
            if is_local(name) and not (Path(name).expanduser() / "config.json").is_file():
                raise Invalid(f"no model in {name}", field="base_models", value=name)
        choose(config.target_architecture, config.parameter_budget, config.vocab_size, config.context_length)

    def run(self, work: Work) -> None:
        """See `train.pretraining`."""
        from train.pretraining import pretrain

        pretrain(self, work)

    def gate(self, before: Quality, after: Quality) -> Verdict:
        """The held-out loss must have fallen."""
        return Verdict(
            passed=after.loss < before.loss,
            reason=f"held-out loss {before.loss:.3f} -> {after.loss:.3f} nats per token",
        )


def is_local(name: str) -> bool:
    """Whether a base model is named by a folder; everything else is a hub id."""
    return name.startswith(("/", ".", "~"))
