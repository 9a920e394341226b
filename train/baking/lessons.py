"""What is learnt from: conversations with the positions that count, seen with the prompt and without it.

Prompt Baking (arXiv:2409.13697) compares one conversation under two views: the teacher's begins with the prompt u, the
student's does not. Both end in the same tokens, and those that the assistant wrote are compared.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from train.data.packing import Batch
from train.data.sources import Document
from train.model.learner import Learner
from train.model.thoughts import thinks, thought_of
from train.model.tokenizer import Turn


class Lesson(NamedTuple):
    """One document as it is trained on.

    `ids` (n,) are what the student sees, `taught` (m,) what the teacher sees; `at` (k,) are positions of `ids` whose
    next token counts, and the same positions from the end count in `taught`. Each counts `weight` times.
    """

    ids: np.ndarray
    taught: np.ndarray
    at: np.ndarray
    weight: float = 1.0

    @property
    def key(self) -> bytes:
        """By which a packed document is found again."""
        return self.ids.tobytes()

    @property
    def taught_at(self) -> np.ndarray:
        """(k,) positions of `taught`."""
        return self.at + (len(self.taught) - len(self.ids))


class Book:
    """Lessons by source, to be packed, and by key, to be found again."""

    def __init__(self, lessons: dict[str, list[Lesson]]) -> None:
        self.lessons = lessons
        self.known = {lesson.key: lesson for some in lessons.values() for lesson in some}

    @property
    def documents(self) -> dict[str, list[np.ndarray]]:
        """As `Batches` takes them."""
        return {source: [lesson.ids for lesson in lessons] for source, lessons in self.lessons.items()}

    def found(self, batch: Batch) -> list[tuple[int, int, Lesson]]:
        """(row, first column, lesson) of every document in the batch."""
        where = []
        for row, (tokens, numbers) in enumerate(zip(batch.tokens, batch.documents, strict=True)):
            for number in range(1, int(numbers.max()) + 1):
                columns = np.flatnonzero(numbers == number)
                where.append((row, int(columns[0]), self.known[tokens[columns].astype(np.int32).tobytes()]))
        return where


def under(prompt: str, turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """The conversation with the prompt as its system turn; one that has a system turn of its own keeps that."""
    if not prompt or (turns and turns[0].role == "system"):
        return tuple(turns)
    return (Turn("system", prompt), *turns)


def heard(turns: Iterable[Turn]) -> list[Turn]:
    """The conversation as it is handed on: thoughts are not."""
    return [Turn(t.role, thought_of(t.content)[1]) if t.role == "assistant" else t for t in turns]


def spoken(learner: Learner, turns: Sequence[Turn], last: bool = False) -> tuple[list[int], list[int]]:
    """Ids of a conversation, and the positions whose next token an assistant wrote, in its `last` turn or in all."""
    tokenizer = learner.tokenizer
    ids, at = tokenizer.chat(turns), list[int]()
    for number, turn in enumerate(turns):
        if turn.role == "assistant" and (not last or number == len(turns) - 1):
            begins, ends = len(tokenizer.prompt(turns[:number])), len(tokenizer.chat(turns[: number + 1]))
            at += range(begins - 1, ends - 1)
    return ids, at


def lesson(learner: Learner, turns: Sequence[Turn], *, student: str = "", teacher: str = "") -> Lesson | None:
    """Of a conversation, seen with these prompts; None where it has nothing to learn in the model's context."""
    (ids, at), taught = (
        spoken(learner, under(student, turns), thinks(learner)),
        learner.tokenizer.chat(under(teacher, turns)),
    )
    return made(ids, taught, at, learner.context)


def conversation(learner: Learner, turns: Sequence[Turn], *, student: str = "", teacher: str = "") -> list[Lesson]:
    """Lessons of what an assistant said. One that thinks hands no thought on, so that each of its turns is a lesson."""
    ends = [number for number, turn in enumerate(turns) if turn.role == "assistant"]
    parts = [(*heard(turns[:end]), turns[end]) for end in ends] if thinks(learner) else [tuple(turns)]
    found = (lesson(learner, part, student=student, teacher=teacher) for part in parts)
    return [each for each in found if each is not None]


def plain(learner: Learner, document: Document, context: int, weight: float) -> list[Lesson]:
    """Every token of a document, without a prompt on either side, in pieces of at most `context` tokens."""
    ids = learner.ids(document)
    pieces = [ids[start : start + context] for start in range(0, len(ids), context)]
    found = [made(piece, piece, range(len(piece) - 1), context) for piece in pieces]
    return [each._replace(weight=weight) for each in found if each is not None]


def made(ids: Sequence[int], taught: Sequence[int], at: Iterable[int], context: int) -> Lesson | None:
    """Cut to the context at the end. The two views must differ at their beginnings alone."""
    cut = max(0, max(len(ids), len(taught)) - context)
    ids, taught = ids[: len(ids) - cut], taught[: len(taught) - cut]
    kept = np.array([position for position in at if position < len(ids) - 1], dtype=np.int64)
    if not len(kept):
        return None
    tail = len(ids) - int(kept[0])
    if len(taught) < tail or list(ids[-tail:]) != list(taught[-tail:]):
        return None
    return Lesson(np.array(ids, dtype=np.int32), np.array(taught, dtype=np.int32), kept)


def fitting(lessons: Iterable[Lesson], context: int) -> list[Lesson]:
    """Those that fit in rows of so many tokens."""
    return [each for each in lessons if len(each.ids) <= context]
