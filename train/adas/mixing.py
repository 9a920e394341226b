"""Mixing experts by measurement: Transformer-squared's third way of adapting (arXiv:2501.06252, section 3.2)."""

import random
from collections.abc import Callable, Mapping, Sequence

import torch

from train.data.packing import Batch
from train.evaluate.perplexity import held_out_loss
from train.model.learner import Learner


def losses(learner: Learner, rows: Mapping[str, list[Batch]], device: torch.device) -> dict[str, float]:
    """Nats per token on each family's rows."""
    return {family: held_out_loss(learner.model, some, "fp32", device)[0] for family, some in rows.items()}


def cross_entropy_search(
    fitness: Callable[[dict[str, float]], float], names: Sequence[str], *, rounds: int, population: int, seed: int
) -> tuple[dict[str, float], float]:
    """Weights alpha that make `fitness` smallest, by the cross-entropy method, as the paper mixes by few examples.

    A normal distribution per weight, drawn from and fitted to its best quarter again; no expert and each expert alone
    are candidates too. Returns the best mixture seen, `{}` where none beats no expert, and its fitness.
    """
    chance = random.Random(seed)
    alone: list[dict[str, float]] = [{}, *({name: 1.0} for name in names)]
    scored = [(fitness(mixture), mixture) for mixture in alone]
    mean, deviation = dict.fromkeys(names, 0.5), dict.fromkeys(names, 0.4)
    for _ in range(rounds):
        drawn = [{n: round(chance.gauss(mean[n], deviation[n]), 3) for n in names} for _ in range(population)]
        here = sorted(((fitness(mixture), mixture) for mixture in drawn), key=lambda pair: pair[0])
        elite = [mixture for _, mixture in here[: max(2, population // 4)]]
        for name in names:
            values = [mixture[name] for mixture in elite]
            mean[name] = sum(values) / len(values)
            deviation[name] = max(0.02, (sum((v - mean[name]) ** 2 for v in values) / len(values)) ** 0.5)
        scored += here
    value, best = min(scored, key=lambda pair: pair[0])
    return best, value
