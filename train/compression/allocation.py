"""Which tensor gets which of its encodings: the most bytes saved for the least loss. Pure."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple


class Option(NamedTuple):
    """One way to store a tensor: its bytes, and the rise in loss (nats per token) that it is expected to cost."""

    size: int
    cost: float


class Move(NamedTuple):
    """Tensor `name` goes on to its option `option`."""

    name: str
    option: int


def hull(options: Sequence[Option]) -> list[int]:
    """Numbers of the options worth having: the first, then ever smaller ones on the lower convex hull of (size, cost).

    The first is the plain way to store the tensor: what is not smaller than it is never taken.
    """
    smaller = [i for i in range(1, len(options)) if options[i].size < options[0].size]
    chain = [0]
    for i in sorted(smaller, key=lambda i: (-options[i].size, options[i].cost)):
        if options[i].size == options[chain[-1]].size:
            continue
        while len(chain) > 1 and _slope(options, chain[-1], i) <= _slope(options, chain[-2], chain[-1]):
            chain.pop()
        chain.append(i)
    return chain


def _slope(options: Sequence[Option], one: int, other: int) -> float:
    """Cost per byte saved by going from `one` to `other`; what costs less than before costs nothing."""
    return max(0.0, options[other].cost - options[one].cost) / (options[one].size - options[other].size)


def path(tensors: Mapping[str, Sequence[Option]]) -> list[Move]:
    """All moves from every tensor's first option down to its last one of `hull`, the cheapest per byte saved first."""
    moves: list[tuple[float, str, int, Move]] = []
    for name, options in tensors.items():
        chain = hull(options)
        for place, (one, other) in enumerate(pairwise(chain)):
            moves.append((_slope(options, one, other), name, place, Move(name, other)))
    return [move for *_, move in sorted(moves)]  # slopes of a hull rise, so a tensor's moves stay in order


def after(names: Sequence[str], moves: Sequence[Move]) -> dict[str, int]:
    """Every tensor's option after those moves; the first before any."""
    return dict.fromkeys(names, 0) | {move.name: move.option for move in moves}


def furthest(count: int, allowed: Callable[[int], bool]) -> int:
    """The largest number of moves, 0 to `count`, that is allowed, where more moves are never allowed sooner."""
    low, high = 0, count
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if allowed(middle) else (low, middle - 1)
    return low
