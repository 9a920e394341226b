"""Merging models of one shape: tensors by name in, tensors by name out.

Every operator computes in float32 and keeps the parents' type. A parameter is one number for all tensors, or a function
of a tensor's name, which is how weights per layer are given. What is not floating point comes from the first parent.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

State = Mapping[str, Tensor]
Number = float | Callable[[str], float]
Sparse = Callable[[str, int, Tensor], Tensor]  # (tensor's name, parent, task vector) -> the task vector, thinned

NEARLY_COLINEAR = 0.9995  # cosine from which a great circle is no better defined than a line
LAYER = re.compile(r"(?<=\blayers\.)\d+(?=\.)")


def linear(parents: Sequence[State], weights: Sequence[Number]) -> dict[str, Tensor]:
    """The weighted mean (arXiv:2203.05482): sum of w_i x_i over the sum of w_i, which must not be 0."""

    def mean(name: str, tensors: Sequence[Tensor]) -> Tensor:
        shares = [at(weight, name) for weight in weights]
        if not sum(shares):
            raise ZeroDivisionError(f"the weights of {name} sum to 0")
        return mixture(tensors, shares).div_(sum(shares))

    return each(parents, mean)


def slerp(parents: Sequence[State], t: Number) -> dict[str, Tensor]:
    """From the first of two parents (t = 0) to the second (t = 1) along the great circle between each two tensors.

    sin((1 - t) a) / sin a x_0 + sin(t a) / sin a x_1 with the angle a between them as vectors; a line where they are
    nearly colinear or one is 0.
    """
    if len(parents) != 2:
        raise ValueError(f"slerp is of two parents, not {len(parents)}")

    def along(name: str, tensors: Sequence[Tensor]) -> Tensor:
        share, (x, y) = at(t, name), (tensor.float() for tensor in tensors)
        norms = x.norm() * y.norm()
        cosine = torch.dot(x.flatten(), y.flatten()) / norms if norms > 0 else torch.ones(())
        angle = torch.acos(cosine.clamp(-1, 1))
        if abs(cosine) > NEARLY_COLINEAR:
            return mixture((x, y), (1 - share, share))
        sines = torch.sin(torch.stack(((1 - share) * angle, share * angle))) / torch.sin(angle)
        return mixture((x, y), sines.tolist())

    return each(parents, along)


def task_arithmetic(
    base: State, parents: Sequence[State], weights: Sequence[Number], scale: Number = 1.0, sparse: Sparse | None = None
) -> dict[str, Tensor]:
    """base + scale * sum of w_i (x_i - base) (arXiv:2212.04089)."""

    def moved(name: str, tensors: Sequence[Tensor]) -> Tensor:
        start, vectors = task_vectors(name, tensors, sparse)
        shares = [at(weight, name) * at(scale, name) for weight in weights]
        return start + mixture(vectors, shares)

    return each((base, *parents), moved)


def ties(
    base: State, parents: Sequence[State], weights: Sequence[Number], density: Number, scale: Number = 1.0,
    sparse: Sparse | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """Trim, elect, merge (arXiv:2306.01708) on task vectors x_i - base.

    Of each tensor's task vector the `density` largest by magnitude stay; each entry's sign is that of the weighted sum;
    the weighted mean of those that agree with it, times `scale`, is added to the base. The paper trims over the whole
    vector and weighs all alike; here, as in mergekit, each tensor is trimmed by itself.
    """
    trimmed = sparse or (lambda name, _, vector: trim(vector, at(density, name)))

    def moved(name: str, tensors: Sequence[Tensor]) -> Tensor:
        start, vectors = task_vectors(name, tensors, trimmed)
        return start + elected_mean(vectors, [at(weight, name) for weight in weights]).mul_(at(scale, name))

    return each((base, *parents), moved)


def dare_linear(
    base: State, parents: Sequence[State], weights: Sequence[Number], drop: Number, scale: Number = 1.0, *,
    generator: torch.Generator,
) -> dict[str, Tensor]:  # fmt: skip
    """Task arithmetic on task vectors that lost a share `drop` of their entries, the others times 1 / (1 - drop).

    arXiv:2311.03099: the expectation of every entry stays what it was.
    """
    return task_arithmetic(base, parents, weights, scale, dropping(drop, generator))


def dare_ties(
    base: State, parents: Sequence[State], weights: Sequence[Number], drop: Number, scale: Number = 1.0, *,
    generator: torch.Generator,
) -> dict[str, Tensor]:  # fmt: skip
    """As `dare_linear`, then signs are elected and those that agree averaged as in `ties`."""
    return ties(base, parents, weights, 1.0, scale, dropping(drop, generator))


def passthrough(parents: Sequence[State], layers: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
    """Layers stacked as they are: `layers` says of each new layer which parent's and there which one.

    What stands before the layers comes from the first of them's parent, what stands after from the last one's. The
    result has `len(layers)` layers, whatever the parents had.
    """
    if not layers:
        raise ValueError("a model needs a layer")
    first, last = parents[layers[0][0]], parents[layers[-1][0]]
    merged = {name: x.clone() for name, x in first.items() if layer(name) is None and not after_layers(name)}
    for number, (parent, taken) in enumerate(layers):
        found = {name: x.clone() for name, x in parents[parent].items() if layer(name) == taken}
        if not found:
            raise ValueError(f"parent {parent} has no layer {taken}")
        merged |= {LAYER.sub(str(number), name): x for name, x in found.items()}
    return merged | {name: x.clone() for name, x in last.items() if after_layers(name)}


def layer(name: str) -> int | None:
    """Of the layer that the tensor belongs to, from 0; None where it belongs to none."""
    found = LAYER.search(name)
    return int(found.group()) if found else None


def after_layers(name: str) -> bool:
    """Whether the tensor is used after all layers: the last norm, or an output matrix of its own."""
    return layer(name) is None and "embed" not in name and "wte" not in name


def at(number: Number, name: str) -> float:
    """The parameter for that tensor."""
    return number(name) if callable(number) else number


def each(parents: Sequence[State], merge: Callable[[str, Sequence[Tensor]], Tensor]) -> dict[str, Tensor]:
    """`merge` on every floating-point tensor that the parents share by name. Raises `ValueError` for unlike parents."""
    first = parents[0]
    for parent in parents[1:]:
        if parent.keys() != first.keys() or any(parent[name].shape != x.shape for name, x in first.items()):
            raise ValueError("models of different shapes cannot be merged")
    return {
        name: merge(name, [parent[name] for parent in parents]).to(x.dtype) if x.is_floating_point() else x.clone()
        for name, x in first.items()
    }


def mixture(tensors: Iterable[Tensor], weights: Sequence[float]) -> Tensor:
    """Sum of w_i x_i in float32."""
    total: Tensor | None = None
    for tensor, weight in zip(tensors, weights, strict=True):
        total = tensor.float() * weight if total is None else total.add_(tensor.float(), alpha=weight)
    assert total is not None
    return total


def task_vectors(name: str, tensors: Sequence[Tensor], sparse: Sparse | None) -> tuple[Tensor, list[Tensor]]:
    """The base's tensor, and every parent's difference from it."""
    start = tensors[0].float()
    vectors = [tensor.float() - start for tensor in tensors[1:]]
    return start, [sparse(name, i, vector) for i, vector in enumerate(vectors)] if sparse else vectors


def trim(vector: Tensor, density: float) -> Tensor:
    """With all but the `density` (0 to 1) largest by magnitude at 0; equal magnitudes stay together."""
    if density >= 1 or not vector.numel():
        return vector
    if density <= 0:
        return torch.zeros_like(vector)
    magnitude = vector.abs()
    kept = max(1, int(density * vector.numel()))
    threshold = magnitude.flatten().kthvalue(vector.numel() - kept + 1).values
    return vector * (magnitude >= threshold)


def dropping(drop: Number, generator: torch.Generator) -> Sparse:
    """Entries dropped at random. The generator is asked tensor by tensor, parent by parent."""

    def thinned(name: str, _: int, vector: Tensor) -> Tensor:
        share = at(drop, name)
        if not 0 <= share < 1:
            raise ValueError(f"a share of {share} cannot be dropped")
        kept = torch.bernoulli(torch.full_like(vector, 1 - share, device=generator.device), generator=generator)
        return vector * kept.to(vector.device).div_(1 - share)

    return thinned


def elected_mean(vectors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Every entry's weighted mean over the vectors that have the weighted sum's sign there; 0 where none has it."""
    positive = mixture(vectors, weights) >= 0
    total, divisor = torch.zeros_like(vectors[0]), torch.zeros_like(vectors[0])
    for vector, weight in zip(vectors, weights, strict=True):
        signed = vector * weight
        agrees = torch.where(positive, signed > 0, signed < 0).float()
        total += signed.mul_(agrees)
        divisor += agrees.mul_(weight)
    divisor[divisor == 0] = 1
    return total.div_(divisor)
