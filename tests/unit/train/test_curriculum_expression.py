"""Arithmetic from its syntax tree: what Python says, and nothing that is not arithmetic."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.curriculum.expression import Refused, as_text, evaluate_expression

EXPRESSIONS = st.recursive(
    st.integers(0, 99).map(str),
    lambda inner: st.builds("({} {} {})".format, inner, st.sampled_from(["+", "-", "*", "/", "//", "%"]), inner),
    max_leaves=8,
)


@given(EXPRESSIONS)
def test_it_agrees_with_python(expression):
    try:
        expected = eval(expression)
    except ZeroDivisionError:
        with pytest.raises(ZeroDivisionError):
            evaluate_expression(expression)
        return
    assert evaluate_expression(expression) == expected


@pytest.mark.parametrize(
    "text",
    [
        "().__class__", "x", "abs(3)", "'a' * 3", "[1]", "True", "1 if 2 else 3", "lambda: 3", "3 < 4", "1j", "3 +", "",
        "9 ** 9 ** 9", "2 ** 4000", "1e999", "(-8) ** 0.5", "1" * 201, "(" * 150 + "1" + ")" * 150, "1; 2", "a := 3",
        "\0", "1 << 3", "~3",
    ],
)  # fmt: skip
def test_what_is_no_small_arithmetic_is_refused(text):
    with pytest.raises(Refused):
        evaluate_expression(text)


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("6 / 2", "3"),
        ("1 / 3", "0.333333"),
        ("2 ** 10", "1024"),
        ("-3 + 1", "-2"),
        ("2.50 * 2", "5"),
        ("0.1 + 0.2", "0.3"),
    ],
)
def test_a_value_is_written_as_people_write_it(expression, text):
    assert as_text(evaluate_expression(expression)) == text
