"""The documents of tool baking: dialogues that show tools under the prompt, and what must stay as it is."""

import random
from collections.abc import Sequence

import numpy as np

from train.baking.lessons import Lesson
from train.baking.tasks import Task, is_held_out
from train.data.sources import Document, ask
from train.model.learner import Learner
from train.model.thoughts import thinking, thinks, thought_of
from train.model.tokenizer import Turn

MOST_EXCHANGES = 2  # in one conversation
MOST_PIECES = 3  # in one drill

Exchange = tuple[Turn, ...]


def shown(learner: Learner, task: Task) -> Exchange:
    """The question, the call, what the tool says, and the answer."""
    return aloud(
        learner, (*ask(task.question, task.call.text), Turn("tool", task.result), Turn("assistant", task.answer))
    )


def aloud(learner: Learner, turns: Sequence[Turn]) -> Exchange:
    """The turns, for a model that thinks with an empty thought where there is none, as quietstar leaves it."""
    if not thinks(learner):
        return tuple(turns)
    return tuple(Turn(t.role, thinking(*thought_of(t.content))) if t.role == "assistant" else t for t in turns)


def manners(examples: Sequence[tuple[str, str]], held_out: bool) -> list[Exchange]:
    """The persona's examples, one for each wording; those that are trained on, or those that are measured on."""
    asked = [(question.strip(), answer) for questions, answer in examples for question in questions.split(" | ")]
    return [ask(question, answer) for question, answer in asked if is_held_out(question) == held_out]


def chats(documents: Sequence[Document]) -> list[Exchange]:
    """The questions with one answer among the documents."""
    return [d.turns for d in documents if [turn.role for turn in d.turns] == ["user", "assistant"]]


def conversations(
    tools: Sequence[Exchange], plain: Sequence[Exchange], special: Sequence[Exchange], share: float, seed: int
) -> list[tuple[Exchange, ...]]:
    """All the tool exchanges once, in conversations of up to `MOST_EXCHANGES`, with `share` of others among them.

    A quarter of the others are `special`.
    """
    chance, left, made = random.Random(seed), list(tools), list[tuple[Exchange, ...]]()
    while left:
        exchanges: list[Exchange] = []
        for _ in range(chance.randint(1, MOST_EXCHANGES)):
            if plain and chance.random() < share:
                exchanges.append(chance.choice(special if special and chance.random() < 0.25 else plain))
            elif left:
                exchanges.append(left.pop())
        made.append(tuple(exchanges))
    return made


def joined(exchanges: Sequence[Exchange]) -> tuple[Turn, ...]:
    """One conversation."""
    return tuple(turn for exchange in exchanges for turn in exchange)


def drills(learner: Learner, some: Sequence[Task], count: int, seed: int) -> list[Lesson]:
    """`34 + 58 km : 34 + 58 km`: what calls and answers are made of, to be said again; the second time counts.

    A call is copied from its question and an answer from the tool's. A small model has no heads for copying (Olsson and
    others, arXiv:2209.11895, call them induction heads), and finds them here, where every other token is a copy.
    """
    chance, tokenizer = random.Random(seed), learner.tokenizer
    pieces = [str(piece) for task in some for piece in (*task.call.arguments.values(), task.result)]
    found: list[Lesson] = []
    for _ in range(count):
        said = " ".join(chance.sample(pieces, chance.randint(1, MOST_PIECES)))
        *first, end = tokenizer.text(f"{said} :")
        ids = np.array([*first, *tokenizer.marked(f" {said}"), end], dtype=np.int32)
        found.append(Lesson(ids, ids, np.arange(len(first) - 1, len(ids) - 1)))
    return found
