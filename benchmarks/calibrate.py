"""Logistic calibration by Newton's method, checked on folds of queries that the fit did not see."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import log2
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
FOLDS = 5
NAMES: tuple[str, ...] = ("intercept", "cosine", "coverage")
RIDGE = 1e-3  # keeps the solution finite where a feature separates the classes


@dataclass(frozen=True)
class Example:
    """One search: evidence (cosine, coverage) and verdict of each document found, and of the answer as a whole."""

    query: str
    with_vectors: bool
    withheld: bool  # the documents that answer it were left out
    sources: Sequence[tuple[float, float]]
    relevant: Sequence[bool]
    answer: tuple[float, float]
    answered: bool
    ranked: Sequence[str]
    gains: Mapping[str, float]


def logistic(x: Array, y: Array) -> Array:
    """(n, d) and (n,) in {0, 1} -> (1 + d,) intercept and weights; a weight that comes out negative is held at 0."""
    used = list(range(x.shape[1]))
    while True:
        design = np.hstack([np.ones((len(x), 1)), x[:, used]])
        w = np.zeros(design.shape[1])
        for _ in range(50):
            p = 1 / (1 + np.exp(-design @ w))
            gradient = design.T @ (p - y) + RIDGE * w
            hessian = (design * (p * (1 - p))[:, None]).T @ design + RIDGE * np.eye(len(w))
            w -= np.linalg.solve(hessian, gradient)
        if (w[1:] >= 0).all():
            full = np.zeros(1 + x.shape[1])
            full[[0, *(1 + i for i in used)]] = w
            return full
        used.pop(int(np.argmin(w[1:])))


def predict(w: Array, x: Array) -> Array:
    """(1 + d,) and (n, d) -> (n,) probabilities."""
    return 1 / (1 + np.exp(-(w[0] + x @ w[1:])))


def expected_calibration_error(p: Array, y: Array, bins: int = 10) -> float:
    """Mean gap between what was predicted and what happened, over bins of equal width (Guo et al. 2017)."""
    which = np.minimum((p * bins).astype(int), bins - 1)
    gaps = [abs(p[which == b].mean() - y[which == b].mean()) * (which == b).mean() for b in set(which)]
    return float(sum(gaps))


def area_under_curve(p: Array, y: Array) -> float:
    """Chance that a true one is ranked above a false one."""
    order = np.argsort(np.argsort(p)) + 1
    positive = int(y.sum())
    return float((order[y == 1].sum() - positive * (positive + 1) / 2) / (positive * (len(y) - positive)))


Table = tuple[Array, Array, list[str]]  # (n, 2) evidence, (n,) verdicts, (n,) queries


def fit(table: Table, name: str) -> tuple[dict[str, float], dict[str, float], Callable[[str], Array]]:
    """Coefficients over all, figures over held-out folds, and the fold's coefficients for a query."""
    x, y, queries = table
    fold_of = {query: n % FOLDS for n, query in enumerate(sorted(set(queries), key=lambda q: hash_of(q)))}
    folds = np.array([fold_of[query] for query in queries])
    held_out = np.empty(len(y))
    weights = []
    for fold in range(FOLDS):
        weights.append(logistic(x[folds != fold], y[folds != fold]))
        held_out[folds == fold] = predict(weights[-1], x[folds == fold])
    w = logistic(x, y)
    figures = {
        f"{name}_brier": float(np.mean((held_out - y) ** 2)),
        f"{name}_base_rate_brier": float(y.mean() * (1 - y.mean())),
        f"{name}_calibration_error": expected_calibration_error(held_out, y),
        f"{name}_auc": area_under_curve(held_out, y),
    }
    coefficients = {name: round(float(v), 4) for name, v in zip(NAMES, w, strict=True)}
    return coefficients, {k: round(v, 4) for k, v in figures.items()}, lambda query: weights[fold_of[query]]


def hash_of(text: str) -> int:
    """A shuffle that is the same everywhere."""
    return int.from_bytes(text.encode()[-4:], "little") * 2654435761 % 2**32


def fit_all(examples: Sequence[Example]) -> dict[str, Any]:
    """The four fits of `rag.calibration.Calibration`, with their figures."""
    fitted: dict[str, Any] = {}
    figures: dict[str, float] = {}
    for suffix, vectors in (("", True), ("_without_vectors", False)):
        some = [e for e in examples if e.with_vectors is vectors]
        plain = [e for e in some if not e.withheld]
        rows = [(x, float(y), e.query) for e in plain for x, y in zip(e.sources, e.relevant, strict=True)]
        whole = [(e.answer, float(e.answered), e.query) for e in some]
        for name, table in (("source", rows), ("answer", whole)):
            x, y, queries = zip(*table, strict=True)
            coefficients, measured, of = fit((np.array(x), np.array(y), list(queries)), name + suffix)
            fitted[name + suffix] = coefficients
            figures |= measured
            if name == "source":
                figures |= reordered(plain, of, suffix)
    return fitted | {"figures": figures}


def reordered(examples: Sequence[Example], of: Callable[[str], Array], suffix: str) -> dict[str, float]:
    """nDCG@10 of the order found, and of the same ten by calibrated relevance (on held-out folds)."""
    found: list[float] = []
    calibrated: list[float] = []
    for e in examples:
        p = predict(of(e.query), np.array(e.sources).reshape(-1, 2))
        found.append(_ndcg(e.ranked, e.gains))
        calibrated.append(_ndcg([str(e.ranked[i]) for i in np.argsort(-p, kind="stable")], e.gains))
    return {
        f"ndcg_as_found{suffix}": round(float(np.mean(found)), 4),
        f"ndcg_by_relevance{suffix}": round(float(np.mean(calibrated)), 4),
    }


def _ndcg(ranked: Sequence[str], gains: Mapping[str, float]) -> float:
    got = sum(gains.get(name, 0.0) / log2(rank + 2) for rank, name in enumerate(ranked[:10]))
    ideal = sum(gain / log2(rank + 2) for rank, gain in enumerate(sorted(gains.values(), reverse=True)[:10]))
    return got / ideal if ideal else 0.0
