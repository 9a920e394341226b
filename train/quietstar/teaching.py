"""What quietstar's workers do: scratchpads to begin with, then thoughts of the model's own and REINFORCE on their gain.

Quiet-STaR, arXiv:2403.09629. Deviations, each because a model of a million weights has never seen anybody think, or
because it is served without a mixing head: the first steps learn written scratchpads for sums (as STaR begins with
written rationales, arXiv:2203.14465) and empty thoughts for other conversations; most places are assistants' marks,
where a served model thinks; a thought may end early, and its end is drawn like its tokens; the marks' embeddings learn
at everybody's rate, which under AdamW needs no multiple.
"""

import json
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train.causes import Cause, Failed
from train.data.feed import by_source
from train.data.packing import IGNORED, Batch, Batches
from train.data.prepared import texts
from train.data.sources import Document
from train.evaluate.perplexity import held_out_batches, held_out_loss
from train.loop import Progress, autocast, bare, to_tensors
from train.manifest import write_durably
from train.model.checkpoint import publish
from train.model.learner import Learner, load
from train.model.thoughts import thinking
from train.model.tokenizer import ASSISTANT, SPECIAL, THINK, THOUGHT, Tokenizer, Turn
from train.phases.phase import Work
from train.quietstar import arithmetic, measuring
from train.quietstar.objective import MEASURES, Wanted, learnt, pondered
from train.quietstar.thinker import Thinker
from train.resumable import measured, train

if TYPE_CHECKING:
    from train.phases.quietstar import QuietstarConfig

DASHES = ("—", "--", "-")  # the paper begins the marks' embeddings as the em dash's
PRACTISED = 2000  # sums without scratchpads that are thought about
WINDOW = 10  # steps that a point of the told curve is the mean of


def teach(config: "QuietstarConfig", work: Work) -> dict[str, float]:
    """Leaves the model in `work.output`."""
    assert work.base is not None
    corpus, learner = texts(work.data), load(work.base)
    if not isinstance(learner.tokenizer, Tokenizer):
        raise Failed("thoughts need a model of this forge's own, whose tokenizer has the marks", Cause.BASE_MODEL)
    torch.manual_seed(config.seed)
    learner.model.to(work.device)
    school = arithmetic.school(config.largest_operand, config.exam_questions, config.seed, corpus.training)
    exams = school.exams
    if not exams:
        raise Failed("no sum is left to examine thoughts on", Cause.DATA)
    before = measuring.accuracy(learner, exams, config.thought_tokens)
    wanted, thinker = wanted_of(config), thinker_of(learner, config).to(work.device)
    documents = [*corpus.training, *learner.replay, *lessons(config, school, corpus.training)]
    part = (work.rank, work.world)
    batches = Batches(
        by_source(learner, documents), config.mix, context=config.context_length, size=config.batch_size,
        pad=learner.pad, seed=config.seed, part=part,
    )  # fmt: skip
    matter = [*corpus.training, *school.practice(PRACTISED, config.seed, thoughtful=False)]
    thinking = Batches(
        by_source(learner, matter), config.thinking_mix, context=min(config.thinking_context, learner.context),
        size=part[1], pad=learner.pad, seed=config.seed, part=part,
    )  # fmt: skip
    rows = held_out_batches(learner, corpus.held_out, config.held_out_tokens, config.context_length)
    progress = train(
        telling(work, thinker), config, thinker, batches,
        objective=Objective(config, wanted, learner, thinking, work.device),
        evaluate=lambda model: held_out_loss(bare(model).model, rows, config.precision, work.device),
    )  # fmt: skip
    if work.rank != 0:
        return {}
    keep_curve(work, thinker)
    thinking_learner = replace(learner, tokenizer=Tokenizer(learner.tokenizer.bpe, thinks=True))
    found = measured(progress) | reinforced(thinker)
    found |= {f"arithmetic_{name}_before": value for name, value in before.items() if name in (*exams, "all")}
    without = measuring.accuracy(measuring.silent(learner), exams, config.thought_tokens)
    found |= {f"arithmetic_{name}_without_thought": value for name, value in without.items() if name in (*exams, "all")}
    after = measuring.accuracy(thinking_learner, exams, config.thought_tokens)
    found |= {f"arithmetic_{name}" if name != "thought_tokens" else name: value for name, value in after.items()}
    found["tokens_per_reply_without_thought"] = without["tokens"]
    future = measuring.future(thinker, learner, rows, wanted, config.precision, work.device)
    found |= {f"future_loss_{name}" if name != "weight" else "mixing_weight": value for name, value in future.items()}
    thinking_learner.replay = [*learner.replay, *remembered(thinking_learner, config, school, corpus.training)]
    publish(work.output, thinking_learner.save)
    return found


class Objective:
    """`train.loop.Objective`: next tokens; from `config.reinforce_from` on, thoughts in rows of their own as well.

    Those rows follow from the step's number, so that a run that is taken up again has the same.
    """

    def __init__(
        self, config: "QuietstarConfig", wanted: Wanted, learner: Learner, rows: Batches, device: torch.device
    ) -> None:
        self.config, self.wanted, self.rows, self.device = config, wanted, rows, device
        self.assistant = learner.tokenizer.ids[ASSISTANT]
        self.begin = round(config.reinforce_from * config.max_steps)

    def __call__(self, model: nn.Module, batch: Batch, step: int) -> Tensor:
        """Nats per target token, the thoughts' loss on top."""
        tokens, targets, documents = to_tensors(batch, self.device)
        thinker: Thinker = bare(model)
        given, thoughts = None, torch.zeros((), device=self.device)
        with autocast(self.config.precision, self.device):
            if step >= self.begin:
                thinking, _, of = to_tensors(self.row(step - self.begin), self.device)
                given = pondered(thinker, thinking, of, self.assistant, self.wanted)
            logits, found = model(tokens, documents, given)
            if given is not None and found is not None:
                thoughts, thinker.curve[step] = learnt(found, given, self.assistant, self.wanted)
        text = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
        return text + thoughts

    def row(self, step: int) -> Batch:
        """What to think about at that step of thinking: another row for each worker."""
        rank, world = self.rows.part
        rows = self.rows.epoch(0)
        return self.rows.made([rows[(step * world + rank) % len(rows)]])


