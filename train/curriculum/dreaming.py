"""Dreams: texts that a model says of itself, replayed so that it does not forget what it could say.

Pseudo-rehearsal (Robins 1995). Drawn at a high temperature from the model as it is now. Kept are those that the model
as it was at the beginning finds as likely as real text, and that do not repeat themselves: what both of them would say.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from train.curriculum.answering import stops
from train.model.generate import generate
from train.model.learner import Learner
from train.model.tokenizer import PAD


@dataclass(frozen=True)
class Wish:
    """What dreams are to be."""

    count: int  # drawn a round
    tokens: int  # of each at most
    temperature: float
    most_nats: float  # per token, by the model at the beginning
    least_distinct: float  # share of different tokens


def dreams(learner: Learner, base: nn.Module, wish: Wish, generator: torch.Generator) -> list[list[int]]:
    """The ids of those that are kept, with a beginning and, where the model came to it, an end."""
    begin = learner.tokenizer.text("")[:1]
    banned = [number for name, number in learner.tokenizer.ids.items() if name == PAD]
    stop = stops(learner)
    drawn = generate(
        learner, [begin] * wish.count, wish.tokens, stop=stop, temperature=wish.temperature, generator=generator,
        banned=banned,
    )  # fmt: skip
    told = [begin + ids + (stop[:1] if len(ids) < wish.tokens else []) for ids in drawn if len(ids) > 3]
    return [ids for ids, nats in zip(told, likelihood(base, told, learner.pad), strict=True)
            if nats <= wish.most_nats and distinct(ids) >= wish.least_distinct]  # fmt: skip


def distinct(ids: Sequence[int]) -> float:
    """Share of different tokens, 0 to 1."""
    return len(set(ids)) / len(ids)


@torch.no_grad()
def likelihood(model: nn.Module, texts: Sequence[Sequence[int]], pad: int) -> list[float]:
    """Mean nats per token of every text but its first token."""
    if not texts:
        return []
    device, longest = next(model.parameters()).device, max(map(len, texts))
    tokens = torch.tensor([[*ids, *[pad] * (longest - len(ids))] for ids in texts], device=device)  # (B, T)
    nats = F.cross_entropy(model(tokens)[:, :-1].float().transpose(1, 2), tokens[:, 1:], reduction="none")
    return [float(row[: len(ids) - 1].mean()) for row, ids in zip(nats, texts, strict=True)]
