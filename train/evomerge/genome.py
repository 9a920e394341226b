"""What a merge is made from: an operator and genes between 0 and 1, and the recipe that they stand for.

All operators share one row of genes, so that any two genomes can be crossed; those that its operator does not use rest.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

OPERATORS = ("linear", "slerp", "task_arithmetic", "ties", "dare_linear", "dare_ties", "passthrough")
LEAST_SCALE, MOST_SCALE = 0.5, 3.0
LEAST_DENSITY, MOST_DROP = 0.05, 0.95
ONE_COPY, TWO_COPIES = 0.1, 0.85  # a layer's copies gene: below the first it is left out, from the second on doubled


@dataclass(frozen=True)
class Genome:
    """`genes` are as many as the space has dimensions."""

    operator: str
    genes: tuple[float, ...]


@dataclass(frozen=True)
class Space:
    """All merges of `parents` models of `layers` layers.

    Weights are one a parent for each of `groups` groups of consecutive layers, and for what belongs to no layer.
    Genes in order: weights (groups + 1, parents), density, scale, drop, and for each layer whose it is and how often.
    """

    parents: int
    layers: int
    groups: int = 2

    @property
    def weights(self) -> int:
        """How many genes are weights."""
        return (self.groups + 1) * self.parents

    @property
    def dimensions(self) -> int:
        """How many genes there are."""
        return self.weights + 3 + 2 * self.layers

    def used(self, operator: str) -> list[int]:
        """The genes that mean something to the operator."""
        if operator == "passthrough":
            return list(range(self.weights + 3, self.dimensions))
        more = {
            "task_arithmetic": ["scale"], "ties": ["density", "scale"], "dare_linear": ["scale", "drop"],
            "dare_ties": ["scale", "drop"],
        }.get(operator, [])  # fmt: skip
        return [*range(self.weights), *(self.weights + ("density", "scale", "drop").index(name) for name in more)]

    def genome(self, operator: str, weights: Sequence[float] | None = None, **values: float) -> Genome:
        """The same weights everywhere, or equal ones; `values` of density, scale and drop; each layer once in place."""
        given = weights or [1.0] * self.parents
        genes = [weight / max(given) for weight in given] * (self.groups + 1)
        density, scale, drop = (
            values.get(name, usual) for name, usual in (("density", 0.5), ("scale", 1.0), ("drop", 0.5))
        )
        genes += [density, math.log(scale / LEAST_SCALE) / math.log(MOST_SCALE / LEAST_SCALE), drop / MOST_DROP]
        return self.canonical(Genome(operator, (*genes, *[0.0, 0.5] * self.layers)))

    def canonical(self, genome: Genome) -> Genome:
        """With the largest weight of each group at 1: weights that are in the same proportion are the same."""
        genes = [min(1.0, max(0.0, gene)) for gene in genome.genes]
        for start in range(0, self.weights, self.parents):
            row = genes[start : start + self.parents]
            genes[start : start + self.parents] = (
                [gene / max(row) for gene in row] if max(row) > 0 else [1.0] * len(row)
            )
        return replace(genome, genes=tuple(genes))

    def recipe(self, genome: Genome, seed: int) -> dict[str, Any]:
        """What `train.evomerge.merging` merges by: JSON, with only what the operator uses. `seed` is for drops."""
        density, scale, drop = self.canonical(genome).genes[self.weights : self.weights + 3]
        if genome.operator == "passthrough":
            return {"operator": genome.operator, "layers": self.stack(genome)}
        rows = self.shares(genome)
        if genome.operator == "slerp":
            return {"operator": genome.operator} | self.pair(rows)
        made: dict[str, Any] = {"operator": genome.operator, "weights": rows}
        if genome.operator != "linear":
            made["scale"] = LEAST_SCALE * (MOST_SCALE / LEAST_SCALE) ** scale
        if genome.operator == "ties":
            made["density"] = max(LEAST_DENSITY, density)
        if genome.operator.startswith("dare"):
            made |= {"drop": drop * MOST_DROP, "seed": seed}
        return made

    def shares(self, genome: Genome) -> list[list[float]]:
        """(groups + 1, parents) weights; each row sums to 1."""
        genes = self.canonical(genome).genes
        rows = [genes[start : start + self.parents] for start in range(0, self.weights, self.parents)]
        return [[gene / sum(row) for gene in row] for row in rows]

    def pair(self, rows: Sequence[Sequence[float]]) -> dict[str, Any]:
        """The two parents with the most weight over all groups, and for each group how far from one to the other."""
        totals = [sum(column) for column in zip(*rows, strict=True)]
        one, other = sorted(sorted(range(self.parents), key=lambda i: -totals[i])[:2])
        both = [row[one] + row[other] for row in rows]
        return {"parents": [one, other], "t": [row[other] / b if b else 0.5 for row, b in zip(rows, both, strict=True)]}

    def stack(self, genome: Genome) -> list[list[int]]:
        """(parent, layer) of every layer of a passthrough, at least one. A second copy is the next parent's."""
        genes, found = genome.genes[self.weights + 3 :], []
        for number in range(self.layers):
            whose = min(self.parents - 1, int(genes[2 * number] * self.parents))
            copies = genes[2 * number + 1]
            if copies >= ONE_COPY:
                found.append([whose, number])
            if copies >= TWO_COPIES:
                found.append([(whose + 1) % self.parents, number])
        return found or [[0, 0]]

    def distance(self, a: Genome, b: Genome) -> float:
        """0 to 1: the root mean square over the genes that are used, 1 between operators."""
        if a.operator != b.operator:
            return 1.0
        one, other, used = self.canonical(a).genes, self.canonical(b).genes, self.used(a.operator)
        return math.sqrt(sum((one[i] - other[i]) ** 2 for i in used) / len(used))

    def crossed(self, a: Genome, b: Genome, chance: random.Random) -> Genome:
        """An operator of one of them; each gene between the two, or a quarter of their distance beyond (BLX-0.25)."""
        genes = (x + chance.uniform(-0.25, 1.25) * (y - x) for x, y in zip(a.genes, b.genes, strict=True))
        return self.canonical(Genome(chance.choice((a, b)).operator, tuple(genes)))

    def mutated(
        self, genome: Genome, operators: Sequence[str], rate: float, deviation: float, chance: random.Random
    ) -> Genome:
        """Every gene that is used moves with probability `rate`, at least one does; so rarely also the operator."""
        if len(operators) > 1 and chance.random() < rate:
            genome = replace(genome, operator=chance.choice([name for name in operators if name != genome.operator]))
        used, genes = self.used(genome.operator), list(genome.genes)
        for i in [i for i in used if chance.random() < rate] or [chance.choice(used)]:
            genes[i] = reflected(genes[i] + chance.gauss(0, deviation))
        return self.canonical(replace(genome, genes=tuple(genes)))


def scale_gene(scale: float) -> float:
    """The gene of that scale."""
    return math.log(scale / LEAST_SCALE) / math.log(MOST_SCALE / LEAST_SCALE)


def reflected(gene: float) -> float:
    """Back into 0 to 1, as from a mirror at either end."""
    return abs((gene + 1) % 2 - 1) if not 0 <= gene <= 1 else gene


def diversity(space: Space, genomes: Sequence[Genome]) -> float:
    """Mean distance between any two: how diverse they are."""
    pairs = [(a, b) for i, a in enumerate(genomes) for b in genomes[:i]]
    return sum(space.distance(a, b) for a, b in pairs) / len(pairs) if pairs else 0.0


def boundaries(layers: int, groups: int) -> list[int]:
    """The group of each layer: as even as can be."""
    ends = [layers * group // groups for group in range(groups + 1)]
    return [group for group, (start, end) in enumerate(pairwise(ends)) for _ in range(start, end)]
