"""BitLinear of BitNet b1.58 (arXiv:2402.17764): ternary weights, 8-bit activations, straight-through gradients.

The paper puts a norm before every projection (SubLN). Ours does not: the model stays a plain Llama that vLLM serves,
whose RMSNorms already stand before q, k, v, gate and up; o and down go without one.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train.causes import Cause, Failed

LARGEST = 127  # of an 8-bit activation
TINY = 1e-5


def scale_of(weight: Tensor) -> Tensor:
    """(out, in) -> (): absmean, the mean of |weight|, as a bfloat16 number in float32.

    Rounded so that scale times a trit is the same number in float32, in bfloat16, and in what vLLM serves.
    """
    return weight.detach().float().abs().mean().clamp(min=TINY).bfloat16().float()


def trits(weight: Tensor, scale: Tensor) -> Tensor:
    """(out, in) -> the nearest of -1, 0, 1 to weight / scale, int8."""
    return (weight.detach().float() / scale).round().clamp(-1, 1).to(torch.int8)


def quantised(weight: Tensor) -> Tensor:
    """(out, in) -> scale times trits, in the weight's type."""
    scale = scale_of(weight)
    nearest = (weight.detach().float() / scale).round_().clamp_(-1, 1).add_(0.0)  # + 0 makes of -0 the 0 of a trit
    return nearest.mul_(scale).to(weight.dtype)


def rounded(x: Tensor) -> Tensor:
    """(..., in) -> x on a grid of 8 bits whose end is the largest |x| of each token, in x's type."""
    wide = x.detach().float()
    step = wide.abs().amax(-1, keepdim=True).clamp(min=TINY) / LARGEST
    return (wide / step).round_().mul_(step).to(x.dtype)


class StraightThrough(torch.autograd.Function):
    """(1 - lam) x + lam Q(x), with the gradient of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, q: Callable[[Tensor], Tensor], lam: float) -> Tensor:
        """Exactly Q(x) where lam is 1."""
        return q(x) if lam == 1.0 else torch.lerp(x, q(x), lam)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """As if nothing had been rounded."""
        return gradients[0], None, None


def straight_through(x: Tensor, q: Callable[[Tensor], Tensor], lam: float) -> Tensor:
    """See `StraightThrough`; at lam 0 it is x."""
    return StraightThrough.apply(x, q, lam) if lam else x  # type: ignore[return-value]


class BitLinear(nn.Linear):
    """A linear layer whose `weight` is latent: what it multiplies by is ternary.

    It uses (1 - lam) W + lam Q(W) of the latent weight W, and does alike to its input where `activations`. Q sees
    `weight` as it is, with whatever parametrisation is registered on it.
    """

    lam = 1.0  # 0: full precision, 1: quantised
    activations = True  # round the input to 8 bits per token
    settled: Tensor | None = None  # see `settled`

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        weight = straight_through(self.weight, quantised, self.lam) if self.settled is None else self.settled
        if self.activations:
            input = straight_through(input, rounded, self.lam)
        return F.linear(input, weight, self.bias)


def ternary(model: nn.Module, lam: float = 1.0) -> nn.Module:
    """The same model with every linear layer of its blocks a `BitLinear` of the same parameters.

    Embedding, output matrix and norms stay as they are. Raises `Failed` where blocks have no plain linear layers.
    """
    head = getattr(model, "lm_head", None)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and child is not head:
                made = BitLinear(child.in_features, child.out_features, child.bias is not None, device="meta")
                made.weight, made.bias = child.weight, child.bias
                setattr(parent, name, made)
    if not is_ternary(model):
        raise Failed(f"{type(model).__name__} has no linear layers that could be ternary", Cause.BASE_MODEL)
    return set_lam(model, lam)


def layers(model: nn.Module) -> Iterator[tuple[str, BitLinear]]:
    """Every ternary layer with its name."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, BitLinear))


def is_ternary(model: nn.Module) -> bool:
    """Whether the model has ternary layers."""
    return any(True for _ in layers(model))


def set_lam(model: nn.Module, lam: float) -> nn.Module:
    """How far the weights and inputs of all ternary layers are quantised, 0 to 1."""
    for _, layer in layers(model):
        layer.lam = lam
    return model


@contextmanager
def settled(model: nn.Module) -> Iterator[None]:
    """Within it no weight changes and none is learnt: ternary layers quantise theirs once, not at every call."""
    found = [layer for _, layer in layers(model)]
    try:
        with torch.no_grad():
            for layer in found:
                layer.settled = straight_through(layer.weight, quantised, layer.lam)
        yield
    finally:
        for layer in found:
            layer.settled = None


@torch.no_grad()
def effective(model: nn.Module) -> dict[str, Tensor]:
    """By the parameter's name, what each ternary layer multiplies by."""
    return {f"{name}.weight": quantised(layer.weight) for name, layer in layers(model)}


@torch.no_grad()
def latents(model: nn.Module) -> dict[str, Tensor]:
    """By the parameter's name, the latent weight of each ternary layer."""
    return {f"{name}.weight": layer.weight.detach().clone() for name, layer in layers(model)}
