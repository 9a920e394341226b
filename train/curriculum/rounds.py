"""What a model is trained on, round by round: each is made at its border, with the model as it is then, and kept.

A round is written to the disk before any of it is trained on. A run that is resumed before or within a round reads it
there, so that it goes on with the very tasks and replies, and ends as if there had been no break.
"""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from train.causes import Cause, Failed
from train.data.packing import IGNORED, Batch, Batches, Tokens, pack
from train.data.sources import Document
from train.manifest import write_durably
from train.model.learner import Learner
from train.model.tokenizer import Turn


@dataclass(frozen=True)
class Round:
    """What was measured at a round's beginning, and what is learnt in it. All of it JSON."""

    number: int
    asked: dict[str, tuple[int, int]]  # right answers and questions, by family
    standings: dict[str, Any]  # of the controller, after those answers
    taught: list[tuple[str, str]]  # question and answer of every task to learn
    dreams: list[list[int]] = field(default_factory=list)  # ids of texts of the model's own
    dreamt: int = 0  # texts that the dreams were chosen from

    @property
    def success(self) -> float:
        """Share of right answers over all families."""
        return sum(right for right, _ in self.asked.values()) / max(1, sum(asked for _, asked in self.asked.values()))


class Kept:
    """The rounds of a stage on the disk, a file each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, made: Round) -> None:
        """Durable when it returns."""
        write_durably(self._path(made.number), lambda file: file.write(json.dumps(vars(made)).encode()))

    def read(self, number: int) -> Round | None:
        """None where there is none yet."""
        try:
            return Round(**json.loads(self._path(number).read_bytes()))
        except FileNotFoundError:
            return None
        except (TypeError, ValueError) as error:
            raise Failed(f"round {number} cannot be read: {error}", Cause.DAMAGED) from error

    def all(self) -> list[Round]:
        """Every round so far, in order."""
        return [made for number in range(len(list(self.folder.glob("*.json")))) if (made := self.read(number))]

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06}.json"


@dataclass(frozen=True)
class Shares:
    """How much of a round's tokens are what, 0 to 1; the rest are the run's texts and what the model is to replay."""

    tasks: float
    dreams: float


class Rounds(Batches):
    """Batches whose epochs are rounds of `steps` batches.

    `begin(number)` gives the round, making it where it is not kept; `texts` are ids by source, of which `mix` says how
    often each counts.
    """

    def __init__(
        self, learner: Learner, texts: dict[str, list[np.ndarray]], mix: dict[str, float], *, steps: int,
        shares: Shares, begin: Callable[[int], Round], answers_only: bool, **fields: Any,
    ) -> None:  # fmt: skip
        super().__init__(texts, mix, **fields)
        self.learner, self.steps, self.shares, self.begin = learner, steps, shares, begin
        self.answers_only = answers_only
        self.pool = [document for source in sorted(texts) for document in texts[source]]
        self.weights = [mix.get(source, 1.0) for source in sorted(texts) for _ in texts[source]]

    def epoch(self, number: int) -> list[list[Tokens]]:
        """The rows of that round: exactly `steps` batches of `size`."""
        if self._packed[0] != number:
            self._packed = (number, self.rows(self.begin(number)))
        return self._packed[1]

    def rows(self, made: Round) -> list[list[Tokens]]:
        """Tasks, dreams and texts by their shares of the tokens, packed."""
        chance, count = random.Random(f"{self.seed}:{made.number}"), self.steps * self.size
        room = count * self.context
        tasks = [task_ids(self.learner, question, answer, self.answers_only) for question, answer in made.taught]
        chosen = until(tasks, int(self.shares.tasks * room), chance)
        chosen += until([np.array(dream) for dream in made.dreams], int(self.shares.dreams * room), chance, once=True)
        left = room - sum(map(len, chosen))
        while left > 0:
            chosen += (some := chance.choices(self.pool, self.weights, k=64))
            left -= sum(map(len, some))
        chance.shuffle(chosen)
        rows = sorted(pack(chosen, self.context), key=lambda row: -sum(map(len, row)))[:count]
        chance.shuffle(rows)
        return rows

    def __iter__(self) -> Iterator[Batch]:
        """See `Batches`; what is only read has no target."""
        for each in super().__iter__():
            yield readable(each)


def until(documents: Sequence[Tokens], tokens: int, chance: random.Random, once: bool = False) -> list[Tokens]:
    """Documents of so many tokens together, each taken again only when all were taken; or each `once` at most."""
    chosen: list[Tokens] = []
    while documents and tokens > 0:
        for document in chance.sample(documents, len(documents)):
            if tokens > 0:
                chosen.append(document)
                tokens -= len(document)
        if once:
            break
    return chosen


def task_ids(learner: Learner, question: str, answer: str, answers_only: bool) -> np.ndarray:
    """Ids (tokens,) of an exchange; those that are only read, not learnt to say, as -1 - id."""
    turns = [Turn("user", question), Turn("assistant", answer)]
    ids = np.array(learner.tokenizer.chat(turns), dtype=np.int32)
    if answers_only:
        asked = shared(learner.tokenizer.prompt(turns[:1]), ids)
        ids[:asked] = -1 - ids[:asked]
    return ids


def shared(one: Sequence[int], other: Tokens) -> int:
    """How many ids both begin with."""
    return next((i for i, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), len(one))


def readable(batch: Batch) -> Batch:
    """Ids as they are, and no target where an id was negative."""
    tokens, targets, documents = batch
    return Batch(np.where(tokens < 0, -1 - tokens, tokens), np.where(targets < 0, IGNORED, targets), documents)


def replayed(documents: Sequence[Document]) -> tuple[Document, ...]:
    """Documents that a model takes along, as a source of their own."""
    return tuple(Document("replay", each.text, each.turns) for each in documents)
