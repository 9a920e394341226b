"""Training, the fifth phase: tasks with checkable answers at the edge of what the model can do, and texts beside them.

A curriculum after self-paced and edge-of-chaos schedules: difficulty follows the model's own success so that it stays
between 55 and 75 %. GrokFast-EMA (arXiv:2405.20233). The gateway reads this file, so torch is imported only where a
worker runs.
"""

from pydantic import Field, field_validator

from train.evaluate.quality import Quality
from train.phases.phase import Outcome, Phase, TrainedConfig, Verdict, Work

FAMILIES = (  # the easiest for a small model first
    "length", "program", "capitals", "reverse_list", "reverse_letters", "join", "largest", "times", "nth_letter",
    "sort", "count_letter", "minus", "plus", "sum_list",
)  # fmt: skip


class TrainingConfig(TrainedConfig):
    """Values come from `configs/phases/training.yaml`."""

    families: tuple[str, ...] = (
        FAMILIES  # of tasks (train.curriculum.families), in the order in which they are taken up
    )
    beginning: int = Field(4, ge=1)  # families below the band that are taught at a time
    round_steps: int = Field(30, ge=1)  # optimizer steps between two questionings of the model
    asked: int = Field(20, ge=1)  # tasks of each family that the model is asked in a round
    temperature: float = Field(0.0, ge=0, le=2)  # of its answers; 0 is greedy
    thought_tokens: int = Field(24, ge=0)  # that a model which thinks has for a thought
    low: float = Field(0.55, ge=0, le=1)  # success below: easier
    high: float = Field(0.75, ge=0, le=1)  # success above: harder
    window: int = Field(20, ge=1)  # answers at one difficulty before it moves
    first_step: float = Field(0.5, gt=0, le=9)  # levels
    tasks: float = Field(0.6, ge=0, le=1)  # share of a round's tokens that are tasks
    rehearsal: float = Field(0.25, ge=0, le=1)  # share of the tasks that are of any lower difficulty
    answers_only: bool = True  # questions are read, not learnt to say
    own_answers: bool = True  # right answers of the model's own are taught too where they are put differently
    dreams: float = Field(0.03, ge=0, le=1)  # share of a round's tokens that are dreams, at most
    dreams_drawn: int = Field(32, ge=1)  # a round
    dream_tokens: int = Field(64, ge=8)  # of each at most
    dream_temperature: float = Field(1.2, gt=0, le=3)
    dream_nats: float = Field(
        0.0, ge=-10, le=10
    )  # per token, that the first model may find a dream less likely than text
    dream_distinct: float = Field(0.5, ge=0, le=1)  # least share of different tokens
    exam_tasks: int = Field(8, ge=1)  # held-out tasks of every family and level, before and after
    standard_errors: float = Field(2.0, ge=0)  # by so many the success must have risen
    loss_tolerance: float = Field(0.05, ge=0)  # nats per token that held-out text may have become less likely
    conversation_tolerance: float = Field(0.15, ge=0)  # the same, of the held-out conversations alone

    @field_validator("families")
    @classmethod
    def _known(cls, families: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := set(families) - set(FAMILIES):
            raise ValueError(f"no family {min(unknown)}")
        if not families:
            raise ValueError("a curriculum needs a family of tasks")
        return families


class Training(Phase[TrainingConfig]):
    """See the module."""

    name = "training"
    Config = TrainingConfig

    @property
    def total_steps(self) -> int:
        """Optimizer steps."""
        return self.config.max_steps

    def run(self, work: Work) -> dict[str, float]:
        """See `train.curriculum.teaching`."""
        from train.curriculum.teaching import teach

        return teach(self.config, work)

    def gate(self, before: Quality, after: Quality, metrics: dict[str, float]) -> Verdict:
        """Success on held-out tasks must have risen beyond chance, and neither text nor conversations been forgotten.

        Conversations are looked at by themselves: they are few of the tokens, and all of what a user sees.
        """
        config, rise = self.config, metrics["success"] - metrics["success_before"]
        error = metrics["success_standard_error"]
        talk = metrics["conversation_loss_before"], metrics["conversation_loss"]
        learnt = rise > config.standard_errors * error
        kept = after.loss - before.loss <= config.loss_tolerance and talk[1] - talk[0] <= config.conversation_tolerance
        return Verdict(
            outcome=Outcome.PASS if learnt and kept else Outcome.KEEP,
            reason=(
                f"success on held-out tasks {metrics['success_before']:.1%} -> {metrics['success']:.1%} (standard "
                f"error {error:.1%}), held-out loss {before.loss:.3f} -> {after.loss:.3f} nats per token (at most "
                f"+{config.loss_tolerance:g}), of conversations {talk[0]:.3f} -> {talk[1]:.3f} (at most "
                f"+{config.conversation_tolerance:g})"
            ),
        )
