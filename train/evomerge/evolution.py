"""Searching for a merge (arXiv:2403.13187) by asking and telling: a genetic search and CMA-ES. No models in here.

Generation 0 is the parents and their plain average. Everything else follows from the seed and from what was measured,
so the state is the list of candidates with their measurements, and restoring it is to tell them again.
"""

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from train.evomerge.genome import Genome, Space, diversity
from train.evomerge.pareto import fronts, ranked
from train.search import Candidate, Measured

TRIES = 8  # to make a child that is unlike all before it
BEYOND = 1.5  # times the mean task vector; 1 is the average of the parents


@dataclass(frozen=True)
class Settings:
    """How to search. Probabilities and distances are 0 to 1."""

    population: int
    generations: int
    operators: tuple[str, ...]
    objectives: tuple[str, ...] = ("loss", "error")  # measured quantities, all of them smaller is better
    weights: Mapping[str, float] = field(default_factory=lambda: {"loss": 1.0})  # where one number is wanted
    seed: int = 42
    tournament: int = 3  # how many the better parent is chosen among
    crossover: float = 0.7
    mutation: float = 0.25  # of each gene, and of the operator
    deviation: float = 0.15  # of a mutated gene; also where CMA-ES begins
    least_distance: float = 0.02  # of a child from every candidate before it


@dataclass
class Trial:
    """A candidate: not asked for yet, out, or told."""

    genome: Genome
    recipe: dict[str, Any]
    out: bool = False
    told: bool = False
    measured: Measured | None = None

    @property
    def alive(self) -> bool:
        """Whether it was measured and everything about it is a number."""
        return self.measured is not None and all(math.isfinite(value) for value in self.measured.values())


class Evolution(ABC):
    """A `train.search.Search`."""

    def __init__(self, space: Space, settings: Settings) -> None:
        self.space, self.settings = space, settings
        self.generations: list[list[Trial]] = []
        self._add([*self.parents(), space.genome("linear")])

    @abstractmethod
    def bred(self, number: int) -> list[Genome]:
        """The genomes of generation `number`, from 1; all before it are told."""

    def customary(self, operator: str) -> Genome:
        """Where a search begins: all parents alike. Sums of task vectors go beyond the average, which is known."""
        return self.space.genome(operator, scale=BEYOND if operator in ("task_arithmetic", "dare_linear") else 1.0)

    def parents(self) -> list[Genome]:
        """Each of the models alone."""
        count = self.space.parents
        return [self.space.genome("linear", [float(i == j) for j in range(count)]) for i in range(count)]

    @property
    def trials(self) -> list[Trial]:
        """All candidates so far; a candidate's number is its place here."""
        return [trial for generation in self.generations for trial in generation]

    @property
    def budget(self) -> int:
        """See `Search`."""
        return self.space.parents + 1 + self.settings.generations * self.settings.population

    @property
    def told(self) -> int:
        """See `Search`."""
        return sum(trial.told for trial in self.trials)

    def ask(self) -> Candidate | None:
        """See `Search`."""
        if all(trial.told for trial in self.generations[-1]) and len(self.generations) <= self.settings.generations:
            self._add(self.bred(len(self.generations)))
        for number, trial in enumerate(self.trials):
            if not trial.out:
                trial.out = True
                return {"number": number, "recipe": trial.recipe}
        return None

    def tell(self, candidate: Candidate, measured: Measured | None) -> None:
        """See `Search`."""
        trial = self.trials[candidate["number"]]
        trial.out, trial.told, trial.measured = True, True, measured

    def state(self) -> dict[str, Any]:
        """See `Search`."""
        told = [[(trial.told, trial.measured) for trial in generation] for generation in self.generations]
        genomes = [[(t.genome.operator, list(t.genome.genes)) for t in generation] for generation in self.generations]
        return {"told": told, "genomes": genomes}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from there; what was out is asked for again. Raises `ValueError` for the state of another search."""
        self.generations = self.generations[:1]
        for number, told in enumerate(state["told"]):
            if number:
                self._add(self.bred(number))
            made = [[trial.genome.operator, list(trial.genome.genes)] for trial in self.generations[number]]
            if made != [list(genome) for genome in state["genomes"][number]]:
                raise ValueError(f"generation {number} of this search is another one")
            for trial, (was_told, measured) in zip(self.generations[number], told, strict=True):
                trial.out = trial.told = was_told
                trial.measured = measured

    def points(self, trials: Sequence[Trial]) -> list[tuple[float, ...]]:
        """What each scores in every objective; one that failed is infinitely bad in all."""
        names = self.settings.objectives
        return [
            tuple(trial.measured[name] for name in names)
            if trial.alive and trial.measured
            else (math.inf,) * len(names)
            for trial in trials
        ]

    def value(self, trial: Trial) -> float:
        """The weighted sum of what was measured; infinite for one that failed."""
        if not trial.alive or trial.measured is None:
            return math.inf
        return sum(weight * trial.measured[name] for name, weight in self.settings.weights.items())

    def best(self, trials: Sequence[Trial]) -> list[Trial]:
        """As many as the population has, by fronts and crowding; of several with one genome the first."""
        distinct = list({trial.genome: trial for trial in reversed(trials)}.values())[::-1]
        order = ranked(self.points(distinct))
        return [distinct[i] for i in order[: self.settings.population]]

    def pareto(self) -> list[Trial]:
        """The candidates that nothing measured so far dominates."""
        known = [trial for trial in self.trials if trial.alive]
        return [known[i] for i in fronts(self.points(known))[0]] if known else []

    def survivors(self, number: int) -> list[Trial]:
        """The population after generation `number`: the best of it and of the population before."""
        population: list[Trial] = []
        for generation in self.generations[: number + 1]:
            population = self.best(population + generation)
        return population

    def told_of(self, number: int) -> dict[str, float]:
        """A generation in numbers: best and mean weighted sum of its survivors and how diverse they are."""
        values = [value for trial in self.generations[number] if math.isfinite(value := self.value(trial))]
        so_far = [self.value(trial) for generation in self.generations[: number + 1] for trial in generation]
        return {
            "generation": number, "best": min(so_far), "mean": sum(values) / len(values) if values else math.inf,
            "failed": len(self.generations[number]) - len(values),
            "diversity": diversity(self.space, [trial.genome for trial in self.survivors(number)]),
        }  # fmt: skip

    def _add(self, genomes: Sequence[Genome]) -> None:
        first = len(self.trials)
        self.generations.append(
            [
                Trial(genome, self.space.recipe(genome, self.settings.seed + first + i))
                for i, genome in enumerate(genomes)
            ]
        )


class Genetic(Evolution):
    """Tournament, crossover and mutation; the best of parents and children survive, as in NSGA-II.

    The first generation is every operator at customary values, the rest strong mutations of those.
    """

    def bred(self, number: int) -> list[Genome]:
        """See `Evolution`."""
        settings, chance = self.settings, random.Random(f"{self.settings.seed}:{number}")
        wanted = settings.population
        if number == 1:
            usual = [self.customary(name) for name in settings.operators]
            fresh = [genome for genome in usual if genome.operator != "linear"][:wanted]  # their average is known
            return fresh + [self.varied(chance.choice(usual), chance) for _ in range(wanted - len(fresh))]
        survivors = self.survivors(number - 1)
        children: list[Genome] = []
        for _ in range(wanted):
            children.append(self.child(survivors, children, chance))
        return children

    def varied(self, genome: Genome, chance: random.Random) -> Genome:
        """Every other gene moved, twice as far as a child's."""
        return self.space.mutated(genome, [genome.operator], 0.5, 2 * self.settings.deviation, chance)

    def child(self, survivors: Sequence[Trial], siblings: Sequence[Genome], chance: random.Random) -> Genome:
        """Unlike all before it, if eight ever stronger mutations can make it so. `survivors` are the best first."""
        settings, space = self.settings, self.space
        a, b = (survivors[min(chance.choices(range(len(survivors)), k=settings.tournament))].genome for _ in range(2))
        child = space.crossed(a, b, chance) if chance.random() < settings.crossover else a
        before = [*(trial.genome for trial in self.trials), *siblings]
        for attempt in range(TRIES):
            child = space.mutated(
                child, settings.operators, settings.mutation, settings.deviation * 1.3**attempt, chance
            )
            if all(space.distance(child, other) >= settings.least_distance for other in before):
                break
        return child


