"""The search over merges without models: ranking, genomes, and that a seed and what was told decide everything."""

import json
import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.evomerge.evolution import METHODS, Cma, Evolution, Genetic, Settings, chosen
from train.evomerge.genome import OPERATORS, Genome, Space, boundaries, diversity, reflected
from train.evomerge.pareto import crowding, dominates, fronts, ranked

SPACE = Space(parents=3, layers=4, groups=2)
POINTS = st.lists(st.tuples(*[st.sampled_from([0.0, 1.0, 2.0, 3.0, math.inf])] * 3), max_size=12)


def anything(space: Space, operator: str, chance: random.Random) -> Genome:
    return space.canonical(Genome(operator, tuple(chance.random() for _ in range(space.dimensions))))


def settings(**fields: Any) -> Settings:
    return Settings(**{"population": 6, "generations": 4, "operators": ("linear", "slerp", "ties")} | fields)


def measured(candidate: dict[str, Any]) -> dict[str, float] | None:
    """The nearer the first weights to 0.2, 0.3, 0.5 the lower; every seventh candidate fails."""
    if candidate["number"] % 7 == 6:
        return None
    rows = candidate["recipe"].get("weights", [[1.0, 0.0, 0.0]])
    loss = sum(abs(share - wanted) for share, wanted in zip(rows[0], (0.2, 0.3, 0.5), strict=True))
    return {"loss": loss, "error": rows[-1][0]}


def run(search: Evolution, most: int = 10_000) -> Evolution:
    for _ in range(most):
        if (candidate := search.ask()) is None:
            break
        search.tell(candidate, measured(candidate))
    return search


@given(POINTS)
def test_fronts_are_those_of_brute_force(points):
    left, found = set(range(len(points))), []
    while left:
        best = sorted(i for i in left if not any(dominates(points[j], points[i]) for j in left))
        found.append(best)
        left -= set(best)
    assert [sorted(front) for front in fronts(points)] == found
    assert sorted(ranked(points)) == list(range(len(points)))


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=10, unique=True))
def test_crowding_is_the_size_of_the_box_between_neighbours(points):
    front = [points[i] for i in fronts(points)[0]]
    distances = crowding(front)
    for point, distance in zip(front, distances, strict=True):
        wanted = 0.0
        for k in range(2):
            values = sorted(p[k] for p in front)  # on a front of two objectives no two values are alike
            low, high, i = values[0], values[-1], values.index(point[k])
            if high > low:
                wanted += math.inf if point[k] in (low, high) else (values[i + 1] - values[i - 1]) / (high - low)
        assert distance == pytest.approx(wanted)


def test_what_failed_ranks_last():
    assert ranked([(math.inf, math.inf), (5.0, 5.0), (1.0, 9.0)])[-1] == 0


@given(st.sampled_from(OPERATORS), st.integers(2, 5), st.integers(1, 6), st.integers(1, 4), st.randoms())
def test_every_genome_is_a_recipe(operator, parents, layers, groups, chance):
    space = Space(parents, layers, groups)
    genome = space.mutated(
        space.crossed(anything(space, operator, chance), space.genome(operator), chance), [operator], 0.5, 0.5, chance
    )
    assert genome.operator == operator and len(genome.genes) == space.dimensions
    assert all(0 <= gene <= 1 for gene in genome.genes)
    recipe = space.recipe(genome, seed=3)
    assert json.loads(json.dumps(recipe)) == recipe
    for row in recipe.get("weights", []):
        assert len(row) == parents and min(row) >= 0 and sum(row) == pytest.approx(1)
    assert len(recipe.get("weights", recipe.get("t", [0] * (groups + 1)))) == groups + 1
    assert all(0 <= t <= 1 for t in recipe.get("t", []))
    assert all(0 <= parent < parents and 0 <= number < layers for parent, number in recipe.get("layers", []))
    assert 0 <= recipe.get("drop", 0) < 1 and 0 < recipe.get("density", 1) <= 1
    assert recipe.get("layers") != []


@given(st.randoms(), st.sampled_from(OPERATORS), st.sampled_from(OPERATORS))
def test_distance_is_symmetric_and_nothing_to_itself(chance, one, other):
    a, b = anything(SPACE, one, chance), anything(SPACE, other, chance)
    assert SPACE.distance(a, a) == 0
    assert SPACE.distance(a, b) == SPACE.distance(b, a) <= 1
    doubled = Genome(a.operator, tuple(gene / 2 if i < SPACE.weights else gene for i, gene in enumerate(a.genes)))
    assert SPACE.distance(a, doubled) == pytest.approx(0)  # weights in proportion are one merge
    assert diversity(SPACE, [a, b]) == SPACE.distance(a, b)


@given(st.floats(-1, 2))
def test_a_gene_is_reflected_into_its_range(gene):
    assert 0 <= reflected(gene) <= 1
    assert gene < 0 or gene > 1 or reflected(gene) == gene


def test_customary_values_come_back_out_of_the_genes():
    recipe = SPACE.recipe(SPACE.genome("dare_ties", [1.0, 2.0, 1.0], scale=1.5, drop=0.3), seed=9)
    assert recipe["scale"] == pytest.approx(1.5) and recipe["drop"] == pytest.approx(0.3) and recipe["seed"] == 9
    assert recipe["weights"] == [pytest.approx([0.25, 0.5, 0.25])] * 3
    assert SPACE.recipe(SPACE.genome("passthrough"), 0)["layers"] == [[0, 0], [0, 1], [0, 2], [0, 3]]
    assert boundaries(4, 2) == [0, 0, 1, 1] and boundaries(5, 2) == [0, 0, 1, 1, 1]