def wanted_of(config: "QuietstarConfig") -> Wanted:
    """How to think, as the configuration says."""
    return Wanted(
        config.positions, config.thoughts, config.thought_tokens, config.ahead, config.anywhere, config.temperature,
        config.reinforce_weight, config.thinking_weight,
    )  # fmt: skip


def thinker_of(learner: Learner, config: "QuietstarConfig") -> Thinker:
    """The model with a mixing head. The marks of one that never thought begin as a dash."""
    ids = learner.tokenizer.ids
    if not learner.tokenizer.thinks:
        dash = next(i for i in map(learner.tokenizer.bpe.token_to_id, DASHES) if i is not None)
        table = learner.model.model.embed_tokens.weight  # type: ignore[union-attr]
        assert isinstance(table, Tensor)
        with torch.no_grad():
            table[[ids[THINK], ids[THOUGHT]]] = table[dash].clone()
    banned = tuple(ids[mark] for mark in SPECIAL if mark != THOUGHT)
    return Thinker(learner.model, ids[THINK], ids[THOUGHT], banned, config.max_steps, len(MEASURES))


def lessons(config: "QuietstarConfig", school: arithmetic.School, training: Sequence[Document]) -> list[Document]:
    """Sums with scratchpads, and other conversations with a thought that is empty."""
    if not config.scratchpads:
        return []
    quiet = unthinking(training, config.scratchpads // 8, config.seed)
    return [
        *school.practice(config.scratchpads, config.seed, thoughtful=True),
        *(replace(document, source="scratchpads") for document in quiet),
    ]  # fmt: skip


def unthinking(training: Sequence[Document], count: int, seed: int) -> list[Document]:
    """Conversations about anything but sums, with an empty thought before the last answer."""
    others = [each for each in training if each.turns and each.source != "sums" and len(each.turns) <= 4]
    chosen = random.Random(seed).sample(others, min(count, len(others)))
    return [
        Document("replay", turns=(*each.turns[:-1], Turn("assistant", thinking("", each.turns[-1].content))))
        for each in chosen
    ]  # fmt: skip


def remembered(
    learner: Learner, config: "QuietstarConfig", school: arithmetic.School, training: Sequence[Document]
) -> list[Document]:
    """What later phases mix in: sums that the model thought through to the right answer, other talk without a thought.

    As in STaR a thought counts only if the answer is right, and only if it made that answer likelier.
    """
    known = [*school.small, *school.larger]
    asked = random.Random(config.seed).sample(known, min(len(known), 2 * config.replayed))
    found: list[Document] = []
    for each in measuring.examined(learner, asked, config.thought_tokens):
        mark = learner.tokenizer.ids[THOUGHT]
        if each.right and mark in each.ids and measuring.helps(learner, each):
            thought = learner.tokenizer.decode(each.ids[: each.ids.index(mark)]).strip()
            turns = (Turn("user", each.question.words), Turn("assistant", thinking(thought, each.question.sum.answer)))
            found.append(Document("replay", turns=turns))
    found = found[: config.replayed * 2 // 3]
    return found + unthinking(training, config.replayed - len(found), config.seed + 1)


def telling(work: Work, thinker: Thinker) -> Work:
    """The work, whose reports tell of the thoughts too."""

    def report(progress: Progress) -> None:
        latest = thought(thinker.curve[max(0, progress.step - WINDOW) : progress.step])
        known = zip(MEASURES, latest.nanmean(0).tolist(), strict=True)
        told = {name: round(value, 4) for name, value in known if not math.isnan(value)}
        progress.metrics |= told
        if told and progress.step % WINDOW == 0:
            work.note("thoughts", step=progress.step, **told)
        work.report(progress)

    return replace(work, report=report)


def reinforced(thinker: Thinker) -> dict[str, float]:
    """The gain at the first and at the last steps that thought."""
    gain = thought(thinker.curve)[:, MEASURES.index("gain")]
    gain = gain[~gain.isnan()]
    if not len(gain):
        return {}
    return {"gain_first": gain[:WINDOW].mean().item(), "gain_last": gain[-WINDOW:].mean().item()}


def thought(curve: Tensor) -> Tensor:
    """The rows of the steps that thought."""
    return curve[~curve[:, 0].isnan()]


def keep_curve(work: Work, thinker: Thinker) -> None:
    """`thoughts.json` in the stage's folder: `MEASURES` of every step that thought; null where there was none."""
    rows = [
        [step, *(None if math.isnan(value) else value for value in row)]
        for step, row in enumerate(thinker.curve.tolist(), 1) if not math.isnan(row[0])
    ]  # fmt: skip
    told = {"columns": ["step", *MEASURES], "rows": rows}
    write_durably(work.folder / "thoughts.json", lambda file: file.write(json.dumps(told).encode()))