class Cma(Evolution):
    """CMA-ES on the genes that an operator uses; one operator after the other, each with its share of the generations.

    Minimises the weighted sum. The mean begins at equal weights and the operator's customary values.
    """

    def bred(self, number: int) -> list[Genome]:
        """See `Evolution`."""
        import cma

        settings = self.settings
        shares = np.array_split(
            np.arange(1, settings.generations + 1), min(len(settings.operators), settings.generations)
        )
        which = next(i for i, share in enumerate(shares) if number in share)
        operator, first = settings.operators[which], int(shares[which][0])
        start = self.customary(operator)
        used = self.space.used(operator)
        chance = np.random.default_rng((settings.seed, which))
        strategy: Any = cma.CMAEvolutionStrategy(
            [0.5 if i < self.space.weights else start.genes[i] for i in used], settings.deviation,
            {
                "bounds": [0, 1], "popsize": settings.population, "verbose": -9, "verb_log": 0, "seed": np.nan,
                "randn": lambda rows, columns: chance.standard_normal((rows, columns)),
            },
        )  # fmt: skip
        asked = strategy.ask()
        for generation in self.generations[first:number]:
            strategy.tell(asked, self._finite([self.value(trial) for trial in generation]))
            asked = strategy.ask()
        return [self._placed(start, used, genes) for genes in asked]

    @staticmethod
    def _placed(start: Genome, used: Sequence[int], values: Sequence[float]) -> Genome:
        genes = list(start.genes)
        for i, value in zip(used, values, strict=True):
            genes[i] = float(value)
        return Genome(start.operator, tuple(genes))

    @staticmethod
    def _finite(values: Sequence[float]) -> list[float]:
        """One that failed is worse than the worst: only the order counts."""
        worst = max((value for value in values if math.isfinite(value)), default=0.0)
        return [value if math.isfinite(value) else worst + 1.0 for value in values]


def chosen(search: Evolution, *, keep: str = "error", weighted: bool = False) -> Trial:
    """The one to make: of the Pareto set the lowest loss that does not lose `keep` against the first parent.

    The first is what a run goes on with when the merge is refused.
    With `weighted` the lowest weighted sum instead. Raises `ValueError` when every candidate failed.
    """
    known = [trial for trial in search.trials if trial.alive]
    if not known:
        raise ValueError("every candidate failed")
    if weighted:
        return min(known, key=search.value)
    first = search.generations[0][0]
    most = (first.measured or {}).get(keep, math.inf) if first.alive else math.inf
    keeping = [trial for trial in search.pareto() if trial.measured and trial.measured.get(keep, 0.0) <= most]
    return min(keeping or known, key=lambda trial: (trial.measured or {})["loss"])


METHODS: dict[str, type[Evolution]] = {"genetic": Genetic, "cmaes": Cma}
