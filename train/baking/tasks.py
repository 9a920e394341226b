"""Questions that a tool answers: what is asked, the right call, what it really comes to. Pure, by a seed.

What is asked about (a sum, a word, a country) falls by its hash to what is trained on or to what is measured, so that
no operands of a measured question were ever trained on.
"""

import hashlib
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache

from train.data.sources import CORPUS
from train.tools import TOOLS, Call, execute

HELD_OUT = 0.2  # share of operands that are measured on
WORDS = 2000  # of the shipped text, the commonest of 4 to 7 letters
PAIRS = (
    ("km", "miles"), ("miles", "km"), ("kg", "pounds"), ("pounds", "kg"), ("m", "feet"), ("feet", "m"),
    ("inches", "cm"), ("liters", "gallons"), ("celsius", "fahrenheit"), ("fahrenheit", "celsius"),
)  # fmt: skip
# Asked as no sum of the corpus or of the curriculum is: "What is 34 + 58?" stays a question for the model itself.
SUMS = ("Compute {0}.", "Work out {0}.", "Use the calculator for {0}.", "What does {0} come to?")
DAYS_ON = ("What day is it in {0} days?", "Which date is it in {0} days?", "What is the date {0} days from now?")
DAYS_AGO = ("What day was it {0} days ago?", "Which date was it {0} days ago?")
TODAY = ("What day is it today?", "What is the date today?", "Which day is today?")
COUNTRIES = (
    "Look up the capital of {0}.",
    "Please look up the capital of {0}.",
    "Look up which city is the capital of {0}.",
)
CONVERSIONS = ("Convert {0} {1} to {2}.", "What is {0} {1} in {2}?", "How much is {0} {1} in {2}?")
LENGTHS = ("How many letters are in {0}?", "How many letters has {0}?", "Count the letters of {0}.")
BACKWARDS = ("Spell {0} backwards.", "What is {0} backwards?", "Write {0} backwards.")
FIRST_DAY = datetime(2020, 1, 1, 12, tzinfo=UTC)


@dataclass(frozen=True)
class Task:
    """A question, the call that answers it, and how the answer is said; `now` is when it is asked."""

    question: str
    call: Call
    said: str  # with {} for what the tool answers
    now: datetime

    @property
    def result(self) -> str:
        """What the tool really answers."""
        return execute(self.call, self.now).text

    @property
    def answer(self) -> str:
        """The assistant's last turn."""
        return self.said.format(self.result)

    def answered_by(self, text: str) -> bool:
        """Whether the tool's answer stands in the text, on its own."""
        return re.search(rf"(?<![\w.-]){re.escape(self.result)}(?![\w-]|\.\d)", text) is not None


def tasks(count: int, seed: int, held_out: bool, names: Sequence[str] = tuple(TOOLS)) -> list[Task]:
    """So many questions, of every tool about as many; to train on, or to measure on and then no two alike."""
    chance, found, asked = random.Random(f"{seed}:{held_out}"), list[Task](), set[str]()
    for number in range(100 * count):
        operands, task = MAKERS[names[number % len(names)]](chance)
        if is_held_out(operands) == held_out and not (held_out and task.question in asked):
            asked.add(task.question)
            found.append(task)
        if len(found) == count:
            break
    return found


def is_held_out(operands: str) -> bool:
    """Decided by the operands alone."""
    return int(hashlib.sha256(operands.encode()).hexdigest()[:8], 16) < HELD_OUT * 0x1_0000_0000


def _sum(chance: random.Random) -> tuple[str, Task]:
    sign = chance.choice("+-*")
    expression = f"{chance.randint(11, 99)} {sign} {chance.randint(2, 12 if sign == '*' else 99)}"
    call = Call("calculator", {"expression": expression})
    return expression, _task(chance.choice(SUMS).format(expression), call, "It is {}.", chance)


def _date(chance: random.Random) -> tuple[str, Task]:
    days = chance.choice((0, *(chance.randint(2, 99) for _ in range(3)), -chance.randint(2, 99)))
    ways = TODAY if days == 0 else DAYS_ON if days > 0 else DAYS_AGO
    question = chance.choice(ways).format(abs(days))
    said = "It was {}." if days < 0 else "It is {}."
    return str(days), _task(question, Call("calendar", {"days": days}), said, chance)


def _capital(chance: random.Random) -> tuple[str, Task]:
    country = chance.choice(countries())
    question = chance.choice(COUNTRIES).format(country)
    return country, _task(question, Call("capital", {"country": country}), "It is {}.", chance)


def _conversion(chance: random.Random) -> tuple[str, Task]:
    (unit, to), value = chance.choice(PAIRS), chance.randint(2, 99)
    question = chance.choice(CONVERSIONS).format(value, unit, to)
    call = Call("convert", {"value": value, "unit": unit, "to": to})
    return f"{value} {unit}", _task(question, call, f"It is {{}} {to}.", chance)


def _length(chance: random.Random) -> tuple[str, Task]:
    word = some_word(chance)
    question = chance.choice(LENGTHS).format(word)
    return word, _task(question, Call("length", {"text": word}), "It has {} letters.", chance)


def _backwards(chance: random.Random) -> tuple[str, Task]:
    word = some_word(chance)
    question = chance.choice(BACKWARDS).format(word)
    return word, _task(question, Call("reverse", {"text": word}), "It is {}.", chance)


def some_word(chance: random.Random) -> str:
    """Of the shipped text, or every second time one that nobody knows: the head of one and the tail of another."""
    word, other = chance.choice(words()), chance.choice(words())
    return word if chance.random() < 0.5 else word[: chance.randint(1, 4)] + other[-chance.randint(1, 4) :]


def _task(question: str, call: Call, said: str, chance: random.Random) -> Task:
    return Task(question, call, said, FIRST_DAY + timedelta(days=chance.randrange(4000)))


MAKERS: dict[str, Callable[[random.Random], tuple[str, Task]]] = {
    "calculator": _sum, "calendar": _date, "capital": _capital, "convert": _conversion, "length": _length,
    "reverse": _backwards,
}  # fmt: skip


@cache
def countries() -> tuple[str, ...]:
    """Those of the shipped table."""
    return tuple(line.partition(": ")[0] for line in (CORPUS / "capitals.txt").read_text().splitlines())


@cache
def words() -> tuple[str, ...]:
    """Common words of the shipped text."""
    counted = Counter(re.findall(r"(?<![A-Za-z'])[a-z]{4,7}(?![a-z'])", (CORPUS / "shakespeare.txt").read_text()))
    return tuple(word for word, _ in counted.most_common(WORDS))
