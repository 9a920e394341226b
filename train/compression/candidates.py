"""What is tried for a tensor, what each encoding of it weighs, and how much it would change the layer's output."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from train.compression.cast import narrowed
from train.compression.codecs import Encoded, Known, decode, encode
from train.compression.trits import is_ternary

SLOW = ("seedlm", "hyper")  # tried on some rows first
SEEDLM = ((8, 3), (12, 4), (16, 2))  # (C, P): the paper's for 4, 3 and 2 bits
VPTQ = ((4, 256, 0), (4, 64, 0), (2, 64, 0), (4, 64, 64))  # vector length, centroids, of the residual
HYPER = ((64, 1), (64, 4), (256, 2), (1024, 2))  # points, classes
STEPS = (0.15, 0.25, 0.35, 0.5, 0.65, 0.8, 1.0, 1.25, 1.6, 2.0, 2.5, 3.0)  # standard deviations
Candidate = tuple[str, dict[str, Any]]


class Tried(NamedTuple):
    """A candidate: bytes, and the mean square of the change in the layer's output, relative to that output's own."""

    codec: str
    params: dict[str, Any]
    size: int
    error: float


def candidates(codecs: Sequence[str], seeds: int, group: int) -> Iterator[Candidate]:
    """All that is tried for a matrix. `group` is how many columns share a scale in GPTQ."""
    every: dict[str, list[dict[str, Any]]] = {
        "kquant": [{"bits": bits} for bits in (2, 3, 4, 5, 6, 8)],
        "gptq": [{"step": step} for step in STEPS] + [{"bits": bits, "group": group} for bits in (2, 3, 4, 8)],
        "vptq": [{"dim": dim, "centroids": size, "residual": more} for dim, size, more in VPTQ],
        "seedlm": [{"c": c, "p": p, "seeds": seeds} for c, p in SEEDLM],
        "hyper": [{"points": points, "classes": classes} for points, classes in HYPER],
    }
    for codec in codecs:
        yield from ((codec, params) for params in every[codec])


def plain(weight: Tensor) -> Candidate:
    """How the tensor is stored without compression: trits where it is ternary, else numbers of two bytes."""
    if weight.dim() == 2 and weight.is_floating_point() and is_ternary(weight):
        return "trits", {}
    return "cast", {"dtype": narrowed(weight)}


def explored(
    weight: Tensor, known: Known, wanted: Sequence[Candidate], seed: int, sampled: int
) -> tuple[list[Tried], dict[int, Encoded]]:
    """Every candidate of a matrix (R, C), the plain one first, with the encodings that were made whole, by its number.

    Slow codecs see only so many rows as hold `sampled` weights.
    """
    tried, whole = [], {}
    nothing = max(known.error(weight.float()), 1e-30)
    for number, (codec, params) in enumerate([plain(weight), *wanted]):
        rows = min(len(weight), max(1, sampled // weight.shape[1])) if codec in SLOW else len(weight)
        picked = torch.linspace(0, len(weight) - 1, rows).round().long().to(weight.device)
        some, of_some = weight, known
        if rows < len(weight):
            some = weight[picked]
            of_some = Known(known.hessian, None if known.rows is None else known.rows[picked])
        encoded = encode(codec, some, params, of_some, seed)
        change = decode(encoded, tuple(some.shape)).to(some.device).float() - some.float()
        scale = 1.0 if rows == len(weight) else nothing / max(of_some.error(some.float()), 1e-30)
        error = of_some.error(change) * scale / nothing
        tried.append(Tried(codec, params, round(len(encoded.data) * len(weight) / rows), error))
        if rows == len(weight):
            whole[number] = encoded
    return tried, whole
