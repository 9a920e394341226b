"""Arithmetic worked out from its syntax tree, and arithmetic that cannot grow without bound. Pure, standard library."""

import ast
import math
import operator
from collections.abc import Callable
from typing import Any

MOST_CHARACTERS = 200  # of an expression
MOST_BITS = 1024  # of an integer on the way
Number = int | float


class Refused(ValueError):
    """The text is not what is executed here; the message says what is wrong."""


def bounded(value: Any) -> Any:
    """The value, unless it is a number too large or not a real one. Raises `Refused`."""
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        raise Refused(f"an integer of more than {MOST_BITS} bits")
    if isinstance(value, complex) or (isinstance(value, float) and not math.isfinite(value)):
        raise Refused("not a finite real number")
    return value


def power(base: Any, exponent: Any) -> Any:
    """`base ** exponent` of numbers. Refuses before it computes what would be too large."""
    if not isinstance(base, Number) or not isinstance(exponent, Number):
        raise Refused("a power of something that is no number")
    if isinstance(base, int) and isinstance(exponent, int) and abs(exponent) * base.bit_length() > MOST_BITS:
        raise Refused(f"an integer of more than {MOST_BITS} bits")
    return bounded(base**exponent)


BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: power,
}  # fmt: skip
UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}


def parsed(text: str, most_characters: int, mode: str) -> Any:
    """The syntax tree of Python text; `mode` is eval or exec. Raises `Refused`."""
    if len(text) > most_characters:
        raise Refused(f"more than {most_characters} characters")
    try:
        return ast.parse(text.strip(), mode=mode)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise Refused(f"not Python: {error}") from error


def evaluate_expression(text: str) -> Number:
    """What an expression of numbers, + - * / // % ** and parentheses comes to: `(3 + 4) * 2` gives 14.

    Nothing is executed: its syntax tree is walked. Raises `Refused`, and `ZeroDivisionError` or `OverflowError` as
    Python does.
    """
    return _value(parsed(text, MOST_CHARACTERS, "eval").body)


def _value(node: ast.expr) -> Number:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return bounded(node.value)
    if isinstance(node, ast.BinOp) and type(node.op) in BINARY:
        return bounded(BINARY[type(node.op)](_value(node.left), _value(node.right)))
    if isinstance(node, ast.UnaryOp) and type(node.op) in UNARY:
        return UNARY[type(node.op)](_value(node.operand))
    raise Refused(f"{type(node).__name__} is not arithmetic")


def as_text(value: Number) -> str:
    """The value as one writes it: no point where it is whole, six digits where it is not."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)
