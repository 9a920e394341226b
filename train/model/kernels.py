"""Parts of a Llama with gradients of their own, since PyTorch's CPU composes them of many small operations.

A step of nanoGPT's small setting on one core takes 3 % less time with them (docs/log.md).
"""

from typing import Any

import torch
from torch import Tensor, nn


class RMSNorm(nn.RMSNorm):
    """arXiv:1910.07467; PyTorch's own kernel on a GPU."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., W) -> (..., W)."""
        if x.device.type != "cpu" or self.eps is None:
            return super().forward(x)
        return Normalised.apply(x, self.weight, self.eps)  # type: ignore[return-value]


class Normalised(torch.autograd.Function):
    """x / sqrt(mean(x^2) + eps) * weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """(..., W) and (W,) -> (..., W)."""
        inverse = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        normal = x * inverse
        ctx.save_for_backward(normal, inverse, weight)
        return normal * weight

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        """Of x and of the weight."""
        (normal, inverse, weight), (grad,) = ctx.saved_tensors, gradients
        along = grad * normal
        mean = (along * weight).mean(-1, keepdim=True)
        return (grad * weight).addcmul_(normal, mean, value=-1).mul_(inverse), along.flatten(0, -2).sum(0), None


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """(B, H, T, D) -> the same in x's type: entries i and i + D/2 turned as a pair by their position's angle."""
    return Rotated.apply(x, cosine, sine)  # type: ignore[return-value]


class Rotated(torch.autograd.Function):
    """The gradient of a turn is the turn back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """See `rotate`."""
        ctx.save_for_backward(cosine, sine)
        return turned(x, cosine, sine, 1.0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Of x alone."""
        cosine, sine = ctx.saved_tensors
        return turned(gradients[0], cosine, sine, -1.0), None, None


def turned(x: Tensor, cosine: Tensor, sine: Tensor, way: float) -> Tensor:
    """In the precision of the angles."""
    wide, half = x.to(cosine.dtype), x.shape[-1] // 2
    out = wide * cosine
    out[..., :half].addcmul_(wide[..., half:], sine[..., :half], value=-way)
    out[..., half:].addcmul_(wide[..., :half], sine[..., half:], value=way)
    return out.to(x.dtype)
