"""Models of one trunk: trained together for a share of the steps, then each on a mix of its own, for evomerge.

What evolves well by merging is models that are near each other and differ in what they know (model soups,
arXiv:2203.05482, need a trunk in common). The schedule is one: a sibling goes on at the learning rate, and with the
moments of AdamW, at which the trunk was left.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from train.data.packing import Batch, Batches
from train.data.sources import Document
from train.evaluate.perplexity import held_out_batches, held_out_loss
from train.loop import Progress
from train.model.checkpoint import publish
from train.model.learner import Learner
from train.phases.cognate import CognateConfig, Speciality
from train.phases.phase import Work
from train.resumable import measured, together, train

TRUNK = "trunk"


@dataclass(frozen=True)
class Family:
    """What all siblings have in common."""

    config: CognateConfig
    work: Work
    learner: Learner  # as it begins; every loop trains a copy
    batches: Callable[[Mapping[str, float], int], Batches]  # of a mix and a seed
    evaluate: Callable[[nn.Module], tuple[float, float]]
    held_out: tuple[Document, ...]

    def loop(self, number: int) -> tuple[Learner, Progress]:
        """The trunk (-1) or a sibling, trained; its steps are told as part of all siblings' steps."""
        config, learner = self.config, replace(self.learner, model=copy.deepcopy(self.learner.model))
        before = max(0, number) * config.branch_steps
        work = replace(
            self.work, report=lambda progress: self.work.report(shifted(progress, before, config.steps_of_all))
        )
        if number < 0:
            name, until, origin, mix = TRUNK, config.trunk_steps, "", config.mix
        else:
            name, until, origin, mix = f"sibling-{number}", None, TRUNK, config.mix | speciality(config, number).mix
        batches = self.batches(mix, config.seed + 1 + number)
        progress = train(
            work, config, learner.model, batches, evaluate=self.evaluate, name=name, until=until, branch_of=origin
        )
        together(work)  # the others' next loop begins with what rank 0 has saved of this one
        return learner, progress

    def loss(self, model: nn.Module, rows: Sequence[Batch]) -> float:
        """Nats per token on the rows."""
        return held_out_loss(model, rows, self.config.precision, self.work.device)[0]

    def rows(self, sources: frozenset[str]) -> list[Batch]:
        """The held-out documents of these sources; of all where there are none."""
        chosen = [document for document in self.held_out if document.source in sources] or self.held_out
        context = min(self.config.context_length, self.learner.context)
        return held_out_batches(self.learner, chosen, self.config.held_out_tokens, context)


def train_siblings(family: Family) -> dict[str, float]:
    """Leaves the first sibling in `work.output`, the others in `work.sibling_outputs`.

    The metrics are the first one's, and of every sibling its held-out loss on everything and on what its mix has more
    of than the common one, there also the trunk's.
    """
    config, work = family.config, family.work
    trunk, common = family.loop(-1)
    if work.rank == 0:
        publish(work.sibling_outputs / TRUNK, trunk.save)  # task vectors start there
    metrics: dict[str, float] = {}
    seconds, tokens = common.seconds, common.tokens
    for number in range(config.siblings):
        special = speciality(config, number)
        rows = family.rows(special.stressed(config.mix))
        before = family.loss(trunk.model, rows)
        learner, progress = family.loop(number)
        seconds, tokens = seconds + progress.seconds - common.seconds, tokens + progress.tokens - common.tokens
        of_its_own = {
            "loss": progress.held_out[-1].loss, "speciality_loss_before": before,
            "speciality_loss": family.loss(learner.model, rows),
        }  # fmt: skip
        work.note("sibling", number=number, speciality=special.name, **of_its_own)
        metrics |= {f"sibling_{number}_{name}": value for name, value in of_its_own.items()}
        if number == 0:
            metrics |= measured(progress) | {"trunk_loss": common.held_out[-1].loss}
        if work.rank == 0:
            publish(work.output if number == 0 else work.sibling_outputs / str(number - 1), learner.save)
    return metrics | {
        "training_seconds": seconds, "tokens": float(tokens), "tokens_per_second": tokens / max(seconds, 1e-9)
    }  # fmt: skip


def speciality(config: CognateConfig, number: int) -> Speciality:
    """Of a sibling; more siblings than specialities differ in their seed."""
    return config.specialities[number % len(config.specialities)] if config.specialities else Speciality(name="")


def shifted(progress: Progress, before: int, total: int) -> Progress:
    """One loop's progress as part of all loops': `before` steps of other siblings, which took as long each."""
    share = (progress.step + before) / max(1, progress.step)
    return replace(progress, step=progress.step + before, total_steps=total, seconds=progress.seconds * share)
