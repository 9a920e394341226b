"""Cognate, the first phase: a tokenizer and a small Llama from nothing, or further training of a base model.

AdamW with GrokFast-EMA (arXiv:2405.20233); several siblings of one trunk where a merge comes next; several base models
are averaged first (model soups, arXiv:2203.05482). The gateway reads this file, so torch is imported only where a
worker runs.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from cluster.errors import Invalid, NotBuilt
from train.bases import is_local
from train.evaluate.quality import Quality
from train.model.shape import choose
from train.phases.phase import Outcome, Phase, TrainedConfig, Verdict, Work


class Speciality(BaseModel):
    """What a sibling learns more of than the others do."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field("", max_length=32)
    mix: dict[str, float] = {}  # over the common `mix`, source by source

    def stressed(self, common: Mapping[str, float]) -> frozenset[str]:
        """The sources that it takes more often than the common mix does."""
        return frozenset(source for source, share in self.mix.items() if share > common.get(source, 1.0))


class CognateConfig(TrainedConfig):
    """Values come from `configs/phases/cognate.yaml`; what a request may set is exactly these fields."""

    target_architecture: str = "auto"
    merge_strategy: Literal["evolutionary", "linear"] = "evolutionary"  # how several base models become one
    parameter_budget: int = Field(1_500_000, ge=1)  # what `auto` may spend
    vocab_size: int = Field(2048, ge=512, le=65_536)
    learning_rate: float = Field(4e-3, gt=0, le=1)
    grokfast_lamb: float = Field(2.0, ge=0, le=10)
    siblings: int = Field(1, ge=1, le=8)  # models of one trunk, each specialised, for evomerge
    siblings_from: float = Field(0.7, ge=0, lt=1)  # share of max_steps that all siblings have in common
    specialities: tuple[Speciality, ...] = ()  # of the siblings, in turn; the first is the one that a run goes on with

    @property
    def trunk_steps(self) -> int:
        """Steps that all siblings have in common."""
        return min(max(1, round(self.max_steps * self.siblings_from)), self.max_steps)

    @property
    def branch_steps(self) -> int:
        """Steps that each sibling takes by itself."""
        return self.max_steps - self.trunk_steps

    @property
    def steps_of_all(self) -> int:
        """Of the trunk and of every sibling."""
        return self.max_steps if self.siblings == 1 else self.trunk_steps + self.siblings * self.branch_steps


class Cognate(Phase[CognateConfig]):
    """See the module."""

    name = "cognate"
    Config = CognateConfig
    needs_base = False

    @property
    def total_steps(self) -> int:
        """Optimizer steps, over all siblings."""
        return self.config.steps_of_all

    def check(self) -> None:
        """What is local must exist, how several base models become one must be known, an architecture must fit."""
        config = self.config
        for name in config.base_models:
            if is_local(name) and not (Path(name).expanduser() / "config.json").is_file():
                raise Invalid(f"no model in {name}", field="base_models", value=name)
        for name in config.datasets:
            if is_local(name) and not Path(name).expanduser().exists():
                raise Invalid(f"no data in {name}", field="datasets", value=name)
        if len(config.base_models) > 1 and config.merge_strategy == "evolutionary":
            raise NotBuilt(
                "cognate averages base models (merge_strategy: linear); the phase evomerge takes the same base_models "
                "and merges them by evolution", field="merge_strategy", allowed_values=["linear"],
            )  # fmt: skip
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