@pytest.mark.parametrize("method", METHODS)
def test_a_search_spends_its_budget_and_gets_better(method):
    search = run(METHODS[method](SPACE, settings(population=8, generations=8)))
    assert search.told == search.budget == 3 + 1 + 8 * 8
    curve = [search.told_of(number) for number in range(9)]
    assert [each["best"] for each in curve] == sorted((each["best"] for each in curve), reverse=True)
    assert curve[-1]["best"] < curve[0]["best"]
    assert sum(each["failed"] for each in curve) == sum(number % 7 == 6 for number in range(search.budget))
    assert all(0 <= each["diversity"] <= 1 for each in curve)


@pytest.mark.parametrize("method", METHODS)
def test_the_parents_and_their_average_come_first(method):
    search, first = METHODS[method](SPACE, settings()), []
    while len(first) < 4 and (candidate := search.ask()) is not None:
        first.append(candidate["recipe"])
    assert search.ask() is None  # the first generation has to be told before there is a second
    assert [recipe["weights"][0] for recipe in first] == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [pytest.approx(1 / 3)] * 3]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("broken_at", [1, 4, 9, 17])
def test_a_restored_search_goes_on_as_if_there_had_been_no_break(method, broken_at):
    whole = run(METHODS[method](SPACE, settings()))
    broken = run(METHODS[method](SPACE, settings()), most=broken_at)
    lost = broken.ask()  # out when it broke, and never told
    restored = METHODS[method](SPACE, settings())
    restored.restore(json.loads(json.dumps(broken.state())))
    assert restored.told == broken_at
    again = restored.ask()
    assert again == lost
    assert again is not None
    restored.tell(again, measured(again))
    assert json.dumps(run(restored).state()) == json.dumps(whole.state())


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_telling_within_a_generation_changes_nothing(method):
    search, chance = METHODS[method](SPACE, settings()), random.Random(1)
    out: list[dict[str, Any]] = []
    while search.told < search.budget:
        while (candidate := search.ask()) is not None:
            out.append(candidate)
        told = out.pop(chance.randrange(len(out)))
        search.tell(told, measured(told))
    assert json.dumps(search.state()) == json.dumps(run(METHODS[method](SPACE, settings())).state())


@pytest.mark.parametrize("method", METHODS)
def test_a_seed_decides_everything_whatever_else_draws_chance(method):
    import numpy as np

    np.random.seed(0)
    one = run(METHODS[method](SPACE, settings()))
    np.random.seed(1)
    assert one.state() == run(METHODS[method](SPACE, settings())).state()
    assert one.state() != run(METHODS[method](SPACE, settings(seed=7))).state()


def test_the_state_of_another_search_is_refused():
    with pytest.raises(ValueError, match="another one"):
        Genetic(SPACE, settings(seed=7)).restore(run(Genetic(SPACE, settings())).state())


def test_the_best_survive():
    search = run(Genetic(SPACE, settings()))
    best = min((trial for trial in search.trials if trial.alive), key=search.value)
    assert search.value(search.survivors(4)[0]) == search.value(best) or best.genome in [
        trial.genome for trial in search.survivors(4)
    ]
    assert len(search.survivors(4)) == 6
    assert all(trial.alive for trial in search.survivors(4))


def test_children_keep_their_distance():
    search = run(Genetic(SPACE, settings(least_distance=0.05, operators=("linear",))))
    bred = [trial.genome for generation in search.generations[2:] for trial in generation]
    before = [trial.genome for trial in search.trials]
    for genome in bred:
        earlier = before[: before.index(genome)]
        assert all(SPACE.distance(genome, other) >= 0.05 for other in earlier)


def test_cma_gives_every_operator_its_share_of_the_generations():
    search = run(Cma(SPACE, settings(operators=("linear", "ties"), generations=5)))
    operators = [{trial.genome.operator for trial in generation} for generation in search.generations[1:]]
    assert operators == [{"linear"}] * 3 + [{"ties"}] * 2


def test_all_may_fail():
    search = Genetic(SPACE, settings())
    while (candidate := search.ask()) is not None:
        search.tell(candidate, None)
    with pytest.raises(ValueError, match="failed"):
        chosen(search)


def test_the_choice_does_not_lose_accuracy_against_the_first_parent():
    search = Genetic(SPACE, settings(generations=1))
    values = [
        (2.5, 0.3),
        (2.0, 0.5),
        (4.0, 0.0),
        (3.0, 0.1),
        (1.5, 0.6),
        (1.8, 0.5),
        (1.9, 0.2),
        (5, 0),
        (5, 0),
        (1, 0.9),
    ]
    for loss, error in values:
        candidate = search.ask()
        assert candidate is not None
        search.tell(candidate, {"loss": loss, "error": error})
    assert chosen(search).measured == {"loss": 1.9, "error": 0.2}  # 1.8 would err more often than the first
    assert chosen(search, weighted=True).measured == {"loss": 1, "error": 0.9}
    assert {t.measured["loss"] for t in search.pareto() if t.measured} == {1, 1.5, 1.8, 1.9, 3.0, 4.0}
