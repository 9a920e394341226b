"""Federated averaging (McMahan et al., 2017, arXiv:1602.05629): checkpoints of several ranks become one."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cluster.farm import tensors
from cluster.farm.tensors import BadCheckpoint, Checkpoint


@dataclass(frozen=True)
class Share:
    """A rank's checkpoint, and from how many samples it comes; None where the rank did not say."""

    rank: int
    path: Path
    samples: int | None


@dataclass(frozen=True)
class Averaged:
    """What went into an average: the ranks, and why others did not."""

    ranks: tuple[int, ...]
    samples: int | None
    refused: dict[int, str]


def weights(samples: Sequence[int | None]) -> list[float]:
    """Shares that add up to 1. Who did not tell weighs as the mean of those who did; where nobody did all are equal."""
    told = [count for count in samples if count is not None]
    if not any(told):
        return [1.0 / len(samples)] * len(samples)
    mean = sum(told) / len(told)
    counts = [float(mean if count is None else count) for count in samples]
    return [count / sum(counts) for count in counts]


def average(shares: Sequence[Share], target: Path, like: Path | None = None) -> Averaged:
    """Write the weighted mean of the checkpoints to `target`, in their own types; float64 in between.

    One piece of one tensor is in memory at a time. Names, types and shapes have to be those of `like`, the model that
    the ranks began with, or else of most ranks; whole numbers have to be those of most ranks. Who differs is left out
    and named. Writes nothing where nobody is left.
    """
    found, refused = _fitting(shares, like)
    if not found:
        return Averaged((), None, refused)
    parts = weights([share.samples for share, _ in found])
    tensors.write(target, found[0][1], _mean([checkpoint for _, checkpoint in found], parts))
    told = [share.samples for share, _ in found if share.samples is not None]
    return Averaged(tuple(share.rank for share, _ in found), sum(told) if told else None, refused)


def _fitting(shares: Sequence[Share], like: Path | None) -> tuple[list[tuple[Share, Checkpoint]], dict[int, str]]:
    refused: dict[int, str] = {}
    opened: list[tuple[Share, Checkpoint]] = []
    for share in sorted(shares, key=lambda share: share.rank):
        try:
            opened.append((share, tensors.opened(share.path)))
        except BadCheckpoint as error:
            refused[share.rank] = str(error)
    model = tensors.opened(like) if like is not None else _most(opened)
    if model is None:
        return [], refused
    same: list[tuple[Share, Checkpoint]] = []
    for share, checkpoint in opened:
        if wrong := tensors.difference(model, checkpoint):
            refused[share.rank] = wrong
        else:
            same.append((share, checkpoint))
    prints = [tensors.fingerprint(checkpoint) for _, checkpoint in same]
    common = Counter(prints).most_common(1)[0][0] if prints else ""  # of equals the first, which has the lowest rank
    kept = []
    for (share, checkpoint), print_ in zip(same, prints, strict=True):
        if print_ == common:
            kept.append((share, checkpoint))
        else:
            refused[share.rank] = "its whole numbers are others than those of most ranks"
    return kept, refused


def _most(opened: Sequence[tuple[Share, Checkpoint]]) -> Checkpoint | None:
    if not opened:
        return None
    layout = Counter(checkpoint.layout() for _, checkpoint in opened).most_common(1)[0][0]
    return next(checkpoint for _, checkpoint in opened if checkpoint.layout() == layout)


def _mean(checkpoints: Sequence[Checkpoint], parts: Sequence[float]) -> Iterator[np.ndarray]:
    for number, tensor in enumerate(checkpoints[0].tensors):
        if not tensor.is_float:
            yield from tensors.pieces(checkpoints[0].path, tensor)
            continue
        for first, count in tensors.spans(tensor):
            total = np.zeros(count)
            for checkpoint, part in zip(checkpoints, parts, strict=True):
                piece = tensors.read(checkpoint.path, checkpoint.tensors[number], first, count)
                total += part * tensors.as_float64(piece, tensor.kind)
            yield tensors.stored(total, tensor.kind)
