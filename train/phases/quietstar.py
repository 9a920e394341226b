"""Quiet-STaR: a model learns to think before it speaks, and is served so (arXiv:2403.09629).

The gateway reads this file, so torch is imported only where a worker runs.
"""

from math import sqrt

from pydantic import Field

from cluster.errors import Invalid
from train.evaluate.quality import Quality
from train.phases.phase import Outcome, Phase, TrainedConfig, Verdict, Work


class QuietstarConfig(TrainedConfig):
    """Values come from `configs/phases/quietstar.yaml`; what a request may set is exactly these fields."""

    thought_tokens: int = Field(16, ge=1, le=512)  # of a thought at most, without its marks
    ahead: int = Field(12, ge=1, le=256)  # true tokens after a thought that its reward is counted over
    thoughts: int = Field(4, ge=2, le=64)  # drawn at each position; a reward is measured against their mean
    positions: int = Field(8, ge=1, le=1024)  # that are thought at, at each step
    thinking_context: int = Field(256, ge=64, le=8192)  # tokens of the row that is thought about at each step
    thinking_mix: dict[str, float] = {}  # how often its epochs take each source's documents, beside sums (arithmetic)
    anywhere: float = Field(0.25, ge=0, le=1)  # share of them that is not kept for assistants' marks
    temperature: float = Field(1.0, gt=0, le=2)  # that thoughts are drawn at
    reinforce_from: float = Field(0.7, ge=0, le=1)  # share of the steps before the first thought of its own; 1: never
    reinforce_weight: float = Field(1.0, ge=0)  # of REINFORCE beside the mixture's likelihood
    thinking_weight: float = Field(0.1, ge=0)  # of both beside the text's likelihood
    scratchpads: int = Field(4000, ge=0)  # documents with a written thought to begin with; 0: REINFORCE alone
    largest_operand: int = Field(49, ge=10, le=999)  # of the sums that scratchpads are written for
    exam_questions: int = Field(200, ge=10)  # of each kind, before and after
    replayed: int = Field(200, ge=0)  # documents with thoughts that later phases mix in
    tolerance: float = Field(0.05, ge=0)  # nats per token that the held-out loss may rise by


class Quietstar(Phase[QuietstarConfig]):
    """See the module."""

    name = "quietstar"
    Config = QuietstarConfig

    @property
    def total_steps(self) -> int:
        """Optimizer steps."""
        return self.config.max_steps

    def check(self) -> None:
        """A row must have room for its positions and a thought."""
        config = self.config
        if config.positions * 4 > config.thinking_context:
            raise Invalid("a row has no room for so many positions", field="positions", value=config.positions)
        if 2 * (config.thought_tokens + config.ahead + 2) > config.thinking_context:
            raise Invalid("thoughts are too long for the context", field="thought_tokens", value=config.thought_tokens)

    def run(self, work: Work) -> dict[str, float]:
        """See `train.quietstar.teaching`."""
        from train.quietstar.teaching import teach

        return teach(self.config, work)

    def gate(self, before: Quality, after: Quality, metrics: dict[str, float]) -> Verdict:
        """More right answers than before and than without thoughts, by more than chance, and text as well as before."""
        kinds = ("all_before", "all", "all_without_thought", "asked")
        was, now, at_once, asked = (metrics[f"arithmetic_{kind}"] for kind in kinds)
        error = sqrt((was * (1 - was) + now * (1 - now)) / asked)  # of the difference
        better, kept = now - max(was, at_once) > 2 * error, after.loss <= before.loss + self.config.tolerance
        return Verdict(
            outcome=Outcome.PASS if better and kept else Outcome.KEEP,
            reason=f"sums right {was:.1%} -> {now:.1%} with thoughts (standard error {error:.1%}, without thoughts "
            f"{at_once:.1%}), held-out loss {before.loss:.3f} -> {after.loss:.3f} "
            f"nats per token (at most {self.config.tolerance} more)",
        )  # fmt: skip
