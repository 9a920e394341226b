"""Evomerge, the second phase: several models become one, merged as an evolutionary search finds best.

Evolutionary model merging (arXiv:2403.13187) over linear, SLERP, task arithmetic, TIES (arXiv:2306.01708), DARE
(arXiv:2311.03099) and passthrough merges. The gateway reads this file, so torch is imported only where work is done.
"""

from typing import Literal

from pydantic import Field

from cluster.errors import Invalid
from cluster.hardware import Precision
from train.evaluate.quality import Quality
from train.phases.phase import Outcome, Phase, PhaseConfig, Verdict, Work

Operator = Literal["linear", "slerp", "task_arithmetic", "ties", "dare_linear", "dare_ties", "passthrough"]


class EvomergeConfig(PhaseConfig):
    """Values come from `configs/phases/evomerge.yaml`; what a request may set is exactly these fields."""

    method: Literal["genetic", "cmaes"] = "genetic"
    operators: tuple[Operator, ...] = ("linear", "slerp", "task_arithmetic", "ties", "dare_linear", "dare_ties")
    population: int = Field(8, ge=4, le=1024)  # merges a generation
    generations: int = Field(8, ge=0, le=1000)  # besides the parents and their plain average, which come first
    groups: int = Field(2, ge=1, le=64)  # of consecutive layers with weights of their own, beside all that is no layer
    ancestor: Literal["auto", "mean"] = "auto"  # task vectors start from the siblings' trunk where there is one
    objectives: tuple[Literal["loss", "error", "parameters"], ...] = ("loss", "error")
    weights: dict[Literal["loss", "error", "parameters"], float] = {}  # pick by this sum; none: by the rule of docs
    tournament: int = Field(3, ge=1)
    crossover: float = Field(0.7, ge=0, le=1)  # share of children that have two parents
    mutation: float = Field(0.25, ge=0, le=1)  # of each gene, and of the operator
    deviation: float = Field(0.15, gt=0, le=1)  # of a mutated gene; where CMA-ES begins
    least_distance: float = Field(0.02, ge=0, le=1)  # of a child from all before it, of at most 1
    fitness_share: float = Field(0.06, gt=0, le=1)  # of the training documents; the judge's are never among them
    fitness_tokens: int = Field(4096, ge=256)  # a merge is measured on at most so many
    fitness_questions: int = Field(48, ge=0)  # and so many questions at most; 0: loss alone
    answer_tokens: int = Field(20, ge=1)  # of a reply
    tolerance: float = Field(0.01, ge=0)  # nats per token by which a parent may be better that answers as much
    context_length: int = Field(512, ge=64, le=8192)  # tokens
    precision: Precision = "auto"


class Evomerge(Phase[EvomergeConfig]):
    """See the module."""

    name = "evomerge"
    Config = EvomergeConfig
    place = "trials"

    @property
    def total_steps(self) -> int:
        """Merges that are measured; the parents count when they are known."""
        return max(1, self.config.population * self.config.generations)

    def check(self) -> None:
        """There must be something to search among and for."""
        if not self.config.operators:
            raise Invalid("no operators to merge by", field="operators")
        if "loss" not in self.config.objectives:
            raise Invalid("loss must be among the objectives", field="objectives")

    def run(self, work: Work) -> dict[str, float]:
        """See `train.evomerge.work`."""
        from train.evomerge.work import evolve

        return evolve(self.config, work)

    def gate(self, before: Quality, after: Quality, metrics: dict[str, float]) -> Verdict:
        """The merge must beat the model before, and no parent may have both a lower loss and as many answers."""
        best, average = metrics["held_out_loss_best_parent"], metrics["held_out_loss_average"]
        good = after.loss <= before.loss and metrics["outdone_by"] <= self.config.tolerance
        return Verdict(
            outcome=Outcome.PASS if good else Outcome.KEEP,
            reason=(
                f"held-out loss {before.loss:.4f} -> {after.loss:.4f} nats per token, {best:.4f} of the best parent, "
                f"{average:.4f} of the plain average; answers right {metrics['answers_before']:.2f} -> "
                f"{metrics['answers']:.2f}, {metrics['answers_best_parent']:.2f} and {metrics['answers_average']:.2f}"
            ),
        )
