"""Assert tests split in two: the calls, which the sandbox makes, and the rest, which is evaluated here.

What is evaluated is a small part of Python (literals, comparisons, arithmetic, a few pure functions) on plain data with
bounded cost; no code of a test is executed in this process. Whatever goes beyond that cannot be split.
"""

from __future__ import annotations

import ast
import builtins
import math
import operator
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from verifiers.code.inside import plain

MAX_SOURCE_CHARS = 200_000
_MAX_POWER_BITS = 100_000
_MAX_REPEATED = 1_000_000
_MAX_NUMBER_CHARS = 1_000
_MAX_ROUND_DIGITS = 400


class CannotSplit(Exception):
    """The test needs more of Python than is evaluated here."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the candidate, with plain arguments."""

    name: str
    arguments: list[Any]
    keywords: dict[str, Any]

    def frame(self) -> str:
        return plain.encode([f"call:{self.name}", self.arguments, self.keywords])


@dataclass(frozen=True, slots=True)
class SplitAssert:
    """`holds(results)`, with the result of each call in order, says whether the assertion does."""

    calls: tuple[Call, ...]
    condition: ast.expr

    def holds(self, results: Sequence[Any]) -> bool:
        try:
            return bool(_value(self.condition, results))
        # What Python raises when values do not fit: comparing None with 3, the length of a number, too many keys.
        except (TypeError, ValueError, ArithmeticError, LookupError, RecursionError):
            return False


def split(source: str, candidate_names: Collection[str] = (), *, only_named: bool = False) -> SplitAssert | None:
    """The parts of one assert statement, None if it is not one or cannot be split. The candidate's functions are
    `candidate_names` and, unless `only_named`, all that are not built in."""
    if len(source) > MAX_SOURCE_CHARS:
        return None
    try:
        body = ast.parse(source.strip()).body
        if len(body) != 1 or not isinstance(body[0], ast.Assert):
            return None
        calls: list[Call] = []
        condition = _take_calls(body[0].test, calls, _Names(frozenset(candidate_names), only_named))
        return SplitAssert(tuple(calls), condition) if calls else None
    except (SyntaxError, ValueError, TypeError, ArithmeticError, LookupError, RecursionError, MemoryError, CannotSplit):
        return None


def _take_calls(node: ast.expr, calls: list[Call], names: _Names) -> ast.expr:
    """A copy of the tree in which each call of the candidate has become a placeholder, and all else was checked.

    A condition that may skip a part (`and`, `or`, chained comparison) is fine: calls of the candidate are made anyway,
    one by one and in order.
    """
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and names.hold(node.func.id):
        arguments = [_value(_checked(argument), ()) for argument in node.args]
        keywords = {k.arg: _value(_checked(k.value), ()) for k in node.keywords if k.arg is not None}
        if len(keywords) != len(node.keywords):
            raise CannotSplit
        calls.append(Call(node.func.id, arguments, keywords))
        calls[-1].frame()  # raises if the arguments cannot be sent
        return ast.Name(id=str(len(calls) - 1), ctx=ast.Load())
    _check_node(node)
    for field, value in ast.iter_fields(node):
        if isinstance(value, ast.expr) and not (isinstance(node, ast.Call) and field == "func"):
            setattr(node, field, _take_calls(value, calls, names))
        elif isinstance(value, list):
            setattr(node, field, [_take_calls(v, calls, names) if isinstance(v, ast.expr) else v for v in value])
            for keyword in value:
                if isinstance(keyword, ast.keyword):
                    keyword.value = _take_calls(keyword.value, calls, names)
    return node


@dataclass(frozen=True, slots=True)
class _Names:
    """Of the functions that are the candidate's."""

    named: frozenset[str] = frozenset()
    only_named: bool = False

    def hold(self, name: str) -> bool:
        return name in self.named or not (self.only_named or hasattr(builtins, name))


def _checked(node: ast.expr) -> ast.expr:
    return _take_calls(node, _NoCalls(), _Names())


class _NoCalls(list[Call]):
    """Arguments that are calls of the candidate themselves need its objects as they are."""

    def append(self, call: Call) -> None:
        raise CannotSplit


def _check_node(node: ast.expr) -> None:
    if isinstance(node, ast.Call):
        if _function(node.func) is None or (node.keywords and ast.unparse(node.func) != "math.isclose"):
            raise CannotSplit
    elif isinstance(node, ast.BinOp):
        if type(node.op) not in _ARITHMETIC:
            raise CannotSplit
    elif not isinstance(node, _PLAIN_NODES) or (isinstance(node, ast.Dict) and None in node.keys):
        raise CannotSplit


_PLAIN_NODES = (ast.Constant, ast.List, ast.Tuple, ast.Set, ast.Dict, ast.UnaryOp, ast.BoolOp, ast.Compare)


