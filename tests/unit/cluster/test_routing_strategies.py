import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import UnknownStrategy
from cluster.routing import strategies
from cluster.routing.strategies import CATALOGUE, DEFAULT, Candidate


def candidate(name: str, trust=0.5, load=0, capacity=10, mean=None, turn=0) -> Candidate:
    return Candidate(name, trust, load, capacity, mean, turn)


@pytest.mark.parametrize(
    ("strategy", "candidates", "chosen"),
    [
        ("round_robin", [candidate("a", turn=5), candidate("b", turn=3), candidate("c", turn=4)], "b"),
        ("round_robin", [candidate("b"), candidate("a")], "a"),
        ("round_robin", [candidate("a", turn=1), candidate("new")], "new"),
        ("trust_weighted", [candidate("a", 0.6), candidate("b", 0.9), candidate("c", 0.7)], "b"),
        ("trust_weighted", [candidate("a", 0.9, load=3), candidate("b", 0.9, load=1)], "b"),
        ("trust_weighted", [candidate("a", 0.9, load=4, capacity=8), candidate("b", 0.9, load=2, capacity=2)], "a"),
        ("trust_weighted", [candidate("a", 0.9, turn=2), candidate("b", 0.9, turn=1)], "b"),
        ("least_loaded", [candidate("a", load=2), candidate("b", load=1)], "b"),
        ("least_loaded", [candidate("a", load=4, capacity=100), candidate("b", load=1, capacity=2)], "a"),
        ("least_loaded", [candidate("a", turn=9), candidate("b", turn=8)], "b"),
        ("fastest_response", [candidate("a", mean=2.0), candidate("b", mean=1.0)], "b"),
        ("fastest_response", [candidate("a", mean=0.1), candidate("new")], "new"),
        ("fastest_response", [candidate("a", mean=1.0, load=5), candidate("b", mean=1.0, load=4)], "b"),
    ],
)
def test_who_is_chosen(strategy, candidates, chosen):
    choice = strategies.named(strategy)(candidates)
    assert choice.agent_id == chosen and choice.reason


fields = st.builds(
    Candidate, st.uuids().map(str), st.floats(0, 1), st.integers(0, 9), st.integers(10, 20),
    st.none() | st.floats(0, 1e4), st.integers(0, 5),
)  # fmt: skip


@given(
    st.sampled_from(sorted(CATALOGUE)),
    st.lists(fields, min_size=1, max_size=6, unique_by=lambda c: c.agent_id),
    st.data(),
)
def test_a_choice_does_not_depend_on_the_order_of_the_candidates(name, candidates, data):
    choose = strategies.named(name)
    assert choose(candidates) == choose(data.draw(st.permutations(candidates)))


@given(
    st.sampled_from(sorted(CATALOGUE)),
    st.lists(fields, min_size=1, max_size=6, unique_by=lambda c: c.agent_id),
)
def test_a_strategy_is_a_strict_order_of_the_candidates(name, candidates):
    # The router keeps agents in heaps by this key: two agents never have the same one.
    described = strategies.named(name)
    assert len({described.key(c) for c in candidates}) == len(candidates)
    first = described(candidates)
    assert described.key(next(c for c in candidates if c.agent_id == first.agent_id)) == min(
        map(described.key, candidates)
    )


def test_the_reason_says_when_an_agent_is_tried_for_the_first_time():
    fastest = strategies.named("fastest_response")
    assert fastest([candidate("new"), candidate("a", mean=1.0)]).reason == CATALOGUE["fastest_response"].untried
    assert fastest([candidate("a", mean=1.0)]).reason == CATALOGUE["fastest_response"].reason
    assert strategies.named("round_robin")([candidate("new")]).reason == CATALOGUE["round_robin"].reason


def test_an_unknown_strategy_names_those_there_are():
    with pytest.raises(UnknownStrategy) as error:
        strategies.named("fastest")
    assert error.value.details["allowed_values"] == list(CATALOGUE) and DEFAULT in CATALOGUE
