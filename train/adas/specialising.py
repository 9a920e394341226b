"""One expert's training: the scales of singular values, on one family's documents or by reward on its questions.

Transformer-squared (arXiv:2501.06252) trains its experts by REINFORCE alone: reward +1 for a right answer and -1 for a
wrong one, and a KL term towards the base. A small model is almost never right at what it has yet to learn, so the
default is `supervised`, next tokens of the family's documents; `reinforce` is the paper's way (measured side by side
in docs/forge.md). Both train z alone.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from train.adas import questions as asked
from train.adas.experts import Scaling, Vectors, attach, detach, off
from train.adas.questions import Part, Question, right
from train.data.feed import by_source
from train.data.packing import Batch, Batches
from train.data.sources import Document
from train.evaluate.perplexity import held_out_batches, held_out_loss
from train.loop import Objective, autocast, bare
from train.model.generate import generate
from train.model.learner import Learner
from train.model.thoughts import spoken, thinking, thinks, thought_of
from train.model.tokenizer import END, Turn
from train.phases.phase import Work
from train.resumable import train

if TYPE_CHECKING:
    from train.phases.adas import AdasConfig

REPLAY = "replay"
VALIDATION = 8  # one document in so many is for measuring mixtures, and for no expert
TASKS = 300  # documents of the curriculum a family
REWARDED = 400  # questions that an expert is rewarded on


def documents_of(learner: Learner, family: str, corpus: Sequence[Document], level: int, seed: int) -> list[Document]:
    """What a family's expert learns from: the corpus's sources of that family, and the curriculum's tasks."""
    found = [document for document in corpus if document.source in asked.SOURCES.get(family, ())]
    names = {asked.ARITHMETIC: asked.CALCULATING, asked.LISTS: asked.LISTING}.get(family, ())
    chance = random.Random(f"{seed}:{family}:documents")
    for part in (Part.SEARCH, Part.EXAMPLES) if names else ():
        found += [question.document for question in asked.worked(names, part, TASKS, level, chance)]
    return [in_manner(learner, document) for document in found]


def in_manner(learner: Learner, document: Document) -> Document:
    """As a model says it that thinks before it speaks: with an empty thought, where a document has none."""
    if not document.turns or not thinks(learner):
        return document
    turns = (
        Turn(turn.role, thinking(*thought_of(turn.content))) if turn.role == "assistant" else turn
        for turn in document.turns
    )
    return replace(document, turns=tuple(turns))


def parted(documents: Sequence[Document]) -> tuple[list[Document], list[Document]]:
    """Documents to learn from and documents to measure on, by their own content."""
    measured = [document for document in documents if int(document.fingerprint[8:12], 16) % VALIDATION == 0]
    kept = set(measured)
    return [document for document in documents if document not in kept], measured


def specialise(
    work: Work, config: "AdasConfig", learner: Learner, family: str, documents: Sequence[Document]
) -> Vectors:
    """Train the family's expert, or go on from its last checkpoint. The learner's weights stay as they were."""
    learn, measure = parted(documents)
    context = min(config.context_length, learner.context)
    rows = held_out_batches(learner, measure, config.validation_tokens, context)
    learn += [replace(document, source=REPLAY) for document in learner.replay]
    batches = Batches(
        by_source(learner, learn), config.mix, context=context, size=config.batch_size, pad=learner.pad,
        seed=config.seed,
    )  # fmt: skip

    def evaluate(model: nn.Module) -> tuple[float, float]:
        return held_out_loss(model, rows, config.precision, work.device)

    pool = [] if family == asked.TEXT else asked.family_questions(
        family, Part.EXAMPLES, REWARDED, config.level, config.seed
    )  # fmt: skip
    torch.manual_seed(config.seed)
    scalings = attach(learner.model)
    objective = by_reward(learner, scalings, pool, config) if config.method == "reinforce" and pool else None
    try:
        train(work, config, learner.model, batches, evaluate=evaluate, objective=objective, name=f"expert-{family}")
    finally:
        vectors = detach(learner.model, scalings)
    return vectors


def by_reward(
    learner: Learner, scalings: Mapping[str, Scaling], pool: Sequence[Question], config: "AdasConfig"
) -> Objective:
    """REINFORCE: -mean((r - mean r) log p(answer)) + kl * KL(model || base), per token, on the model's own answers."""
    end = learner.tokenizer.ids.get(END, learner.pad)

    def objective(model: nn.Module, batch: Batch, step: int) -> Tensor:
        chance = random.Random(f"{config.seed}:{step}")
        some = [question for question in chance.choices(pool, k=config.prompts) for _ in range(config.answers)]
        prompts = [learner.tokenizer.prompt([Turn("user", question.text)]) for question in some]
        with parametrize.cached():  # the scaled weights are made once for all tokens
            answers = generate(learner, prompts, config.max_tokens, stop=[end], temperature=1.0)
        said = [learner.tokenizer.decode(spoken(learner, ids)) for ids in answers]
        reward = torch.tensor([1.0 if right(q, text) else -1.0 for q, text in zip(some, said, strict=True)])
        advantage = reward - reward.view(-1, config.answers).mean(1).repeat_interleave(config.answers)
        tokens, targets = padded(prompts, [[*ids, end] for ids in answers], learner.pad)
        device = next(model.parameters()).device
        tokens, targets, advantage = tokens.to(device), targets.to(device), advantage.to(device)
        with autocast(config.precision, device):
            logits = model(tokens).float().log_softmax(-1)  # (B, T, V)
            with torch.no_grad(), off(scalings):
                base = bare(model)(tokens).float().log_softmax(-1)
        chosen = -F.nll_loss(logits.transpose(1, 2), targets, ignore_index=-100, reduction="none")  # (B, T)
        answered = targets != -100
        divergence = (logits.exp() * (logits - base)).sum(-1)[answered].mean()
        return -(advantage[:, None] * chosen)[answered].mean() + config.kl * divergence

    return objective


def padded(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Tokens (B, T) and targets (B, T) that are -100 but where an answer's token is next; padding comes last."""
    longest = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    tokens = torch.full((len(prompts), longest), pad)
    targets = torch.full((len(prompts), longest), -100)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        tokens[row, : len(prompt) + len(answer)] = torch.tensor([*prompt, *answer])
        targets[row, len(prompt) - 1 : len(prompt) + len(answer) - 1] = torch.tensor(list(answer))
    return tokens, targets
