"""The small part of Python that model-written programs may use: checked by its syntax tree, then executed. Pure.

Literals, arithmetic, comparisons, slices, assignments, `for` and `if`, a few builtins, a few methods of strings and
lists. No imports, functions, attributes, formatting, or names that begin with an underscore. A program's value is that
of its last line where it is an expression, else of the variable `answer`.
"""

import ast
import operator
from collections.abc import Callable
from typing import Any

from train.curriculum.expression import BINARY, Refused, bounded, parsed

MOST_CHARACTERS = 1000  # of a program
MOST_ITEMS = 100_000  # of a sequence that a multiplication makes
BUILTINS: dict[str, Any] = {
    made.__name__: made
    for made in (
        abs, all, any, bool, chr, enumerate, float, int, len, list, max, min, ord, range, reversed, round, sorted, str,
        sum, tuple, zip,
    )
}  # fmt: skip
METHODS = frozenset(
    (
        "append", "capitalize", "copy", "count", "endswith", "extend", "find", "index", "insert", "isalpha", "isdigit",
        "islower", "isupper", "join", "lower", "lstrip", "pop", "remove", "replace", "reverse", "rstrip", "sort",
        "split", "startswith", "strip", "swapcase", "title", "upper",
    )
)  # fmt: skip
KEYWORDS = frozenset({"key", "reverse", "default", "start"})
NODES = (
    ast.Module, ast.Expr, ast.Assign, ast.AugAssign, ast.For, ast.If, ast.Pass, ast.Break, ast.Continue, ast.Name,
    ast.Load, ast.Store, ast.List, ast.Tuple, ast.Subscript, ast.Slice, ast.IfExp, ast.Call, ast.keyword, ast.Attribute,
    ast.Constant, ast.UnaryOp, ast.Not, ast.BoolOp, ast.And, ast.Or, ast.BinOp, ast.Compare, ast.Eq, ast.NotEq, ast.Lt,
    ast.LtE, ast.Gt, ast.GtE, ast.In, ast.NotIn, ast.USub, ast.UAdd, *BINARY,
)  # fmt: skip
WORK_OUT = "_work_out"  # what arithmetic is turned into a call of; no program can name it
ANSWER = "answer"
RAISED = (ArithmeticError, AttributeError, LookupError, MemoryError, NameError, RecursionError, TypeError, ValueError)


def execute(program: str) -> Any:
    """The program's value. Raises `Refused`, or what the program raises (`RAISED`)."""
    tree = parsed(program, MOST_CHARACTERS, "exec")
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        allow(node, id(node) in called)
    tree = Guarded().visit(tree)
    if tree.body and isinstance(tree.body[-1], ast.Expr):
        tree.body[-1] = ast.Assign([ast.Name(ANSWER, ast.Store())], tree.body[-1].value)
    names: dict[str, Any] = {"__builtins__": BUILTINS | {WORK_OUT: work_out}}
    exec(compile(ast.fix_missing_locations(tree), "program", "exec"), names)
    if ANSWER not in names:
        raise Refused("a program without a value")
    return names[ANSWER]


def allow(node: ast.AST, called: bool) -> None:
    """Raises `Refused` for a node that is not of the language; `called` if the node is what a call calls."""
    if not isinstance(node, NODES):
        raise Refused(f"{type(node).__name__} is not allowed")
    match node:
        case ast.Name(id=name) if name.startswith("_"):
            raise Refused(f"no name {name}")
        case ast.Attribute(attr=name) if not called or name not in METHODS:
            raise Refused(f"no attribute {name}")
        case ast.Call(func=function) if not isinstance(function, ast.Name | ast.Attribute):
            raise Refused("a call of something without a name")
        case ast.keyword(arg=name) if name not in KEYWORDS:
            raise Refused(f"no argument {name}")
        case ast.Constant(value=value) if type(value) not in (int, float, str, bool, type(None)):
            raise Refused(f"a {type(value).__name__} is not allowed")


class Guarded(ast.NodeTransformer):
    """Turns `a + b` into `_work_out('Add', a, b)`, which refuses what would grow too large."""

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        """An operation's value."""
        self.generic_visit(node)
        return worked_out(node.op, node.left, node.right)

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.stmt:
        """`a += b` as `a = a + b`."""
        self.generic_visit(node)
        if not isinstance(node.target, ast.Name):
            raise Refused("only a name may be added to")
        return ast.Assign([node.target], worked_out(node.op, ast.Name(node.target.id, ast.Load()), node.value))


def worked_out(op: ast.operator, left: ast.expr, right: ast.expr) -> ast.expr:
    """The call that stands for the operation."""
    return ast.Call(ast.Name(WORK_OUT, ast.Load()), [ast.Constant(type(op).__name__), left, right], [])


OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {kind.__name__: made for kind, made in BINARY.items()}


def work_out(name: str, left: Any, right: Any) -> Any:
    """A binary operation that stays small: no long repetition, no large power, no `%` that formats."""
    made = OPERATIONS[name]
    if made is operator.mod and isinstance(left, str):
        raise Refused("no formatting")
    if made is operator.mul:
        for items, times in ((left, right), (right, left)):
            if isinstance(items, str | list | tuple) and isinstance(times, int) and len(items) * times > MOST_ITEMS:
                raise Refused(f"a sequence of more than {MOST_ITEMS} items")
    return bounded(made(left, right))
