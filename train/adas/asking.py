"""The paper's own proposer: the model is shown the archive's best designs and asked for another one, as JSON.

What does not validate as a `Design` is no proposal; the operators step in and the share of valid ones is counted.
"""

import json
import random
from collections.abc import Sequence

import torch
from pydantic import ValidationError

from train.adas.archive import Record
from train.adas.conduct import Ask
from train.adas.design import Design
from train.adas.running import reply
from train.adas.space import Space
from train.model.learner import Learner
from train.model.tokenizer import Turn

SHOWN = 3  # of the archive
TOKENS = 160
TEMPERATURE = 0.7
SYSTEM = (
    "You design agents as JSON objects. Fields: system, wording (with {question}), decomposition (direct, plan), "
    "combine (first, vote, verify), samples, temperature, tools, offered. Answer with one JSON object."
)


class Model:
    """Asks a learner. Only fields that the space knows are taken: a tool must be one of its tools."""

    def __init__(self, learner: Learner, space: Space) -> None:
        self.learner, self.space = learner, space

    def __call__(self, records: list[Record], chance: random.Random) -> Design | None:
        """A design, or None for a reply that is none."""
        generator = torch.Generator(device=next(self.learner.model.parameters()).device)
        generator.manual_seed(chance.getrandbits(48))
        [[said]] = reply(self.learner, [Ask(question(records), 1, TEMPERATURE, TOKENS)], generator)
        return read(said.text, self.space)


def question(records: Sequence[Record]) -> tuple[Turn, ...]:
    """The best designs with what they measured, and the wish for a better one."""
    best = sorted(records, key=lambda record: -record.interval[0])[:SHOWN]
    lines = [f"{shown(record.design)} success {record.success:.2f}" for record in best]
    return Turn("system", SYSTEM), Turn("user", "\n".join([*lines, "Write a better design."]))


def shown(design: Design) -> str:
    """As JSON, without what is at its default and without examples."""
    return design.model_dump_json(exclude_defaults=True, exclude={"examples", "experts", "dispatch", "max_tokens"})


def read(text: str, space: Space) -> Design | None:
    """The first JSON object in the text as a design within the space; None where there is none."""
    start = text.find("{")
    if start < 0:
        return None
    try:
        value, _ = json.JSONDecoder().raw_decode(text[start:])
        design = Design.model_validate({"max_tokens": space.max_tokens} | value).canonical()
    except (ValueError, ValidationError, TypeError, RecursionError):
        return None
    known = set(design.tools) <= set(space.tools) and not design.experts and not design.dispatch
    return design if known and design.max_tokens <= space.max_tokens else None
