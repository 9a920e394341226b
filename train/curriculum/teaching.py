"""What training's workers do: ask, move the difficulty, teach, and measure on tasks that were never taught."""

import json
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from train.curriculum.answering import Answered, Success, answers, by
from train.curriculum.controller import Band
from train.curriculum.making import Maker
from train.curriculum.rounds import Round, Rounds, Shares, replayed
from train.curriculum.sandbox import Sandbox
from train.curriculum.tasks import LEVELS, held_out
from train.data.feed import by_source
from train.data.prepared import texts
from train.evaluate.perplexity import held_out_batches, held_out_loss
from train.manifest import write_durably
from train.model.checkpoint import publish
from train.model.learner import Learner, load
from train.phases.phase import Work
from train.resumable import measured, train

if TYPE_CHECKING:
    from train.phases.training import TrainingConfig


def teach(config: "TrainingConfig", work: Work) -> dict[str, float]:
    """Leaves the model in `work.output`."""
    assert work.base is not None
    corpus, learner = texts(work.data), load(work.base)
    torch.manual_seed(config.seed)
    learner.model.to(work.device)
    context = min(config.context_length, learner.context)
    documents = by_source(learner, (*corpus.training, *replayed(learner.replay)))
    rows = held_out_batches(learner, corpus.held_out, config.held_out_tokens, context)

    def evaluate(model: nn.Module) -> tuple[float, float]:
        return held_out_loss(model, rows, config.precision, work.device)

    talk = [document for document in corpus.held_out if document.turns]
    exchanges = held_out_batches(learner, talk or corpus.held_out, config.held_out_tokens, context)

    def measure() -> dict[str, float]:
        found = told(examined(config, learner, sandbox))
        return found | {"conversation_loss": held_out_loss(learner.model, exchanges, "fp32", work.device)[0]}

    with Sandbox() as sandbox:
        before = beforehand(work, measure) if work.rank == 0 else {}
        maker = Maker(config, work, learner, sandbox, evaluate(learner.model)[0])
        batches = Rounds(
            learner, documents, config.mix, steps=config.round_steps, shares=Shares(config.tasks, config.dreams),
            begin=maker.begin, answers_only=config.answers_only, context=context, size=config.batch_size,
            pad=learner.pad, seed=config.seed, part=(work.rank, work.world),
        )  # fmt: skip
        progress = train(maker.work, config, learner.model, batches, evaluate=evaluate)
        if work.rank != 0:
            return {}
        after = measure()
        work.note("sandbox", processes=sandbox.started, **sandbox.walls)
    publish(work.output, learner.save)
    rounds = [made for number in range(batches.position.epoch + 1) if (made := maker.kept.read(number))]
    return (
        measured(progress) | {f"{name}_before": value for name, value in before.items()} | after
        | {"success_standard_error": math.hypot(error(before), error(after))} | over_rounds(rounds, maker.band)
    )  # fmt: skip


def examined(config: "TrainingConfig", learner: Learner, sandbox: Sandbox) -> list[Answered]:
    """The model on the held-out tasks, always the same ones, greedy."""
    exam = [task for task in held_out(config.exam_tasks, config.seed) if task.family in config.families]
    return answers(learner, exam, sandbox, thought_tokens=config.thought_tokens)


def beforehand(work: Work, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    """What the model can do before it is taught; measured once."""
    path = work.folder / "before.json"
    if not path.exists():
        found = measure()
        write_durably(path, lambda file: file.write(json.dumps(found).encode()))
        work.note("before", success=round(found["success"], 4), tasks=found["exam_tasks"])
    return json.loads(path.read_bytes())


def told(answered: Sequence[Answered]) -> dict[str, float]:
    """Success on the exam: of all tasks, of every family, and of every level."""
    families, levels = by(answered, "family"), by(answered, "level")
    whole = Success(sum(each.right for each in answered), len(answered))
    return (
        {"success": whole.share, "exam_tasks": float(whole.asked)}
        | {f"success_{family}": found.share for family, found in families.items()}
        | {f"success_level_{level}": levels[level].share for level in LEVELS if level in levels}
    )  # fmt: skip


def error(exam: dict[str, float]) -> float:
    """Standard error of the share of right answers."""
    share = exam["success"]
    return math.sqrt(share * (1 - share) / exam["exam_tasks"])


def over_rounds(rounds: Sequence[Round], band: Band) -> dict[str, float]:
    """How well success was held in the band, and the levels that were reached.

    A family counts from the round in which it reached the band: it begins at the lowest level, below which nothing can
    be asked. `rounds_in_band` is of the success over all such families, `family_rounds_in_band` of each by itself.
    """
    whole, single = list[bool](), list[bool]()
    for made in rounds:
        some = [Success(*made.asked[name]) for name in made.asked if made.standings[name]["reached"]]
        single += [band.holds(each.share) for each in some]
        if some:
            whole.append(band.holds(Success(sum(s.right for s in some), sum(s.asked for s in some)).share))
    drawn, standings = sum(made.dreamt for made in rounds), rounds[-1].standings
    return {
        "rounds": float(len(rounds)), "rounds_in_band": mean(whole), "family_rounds_in_band": mean(single),
        "families_reached": float(sum(here["reached"] for here in standings.values())),
        "dreams_kept": sum(len(made.dreams) for made in rounds) / drawn if drawn else 0.0,
    } | {f"level_{family}": here["difficulty"] for family, here in standings.items()}  # fmt: skip


def mean(some: Sequence[bool]) -> float:
    """Share of what is true; 0 of nothing."""
    return sum(some) / len(some) if some else 0.0
