"""Where designs come from: templates, chance, mutation and crossover; and how far two designs lie apart. Pure.

Stands for the meta agent of arXiv:2408.08435, which is a large model that writes the next agent's code after reading
the archive. `train.adas.asking` puts the same question to the model itself.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from train.adas.design import DEFAULT, PLAIN, Design, Example
from train.data.sources import SYSTEM_PROMPTS

WORDINGS = (PLAIN, "Question: {question}", "{question} Answer shortly.", "Please answer: {question}")
SAMPLES = (1, 3, 5, 8, 12, 16)
TEMPERATURES = (0.0, 0.3, 0.5, 0.7, 1.0, 1.3)
MOST_EXAMPLES = 4


class Space(BaseModel):
    """What designs of one search are made of."""

    model_config = ConfigDict(frozen=True)

    examples: tuple[Example, ...] = ()  # to choose from
    tools: tuple[str, ...] = ()
    mixtures: tuple[dict[str, float], ...] = ({},)  # of experts; the first is none
    dispatch: bool = False  # whether there is a dispatcher
    max_tokens: int = 32
    systems: tuple[str, ...] = ("", *SYSTEM_PROMPTS)


def templates(space: Space) -> list[Design]:
    """The designs to begin with: the default first, then the literature's, each alone and some together."""
    some, best = space.examples[:3], space.mixtures[-1]
    made = [
        {},
        {"combine": "vote", "samples": 5, "temperature": 0.7},  # self-consistency, arXiv:2203.11171
        {"combine": "verify", "samples": 8, "temperature": 1.0},  # against a checker, arXiv:2110.14168
        {"examples": some},
        {"decomposition": "plan"},  # arXiv:2305.04091
        {"system": space.systems[1]},
        {"tools": space.tools, "offered": False},
        {"tools": space.tools},
        {"experts": best},
        {"dispatch": space.dispatch},
        {"experts": best, "combine": "verify", "samples": 12, "temperature": 0.7},
        {"tools": space.tools, "offered": False, "combine": "verify", "samples": 8, "temperature": 0.7},
    ]  # fmt: skip
    return unique([DEFAULT.model_copy(update={"max_tokens": space.max_tokens, **each}) for each in made])


def unique(designs: Sequence[Design]) -> list[Design]:
    """In canonical form, each once."""
    return list({design.canonical().model_dump_json(): design.canonical() for design in designs}.values())


def drawn(space: Space, field: str, chance: random.Random) -> dict[str, object]:
    """A random value for one of `FIELDS`."""
    return DRAWN[field](space, chance)


def some_examples(space: Space, chance: random.Random) -> dict[str, object]:
    """None to `MOST_EXAMPLES`, in any order."""
    count = chance.randint(0, min(MOST_EXAMPLES, len(space.examples)))
    return {"examples": tuple(chance.sample(space.examples, count))}


def some_combination(space: Space, chance: random.Random) -> dict[str, object]:
    """How answers are combined, and how many."""
    return {"combine": chance.choice(("first", "vote", "verify", "verify")), "samples": chance.choice(SAMPLES)}


def some_weights(space: Space, chance: random.Random) -> dict[str, object]:
    """One of the mixtures of experts, or dispatch."""
    if space.dispatch and chance.random() < 1 / (1 + len(space.mixtures)):
        return {"experts": {}, "dispatch": True}
    return {"experts": chance.choice(space.mixtures), "dispatch": False}


DRAWN: dict[str, Callable[[Space, random.Random], dict[str, object]]] = {
    "system": lambda space, chance: {"system": chance.choice(space.systems)},
    "wording": lambda _, chance: {"wording": chance.choice(WORDINGS)},
    "examples": some_examples,
    "decomposition": lambda _, chance: {"decomposition": "plan" if chance.random() < 0.2 else "direct"},
    "combine": some_combination,
    "samples": lambda _, chance: {"samples": chance.choice(SAMPLES)},
    "temperature": lambda _, chance: {"temperature": chance.choice(TEMPERATURES)},
    "tools": lambda space, chance: {"tools": tuple(tool for tool in space.tools if chance.random() < 0.6)},
    "offered": lambda _, chance: {"offered": chance.random() < 0.5},
    "weights": some_weights,
}
FIELDS = tuple(DRAWN)


def at_random(space: Space, chance: random.Random) -> Design:
    """Every field drawn."""
    values: dict[str, object] = {"max_tokens": space.max_tokens}
    for field in FIELDS:
        values |= drawn(space, field, chance)
    return DEFAULT.model_copy(update=values).canonical()


def mutated(design: Design, space: Space, chance: random.Random) -> Design:
    """One field or two drawn again."""
    values: dict[str, object] = {}
    for field in chance.sample(FIELDS, chance.randint(1, 2)):
        values |= drawn(space, field, chance)
    return design.model_copy(update=values).canonical()


def crossed(one: Design, other: Design, chance: random.Random) -> Design:
    """Each group of fields from one of the two."""
    groups = (("system",), ("wording", "examples"), ("decomposition",), ("combine", "samples", "temperature"),
              ("tools", "offered"), ("experts", "dispatch"))  # fmt: skip
    taken = [name for group in groups if chance.random() < 0.5 for name in group]
    return one.model_copy(update={name: getattr(other, name) for name in taken}).canonical()


def distance(one: Design, other: Design) -> float:
    """0 for equal designs, 1 for ones with nothing in common: Gower's mean over the fields."""
    shown, shown_too = set(one.examples), set(other.examples)
    names = {*one.experts, *other.experts}
    parts = [
        float(one.system != other.system), float(one.wording != other.wording), apart(shown, shown_too),
        float(one.decomposition != other.decomposition), float(one.combine != other.combine),
        min(1.0, abs(one.samples - other.samples) / SAMPLES[-1]),
        min(1.0, abs(one.temperature - other.temperature) / TEMPERATURES[-1]),
        apart(set(one.tools), set(other.tools)), float(one.offered != other.offered),
        1.0 if one.dispatch != other.dispatch
        else min(1.0, sum(abs(one.experts.get(n, 0) - other.experts.get(n, 0)) for n in names)),
    ]  # fmt: skip
    return sum(parts) / len(parts)


def apart(one: set[Any], other: set[Any]) -> float:
    """Jaccard's distance of two sets."""
    return 1 - len(one & other) / len(one | other) if one | other else 0.0


def novelty(design: Design, known: Sequence[Design], neighbours: int = 3) -> float:
    """Mean distance to the nearest designs that are known; 1 where there are none."""
    nearest = sorted(distance(design, each) for each in known)[:neighbours]
    return sum(nearest) / len(nearest) if nearest else 1.0
