"""When are two expressions the same value? Exactly if both are rational; else to 60 digits, at random points if they
have variables.

Equality at two independent generic points to 45 digits is not a proof, but no pair of different expressions that a
person would write passes it. A difference that is tiny against the numbers on the way is computed again to twice the
digits: rounding noise shrinks, a true difference does not. So is what is huge: a pole does not come out the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

from verifiers.math.evaluate import DIGITS, Precise, Undefined, exact, mp
from verifiers.math.syntax import Node, Num, Op, Sym, Unit, variables, walk

_TOLERANCE = mp.mpf(10) ** -45
_SUSPICIOUS = mp.mpf(10) ** -15
_SHRINKS = mp.mpf(10) ** -30
_HUGE = mp.mpf(10) ** 30
_REPRODUCED = mp.mpf(10) ** -20
# A decimal answer for an exact gold must have at least this many significant digits.
FINE_DIGITS = 8
_INTEGER_NAMES = frozenset("nkmjN")


def equal(a: Node, b: Node) -> bool:
    """Whether two scalars have the same value for all values of their variables (taken as positive reals, and as any
    reals if an absolute value is involved). False if either has no value."""
    exact_a, exact_b = exact(a), exact(b)
    if exact_a is not None and exact_b is not None:
        return exact_a == exact_b
    infinite = _infinity(a), _infinity(b)
    if any(infinite):
        return infinite[0] == infinite[1]
    names = sorted(variables(a) | variables(b))
    if not names:
        return _equal_at(a, b, {}) is True
    decided: list[bool] = []
    for k in range(4):
        found = _equal_at(a, b, _point(names, k))
        if found is not None:
            decided.append(found)
        if len(decided) >= 2 and not all(decided):
            return _equal_at_integers(a, b, names)
    if len(decided) < 2:
        return False
    if any(isinstance(n, Op) and n.name in ("abs", "sign") for side in (a, b) for n in walk(side)):
        return all(_equal_at(a, b, _point(names, k, negative=True), only_real=True) in (True, None) for k in (5, 6))
    return True


def proportional(a: Node, b: Node, *, positive: bool) -> bool:
    """Whether a = c b with a constant c, not 0 (`positive`: above 0), and a is not identically 0."""
    names = sorted(variables(a) | variables(b))
    ratios: list[Any] = []
    for k in range(6):
        try:
            top, bottom = Precise(_point(names, k)), Precise(_point(names, k))
            value_a, value_b = top.value(a), bottom.value(b)
        except Undefined:
            continue
        if abs(value_a) <= _TOLERANCE * top.magnitude or abs(value_b) <= _TOLERANCE * bottom.magnitude:
            return False
        ratios.append(value_a / value_b)
        if len(ratios) == 3:
            break
    if len(ratios) < 3 or any(abs(r - ratios[0]) > _TOLERANCE * abs(ratios[0]) for r in ratios):
        return False
    return not positive or bool(mp.im(ratios[0]) == 0 < mp.re(ratios[0]))


def is_zero(node: Node) -> bool:
    return equal(node, Num(Fraction(0)))


def constant(node: Node) -> Any:
    """The value of a scalar without variables as an mpmath number, with infinities. Raises `Undefined`."""
    infinite = _infinity(node)
    if infinite:
        return mp.inf if infinite > 0 else -mp.inf
    if variables(node):
        raise Undefined("it has variables")
    return Precise().value(node)


def _infinity(node: Node) -> int:
    """1 for infinity, -1 for minus infinity, 0 for all else."""
    if node == Sym("oo"):
        return 1
    if isinstance(node, Op) and node.name == "neg":
        return -_infinity(node.args[0])
    if isinstance(node, Op) and node.name == "add" and len(node.args) == 1:
        return _infinity(node.args[0])
    return 0


# ---- points ------------------------------------------------------


@lru_cache(maxsize=4_096)
def _coordinate(name: str, index: int) -> Any:
    """A fixed generic number between 0.3 and 2.1."""
    digest = hashlib.sha256(f"{index}:{name}".encode(errors="surrogatepass")).digest()
    return mp.mpf(3) / 10 + mp.mpf(int.from_bytes(digest[:20], "big")) / 2**160 * mp.mpf("1.8")


def generic_point(names: Sequence[str]) -> dict[str, Any]:
    """One fixed value for each name."""
    return _point(names, 0)


def _point(names: Sequence[str], index: int, *, negative: bool = False) -> dict[str, Any]:
    point = {name: _coordinate(name, index) for name in names}
    if negative:
        for position, name in enumerate(names):
            if (position + index) % 2 or len(names) == 1:
                point[name] = -point[name]
    return point


def _equal_at(a: Node, b: Node, point: dict[str, Any], *, only_real: bool = False) -> bool | None:
    """None where either side has no value (or, `only_real`, leaves the real line)."""
    side_a, side_b = Precise(point), Precise(point)
    try:
        value_a, value_b = side_a.value(a), side_b.value(b)
    except Undefined:
        return None
    if only_real and not (side_a.real and side_b.real):
        return None
    difference = abs(value_a - value_b)
    magnitude = max(side_a.magnitude, side_b.magnitude)
    if difference > _TOLERANCE * magnitude:
        return False
    tiny = max(abs(value_a), abs(value_b)) <= _SUSPICIOUS * magnitude
    huge = magnitude > _HUGE
    if not tiny and not huge:
        return True
    with mp.workdps(2 * DIGITS):
        try:
            again_a, again_b = Precise(point).value(a), Precise(point).value(b)
        except Undefined:
            return None
        if huge and max(abs(again_a - value_a), abs(again_b - value_b)) > _REPRODUCED * magnitude:
            return None  # divided by rounding noise: pi / sin(pi), tan(pi / 2)
        return not tiny or bool(abs(again_a - again_b) <= _SHRINKS * difference)


def _equal_at_integers(a: Node, b: Node, names: Sequence[str]) -> bool:
    """(-1)^n and cos(n pi) agree at integers only; asked for only where such a thing stands."""
    if not set(names) <= _INTEGER_NAMES or not any(_wants_integers(n) for side in (a, b) for n in walk(side)):
        return False
    return all(
        _equal_at(a, b, {name: mp.mpf(n + 3 * position) for position, name in enumerate(names)}) is True
        for n in (1, 2, 3, 4, 7, 12, 19)
    )


def _wants_integers(node: Node) -> bool:
    if not isinstance(node, Op):
        return False
    if node.name == "pow":
        base = exact(node.args[0])
        return base is not None and base < 0
    return node.name in ("sin", "cos", "tan", "floor", "ceil", "fact", "binom")


# ---- decimals ----------------------------------------------------


def decimals(node: Node) -> int | None:
    """How many decimals a literal was written with, as a plain value (12.5% has three); None for all else."""
    match node:
        case Num(_, places):
            return places
        case Op("neg", (x,)) | Unit(x, _):
            return decimals(x)
        case Op("percent", (Num(_, int(places)),)):
            return 2 + places
        case Op("mul", (Num(_, int(places)), Op("pow", (Num(base), Num(exponent))))) if base == 10:
            return max(0, places - int(exponent))
        case _:
            return None


def rounds_to(gold: Node, answer: Node) -> bool:
    """Whether `gold` is a decimal of two or more significant digits and `answer` a more exact number that rounds to it.

    A terminating decimal with more places counts only if the gold has at least two decimals and three significant
    digits: 9.8696 is right for 9.87, but 0.52 is not right for 0.5, which may well be exact.
    """
    places = decimals(gold)
    target = exact(gold)
    if not places or target is None or _significant(target, places) < 2:
        return False
    more = decimals(answer)
    value = exact(answer)
    if more is not None or (value is not None and _terminates(value)):
        fine = places >= 2 and _significant(target, places) >= 3
        if value is None or not fine or (more is not None and more <= places):
            return False
    if value is None:
        try:
            precise = constant(answer)
        except Undefined:
            return False
        if not mp.isfinite(precise) or mp.im(precise) != 0 or abs(precise) > abs(int(target)) + 2:
            return False
        value = Fraction(int(mp.nint(mp.re(precise) * mp.mpf(10) ** (places + 20))), 10 ** (places + 20))
    return abs(value - target) <= Fraction(1, 2 * 10**places)


def approximates(gold: Node, answer: Node) -> bool:
    """Whether `answer` is a decimal of at least `FINE_DIGITS` significant digits to which the exact, not terminating
    `gold` rounds (or is cut)."""
    places = decimals(answer)
    value = exact(answer)
    if not places or value is None or decimals(gold) is not None:
        return False
    if _significant(value, places) < FINE_DIGITS:
        return False
    rational = exact(gold)
    if rational is not None and _terminates(rational):
        return False
    try:
        target = constant(gold)
    except Undefined:
        return False
    if not mp.isfinite(target) or mp.im(target) != 0:
        return False
    return bool(abs(mp.re(target) - mp.mpf(value.numerator) / value.denominator) < mp.mpf(10) ** -places)


def _significant(value: Fraction, places: int) -> int:
    """Significant digits of a decimal with that many places."""
    return len(str(abs(value.numerator * 10**places // value.denominator)).lstrip("0"))


def _terminates(value: Fraction) -> bool:
    """Whether the decimal expansion ends within a handful of digits, as a person would write it."""
    denominator = value.denominator
    for prime in (2, 5):
        while denominator % prime == 0:
            denominator //= prime
    return denominator == 1
