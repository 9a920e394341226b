"""Designs executed against a model in this process, a whole set of questions at once."""

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import torch

from cluster.clock import utc_now
from train.adas.conduct import Ask, Outcome, Reply, conduct
from train.adas.design import Design
from train.adas.dispatching import features
from train.adas.experts import Composer
from train.model.generate import generate
from train.model.learner import Learner
from train.model.thoughts import spoken
from train.model.tokenizer import END

ROWS_AT_ONCE = 128


@dataclass(frozen=True)
class Ran:
    """A design on questions: an outcome for each, and how long all of them took."""

    outcomes: list[Outcome]
    seconds: float

    @property
    def tokens_per_answer(self) -> float:
        """Generated tokens."""
        return sum(outcome.tokens for outcome in self.outcomes) / len(self.outcomes)


def run(design: Design, composer: Composer, questions: Sequence[str], *, seed: int, now: datetime | None = None) -> Ran:
    """Answer every question. The composer's model has its base's weights again afterwards.

    `now` is what tools take for the time.
    """
    begun, now = time.perf_counter(), now or utc_now()
    generator = torch.Generator(device=composer.device).manual_seed(seed)
    outcomes: list[Outcome] = [Outcome("")] * len(questions)
    for mixture, rows in passes(design, composer, questions):
        with composer.using(mixture):
            for row, outcome in zip(rows, together(design, composer.learner, [questions[i] for i in rows], generator,
                                                   now), strict=True):  # fmt: skip
                outcomes[row] = outcome
    return Ran(outcomes, time.perf_counter() - begun)


def passes(design: Design, composer: Composer, questions: Sequence[str]) -> list[tuple[dict[str, float], list[int]]]:
    """Experts and the questions that they answer: all of them together, or as the first pass dispatches them."""
    if not design.dispatch:
        return [(dict(design.experts), list(range(len(questions))))]
    found: dict[str, list[int]] = defaultdict(list)
    dispatcher = composer.experts.dispatcher
    if dispatcher is None:
        return [({}, list(range(len(questions))))]
    for row, family in enumerate(dispatcher.families_of(features(composer.learner, questions))):
        found[family].append(row)
    return [({family: 1.0} if family in composer.experts.vectors else {}, rows) for family, rows in found.items()]


def together(
    design: Design, learner: Learner, questions: Sequence[str], generator: torch.Generator, now: datetime
) -> list[Outcome]:
    """All questions side by side: what the conversations ask for at a time is generated in batches."""
    conducts = [conduct(design, question, now) for question in questions]
    asked: dict[int, Ask] = {i: next(each) for i, each in enumerate(conducts)}
    outcomes: dict[int, Outcome] = {}
    while asked:
        replies = reply(learner, list(asked.values()), generator)
        further: dict[int, Ask] = {}
        for i, answers in zip(asked, replies, strict=True):
            try:
                further[i] = conducts[i].send(answers)
            except StopIteration as done:
                outcomes[i] = done.value
        asked = further
    return [outcomes[i] for i in range(len(questions))]


def reply(learner: Learner, asked: Sequence[Ask], generator: torch.Generator) -> list[list[Reply]]:
    """The replies that each ask wants."""
    made: list[list[Reply]] = [[] for _ in asked]
    groups: dict[tuple[float, int], list[tuple[int, list[int]]]] = defaultdict(list)
    for i, ask in enumerate(asked):
        prompt = learner.tokenizer.prompt(ask.turns)
        groups[ask.temperature, ask.max_tokens] += [(i, prompt)] * ask.samples
    for (temperature, max_tokens), rows in groups.items():
        rows.sort(key=lambda row: len(row[1]))  # prompts of one length need no padding
        for start in range(0, len(rows), ROWS_AT_ONCE):
            some = rows[start : start + ROWS_AT_ONCE]
            ids = generate(
                learner, [prompt for _, prompt in some], max_tokens, stop=ends(learner), temperature=temperature,
                generator=generator,
            )  # fmt: skip
            for (i, _), each in zip(some, ids, strict=True):
                text = learner.tokenizer.decode(spoken(learner, each), marks=True).strip()
                made[i].append(Reply(text, min(len(each) + 1, max_tokens)))
    return made


def ends(learner: Learner) -> list[int]:
    """Ids that end a turn."""
    known = learner.tokenizer.ids
    return [known[END]] if END in known else [learner.tokenizer.inner.eos_token_id]
