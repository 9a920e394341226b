"""Adas, the seventh phase: the agent that makes the most of the model, found by search, and its expert vectors.

Automated Design of Agentic Systems (arXiv:2408.08435) over designs that may mix the singular-value experts of
Transformer-squared (arXiv:2501.06252). The gateway reads this file, so torch is imported only where work is done.
"""

from itertools import pairwise
from typing import Literal

from pydantic import Field

from cluster.errors import Invalid
from train.evaluate.quality import Quality
from train.phases.phase import Outcome, Phase, TrainedConfig, Verdict, Work

Family = Literal["arithmetic", "facts", "lists", "text"]


class AdasConfig(TrainedConfig):
    """Values come from `configs/phases/adas.yaml`; the fields of `TrainedConfig` are for each expert's training."""

    families: tuple[Literal["arithmetic", "facts", "lists"], ...] = ("arithmetic", "facts", "lists")  # of questions
    level: int = Field(2, ge=0, le=10)  # highest level of the curriculum's tasks; 0: none of them
    least_known: float = Field(0.05, ge=0, le=1)  # tasks of which the base gets less right are left out
    experts: tuple[Family, ...] = ("arithmetic", "facts", "text")  # one each is trained; none: weights stay
    method: Literal["supervised", "reinforce"] = "supervised"  # how; text is always supervised
    prompts: int = Field(8, ge=1)  # of a step of reinforce
    answers: int = Field(4, ge=2)  # to each of them
    kl: float = Field(0.1, ge=0)  # weight of the divergence from the base, of reinforce
    mixture_rounds: int = Field(2, ge=0)  # of the cross-entropy search for the general mixture
    mixture_population: int = Field(8, ge=4)
    validation_tokens: int = Field(2048, ge=64)  # of each family's text, that mixtures are measured on
    family_questions: int = Field(72, ge=4)  # of each family, for the experts' effects and for the dispatcher
    loss_tolerance: float = Field(0.03, ge=0)  # nats per token that the held-out loss may rise by
    proposer: Literal["operators", "model"] = "operators"  # model: the base is asked for designs, as JSON
    budget_trials: int = Field(60, ge=2)  # evaluations: of a design on a rung's questions
    budget_seconds: float = Field(50.0, gt=0)  # of evaluations, over all trials together; finalists may add
    rungs: tuple[int, ...] = (24, 72, 216)  # questions that a design has been asked by the end of each rung
    novelty_weight: float = Field(0.1, ge=0)  # of a design's distance to the archive, beside success, in who breeds
    examples: int = Field(12, ge=0, le=200)  # answered questions that designs choose from
    max_tokens: int = Field(32, ge=1, le=512)  # of one reply
    thought_tokens: int = Field(48, ge=0, le=512)  # more, of a model that thinks
    judge_questions: int = Field(240, ge=8)  # unseen by the search, for before and after


class Adas(Phase[AdasConfig]):
    """See the module."""

    name = "adas"
    Config = AdasConfig
    place = "trials"

    @property
    def total_steps(self) -> int:
        """The experts' optimizer steps, then trials."""
        return len(self.config.experts) * self.config.max_steps + self.config.budget_trials

    def check(self) -> None:
        """There must be questions, and rungs that rise."""
        rungs = self.config.rungs
        if not self.config.families:
            raise Invalid("no family of questions to search on", field="families")
        if not rungs or rungs[0] < 1 or any(a >= b for a, b in pairwise(rungs)):
            raise Invalid("rungs must rise", field="rungs", value=list(rungs))

    def run(self, work: Work) -> dict[str, float]:
        """See `train.adas.designing`."""
        from train.adas.designing import design

        return design(self.config, work)

    def gate(self, before: Quality, after: Quality, metrics: dict[str, float]) -> Verdict:
        """The winner must answer more unseen questions than the default, beyond chance, and text must not suffer."""
        gain, error = metrics["success_gain"], metrics["success_gain_error"]
        good = gain > error and after.loss <= before.loss + self.config.loss_tolerance
        return Verdict(
            outcome=Outcome.PASS if good else Outcome.KEEP,
            reason=f"unseen questions right {metrics['success_before']:.3f} -> {metrics['success_after']:.3f} "
            f"(gain {gain:.3f}, standard error {error:.3f}), tokens an answer {metrics['cost_before']:.1f} -> "
            f"{metrics['cost_after']:.1f}, held-out loss {before.loss:.3f} -> {after.loss:.3f} nats per token (may "
            f"rise by {self.config.loss_tolerance:.2f})",
        )
