"""Questions with checkable answers that designs are measured on, in three parts that share no fact.

What a question is about (a sum, a country, a task's operands) decides by its hash whether the search sees it, whether
it is kept for judging, or whether examples are made of it. Pure, by a seed.
"""

import hashlib
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from train.curriculum import tasks
from train.data.sources import ASKED_FOR_CAPITALS, ASKED_TO_CALCULATE, CORPUS, Document, ask, capitalised

NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
ARITHMETIC, FACTS, LISTS, TEXT = "arithmetic", "facts", "lists", "text"
CALCULATING = ("plus", "minus", "times")
LISTING = ("reverse_letters", "capitals", "nth_letter", "join", "sort", "largest", "length")
SOURCES = {ARITHMETIC: ("sums",), FACTS: ("capitals", "dialogue", "conversation"), TEXT: ("shakespeare", "project")}
OPENING_WORDS = 12  # of a text, where it stands for a question


class Part(StrEnum):
    """What a fact is for."""

    SEARCH = "search"
    JUDGE = "judge"
    EXAMPLES = "examples"


class Question(NamedTuple):
    """`accepted` are right answers; `taught` is one as a model would be taught to say it."""

    family: str
    text: str
    accepted: tuple[str, ...]
    taught: str

    @property
    def document(self) -> Document:
        """To learn from."""
        return Document(self.family, turns=ask(self.text, self.taught))


def right(question: Question, answer: str) -> bool:
    """Arithmetic by its last number, facts by the name in the answer, anything else by all that is said."""
    if question.family == ARITHMETIC:
        numbers = NUMBER.findall(answer)
        return bool(numbers) and float(numbers[-1]) == float(question.accepted[0])
    if question.family == FACTS:
        return any(re.search(rf"(?<!\w){re.escape(n)}(?!\w)", answer, re.IGNORECASE) for n in question.accepted)
    return tasks.said(answer.rstrip(".")) in question.accepted


def part_of(fact: str) -> Part:
    """Half of the facts are for the search, a quarter each for judging and for examples."""
    number = hashlib.sha256(fact.encode()).digest()[0] % 4
    return (Part.SEARCH, Part.SEARCH, Part.JUDGE, Part.EXAMPLES)[number]


def questions(part: Part, count: int, levels: Mapping[str, int], seed: int) -> list[Question]:
    """So many different questions, of each family in turn while it has any; fewer are the first of them.

    `levels` has the families, and up to which level of the curriculum each goes.
    """
    pools = [family_questions(family, part, count, level, seed) for family, level in levels.items()]
    found: list[Question] = []
    while any(pools) and len(found) < count:
        found += [pool.pop() for pool in pools if pool][: count - len(found)]
    return found


def family_questions(family: str, part: Part, count: int, level: int, seed: int) -> list[Question]:
    """A family's questions of that part in a random order, at most about `count`."""
    chance = random.Random(f"{seed}:{family}:{part}")
    made = {ARITHMETIC: [*sums(part), *worked(CALCULATING, part, count // 2, level, chance)], FACTS: [*capitals(part)],
            LISTS: [*worked(LISTING, part, count, level, chance)]}[family]  # fmt: skip
    chance.shuffle(made)
    return list({question.text: question for question in made}.values())


def sums(part: Part) -> Iterator[Question]:
    """Additions and subtractions up to ten, in every wording."""
    for sign, pairs in (("+", [(a, b) for a in range(11) for b in range(11)]),
                        ("-", [(a, b) for a in range(11) for b in range(a + 1)])):  # fmt: skip
        for a, b in pairs:
            expression, value = f"{a} {sign} {b}", a + b if sign == "+" else a - b
            if part_of(expression) is part:
                for way in ASKED_TO_CALCULATE:
                    yield Question(ARITHMETIC, way.format(expression), (str(value),), f"{expression} = {value}")


def capitals(part: Part) -> Iterator[Question]:
    """Countries and capitals, in every wording."""
    for line in (CORPUS / "capitals.txt").read_text().splitlines():
        country, _, city = line.partition(": ")
        if part_of(country) is part:
            for wording, answer in ASKED_FOR_CAPITALS:
                wanted = country.removeprefix("the ") if "{1}" in wording else city
                taught = capitalised(answer.format(country, city))
                yield Question(FACTS, wording.format(country, city), (wanted,), taught)


def worked(names: Sequence[str], part: Part, count: int, level: int, chance: random.Random) -> Iterator[Question]:
    """Tasks of the curriculum up to a level; for judging those that no curriculum teaches."""
    for number in range(count if level else 0):
        made = tasks.task(names[number % len(names)], chance.randint(1, level), chance, held_out=part is Part.JUDGE)
        if part is Part.JUDGE or part_of(made.operands) is part:
            arithmetic = made.family in CALCULATING
            accepted = (made.answer.rpartition("= ")[2],) if arithmetic else made.accepted
            yield Question(ARITHMETIC if arithmetic else LISTS, made.question, accepted, made.answer)


def probe(names: Sequence[str], count: int, level: int, seed: int) -> list[Question]:
    """Tasks of the curriculum alone, of the search's part."""
    return list(worked(names, Part.SEARCH, 2 * count, level, random.Random(f"{seed}:probe")))[:count]


def opening(document: Document) -> str:
    """The first words of a text, as what is to be gone on with."""
    return " ".join(document.text.split()[:OPENING_WORDS])
