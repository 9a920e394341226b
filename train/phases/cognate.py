"""Cognate, the first phase: a tokenizer and a small Llama from nothing, or further training of a base model.

AdamW with GrokFast-EMA (arXiv:2405.20233). The gateway reads this file, so torch is imported only where a worker runs.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field

from cluster.errors import Invalid
from train.bases import is_local
from train.evaluate.quality import Quality
from train.model.shape import choose
from train.phases.phase import Outcome, Phase, TrainedConfig, Verdict, Work


class CognateConfig(TrainedConfig):
    """Values come from `configs/phases/cognate.yaml`; what a request may set is exactly these fields."""

    target_architecture: str = "auto"
    merge_strategy: Literal["evolutionary", "linear"] = "evolutionary"  # how several base models become one
    parameter_budget: int = Field(1_500_000, ge=1)  # what `auto` may spend
    vocab_size: int = Field(2048, ge=512, le=65_536)
    learning_rate: float = Field(4e-3, gt=0, le=1)
    grokfast_lamb: float = Field(2.0, ge=0, le=10)
    siblings: int = Field(1, ge=1, le=8)  # models of one trunk, each specialised, for evomerge
    siblings_from: float = Field(0.7, ge=0, lt=1)  # share of the steps that all siblings have in common


class Cognate(Phase[CognateConfig]):
    """See the module."""

    name = "cognate"
    Config = CognateConfig
    needs_base = False

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

    def run(self, work: Work) -> dict[str, float]:
        """See `train.pretraining`."""
        from train.pretraining import pretrain

        return pretrain(self, work)

    def gate(self, before: Quality, after: Quality, metrics: dict[str, float]) -> Verdict:
        """The held-out loss must have fallen."""
        return Verdict(
            outcome=Outcome.PASS if after.loss < before.loss else Outcome.FAIL,
            reason=f"held-out loss {before.loss:.3f} -> {after.loss:.3f} nats per token",
        )
