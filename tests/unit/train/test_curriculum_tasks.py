"""Tasks: what is taught is right by its own checker, and what is measured is never taught."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.curriculum.answering import right
from train.curriculum.sandbox import Sandbox
from train.curriculum.tasks import FAMILIES, LEVELS, held_out, task, tasks
from train.data.sources import sums
from train.phases import training

SEEDS = st.integers(0, 2**32)


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox() as made:
        yield made


def test_the_phase_knows_every_family():
    assert set(training.FAMILIES) == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_taught_answer_is_right_and_others_are_not(sandbox, family):
    chance = random.Random(family)
    for level in LEVELS:
        for _ in range(10):
            made = task(family, level, chance)
            assert right(made, made.answer, sandbox)
            assert right(made, f"  {made.answer} \n", sandbox)
            for wrong in ("", made.answer + " 1", made.answer + "x", made.answer[:-1], made.question):
                assert not right(made, wrong, sandbox), (made, wrong)


@given(st.sampled_from(list(FAMILIES)), st.integers(1, 10), SEEDS)
@settings(max_examples=100, deadline=None)
def test_the_same_chance_makes_the_same_task(family, level, seed):
    assert task(family, level, random.Random(seed)) == task(family, level, random.Random(seed))


def test_no_task_that_is_measured_is_taught():
    measured = {(each.family, each.operands) for each in held_out(8, 1)}
    assert len(measured) > 1000
    chance = random.Random(2)
    taught = {
        (family, each.operands) for family in FAMILIES for level in LEVELS for each in tasks(family, level, 100, chance)
    }
    assert not measured & taught


def test_operands_in_another_order_are_the_same_task():
    chance, found = random.Random(3), {}
    for _ in range(4000):
        made = task("plus", 1, chance, held_out=chance.random() < 0.5)
        a, b = sorted(int(part) for part in made.answer.split(" = ")[0].split(" + "))
        assert found.setdefault((a, b), made.held_out) == made.held_out


def test_no_arithmetic_is_among_the_shipped_sums():
    shipped = {turns[1].content for turns in sums()}
    chance = random.Random(4)
    made = [task(family, 1, chance) for family in ("plus", "minus", "times") for _ in range(200)]
    assert not shipped & {each.answer for each in made}


def test_a_program_must_work_something_out(sandbox):
    made = next(each for each in (task("program", 1, random.Random(n)) for n in range(9)) if each.value != "0")
    assert made.value is not None
    assert not right(made, made.value, sandbox)
    assert right(made, made.value + " + 0", sandbox)  # what it comes to is all that is asked
    assert right(made, f"a = {made.answer}\na", sandbox)


@given(st.floats(1, 10), SEEDS)
@settings(max_examples=50, deadline=None)
def test_a_difficulty_between_two_levels_is_both(difficulty, seed):
    levels = {each.level for each in tasks("capitals", difficulty, 40, random.Random(seed))}
    assert levels <= {int(difficulty), int(difficulty) + (difficulty % 1 > 0)}


def test_levels_get_longer():
    chance = random.Random(5)
    for family in FAMILIES:
        some = [[task(family, level, chance) for _ in range(50)] for level in LEVELS]
        sizes = [sum(len(each.question + each.answer) for each in made) for made in some]
        assert sizes[-1] > sizes[0], family


def test_a_sum_has_a_thought_for_a_model_that_thinks():
    made = task("plus", 4, random.Random(6))
    assert made.taught(True).turns[1].content == f"<|think|>{made.thought}<|thought|>{made.answer}"
    assert made.taught(False).turns[1].content == made.answer
    assert made.thought