def _value(node: ast.expr, results: Sequence[Any]) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):  # a placeholder: real names were refused
        return results[int(node.id)]
    if isinstance(node, ast.List | ast.Tuple | ast.Set):
        items = [_value(item, results) for item in node.elts]
        return _FROM_ITEMS[type(node)](items)
    if isinstance(node, ast.Dict):
        keys = [_value(key, results) for key in node.keys if key is not None]
        plain.Decoder().count_hashes(keys)
        return dict(zip(keys, [_value(value, results) for value in node.values], strict=True))
    if isinstance(node, ast.UnaryOp):
        return _unary(node.op, _value(node.operand, results))
    if isinstance(node, ast.BinOp):
        return _ARITHMETIC[type(node.op)](_value(node.left, results), _value(node.right, results))
    if isinstance(node, ast.BoolOp):
        stop_at = isinstance(node.op, ast.Or)
        value = None
        for part in node.values:
            value = _value(part, results)
            if bool(value) is stop_at:
                break
        return value
    if isinstance(node, ast.Compare):
        return _compare(node, results)
    assert isinstance(node, ast.Call)
    function = _function(node.func)
    assert function is not None
    keywords = {k.arg: _value(k.value, results) for k in node.keywords if k.arg is not None}
    return function(*[_value(argument, results) for argument in node.args], **keywords)


def _compare(node: ast.Compare, results: Sequence[Any]) -> bool:
    left = _value(node.left, results)
    for op, right_node in zip(node.ops, node.comparators, strict=True):
        right = _value(right_node, results)
        # `is` is meant for None and booleans; of other values the copies here can say nothing.
        if isinstance(op, ast.Is | ast.IsNot) and not (right is None or isinstance(right, bool)):
            raise TypeError
        if not _COMPARISONS[type(op)](left, right):
            return False
        left = right
    return True


def _unary(op: ast.unaryop, value: Any) -> Any:
    if isinstance(op, ast.Not):
        return not value
    _require_numbers(value)
    return +value if isinstance(op, ast.UAdd) else -value if isinstance(op, ast.USub) else ~value


def _require_numbers(*values: Any) -> None:
    if any(type(value) not in (int, float, bool, complex) for value in values):
        raise TypeError("not a number")


def _numeric(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def apply(left: Any, right: Any) -> Any:
        _require_numbers(left, right)
        return function(left, right)

    return apply


def _add(left: Any, right: Any) -> Any:
    if type(left) is type(right) and type(left) in (str, list, tuple, bytes):
        return left + right
    return _numeric(operator.add)(left, right)


def _multiply(left: Any, right: Any) -> Any:
    for sequence, times in ((left, right), (right, left)):
        if type(sequence) in (str, list, tuple) and type(times) is int:
            if len(sequence) * times > _MAX_REPEATED:
                raise ValueError("too long")
            return sequence * times
    return _numeric(operator.mul)(left, right)


def _power(left: Any, right: Any) -> Any:
    _require_numbers(left, right)
    if isinstance(left, int) and isinstance(right, int) and abs(right) * max(1, left.bit_length()) > _MAX_POWER_BITS:
        raise ValueError("too large")
    return left**right


def _hashed(kind: type) -> Callable[..., Any]:
    def make(items: Any = ()) -> Any:
        listed = list(items)
        plain.Decoder().count_hashes(listed)
        return kind(listed)

    return make


def _parsed(kind: type) -> Callable[[Any], Any]:
    def make(value: Any) -> Any:
        if type(value) not in (int, float, bool, str) or (type(value) is str and len(value) > _MAX_NUMBER_CHARS):
            raise ValueError("not a number")
        return kind(value)

    return make


def _round(value: Any, digits: Any = None) -> Any:
    _require_numbers(value)
    if digits is None:
        return round(value)
    if type(digits) is not int or abs(digits) > _MAX_ROUND_DIGITS:
        raise ValueError("too many digits")
    return round(value, digits)


def _sum(items: Any) -> Any:
    _require_numbers(*items)
    return sum(items)


def _isclose(left: Any, right: Any, **tolerances: float) -> bool:
    _require_numbers(left, right)
    return math.isclose(left, right, **tolerances)


_FROM_ITEMS: dict[type, Callable[[list[Any]], Any]] = {ast.List: list, ast.Tuple: tuple, ast.Set: _hashed(set)}
_ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: _add,
    ast.Sub: _numeric(operator.sub),
    ast.Mult: _multiply,
    ast.Div: _numeric(operator.truediv),
    ast.FloorDiv: _numeric(operator.floordiv),
    ast.Mod: _numeric(operator.mod),
    ast.Pow: _power,
}
_COMPARISONS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda left, right: left in right,
    ast.NotIn: lambda left, right: left not in right,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs,
    "all": all,
    "any": any,
    "bool": bool,
    "float": _parsed(float),
    "frozenset": _hashed(frozenset),
    "int": _parsed(int),
    "len": len,
    "list": list,
    "math.isclose": _isclose,
    "max": max,
    "min": min,
    "round": _round,
    "set": _hashed(set),
    "sorted": sorted,
    "sum": _sum,
    "tuple": tuple,
}


def _function(node: ast.expr) -> Callable[..., Any] | None:
    return _FUNCTIONS.get(ast.unparse(node)) if isinstance(node, ast.Name | ast.Attribute) else None
