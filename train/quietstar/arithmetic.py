"""Sums with scratchpads, and the questions that none of them were: what thoughts are taught and examined on."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

from train.data.sources import ASKED_TO_CALCULATE, Document, ask
from train.model.thoughts import thinking

SMALL = 10  # the shipped corpus has sums up to it
HELD_OUT = 0.15  # share of the larger sums that no document has


@dataclass(frozen=True)
class Sum:
    """`left` plus or minus `right`; never below zero."""

    left: int
    sign: str
    right: int

    @property
    def value(self) -> int:
        """What it comes to."""
        return self.left + self.right if self.sign == "+" else self.left - self.right

    @property
    def expression(self) -> str:
        """As the corpus writes it."""
        return f"{self.left} {self.sign} {self.right}"

    @property
    def answer(self) -> str:
        """What an assistant says."""
        return f"{self.expression} = {self.value}"

    @property
    def held_out(self) -> bool:
        """Whether no document has it, decided by itself; small sums are in the corpus."""
        digest = hashlib.sha256(self.expression.encode()).digest()
        return max(self.left, self.right) > SMALL and int.from_bytes(digest[:4]) < HELD_OUT * 2**32

    @property
    def scratchpad(self) -> str:
        """Digit by digit from the right, with what is carried or borrowed: 27 + 15 is `7+5=12 2+1+1=4`."""
        steps, left, right, carried = [], self.left, self.right, 0
        while True:
            a, b = left % 10, right % 10
            left, right = left // 10, right // 10
            borrowed = int(self.sign == "-" and a - b - carried < 0)
            terms = f"{a + 10 * borrowed}{self.sign}{b}" + (f"{self.sign}1" if carried else "")
            result = a + b + carried if self.sign == "+" else a + 10 * borrowed - b - carried
            steps.append(f"{terms}={result}")
            carried = int(result > 9) if self.sign == "+" else borrowed
            if not left and not right:
                return " ".join(steps)


def sums_up_to(largest: int) -> list[Sum]:
    """Every sum of operands up to `largest`."""
    pairs = [(a, b) for a in range(largest + 1) for b in range(largest + 1)]
    return [Sum(a, "+", b) for a, b in pairs] + [Sum(a, "-", b) for a, b in pairs if b <= a]


@dataclass(frozen=True)
class Question:
    """A sum in one of the corpus's wordings."""

    sum: Sum
    words: str

    def document(self, thoughtful: bool) -> Document:
        """With its answer, after the scratchpad or at once."""
        answer = thinking(self.sum.scratchpad, self.sum.answer) if thoughtful else self.sum.answer
        return Document("scratchpads" if thoughtful else "arithmetic", turns=ask(self.words, answer))


@dataclass(frozen=True)
class School:
    """Questions to practise on and questions to be examined on; no question of one is in the other.

    Small sums, up to ten, are practised in the wordings that the training documents have and examined in the others
    (`wordings`); larger ones are examined where the sum itself is held out (`sums`).
    """

    small: tuple[Question, ...]
    larger: tuple[Question, ...]
    exams: dict[str, tuple[Question, ...]]

    def practice(self, count: int, seed: int, thoughtful: bool) -> list[Document]:
        """`count` documents, a third of them small sums, of which there are few."""
        chance = random.Random(f"{seed}:{thoughtful}")
        few = round(count / 3) if self.larger else count
        chosen = [*self._drawn(chance, self.small, few), *self._drawn(chance, self.larger, count - few)]
        return [question.document(thoughtful) for question in chosen]

    @staticmethod
    def _drawn(chance: random.Random, some: Sequence[Question], count: int) -> list[Question]:
        return chance.choices(some, k=count) if some and count else []


def school(largest: int, examined: int, seed: int, training: Sequence[Document]) -> School:
    """Of sums of operands up to `largest`; at most `examined` questions of each kind."""
    chance = random.Random(seed)
    shown = {turn.content for document in training for turn in document.turns}
    every = [Question(s, words.format(s.expression)) for s in sums_up_to(largest) for words in ASKED_TO_CALCULATE]
    small = [question for question in every if max(question.sum.left, question.sum.right) <= SMALL]
    larger = [question for question in every if max(question.sum.left, question.sum.right) > SMALL]
    kinds = {"wordings": [q for q in small if q.words not in shown], "sums": [q for q in larger if q.sum.held_out]}
    exams = {kind: tuple(chance.sample(some, min(examined, len(some)))) for kind, some in kinds.items() if some}
    return School(
        tuple(q for q in small if q.words in shown), tuple(q for q in larger if not q.sum.held_out), exams
    )  # fmt: skip
