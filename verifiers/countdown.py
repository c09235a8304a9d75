"""Kind ``countdown``: reach a target from given numbers. Many answers are right, so the answer is evaluated.

The answer is the text after the last '#' up to the end of its line, or the last non-empty line if there is no '#'. It
may use + - * / and parentheses on non-negative integers, each given number at most once. A trailing '= target' is
allowed if it states the true target. Arithmetic is exact (fractions), and nothing is ever passed to `eval`.
"""

from __future__ import annotations

import ast
import operator
import re
from collections import Counter
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from verifiers.errors import BadGold
from verifiers.options import Options as BaseOptions
from verifiers.text import after_last, answer_text
from verifiers.verdict import VERIFIERS, Status, Verdict, VerifyRequest

# Also bounds nesting to 100 and literals to 200 digits, far below any limit of the parser.
MAX_EXPRESSION_CHARS = 200

_EXPRESSION = re.compile(r"[0-9+\-*/() \t]+")  # no letters or underscores: neither 0x10 nor 1_000 nor a name
_OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def parse_expression(text: str) -> ast.expr | None:
    """The syntax tree of `text` if it is an expression of the allowed kind, else None."""
    text = text.strip()
    if len(text) > MAX_EXPRESSION_CHARS or not _EXPRESSION.fullmatch(text):
        return None
    try:
        tree = ast.parse(text, mode="eval").body
    except SyntaxError:
        return None
    return tree if all(_is_allowed(node) for node in ast.walk(tree)) else None


def _is_allowed(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):
        return type(node.value) is int
    return (isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS) or isinstance(node, tuple(_OPERATORS))


def literals(tree: ast.expr) -> list[int]:
    """The integers that `tree` uses, each as often as it does."""
    return [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, int)]


def evaluate(tree: ast.expr) -> Fraction:
    """Exact value of a tree from `parse_expression`. Raises ZeroDivisionError."""
    if isinstance(tree, ast.BinOp):
        return _OPERATORS[type(tree.op)](evaluate(tree.left), evaluate(tree.right))
    assert isinstance(tree, ast.Constant)
    assert isinstance(tree.value, int)
    return Fraction(tree.value)


@VERIFIERS.register("countdown")
class CountdownVerifier:
    """Gold: ``{"numbers": [int, ...], "target": int, "solution": str}``; only `gold_response` needs `solution`."""

    isolated = False

    class Options(BaseOptions):
        """use_all: every given number must be used."""

        use_all: bool = False

    def __init__(self, options: Options):
        self.options = options

    def verify(self, request: VerifyRequest) -> Verdict:
        numbers, target = _read_gold(request.gold)
        answer = _find_answer(request.response)
        expression, equals, stated = (answer or "").partition("=")
        tree = parse_expression(expression)
        if tree is None:
            return Verdict(0.0, Status.NO_ANSWER, "no arithmetic expression found")
        fault = self._fault(tree, numbers, target)
        if fault is None and equals and stated.strip() != str(target):
            fault = f"it states '= {stated.strip()}', the target is {target}"
        canonical = ast.unparse(tree)
        if fault is None:
            return Verdict(1.0, Status.CORRECT, f"{expression.strip()} = {target}", answer=canonical)
        return Verdict(0.0, Status.WRONG, f"{expression.strip()}: {fault}", answer=canonical)

    def gold_response(self, gold: Any, meta: Mapping[str, Any]) -> str:
        _read_gold(gold)
        if not isinstance(gold.get("solution"), str):
            raise BadGold("The gold has no 'solution'.", fix="add an expression that reaches the target")
        return f"# {gold['solution']}"

    def _fault(self, tree: ast.expr, numbers: list[int], target: int) -> str | None:
        """Why the expression is not a right answer, or None if it is one."""
        used, given = Counter(literals(tree)), Counter(numbers)
        if used - given:
            return f"uses {sorted((used - given).elements())}, which are not among the numbers left"
        if self.options.use_all and given - used:
            return f"leaves {sorted((given - used).elements())} unused"
        try:
            value = evaluate(tree)
        except ZeroDivisionError:
            return "divides by zero"
        return None if value == target else f"is {value}, not {target}"


def _find_answer(response: str) -> str | None:
    text = answer_text(response)
    if text is None:
        return None
    after_hash = after_last("#", text)
    if after_hash is not None:
        return after_hash
    return text.strip().rpartition("\n")[2].strip()


def _read_gold(gold: Any) -> tuple[list[int], int]:
    if not isinstance(gold, Mapping):
        raise BadGold(f"The gold must be an object with 'numbers' and 'target', not {type(gold).__name__}.")
    numbers, target = gold.get("numbers"), gold.get("target")
    if not isinstance(numbers, list | tuple) or not numbers or any(type(n) is not int for n in numbers):
        raise BadGold(f"The gold's 'numbers' must be a non-empty list of integers, not {numbers!r}.")
    if type(target) is not int:
        raise BadGold(f"The gold's 'target' must be an integer, not {target!r}.")
    return list(numbers), target
