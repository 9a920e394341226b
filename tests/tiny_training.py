"""A model and data small enough to train in a test."""

import random
from typing import Any

import torch
from torch import nn

from train.data.packing import Batches
from train.loop import Loop, LoopConfig
from train.model.llama import Llama
from train.model.shape import Shape

torch.set_num_threads(1)  # matrices this small only wait for one another
SHAPE = Shape(width=32, layers=2, heads=1, feed_forward=64, vocab_size=64, context=32)


def documents(count: int = 60) -> dict[str, list[list[int]]]:
    """Counting upwards from anywhere: a rule that a tiny model finds at once."""
    chance = random.Random(0)
    starts = [chance.randrange(2, 40) for _ in range(count)]
    return {"counting": [[1, *range(start, start + chance.randrange(4, 20))] for start in starts]}


def batches(**fields: Any) -> Batches:
    given = {"context": SHAPE.context, "size": 4, "pad": 0, "seed": 7} | fields
    return Batches(documents(), {}, **given)


def loop(model: nn.Module | None = None, **fields: Any) -> Loop:
    """`fields` are the loop's callables; settings come under `config`."""
    torch.manual_seed(3)
    config = LoopConfig(**{"max_steps": 30, "warmup_steps": 3, "learning_rate": 1e-2} | fields.pop("config", {}))
    given = {"evaluate": lambda _: (1.0, 0.0), "save": lambda *_: None, "report": lambda _: None} | fields
    return Loop(model or Llama(SHAPE), batches(), config, **given)
