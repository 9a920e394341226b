"""Low-rank deltas on linear layers (LoRA, arXiv:2106.09685) as parametrisations of `weight`.

    W' = W + alpha / rank * B A,   A (rank, in), B (out, rank)

A layer that quantises its `weight` quantises W', so a ternary model is trained and merged as any other.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from train.causes import Cause, Failed


class LowRank(nn.Module):
    """The delta of one layer; zero to begin with, since B is."""

    enabled = True

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        rank = min(rank, *weight.shape)
        self.a = nn.Parameter(torch.empty(rank, weight.shape[1], device=weight.device))
        self.b = nn.Parameter(torch.zeros(weight.shape[0], rank, device=weight.device))
        self.scale = alpha / rank
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """(out, in) -> (out, in)."""
        if not self.enabled:
            return weight
        with torch.autocast(weight.device.type, enabled=False):  # what is trained is what is merged
            return weight + (self.scale * self.b @ self.a).to(weight.dtype)


def add(model: nn.Module, rank: int, alpha: float) -> list[nn.Parameter]:
    """Give every linear layer but the output matrix a delta, and freeze all else; what is left to train.

    Draws from torch's generator. Raises `Failed` for a model without linear layers.
    """
    model.requires_grad_(False)
    head = getattr(model, "lm_head", None)
    linears = [module for module in model.modules() if isinstance(module, nn.Linear) and module is not head]
    if not linears:
        raise Failed(f"{type(model).__name__} has no linear layers for a low-rank delta", Cause.BASE_MODEL)
    made: list[nn.Parameter] = []
    for linear in linears:
        delta = LowRank(linear.weight, rank, alpha)
        parametrize.register_parametrization(linear, "weight", delta)
        made += [delta.a, delta.b]
    return made


def merge(model: nn.Module) -> None:
    """Put every delta into its weight, and let all weights be trained again."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    model.requires_grad_(True)


@contextmanager
def without(model: nn.Module) -> Iterator[None]:
    """The model as it is without its deltas."""
    deltas = [module for module in model.modules() if isinstance(module, LowRank)]
    for delta in deltas:
        delta.enabled = False
    try:
        yield
    finally:
        for delta in deltas:
            delta.enabled = True
