"""Ternary weights (arXiv:2402.17764) without loss: one scale, and five trits to a byte; see `train.bitnet.packing`."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from train.bitnet.packing import A_BYTE, pack, unpack
from train.compression.bits import Reader, Writer
from train.compression.codecs import Known


def is_ternary(weight: Tensor) -> bool:
    """Whether all its numbers are -s, 0 or s of one s."""
    size = weight.abs()
    return bool(((size == 0) | (size == size.max())).all()) and bool(size.max() > 0)


def encode(weight: Tensor, params: dict[str, Any], known: Known, chance: torch.Generator) -> bytes:
    """No `params`. Raises `ValueError` for a matrix that is not ternary."""
    if not is_ternary(weight):
        raise ValueError("the matrix is not ternary")
    writer = Writer()
    writer.floats(weight.abs().max().cpu().numpy().astype("<f4").reshape(1))
    writer.integers(pack(weight.cpu().sign()).numpy(), 8)
    return writer.data


def decode(reader: Reader, shape: tuple[int, ...], params: dict[str, Any]) -> Tensor:
    """Bit for bit what was encoded."""
    (scale,), count = reader.floats(1, "<f4"), int(np.prod(shape))
    packed = reader.integers(-(-count // A_BYTE), 8).astype(np.uint8)
    return unpack(torch.from_numpy(packed), count).view(shape) * float(scale)
