"""K-quants: rounding to a grid of each block of 32 weights, whose scales and minima are themselves quantised.

As GGUF's q2_K to q6_K: eight blocks make a super-block that holds one float16 scale of the scales and one of the
minima; a block has 6 bits for each. A weight costs `bits` and half a bit. Rounds to the nearest; of several grids the
one with the smallest error, weighted by column, as llama.cpp does with an importance matrix.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from train.compression.bits import Reader, Writer
from train.compression.codecs import Known

BLOCK, BLOCKS = 32, 8  # weights, and blocks of a super-block
SIX = 63  # the largest number of 6 bits
SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)  # how much of a block's range the grid spans


def encode(weight: Tensor, params: dict[str, Any], known: Known, chance: torch.Generator) -> bytes:
    """`params`: bits, 2 to 8."""
    top = 2 ** params["bits"] - 1
    x = _blocks(weight)  # (N, 32)
    matters = _blocks(known.columns(weight).expand_as(weight))
    best = torch.full(x.shape[:1], torch.inf, device=x.device)
    scale, low = torch.zeros_like(best), torch.zeros_like(best)
    floor, ceiling = x.amin(1).clamp(max=0), x.amax(1).clamp(min=0)
    for shrink in SHRINKS:
        a_scale, a_low = (ceiling - floor) * shrink / top, -floor * shrink  # x = q scale - low
        a_scale, a_low, *_ = _coarse(a_scale, a_low)
        error = ((_on_grid(x, a_scale, a_low, top) - x) ** 2 * matters).sum(1)
        better = error < best
        best = torch.where(better, error, best)
        scale, low = torch.where(better, a_scale, scale), torch.where(better, a_low, low)
    scale, low, unit, low_unit, scales, lows = _coarse(scale, low)
    writer = Writer()
    writer.floats(unit.cpu().numpy().astype("<f2"))
    writer.floats(low_unit.cpu().numpy().astype("<f2"))
    writer.integers(scales.cpu().numpy(), 6)
    writer.integers(lows.cpu().numpy(), 6)
    writer.integers(_indices(x, scale, low, top).flatten()[: weight.numel()].cpu().numpy(), params["bits"])
    return writer.data


def decode(reader: Reader, shape: tuple[int, ...], params: dict[str, Any]) -> Tensor:
    """(R, C) float32."""
    count = int(np.prod(shape))
    blocks = -(-count // BLOCK)
    supers = -(-blocks // BLOCKS)
    unit, low_unit = (torch.from_numpy(reader.floats(supers, "<f2").astype("f4")) for _ in range(2))
    scales, lows = (torch.from_numpy(reader.integers(blocks, 6)) for _ in range(2))
    indices = torch.from_numpy(reader.integers(count, params["bits"]))
    filled = F.pad(indices, (0, -count % BLOCK)).view(blocks, BLOCK)
    scale, low = _spread(unit, blocks) * scales, _spread(low_unit, blocks) * lows
    return (filled * scale[:, None] - low[:, None]).flatten()[:count].view(shape)


def _blocks(weight: Tensor) -> Tensor:
    flat = weight.flatten()
    return F.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)


def _spread(of_super: Tensor, blocks: int) -> Tensor:
    return of_super.repeat_interleave(BLOCKS)[:blocks]


def _coarse(scale: Tensor, low: Tensor) -> tuple[Tensor, ...]:
    """Scales and minima (N,) as their super-blocks can say them, with the units (S,) and the 6-bit numbers (N,)."""
    found = []
    for values in (scale, low):
        padded = F.pad(values, (0, -len(values) % BLOCKS)).view(-1, BLOCKS)
        unit = (padded.amax(1) / SIX).half().float()
        wide = _spread(unit, len(values))
        number = torch.where(wide > 0, (values / wide.clamp(min=1e-30)).round(), 0).clamp(0, SIX)
        found.append((wide * number, unit, number.long()))
    (scale, unit, scales), (low, low_unit, lows) = found
    return scale, low, unit, low_unit, scales, lows


def _indices(x: Tensor, scale: Tensor, low: Tensor, top: int) -> Tensor:
    safe = torch.where(scale > 0, scale, 1.0)[:, None]
    return ((x + low[:, None]) / safe).round().clamp(0, top).long()


def _on_grid(x: Tensor, scale: Tensor, low: Tensor, top: int) -> Tensor:
    return _indices(x, scale, low, top) * scale[:, None] - low[:, None]
