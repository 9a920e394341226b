"""Tool baking: what a prompt about tools and manners does to a model is put into its weights.

Prompt Baking (arXiv:2409.13697). The gateway reads this file, so torch is imported only where a worker runs.
"""

import math
from typing import Literal, get_args

from pydantic import Field

from train.evaluate.quality import Quality
from train.phases.phase import Outcome, Phase, TrainedConfig, Verdict, Work

ToolName = Literal["calculator", "calendar", "capital", "convert", "length", "reverse"]
SURE = 2.0  # standard errors that a gain must exceed


class ToolBakingConfig(TrainedConfig):
    """Values come from `configs/phases/tool_baking.yaml`. `max_steps` and `learning_rate` are those of the baking."""

    persona: str = Field("", max_length=2000)  # the prompt's first part; the tools' short description follows it
    persona_examples: tuple[tuple[str, str], ...] = ()  # (questions with " | " between, answer) in the persona's manner
    tools: tuple[ToolName, ...] = Field(get_args(ToolName), min_length=1)  # of `train.tools`
    copying: float = Field(0.9, ge=0, le=1)  # a base that copies arguments right less often is drilled first
    copying_steps: int = Field(250, ge=0)  # optimizer steps of that
    teacher_success: float = Field(0.5, ge=0, le=1)  # a prompted base whose calls succeed less often is taught first
    teacher_steps: int = Field(150, ge=0)  # optimizer steps of that, with the prompt in context
    teacher_learning_rate: float = Field(3e-3, gt=0, le=1)  # of drills and teacher
    teacher_tasks: int = Field(2400, ge=1)  # questions for tools that it is taught with
    text_weight: float = Field(0.2, gt=0, le=1)  # of a token of the run's texts, where one of a tool dialogue has 1
    trajectories: int = Field(600, ge=1)  # exchanges that are sampled from the prompted teacher for the baking
    temperature: float = Field(0.5, ge=0, le=2)  # that they are sampled at
    chats: float = Field(0.3, ge=0, lt=1)  # share of exchanges that need no tool
    rank: int = Field(16, ge=1, le=1024)  # of the low-rank deltas
    alpha: float = Field(32.0, gt=0)  # they are scaled by alpha / rank
    pursuits: int = Field(1, ge=1, le=8)  # times that the baked model is prompted again and baked again
    measured_tasks: int = Field(120, ge=6)  # held-out questions for tools
    max_tokens: int = Field(64, ge=16, le=1024)  # of a reply
    most_false_calls: float = Field(0.05, ge=0, le=1)  # share of plain questions that may be met with a call
    most_loss: float = Field(0.05, ge=0)  # nats per token that the held-out loss may rise by
    replay: int = Field(200, ge=0)  # conversations that later phases are given to mix in


class ToolBaking(Phase[ToolBakingConfig]):
    """See `train.baking`."""

    name = "tool_baking"
    Config = ToolBakingConfig

    @property
    def total_steps(self) -> int:
        """Optimizer steps of drills, teacher and baking."""
        return self.config.copying_steps + self.config.teacher_steps + self.config.pursuits * self.config.max_steps

    def run(self, work: Work) -> dict[str, float]:
        """See `train.baking.bake`."""
        from train.baking.bake import bake

        return bake(self, work)

    def gate(self, before: Quality, after: Quality, metrics: dict[str, float]) -> Verdict:
        """Tool calls must succeed more often than by chance alone, at little cost to text and to plain questions."""
        config = self.config
        was, now = metrics["tool_success_before"], metrics["tool_success_after"]
        error = math.hypot(metrics["tool_success_error_before"], metrics["tool_success_error_after"])
        false, rise = metrics["false_call_rate_after"], after.loss - before.loss
        good = now - was > SURE * error and false <= config.most_false_calls and rise <= config.most_loss
        return Verdict(
            outcome=Outcome.PASS if good else Outcome.KEEP,
            reason=f"tool calls that succeed {was:.1%} -> {now:.1%} (standard error {error:.1%}), calls where none "
            f"belongs {false:.1%} (at most {config.most_false_calls:.1%}), held-out loss {before.loss:.3f} -> "
            f"{after.loss:.3f} nats per token (may rise by {config.most_loss})",
        )
