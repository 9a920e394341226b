"""Numbers in a type of torch's: without loss in their own, or floats in a narrower one."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from train.compression.bits import Reader
from train.compression.codecs import Known

NARROW = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def narrowed(tensor: Tensor) -> str:
    """The type of at most two bytes in which the numbers lose least; their own where they are no wide floats."""
    if tensor.dtype not in (torch.float32, torch.float64):
        return str(tensor.dtype).removeprefix("torch.")
    losses = {name: float((tensor.to(kind).to(tensor) - tensor).abs().max()) for name, kind in NARROW.items()}
    return min(losses, key=lambda name: losses[name])  # an overflow is an infinite loss


def encode(weight: Tensor, params: dict[str, Any], known: Known, chance: torch.Generator) -> bytes:
    """`params`: dtype. Any shape."""
    kind = getattr(torch, params["dtype"])
    return weight.cpu().to(kind).contiguous().flatten().view(torch.uint8).numpy().tobytes()


def decode(reader: Reader, shape: tuple[int, ...], params: dict[str, Any]) -> Tensor:
    """Any shape, in the type that was written."""
    kind = getattr(torch, params["dtype"], None)
    if not isinstance(kind, torch.dtype):
        raise ValueError(f"no type {params['dtype']}")
    raw = reader.floats(int(np.prod(shape)) * kind.itemsize, "u1")
    return torch.from_numpy(raw.copy()).view(kind).view(shape)
