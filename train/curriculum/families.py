"""The families of tasks: what each asks at its ten levels, and the answer. Pure.

The shipped sums go up to ten: all arithmetic here begins above.
"""

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from train.data.sources import ASKED_TO_CALCULATE
from train.quietstar.arithmetic import Sum

LARGEST_SHIPPED = 10  # operand of the corpus's sums
LETTERS = "abcdefghijklmnoprstuvwy"


class Made(NamedTuple):
    """What a family makes of a task; see `train.curriculum.tasks.Task`."""

    operands: str
    question: str
    answer: str
    accepted: tuple[str, ...] = ()
    value: str | None = None
    thought: str = ""


Family = Callable[[random.Random, int], Made]


def digits(chance: random.Random, count: int) -> int:
    """A number of so many digits."""
    return chance.randrange(10 ** (count - 1), 10**count)


def spread(text: Sequence[object]) -> str:
    """The things with blanks between."""
    return " ".join(str(thing) for thing in text)


def calculated(chance: random.Random, expression: str, value: int, operands: str, thought: str = "") -> Made:
    """Asked as the shipped sums are, answered like them; the bare value counts too."""
    full, asked = f"{expression} = {value}", chance.choice(ASKED_TO_CALCULATE)
    return Made(operands, asked.format(expression), full, (full, str(value)), thought=thought)


def plain(operands: str, question: str, answer: object) -> Made:
    """One answer."""
    return Made(operands, question, str(answer), (str(answer),))


def program(operands: str, what: str, code: str, value: object) -> Made:
    """A program is asked for."""
    return Made(operands, f"Write code for {what}.", code, value=repr(value))


# Digits of each operand and whether a column may carry, by level.
SUMS = (
    ((2, 1), False), ((2, 1), True), ((2, 2), False), ((2, 2), True), ((3, 1), True), ((3, 2), True), ((3, 3), True),
    ((2, 2, 2), True), ((4, 4), True), ((3, 3, 3), True),
)  # fmt: skip


