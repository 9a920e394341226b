"""How a design answers one question, without input and output: a generator that asks for replies and is sent them.

`train.adas.running` drives many of them against a model in its own process; whoever serves the model drives one with
requests to the server. Pure.
"""

import re
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from train.adas.checking import verified
from train.adas.design import Design
from train.model.tokenizer import CALL, CALLED, SPLIT, Turn
from train.tools import Answer, Call, described, execute, parse_calls, specifications

PLAN = "{question}\nName the steps first."
TOOL_ROUNDS = 2  # calls that one reply may lead to, one after the other
CALLS = re.compile(f"{re.escape(CALL)}.*?(?:{re.escape(CALLED)}|$)", re.DOTALL)


class Ask(NamedTuple):
    """`samples` replies to the conversation are wanted."""

    turns: tuple[Turn, ...]
    samples: int
    temperature: float
    max_tokens: int


class Reply(NamedTuple):
    """What the model wrote, its calls between their marks and its thoughts left out; `tokens` counts all of it."""

    text: str
    tokens: int


@dataclass
class Outcome:
    """An answer and how it came about."""

    answer: str
    tokens: int = 0  # generated for it
    attempts: int = 0
    calls: int = 0  # of tools
    verified: bool | None = None  # by the checker; None where it was not asked or cannot tell
    trace: list[Turn] = field(default_factory=list)  # the conversation that the answer ended


Conduct = Generator[Ask, list[Reply], Outcome]
Drawn = list[tuple[str, list[Turn]]]  # answers, each with the conversation that it ended


def conduct(design: Design, question: str, now: datetime) -> Conduct:
    """Answer the question as the design says; `now` is what tools take for the time."""
    outcome = Outcome("")
    turns = yield from opened(design, question, outcome)
    drawn: Drawn = []
    if design.combine == "verify":
        for number in range(design.samples):
            temperature = design.temperature if number else 0.0
            drawn += yield from replied(design, turns, 1, temperature, now, outcome)
            outcome.verified = verified(question, drawn[-1][0], now)
            if outcome.verified is not False:
                outcome.answer, outcome.trace = drawn[-1]
                return outcome
    else:
        samples = design.samples if design.combine == "vote" else 1
        drawn = yield from replied(design, turns, samples, design.temperature, now, outcome)
    outcome.answer, outcome.trace = drawn[vote([answer for answer, _ in drawn])]
    return outcome


def opened(design: Design, question: str, outcome: Outcome) -> Generator[Ask, list[Reply], tuple[Turn, ...]]:
    """The conversation up to the question, with a plan before it where the design plans."""
    turns = opening(design)
    if design.decomposition == "plan":
        planned = Turn("user", PLAN.replace("{question}", question))
        [plan] = yield Ask((*turns, planned), 1, 0.0, design.max_tokens)
        outcome.tokens += plan.tokens
        turns = (*turns, planned, Turn("assistant", without_calls(plan.text)))
    return (*turns, Turn("user", design.wording.replace("{question}", question)))


def opening(design: Design) -> tuple[Turn, ...]:
    """What stands before the first question: the system prompt and the examples."""
    tools = described(specifications(design.tools)) if design.tools and design.offered else ""
    system = "\n".join(part for part in (design.system, tools) if part)
    turns = [Turn("system", system)] if system else []
    for example in design.examples:
        turns.append(Turn("user", design.wording.replace("{question}", example.question)))
        turns.append(Turn("assistant", example.answer))
    return tuple(turns)


def replied(
    design: Design, turns: tuple[Turn, ...], samples: int, temperature: float, now: datetime, outcome: Outcome
) -> Generator[Ask, list[Reply], Drawn]:
    """`samples` answers; tool calls in them are executed and gone on from."""
    first = yield Ask(turns, samples, temperature, design.max_tokens)
    drawn: Drawn = []
    for reply in first:
        outcome.attempts += 1
        outcome.tokens += reply.tokens
        here = [*turns, Turn("assistant", reply.text)]
        for _ in range(TOOL_ROUNDS if design.tools else 0):
            if (said := tool_turn(here[-1].content, design.tools, now)) is None:
                break
            here.append(said)
            outcome.calls += 1
            [further] = yield Ask(tuple(here), 1, temperature, design.max_tokens)
            outcome.tokens += further.tokens
            here.append(Turn("assistant", further.text))
        drawn.append((without_calls(here[-1].content), here))
    return drawn


def tool_turn(text: str, allowed: Sequence[str], now: datetime) -> Turn | None:
    """What the tool answers to the first call in a reply; None where the reply has no call."""
    calls = parse_calls(text)
    if not calls:
        return None
    call = calls[0]
    refused = isinstance(call, Call) and call.name not in allowed
    return Turn("tool", (Answer("error: unknown tool", False) if refused else execute(call, now)).text)


def without_calls(text: str) -> str:
    """The reply without calls and marks."""
    return SPLIT.sub("", CALLS.sub("", text)).strip()


def vote(answers: Sequence[str]) -> int:
    """Which answer most agree on, whatever their case, spaces and last mark; the earliest where several do."""
    alike = [" ".join(answer.lower().rstrip(".!").split()) for answer in answers]
    counts = Counter(alike)
    return max(range(len(answers)), key=lambda i: (counts[alike[i]], -i))
