"""What a codec is, and which there are: a weight matrix to bytes and back, the same on every machine.

A codec is a module with `encode(weight, params, known, chance)` and `decode(reader, shape, params)`. What counts as its
size is what it writes: indices, scales, codebooks, seeds, headers.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from train.compression.bits import Reader

CODECS = ("cast", "kquant", "gptq", "vptq", "seedlm", "hyper", "trits")  # modules of this package


@dataclass(frozen=True)
class Encoded:
    """A matrix as bytes; `params` is JSON."""

    codec: str
    params: dict[str, Any]
    data: bytes


@dataclass(frozen=True, eq=False)
class Known:
    """What calibration found out about a matrix (R, C): `hessian` (C, C), the mean of x x^T over its inputs x.

    `rows` (R,) says how much a row matters, mean 1: for an embedding, how often its token is read.
    """

    hessian: Tensor | None = None
    rows: Tensor | None = None

    def columns(self, weight: Tensor) -> Tensor:
        """(C,): how much a column matters, mean 1."""
        if self.hessian is None:
            return torch.ones(weight.shape[1], device=weight.device)
        diagonal = self.hessian.diagonal().to(weight)
        return (diagonal / diagonal.mean().clamp(min=1e-12)).clamp(min=1e-4)

    def error(self, change: Tensor) -> float:
        """The mean square that a change (R, C) of the weights makes in an output, over rows and inputs."""
        moved = change if self.hessian is None else change @ self.hessian.to(change)
        each = (moved * change).sum(1)  # (R,)
        return float((each if self.rows is None else each * self.rows.to(each)).mean())


UNKNOWN = Known()


def encode(codec: str, weight: Tensor, params: dict[str, Any], known: Known = UNKNOWN, seed: int = 0) -> Encoded:
    """(R, C) -> bytes; `cast` takes any shape. Deterministic: equal arguments give equal bytes on one machine."""
    chance = torch.Generator().manual_seed(seed)
    weight = weight.detach() if codec == "cast" else weight.detach().float()
    data = _module(codec).encode(weight, params, known, chance)
    return Encoded(codec, params, data)


def decode(encoded: Encoded, shape: tuple[int, ...]) -> Tensor:
    """The matrix, float32; from `cast` its own type. Raises `ValueError` for bytes that the codec did not write."""
    if encoded.codec not in CODECS:
        raise ValueError(f"no codec {encoded.codec}")
    reader = Reader(encoded.data)
    weight = _module(encoded.codec).decode(reader, shape, encoded.params)
    reader.end()
    return weight


def _module(codec: str) -> Any:
    return import_module(f"train.compression.{codec}")
