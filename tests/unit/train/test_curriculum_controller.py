"""The staircase: it finds the edge of simulated learners, stays there, and does not move for nothing."""

import json
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.curriculum.controller import HIGHEST, LOWEST, Band, Controller, Standing


def controller(**fields):
    return Controller(Band(**fields), {"sums": Standing()})


@pytest.mark.parametrize(
    ("right", "asked", "way"),
    [(24, 24, 1), (19, 24, 1), (18, 24, 0), (15, 24, 0), (14, 24, 0), (13, 24, -1), (0, 24, -1), (23, 23, 0)],
)
def test_difficulty_moves_outside_of_the_band_only(right, asked, way):
    made = Controller(Band(window=24), {"sums": Standing(5.0)})
    moved = made.told("sums", right, asked)
    assert (moved > 0) - (moved < 0) == way


def test_nothing_is_easier_than_the_lowest_nor_harder_than_the_highest():
    made = controller(window=8)
    assert made.told("sums", 0, 8) == 0
    assert made.families["sums"].difficulty == LOWEST
    for _ in range(100):
        made.told("sums", 8, 8)
    assert made.families["sums"].difficulty == HIGHEST


def test_a_turn_halves_the_step_and_going_on_makes_it_larger():
    made = Controller(Band(window=8, first_step=1.0), {"sums": Standing(5.0)})
    assert [made.told("sums", right, 8) for right in (8, 8, 0, 0, 8)] == [1.0, 1.5, -0.75, -1.125, 0.5625]


def test_what_was_measured_elsewhere_is_forgotten():
    made = controller(window=8)
    made.told("sums", 8, 8)
    assert made.families["sums"].asked == 0
    assert made.told("sums", 7, 7) == 0  # no whole window yet


def test_only_a_few_families_are_begun_at_a_time():
    made = Controller(Band(window=4), {name: Standing() for name in "abcde"}, beginning=2)
    assert made.open == ["a", "b"]
    made.told("b", 4, 4)
    assert made.open == ["a", "b", "c"]
    made.told("b", 0, 4)  # it stays open
    assert made.open == ["a", "b", "c"]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9)), max_size=30))
def test_its_state_is_json_and_goes_on_where_it_was(told):
    one = Controller(Band(window=9), {name: Standing() for name in "abc"})
    for family, right in told[: len(told) // 2]:
        one.told(family, right, 9)
    other = Controller.restored(one.band, one.beginning, json.loads(json.dumps(one.state())))
    for family, right in told[len(told) // 2 :]:
        assert one.told(family, right, 9) == other.told(family, right, 9)
    assert one == other


def probability(ability, slope, difficulty):
    return 1 / (1 + math.exp(-slope * (ability - difficulty)))


@given(st.floats(2.5, 8.5), st.floats(0.5, 2.5), st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_it_finds_the_edge_of_a_learner_and_stays_in_the_band(ability, slope, seed):
    """A logistic learner whose chance of success falls from easy to hard; answers are drawn."""
    made, chance, seen = controller(window=48), random.Random(seed), []
    for _ in range(120):
        p = probability(ability, slope, made.families["sums"].difficulty)
        seen.append(p)
        made.told("sums", sum(chance.random() < p for _ in range(48)), 48)
    late = seen[30:]
    assert 0.55 <= sum(late) / len(late) <= 0.75
    assert sum(0.5 <= p <= 0.8 for p in late) > 0.75 * len(late)


@given(st.floats(0.02, 0.08), st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_it_follows_a_learner_that_gets_better(speed, seed):
    made, chance, seen = controller(window=32), random.Random(seed), []
    for turn in range(100):
        p = probability(1.5 + speed * turn, 1.5, made.families["sums"].difficulty)
        seen.append(p)
        made.told("sums", sum(chance.random() < p for _ in range(32)), 32)
    late = seen[20:]
    assert 0.55 <= sum(late) / len(late) <= 0.8
