"""GPTQ (arXiv:2210.17323): columns are rounded one by one, and later columns make good what a rounding gets wrong.

With the inputs' Hessian H = E[x x^T] (C, C) and U the upper Cholesky factor of its inverse, the error of column j,
divided by U_jj, times row j of U is taken off the columns that are still to come.

Two grids. `bits` and `group`: as in the paper, a float16 scale and a zero point for every `group` columns of a row.
`step`: one grid for the whole matrix, as wide as so many standard deviations of its weights, and a Huffman code of the
indices; at a given rate a uniform grid with an entropy code has the smaller error (Gish and Pierce, 1968). There the
order of the columns costs nothing to store, and those with the largest inputs come first.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from train.compression.bits import Reader, Writer
from train.compression.codecs import Known

DAMPING = 0.03  # of the Hessian's mean diagonal, added to it
AT_ONCE = 128  # columns whose corrections of all later ones are made together
SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)


def fed_back(weight: Tensor, known: Known, rounded: Callable[[Tensor, int], Tensor], by_size: bool = False) -> None:
    """Call `rounded(column (R,), j)` -> column for every column, each corrected for those before it.

    With `by_size` the columns with the largest inputs come first.
    """
    columns = weight.shape[1]
    order, factor = ordered(known, columns, weight.device, by_size)
    left, places = weight[:, order].clone(), order.tolist()
    for start in range(0, columns, AT_ONCE):
        end = min(start + AT_ONCE, columns)
        errors = torch.zeros(len(weight), end - start, device=weight.device)
        for j in range(start, end):
            column = left[:, j]
            error = (column - rounded(column, places[j])) / factor[j, j]
            left[:, j + 1 : end] -= error[:, None] * factor[j, j + 1 : end]
            errors[:, j - start] = error
        left[:, end:] -= errors @ factor[start:end, end:]


@lru_cache(maxsize=4)
def ordered(known: Known, columns: int, device: torch.device, by_size: bool) -> tuple[Tensor, Tensor]:
    """The order of the columns (C,), and `inverse_factor` in that order: the same for all encodings of a matrix."""
    hessian = torch.eye(columns, device=device) if known.hessian is None else known.hessian.to(device)
    order = hessian.diagonal().argsort(descending=True) if by_size else torch.arange(columns, device=device)
    return order, inverse_factor(hessian[order][:, order])


def inverse_factor(hessian: Tensor) -> Tensor:
    """The upper Cholesky factor (C, C) of the damped Hessian's inverse."""
    exact = hessian.double()
    damped = exact + torch.eye(len(exact), device=exact.device) * (DAMPING * exact.diagonal().mean().clamp(min=1e-8))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True).to(hessian.dtype)


def encode(weight: Tensor, params: dict[str, Any], known: Known, chance: torch.Generator) -> bytes:
    """`params`: bits and group, or step."""
    return _one_grid(weight, params["step"], known) if "step" in params else _groups(weight, params, known)


def decode(reader: Reader, shape: tuple[int, ...], params: dict[str, Any]) -> Tensor:
    """(R, C) float32."""
    rows, columns = shape
    if "step" in params:
        (step,), (low,) = reader.floats(1, "<f4"), reader.floats(1, "<i2")
        (width,) = reader.floats(1, "u1")
        indices = torch.from_numpy(reader.integers(rows * columns, int(width)))
        return (indices + int(low)).float().view(shape) * float(step)
    groups = -(-columns // params["group"])
    scale = torch.from_numpy(reader.floats(rows * groups, "<f2").astype("f4")).view(rows, groups)
    zero = torch.from_numpy(reader.integers(rows * groups, params["bits"])).view(rows, groups)
    indices = torch.from_numpy(reader.integers(rows * columns, params["bits"])).view(shape)
    of = torch.arange(columns) // params["group"]
    return (indices - zero[:, of]) * scale[:, of]


def _one_grid(weight: Tensor, step: float, known: Known) -> bytes:
    unit = np.float32(max(float(weight.std(correction=0)) * step, float(weight.abs().max()) / 127, 1e-12))
    wide, indices = float(unit), torch.zeros_like(weight)

    def rounded(column: Tensor, j: int) -> Tensor:
        number = (column / wide).round().clamp(-127, 127)
        indices[:, j] = number
        return number * wide

    fed_back(weight, known, rounded, by_size=True)
    low, high = int(indices.min()), int(indices.max())
    width = max(1, (high - low).bit_length())
    writer = Writer()
    writer.floats(np.array([unit], "<f4"))
    writer.floats(np.array([low], "<i2"))
    writer.floats(np.array([width], "u1"))
    writer.integers((indices - low).flatten().long().cpu().numpy(), width)
    return writer.data


def _groups(weight: Tensor, params: dict[str, Any], known: Known) -> bytes:
    bits, group = params["bits"], params["group"]
    top = 2**bits - 1
    scales, zeros, indices = [], [], torch.zeros_like(weight)
    grid: list[Tensor] = []

    def rounded(column: Tensor, j: int) -> Tensor:
        if j % group == 0:  # of the weights as they were: corrections within a group are small
            grid[:] = range_of(weight[:, j : j + group], top)
            scales.append(grid[0])
            zeros.append(grid[1])
        scale, zero = grid
        number = ((column / scale).round() + zero).clamp(0, top)
        indices[:, j] = number
        return (number - zero) * scale

    fed_back(weight, known, rounded)
    writer = Writer()
    writer.floats(torch.stack(scales, 1).flatten().cpu().numpy().astype("<f2"))
    writer.integers(torch.stack(zeros, 1).flatten().long().cpu().numpy(), bits)
    writer.integers(indices.flatten().long().cpu().numpy(), bits)
    return writer.data


def range_of(weight: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Scale (a float16 number) and zero point (R,) for every row of (R, G), with the smallest squared error."""
    floor, ceiling = weight.amin(1).clamp(max=0), weight.amax(1).clamp(min=0)
    best = torch.full_like(floor, torch.inf)
    scale, zero = torch.ones_like(floor), torch.zeros_like(floor)
    for shrink in SHRINKS:
        a_scale = ((ceiling - floor) * shrink / top).clamp(min=1e-6).half().float()
        a_zero = (-floor * shrink / a_scale).round().clamp(0, top)
        on_grid = ((weight / a_scale[:, None]).round() + a_zero[:, None]).clamp(0, top) - a_zero[:, None]
        error = ((on_grid * a_scale[:, None] - weight) ** 2).sum(1)
        better = error < best
        best = torch.where(better, error, best)
        scale, zero = torch.where(better, a_scale, scale), torch.where(better, a_zero, zero)
    return scale, zero
