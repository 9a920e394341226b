"""Hyper-compression (arXiv:2409.00592): two weights become one number, how far along a winding line they lie.

The line h(theta) = (frac(theta a_1), frac(theta a_2)), with a_1 / a_2 irrational, comes as near as one likes to every
point of a square (an ergodic trajectory); a pair of weights is stored as the whole theta below `points` whose h(theta)
is nearest. Pairs outside the inner square belong to one of `classes` squares and are scaled down with it, so that each
pair has a class too. Here a = (1 / points, (sqrt 5 - 1) / 2), whose first `points` points are spread evenly.
"""

from typing import Any

import numpy as np
import torch
from scipy.spatial import KDTree
from torch import Tensor

from train.compression.bits import Reader, Writer
from train.compression.codecs import Known

GOLDEN = (5**0.5 - 1) / 2
INNER = (0.3, 0.5, 0.7, 0.9, 0.98)  # shares of the pairs that the inner square may hold; the best is taken


def trajectory(points: int) -> np.ndarray:
    """(points, 2) float32: h of theta + 1/2 for theta = 0, 1, ..., in [-1, 1]."""
    theta = np.arange(points) + 0.5
    line = np.stack((theta / points, np.modf(theta * GOLDEN)[0]), axis=1)
    return (2 * line - 1).astype(np.float32)


def encode(weight: Tensor, params: dict[str, Any], known: Known, chance: torch.Generator) -> bytes:
    """`params`: points, at most 65536; classes, a power of two."""
    flat = weight.flatten().cpu().numpy()
    pairs = np.pad(flat, (0, len(flat) % 2)).reshape(-1, 2)
    reach = np.abs(pairs).max(1)
    tree = KDTree(trajectory(params["points"]))
    inner = {float(np.quantile(reach, share)) for share in (INNER if params["classes"] > 1 else (*INNER, 1.0))}
    tries = [_placed(pairs, reach, tree, _sides(side, float(reach.max()), params["classes"])) for side in sorted(inner)]
    _, sides, classes, theta = min(tries, key=lambda found: found[0])
    writer = Writer()
    writer.floats(sides.astype("<f4"))
    writer.integers(classes, max(1, (params["classes"] - 1).bit_length()))
    writer.integers(theta, (params["points"] - 1).bit_length())
    return writer.data


def decode(reader: Reader, shape: tuple[int, ...], params: dict[str, Any]) -> Tensor:
    """(R, C) float32."""
    count = int(np.prod(shape))
    pairs = -(-count // 2)
    sides = reader.floats(params["classes"], "<f4")
    classes = reader.integers(pairs, max(1, (params["classes"] - 1).bit_length()))
    theta = reader.integers(pairs, (params["points"] - 1).bit_length())
    whole = trajectory(params["points"])[theta] * sides[classes][:, None]
    return torch.from_numpy(whole.flatten()[:count].reshape(shape))


def _sides(inner: float, outer: float, classes: int) -> np.ndarray:
    """(classes,) half sides of the squares, each larger than the one before by the same factor."""
    inner, outer = max(inner, 1e-12), max(outer, 1e-12)
    if classes == 1:
        return np.array([inner], np.float32)
    return (inner * (outer / inner) ** (np.arange(classes) / (classes - 1))).astype(np.float32)


def _placed(
    pairs: np.ndarray, reach: np.ndarray, tree: KDTree, sides: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    """The squared error, the sides, and each pair's class and theta (N,)."""
    classes = np.searchsorted(sides[:-1], reach)
    side = sides[classes][:, None]
    theta = np.asarray(tree.query(pairs / side)[1])
    error = float(((np.asarray(tree.data)[theta] * side - pairs) ** 2).sum())
    return error, sides, classes, theta
