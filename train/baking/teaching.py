"""The documents of tool baking: dialogues that show tools under the prompt, and what must stay as it is."""

import json
import random
from collections.abc import Callable, Sequence

import numpy as np

from train.baking.lessons import Lesson
from train.baking.tasks import Task, is_held_out, some_word
from train.data.sources import Document, ask
from train.model.learner import Learner
from train.model.thoughts import thinking, thinks, thought_of
from train.model.tokenizer import SPECIAL, Turn

MOST_EXCHANGES = 2  # in one conversation
MOST_COPIED = 4  # tokens in one drill
SPECIAL_SHARE = 0.1

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

    A tenth of the others are `special`.
    """
    chance, left, made = random.Random(seed), list(tools), list[tuple[Exchange, ...]]()
    while left:
        exchanges: list[Exchange] = []
        for _ in range(chance.randint(1, MOST_EXCHANGES)):
            if plain and chance.random() < share:
                exchanges.append(chance.choice(special if special and chance.random() < SPECIAL_SHARE else plain))
            elif left:
                exchanges.append(left.pop())
        made.append(tuple(exchanges))
    return made


def joined(exchanges: Sequence[Exchange]) -> tuple[Turn, ...]:
    """One conversation."""
    return tuple(turn for exchange in exchanges for turn in exchange)


def drills(learner: Learner, count: int, seed: int) -> list[Lesson]:
    """A few different tokens, a colon, and the same again; the second time counts.

    Calls are copied from questions and answers from tools. A small model has no heads for that (Olsson and others,
    arXiv:2209.11895, call them induction heads). Where every other token is a copy and nothing else helps, it finds
    them, and the sooner the shorter the copies are.
    """
    chance, tokenizer = random.Random(seed), learner.tokenizer
    special = {number for token, number in tokenizer.ids.items() if token in SPECIAL}
    kept = [number for number in range(tokenizer.vocab_size) if number not in special]
    colon, line = tokenizer.marked(" :"), liner(learner)
    some = (chance.sample(kept, chance.randint(1, MOST_COPIED)) for _ in range(count))
    return [line([*tokens, *colon], tokens) for tokens in some]


def copies(learner: Learner, some: Sequence[Task], seed: int) -> list[Lesson]:
    """`Compute 34 + 58. {"expression": "34 + 58"}`: a task's arguments alone, cut as they are in a call.

    Half of the countries are unheard of, since a known one may be guessed.
    """
    chance, marked, line, found = random.Random(seed), learner.tokenizer.marked, liner(learner), list[Lesson]()
    for task in some:
        question, arguments = task.question, dict(task.call.arguments)
        if task.call.name == "capital" and chance.random() < 0.5:
            unheard = some_word(chance).capitalize()
            question, arguments = question.replace(arguments["country"], unheard), {"country": unheard}
        found.append(line(marked(question), marked(f" {json.dumps(arguments, ensure_ascii=False)}")))
    return found


def answers(learner: Learner, some: Sequence[Task]) -> list[Lesson]:
    """`Compute 34 + 58. 92 : It is 92.`: a task's answer alone."""
    marked, line = learner.tokenizer.marked, liner(learner)
    return [line(marked(f"{task.question} {task.result} :"), marked(f" {task.answer}")) for task in some]


def liner(learner: Learner) -> Callable[[list[int], list[int]], Lesson]:
    """What makes a text of two lists of ids, of which the second counts."""
    *begin, end = learner.tokenizer.text("")

    def line(tokens: list[int], again: list[int]) -> Lesson:
        ids = np.array([*begin, *tokens, *again, end], dtype=np.int32)
        return Lesson(ids, ids, np.arange(len(ids) - len(again) - 2, len(ids) - 1))

    return line
