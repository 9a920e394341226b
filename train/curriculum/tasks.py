"""Tasks with checkable answers: families of ten levels each, drawn from a given chance. Pure.

A task's operands decide by their hash whether it is held out, so that no training task has the operands of a measured
one, in whatever order where order does not matter.
"""

import hashlib
import random
from dataclasses import dataclass

from train.curriculum.families import FAMILIES
from train.data.sources import Document, ask
from train.model.thoughts import thinking

LEVELS = range(1, 11)
HELD_OUT_SHARE = 1 / 6
TRIES = 1000
SOURCE = "tasks"


@dataclass(frozen=True)
class Task:
    """A question and what answers it.

    A reply is right when, but for white space at its ends and the amount of it inside, it is one of `accepted`; where
    `value` is given, when it is a program that comes to that value (as Python writes it).
    """

    family: str
    level: int
    operands: str  # in a form that is the same for tasks that are as good as the same
    question: str
    answer: str  # what is taught
    accepted: tuple[str, ...] = ()
    value: str | None = None
    thought: str = ""  # what a model that thinks is taught to think first

    @property
    def held_out(self) -> bool:
        """Whether it is for measuring; else it is for learning."""
        digest = hashlib.sha256(f"{self.family}:{self.operands}".encode()).digest()
        return int.from_bytes(digest[:4], "big") < HELD_OUT_SHARE * 2**32

    def answered(self, reply: str) -> Document:
        """To learn from; the reply may have thoughts in their marks."""
        return Document(SOURCE, turns=ask(self.question, reply))

    def taught(self, thinks: bool) -> Document:
        """To learn from, with the thought first for a model that thinks."""
        return self.answered(thinking(self.thought, self.answer) if thinks else self.answer)


def said(text: str) -> str:
    """The text with every stretch of white space as one blank, none at the ends."""
    return " ".join(text.split())


def exact(task: Task, reply: str) -> bool:
    """Whether the reply is one of the answers; for tasks without a `value`."""
    return said(reply) in task.accepted


def task(family: str, level: int, chance: random.Random, held_out: bool = False) -> Task:
    """A task of that family and level (1 to 10), of those held out or of the others."""
    for _ in range(TRIES):
        made = Task(family, level, *FAMILIES[family](chance, level))
        if made.held_out == held_out:
            return made
    raise ValueError(f"{family} has no such task at level {level}")


def tasks(family: str, difficulty: float, count: int, chance: random.Random) -> list[Task]:
    """Tasks to learn from at a difficulty between two levels: 3.25 is level 3, and every fourth time level 4."""
    whole = int(difficulty)
    levels = [whole + (chance.random() < difficulty - whole) for _ in range(count)]
    return [task(family, level, chance) for level in levels]


def held_out(per_level: int, seed: int) -> list[Task]:
    """The tasks to measure on: so many of every family and level, no two alike where there are enough."""
    chance, found = random.Random(f"held out:{seed}"), []
    for family in FAMILIES:
        for level in LEVELS:
            some: dict[str, Task] = {}
            for _ in range(4 * per_level):
                made = task(family, level, chance, held_out=True)
                some.setdefault(made.operands, made)
            found += list(some.values())[:per_level]
    return found
