"""Ranking by several objectives at once, all of them smaller is better: NSGA-II's fronts and crowding. Pure."""

import math
from collections.abc import Sequence

Point = Sequence[float]  # one value an objective


def dominates(a: Point, b: Point) -> bool:
    """Whether `a` is nowhere worse than `b` and somewhere better."""
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


def fronts(points: Sequence[Point]) -> list[list[int]]:
    """Indices of the points that nothing dominates, then of those that only the first ones do, and so on."""
    worse: list[list[int]] = [[] for _ in points]  # that each point dominates
    better = [0] * len(points)  # how many dominate it and have no front yet
    for i, a in enumerate(points):
        for j, b in enumerate(points):
            if dominates(a, b):
                worse[i].append(j)
                better[j] += 1
    front, found = [i for i, count in enumerate(better) if not count], []
    while front:
        found.append(front)
        for i in front:
            for j in worse[i]:
                better[j] -= 1
        front = sorted({j for i in front for j in worse[i] if not better[j]})
    return found


def crowding(points: Sequence[Point]) -> list[float]:
    """How far each point of one front is from its neighbours: the sum over the objectives, each scaled to its range.

    The ends of every objective are infinitely far. An objective in which all are alike or one is infinite says nothing.
    """
    distances = [0.0] * len(points)
    for k in range(len(points[0]) if points else 0):
        order = sorted(range(len(points)), key=lambda i: points[i][k])
        low, high = points[order[0]][k], points[order[-1]][k]
        if not 0 < high - low < math.inf:
            continue
        distances[order[0]] = distances[order[-1]] = math.inf
        for before, i, after in zip(order, order[1:], order[2:], strict=False):
            distances[i] += (points[after][k] - points[before][k]) / (high - low)
    return distances


def ranked(points: Sequence[Point]) -> list[int]:
    """Indices from best to worst: by front, in a front the less crowded first, then as they came."""
    order: list[int] = []
    for front in fronts(points):
        far = crowding([points[i] for i in front])
        order += [i for _, i in sorted(zip((-d for d in far), front, strict=True))]
    return order
