"""Scratchpads are true, and no question is both practised and examined."""

import re

from hypothesis import given
from hypothesis import strategies as st

from train.data.sources import Document, ask
from train.model.thoughts import thought_of
from train.quietstar.arithmetic import Sum, school


@given(st.integers(0, 999), st.integers(0, 999), st.sampled_from("+-"))
def test_a_scratchpad_is_true_and_spells_the_answer(a: int, b: int, sign: str):
    left, right = max(a, b), min(a, b)
    asked = Sum(left, sign, right)
    assert asked.value == eval(asked.expression)
    steps = [re.fullmatch(r"(.+)=(\d+)", step) for step in asked.scratchpad.split()]
    assert all(step and eval(step[1]) == int(step[2]) for step in steps)
    results = [step[2] for step in steps if step]
    digits = results[-1] + "".join(result[-1] for result in reversed(results[:-1]))
    assert int(digits) == asked.value


def training() -> list[Document]:
    """Half of the wordings of some small sums."""
    return [
        Document("sums", turns=ask(words.format(f"{a} + {b}"), f"{a} + {b} = {a + b}"))
        for a in range(11) for b in range(11) for words in ("What is {0}?", "{0} = ?")
    ]  # fmt: skip


def test_no_question_is_practised_and_examined():
    made = school(19, 100, 1, training())
    examined = {question.words for some in made.exams.values() for question in some}
    practised = [*made.practice(600, 1, thoughtful=True), *made.practice(600, 2, thoughtful=False)]
    assert not examined & {document.turns[0].content for document in practised}
    held_out = {question.sum for question in made.exams["sums"]}
    assert held_out and not held_out & {question.sum for question in (*made.small, *made.larger)}
    assert {len(some) for some in made.exams.values()} == {100}


def test_practice_thinks_before_it_answers():
    made = school(19, 10, 1, training())
    for document in made.practice(50, 3, thoughtful=True):
        thought, said = thought_of(document.turns[-1].content)
        assert "=" in thought and " = " in said
    assert all("<|think|>" not in document.turns[-1].content for document in made.practice(50, 3, thoughtful=False))


def test_without_larger_sums_all_practice_is_small():
    made = school(10, 10, 1, training())
    assert set(made.exams) == {"wordings"}
    assert len(made.practice(30, 1, thoughtful=True)) == 30
