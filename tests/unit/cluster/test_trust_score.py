from datetime import timedelta

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cluster.clock import utc_now
from cluster.trust import score
from cluster.trust.score import Evidence, TrustEvent

NOON = utc_now()
NOTHING = Evidence(0.0, 0.0, NOON)
amounts = st.floats(0, 1000)
evidence = st.builds(Evidence, amounts, amounts, st.just(NOON))


def after(days: float):
    return NOON + timedelta(days=days)


def test_an_unknown_agent_stands_in_the_middle():
    assert NOTHING.mean == 0.5


def test_the_first_completion_moves_it_by_about_two_hundredths():
    assert score.observe(NOTHING, 1.0, 0.0, NOON).mean - 0.5 == pytest.approx(0.02, abs=0.001)


@pytest.mark.parametrize(
    ("event", "seconds", "good", "bad"),
    [
        (TrustEvent.COMPLETED, 9.0, 1.0, 0.0), (TrustEvent.COMPLETED, 5.0, 1.5, 0.0),
        (TrustEvent.COMPLETED, 5.01, 1.0, 0.0), (TrustEvent.COMPLETED, None, 1.0, 0.0),
        (TrustEvent.FAILED, 1.0, 0.0, 2.5), (TrustEvent.TIMEOUT, 10.0, 0.0, 1.5),
    ],
)  # fmt: skip
def test_what_an_outcome_weighs(event, seconds, good, bad):
    assert score.weights(event, seconds, 10)[:2] == (good, bad)


@given(evidence)
def test_evidence_halves_every_thirty_days(found):
    half = score.faded(found, after(30))
    assert half.good == pytest.approx(found.good / 2) and half.bad == pytest.approx(found.bad / 2)


@given(evidence, st.floats(0, 400), st.floats(0, 400))
def test_fading_in_two_steps_is_fading_in_one(found, first, second):
    twice = score.faded(score.faded(found, after(first)), after(first + second))
    assert twice.good == pytest.approx(score.faded(found, after(first + second)).good, abs=1e-9)


@given(evidence, st.floats(0, 4000))
def test_fading_moves_toward_the_middle_and_never_past_it(found, days):
    now = score.faded(found, after(days)).mean
    low, high = sorted((0.5, found.mean))
    assert low - 1e-12 <= now <= high + 1e-12


@given(evidence)
def test_a_clock_that_steps_back_changes_nothing(found):
    assert score.faded(found, after(-3)) == found


@given(evidence, st.floats(-1, 1), st.floats(0, 100))
def test_an_adjustment_shifts_the_score_by_exactly_its_delta(found, delta, days):
    at = after(days)
    before = score.faded(found, at).mean
    assume(0 <= before + delta <= 1)
    good, bad = score.adjustment(found, delta, at)
    moved = score.observe(found, good, bad, at)
    assert moved.mean == pytest.approx(before + delta, abs=1e-9)
    assert moved.good + moved.bad == pytest.approx(
        sum((score.faded(found, at).good, score.faded(found, at).bad)), abs=1e-6
    )


@given(evidence, st.lists(st.sampled_from([(1.0, 0.0), (1.5, 0.0), (0.0, 2.5), (0.0, 1.5)]), max_size=50))
def test_a_score_is_between_0_and_1_and_good_work_raises_it(found, outcomes):
    for good, bad in outcomes:
        moved = score.observe(found, good, bad, NOON)
        assert 0 < moved.mean < 1 and (moved.mean > found.mean) == (good > 0)
        found = moved


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (1.0, "excellent"),
        (0.9, "excellent"),
        (0.8999, "high"),
        (0.7, "high"),
        (0.5, "medium"),
        (0.3, "low"),
        (0.29, "very_low"),
        (0.0, "very_low"),
    ],
)
def test_levels(value, word):
    assert score.level(value) == word


@pytest.mark.parametrize(
    ("deltas", "word"),
    [([], "stable"), ([0.02] * 3, "increasing"), ([-0.05, 0.01], "decreasing"), ([0.001, -0.001], "stable")],
)
def test_trend(deltas, word):
    assert score.trend(deltas) == word


@given(st.floats(-500, 500), st.floats(-500, 500))
def test_a_rating_is_between_0_and_5_whatever_was_adjusted(good, bad):
    # The bug: adjustments that had faded from the score added up here, and a rating could pass 5.
    assume(25 + good + bad > 1e-3)
    assert 0 <= score.reliability_rating(good, bad) <= 5


def test_a_rating_is_five_times_the_unfaded_mean():
    assert score.reliability_rating(0, 0) == 2.5 and score.reliability_rating(12.5, 0) == pytest.approx(10 / 3)