def carries(numbers: Sequence[int]) -> bool:
    """Whether adding up carries from any column to the next."""
    return any(sum(number // 10**i % 10 for number in numbers) > 9 for i in range(4))


def plus(chance: random.Random, level: int) -> Made:
    """34 + 5."""
    sizes, carrying = SUMS[level - 1]
    while True:
        numbers = [digits(chance, size) for size in sizes]
        if max(numbers) > LARGEST_SHIPPED and (carrying or not carries(numbers)):
            chance.shuffle(numbers)
            expression = " + ".join(map(str, numbers))
            return calculated(chance, expression, sum(numbers), spread(sorted(numbers)), scratchpad("+", numbers))


def minus(chance: random.Random, level: int) -> Made:
    """39 - 5: a sum the other way round."""
    sizes, carrying = SUMS[level - 1]
    while True:
        numbers = [digits(chance, size) for size in sizes]
        if carrying or not carries(numbers):
            total, (left, *rest) = sum(numbers), numbers
            operands = [total, *rest]
            expression = " - ".join(map(str, operands))
            return calculated(chance, expression, left, spread(operands), scratchpad("-", operands))


def scratchpad(sign: str, operands: Sequence[int]) -> str:
    """Digit by digit as quietstar teaches it, of two operands; empty of more."""
    return Sum(operands[0], sign, operands[1]).scratchpad if len(operands) == 2 else ""


# Digits of the first factor, its largest digit, and what it is multiplied by.
PRODUCTS = (
    (2, 9, (1, 10)), (2, 4, (2,)), (2, 9, (2, 10)), (2, 3, (2, 3)), (2, 9, (2, 3)), (2, 9, (2, 3, 4, 5)),
    (2, 9, range(2, 10)), (3, 9, range(2, 10)), (2, 9, range(11, 20)), (3, 9, range(11, 100)),
)  # fmt: skip


def times(chance: random.Random, level: int) -> Made:
    """23 * 2."""
    size, largest, factors = PRODUCTS[level - 1]
    number = int("".join(str(chance.randint(1, largest)) for _ in range(size)))
    factor = chance.choice(factors)
    return calculated(chance, f"{number} * {factor}", number * factor, spread(sorted((number, factor))))


def alphabet(level: int) -> str:
    """Letters that a level uses: six at level 1, all from level 10 on."""
    return LETTERS[: 4 + 2 * level]


def letters(chance: random.Random, level: int) -> list[str]:
    """Two at level 1, eleven at level 10."""
    return [chance.choice(alphabet(level)) for _ in range(level + 1)]


def backwards(chance: random.Random, level: int) -> Made:
    """Letters in reverse."""
    word = letters(chance, level)
    return plain(spread(word), f"Reverse {spread(word)}.", spread(word[::-1]))


def capitals(chance: random.Random, level: int) -> Made:
    """Letters in upper case."""
    word = letters(chance, level)
    return plain(spread(word), f"Capitals of {spread(word)}?", spread(word).upper())


def nth(chance: random.Random, level: int) -> Made:
    """Which letter stands there."""
    word = letters(chance, level)
    place = chance.randrange(min(9, len(word)))
    return plain(f"{place} {spread(word)}", f"Letter {place + 1} of {spread(word)}?", word[place])


def count(chance: random.Random, level: int) -> Made:
    """How often a letter is there: of three letters, so that it is there often."""
    few = chance.sample(alphabet(level), 3)
    word = [chance.choice(few) for _ in range(level + 1)]
    return plain(f"{few[0]} {spread(sorted(word))}", f"How many {few[0]} in {spread(word)}?", word.count(few[0]))


def join(chance: random.Random, level: int) -> Made:
    """Two words one after the other; up to level 5 spelt, above as words."""
    size = 1 + (level - 1) % 5
    first, second = ([chance.choice(alphabet(level)) for _ in range(size + chance.randint(0, 1))] for _ in range(2))
    if level <= 5:
        return plain(f"{spread(first)},{spread(second)}", f"Join {spread(first)} and {spread(second)}.",
                     spread(first + second))  # fmt: skip
    one, other = "".join(first), "".join(second)
    return plain(f"{one},{other}", f"Join {one} and {other}.", one + other)


def numbers(chance: random.Random, level: int) -> list[int]:
    """Up to level 5 two to six digits, above two to six numbers of two digits; no two alike."""
    size = 2 + (level - 1) % 5
    return chance.sample(range(10) if level <= 5 else range(10, 100), size)


def sort(chance: random.Random, level: int) -> Made:
    """Rising."""
    some = numbers(chance, level)
    return plain(spread(sorted(some)), f"Sort {spread(some)}.", spread(sorted(some)))


def turn(chance: random.Random, level: int) -> Made:
    """A list in reverse."""
    some = numbers(chance, level)
    return plain(spread(some), f"Reverse {spread(some)}.", spread(some[::-1]))


def largest(chance: random.Random, level: int) -> Made:
    """The maximum."""
    some = numbers(chance, level)
    return plain(spread(sorted(some)), f"Largest of {spread(some)}?", max(some))


def length(chance: random.Random, level: int) -> Made:
    """How many there are; any number of them up to the level's."""
    some = [chance.randrange(10 if level <= 5 else 100) for _ in range(chance.randint(1, level + 1))]
    return plain(spread(some), f"How many numbers in {spread(some)}?", len(some))


def add_up(chance: random.Random, level: int) -> Made:
    """The sum of a list."""
    some = numbers(chance, level)
    return plain(spread(sorted(some)), f"Sum of {spread(some)}?", sum(some))


WAYS = {"sum": "+", "difference": "-", "product": "*"}


def of_two(chance: random.Random, size: int, ways: Sequence[str]) -> Made:
    """The sum of 3 and 4: `3 + 4`."""
    way, (a, b) = chance.choice(ways), sorted((digits(chance, size), digits(chance, size)), reverse=True)
    value = {"sum": a + b, "difference": a - b, "product": a * b}[way]
    return program(f"{way} {a} {b}", f"the {way} of {a} and {b}", f"{a} {WAYS[way]} {b}", value)


def code(chance: random.Random, level: int) -> Made:
    """Programs that must come to a value: the further, the longer and the less like the question."""
    ways, some = tuple(WAYS), chance.sample(range(10), 2 + level // 4)
    listed, word = spread(some), "".join(chance.choice("abc") for _ in range(3 + level // 3))
    match level:
        case 1 | 2 | 3:
            return of_two(chance, level if level < 3 else 2, ways[:1] if level < 3 else ways)
        case 4:
            return program(f"max {listed}", f"the largest of {listed}", f"max({', '.join(map(str, some))})", max(some))
        case 5:
            return program(f"sort {listed}", f"sorting {listed}", f"sorted({some})", sorted(some))
        case 6:
            return program(f"reverse {listed}", f"reversing {listed}", f"{some}[::-1]", some[::-1])
        case 7:
            a, b, c = (digits(chance, 2) for _ in range(3))
            return program(f"{a} {b} {c}", f"{a} plus {b} times {c}", f"{a} + {b} * {c}", a + b * c)
        case 8:
            return program(f"upper {word}", f"{word} in capitals", f"'{word}'.upper()", word.upper())
        case 9:
            return program(f"count {word}", f"the count of a in {word}", f"'{word}'.count('a')", word.count("a"))
    top = chance.randrange(10, 100)
    return program(f"to {top}", f"the sum of 1 to {top}", f"sum(range(1, {top + 1}))", sum(range(1, top + 1)))


FAMILIES: dict[str, Family] = {
    "plus": plus, "minus": minus, "times": times, "reverse_letters": backwards, "capitals": capitals,
    "nth_letter": nth, "count_letter": count, "join": join, "sort": sort, "reverse_list": turn, "largest": largest,
    "length": length, "sum_list": add_up, "program": code,
}  # fmt: skip
