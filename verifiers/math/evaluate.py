"""The value of an expression: exactly as a fraction where that is cheap, else to 60 digits at chosen points.

Two evaluators over the same tree: `exact` (rationals only) and `Precise` (mpmath). Unknown functions become fixed
generic functions of their arguments, so f(x+1) equals f(1+x) and not f(x). Nothing here uses `eval`, and every size is
bounded before it is computed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from itertools import islice
from typing import Any

from mpmath.ctx_mp import MPContext

from verifiers.math.syntax import Matrix, Node, Num, Op, Seq, Sym, Unit, walk

DIGITS = 60
MAX_EXACT_BITS = 60_000
MAX_EXACT_FACTORIAL = 1_000
MAX_NODES = 600  # evaluated to `DIGITS` digits, again and again
MAX_LOG2 = 1e9  # of a result that is computed at all
MAX_FACTORIAL = 10**9

_NOWHERE: Mapping[str, Any] = {}

mp = MPContext()
mp.dps = DIGITS
Numeric = Any  # an mpmath number


class Undefined(Exception):
    """No finite value: division by zero, infinity minus infinity, too large to compute."""


# ---- exact -------------------------------------------------------


def exact(node: Node) -> Fraction | None:
    """The rational value of `node`; None if it is not rational, not known to be, undefined, or too large."""
    match node:
        case Num(value):
            return value
        case Op("neg", (x,)):
            value = exact(x)
            return None if value is None else -value
        case Op("percent", (x,)):
            value = exact(x)
            return None if value is None else value / 100
        case Op(("add" | "mul" | "div" | "pow" | "fact" | "binom" | "abs" | "floor" | "ceil" | "root" | "max" | "min" |
                 "gcd" | "lcm") as name, args):  # fmt: skip
            values = []
            for arg in args:
                value = exact(arg)
                if value is None:
                    return None
                values.append(value)
            return _EXACT[name](*values)
        case _:
            return None


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _exact_sum(*values: Fraction) -> Fraction | None:
    total = Fraction(0)
    for value in values:
        total += value
        if _bits(total) > MAX_EXACT_BITS:
            return None
    return total


def _exact_product(*values: Fraction) -> Fraction | None:
    product = Fraction(1)
    for value in values:
        if _bits(product) + _bits(value) > MAX_EXACT_BITS:
            return None
        product *= value
    return product


def _exact_quotient(top: Fraction, bottom: Fraction) -> Fraction | None:
    if not bottom or _bits(top) + _bits(bottom) > 2 * MAX_EXACT_BITS:
        return None
    return top / bottom


def _exact_power(base: Fraction, exponent: Fraction) -> Fraction | None:
    if exponent.denominator != 1:
        return _exact_root(_exact_power(base, Fraction(exponent.numerator)), Fraction(exponent.denominator))
    n = exponent.numerator
    if base in (0, 1, -1):
        if base == 0:
            return None if n <= 0 else base
        return Fraction(1) if base == 1 or n % 2 == 0 else base
    if abs(n) * _bits(base) > MAX_EXACT_BITS:
        return None
    return base**n


def _exact_root(value: Fraction | None, degree: Fraction) -> Fraction | None:
    """Exact only if the root is rational."""
    if value is None or degree.denominator != 1 or not 1 <= degree.numerator <= 64 or value < 0 or _bits(value) > 4_000:
        return None
    top = _integer_root(value.numerator, degree.numerator)
    bottom = _integer_root(value.denominator, degree.numerator)
    return None if top is None or bottom is None else Fraction(top, bottom)


def _integer_root(value: int, degree: int) -> int | None:
    if degree == 2:
        root = math.isqrt(value)
    elif value.bit_length() <= 1_000:
        root = int(mp.nint(mp.root(value, degree))) if value.bit_length() < 180 else _newton_root(value, degree)
    else:
        return None
    return root if root**degree == value else None


def _newton_root(value: int, degree: int) -> int:
    root = 1 << -(-value.bit_length() // degree)
    while True:
        better = ((degree - 1) * root + value // root ** (degree - 1)) // degree
        if better >= root:
            return root
        root = better


def _exact_factorial(n: Fraction) -> Fraction | None:
    if n.denominator != 1 or not 0 <= n.numerator <= MAX_EXACT_FACTORIAL:
        return None
    return Fraction(math.factorial(n.numerator))


def _exact_binomial(n: Fraction, k: Fraction) -> Fraction | None:
    if n.denominator != 1 or k.denominator != 1 or not 0 <= n.numerator <= MAX_EXACT_FACTORIAL or k < 0:
        return None
    return Fraction(math.comb(n.numerator, k.numerator))


def _exact_gcd(*values: Fraction) -> Fraction | None:
    return Fraction(math.gcd(*(v.numerator for v in values))) if all(v.denominator == 1 for v in values) else None


def _exact_lcm(*values: Fraction) -> Fraction | None:
    if any(v.denominator != 1 for v in values) or sum(map(_bits, values)) > MAX_EXACT_BITS:
        return None
    return Fraction(math.lcm(*(v.numerator for v in values)))


_EXACT: dict[str, Callable[..., Fraction | None]] = {
    "add": _exact_sum, "mul": _exact_product, "div": _exact_quotient, "pow": _exact_power, "fact": _exact_factorial,
    "binom": _exact_binomial, "abs": lambda x: abs(x), "floor": lambda x: Fraction(math.floor(x)),
    "ceil": lambda x: Fraction(math.ceil(x)), "root": _exact_root, "max": lambda *v: max(v), "min": lambda *v: min(v),
    "gcd": _exact_gcd, "lcm": _exact_lcm,
}  # fmt: skip


# ---- precise -----------------------------------------------------


class Precise:
    """Evaluates at one point to `DIGITS` digits. magnitude: the largest absolute value met on the way, against which a
    difference is rounding noise or not. real: no value on the way left the real line."""

    def __init__(self, point: Mapping[str, Numeric] = _NOWHERE):
        self.point = point
        self.magnitude: Numeric = mp.mpf(0)
        self.real = True

    def value(self, node: Node) -> Numeric:
        """Raises `Undefined`."""
        if any(True for _ in islice(walk(node), MAX_NODES, None)):
            raise Undefined(f"more than {MAX_NODES} operations and values")
        try:
            result = self._value(node)
        except (ZeroDivisionError, OverflowError, ValueError, TypeError, KeyError, mp.NoConvergence) as error:
            raise Undefined(str(error)) from error
        return result

    def _value(self, node: Node) -> Numeric:
        result = mp.convert(self._raw(node))
        if not mp.isfinite(result):
            raise Undefined("infinite")
        if isinstance(result, mp.mpc):
            if result.imag == 0:
                result = result.real
            else:
                self.real = False
        size = abs(result)
        if size > self.magnitude:
            self.magnitude = size
        return result

    def _raw(self, node: Node) -> Numeric:
        match node:
            case Num(value):
                return mp.mpf(value.numerator) / value.denominator
            case Sym(name):
                if name == "oo":
                    raise Undefined("infinity")
                if name == "pi":
                    return +mp.pi  # at the working precision, which `compare` may raise
                if name == "e":
                    return +mp.e
                return mp.mpc(0, 1) if name == "i" else self.point[name]
            case Op("add", args):
                return mp.fsum([self._value(a) for a in args])
            case Op("mul", args):
                return mp.fprod([self._value(a) for a in args])
            case Op("div", (top, bottom)):
                return self._value(top) / self._value(bottom)
            case Op("neg", (x,)):
                return -self._value(x)
            case Op("percent", (x,)):
                return self._value(x) / 100
            case Op("pow", (x, y)):
                return self._power(x, y)
            case Op("root", (x, degree)):
                return self._root(x, degree)
            case Op("fact", (x,)):
                return self._factorial(self._value(x))
            case Op("binom", (n, k)):
                top, bottom = self._value(n), self._value(k)
                if abs(top) > MAX_FACTORIAL or abs(bottom) > MAX_FACTORIAL:
                    raise Undefined("a binomial too large to compute")
                return mp.binomial(top, bottom)
            case Op("log", (base, x)):
                return mp.log(self._value(x)) / mp.log(self._value(base))
            case Op(("max" | "min") as name, args):
                values = [self._value(a) for a in args]
                return max(values) if name == "max" else min(values)
            case Op(name, (x,)) if name in _FUNCTIONS:
                return self._function(name, self._value(x))
            case Op(name, args) if name.startswith("call:") or name in ("gcd", "lcm", "arg"):
                return self._generic(name, args)
            case Unit(value, "deg"):
                return self._value(value) * mp.pi / 180
        raise Undefined(f"no value: {type(node).__name__}")

    def _power(self, x: Node, y: Node) -> Numeric:
        if x == Sym("e"):
            return self._function("exp", self._value(y))
        base, exponent = self._value(x), self._value(y)
        if base == 0:
            if not (isinstance(exponent, mp.mpf) and exponent > 0):
                raise Undefined("zero to a power that is not positive")
            return base
        if abs(exponent) > 2 and abs(exponent) * abs(mp.log(abs(base), 2)) > MAX_LOG2:
            raise Undefined("a power too large to compute")
        if abs(exponent) > 10**15:
            raise Undefined("an exponent too large to compute")
        if isinstance(exponent, mp.mpf) and exponent == int(exponent):
            return base ** int(exponent)
        return base**exponent

    def _root(self, x: Node, degree: Node) -> Numeric:
        value, n = self._value(x), self._value(degree)
        odd = isinstance(n, mp.mpf) and abs(n) < MAX_FACTORIAL and n == int(n) and int(n) % 2
        if isinstance(value, mp.mpf) and value < 0 and odd:
            return -mp.power(-value, 1 / n)  # the real root, as in school
        return mp.sqrt(value) if n == 2 else mp.power(value, 1 / n)

    def _factorial(self, value: Numeric) -> Numeric:
        if abs(value) > MAX_FACTORIAL:
            raise Undefined("a factorial too large to compute")
        return mp.factorial(value)

    def _function(self, name: str, value: Numeric) -> Numeric:
        if abs(value) > MAX_LOG2 and (name in ("exp", "sinh", "cosh", "tanh") or abs(value) > mp.mpf(10) ** 30):
            raise Undefined("an argument too large to compute")
        return _FUNCTIONS[name](value)

    def _generic(self, name: str, args: Sequence[Node]) -> Numeric:
        """An unknown function: a fixed generic combination of its arguments, symmetric for gcd and lcm."""
        values: list[Numeric] = []
        for arg in args:
            entries = [self._generic("entry", row) for row in arg.rows] if isinstance(arg, Matrix) else None
            if entries is None and isinstance(arg, Seq):
                entries = [self._value(item) for item in arg.items]
            values += [self._value(arg)] if entries is None else entries
        symmetric = name in ("gcd", "lcm")
        total = mp.mpf(0)
        for position, value in enumerate(values):
            weight = _weight(name, 0 if symmetric else position)
            total += weight * mp.sin(value + weight) if abs(value) < 10**30 else weight * value
        return total + _weight(name, len(values) + 17)


def _weight(name: str, position: int) -> Numeric:
    digest = hashlib.sha256(f"{name}/{position}".encode(errors="surrogatepass")).digest()
    return mp.mpf(int.from_bytes(digest[:8], "big") + 1) / 2**63


_FUNCTIONS: dict[str, Callable[[Numeric], Numeric]] = {
    "sin": mp.sin, "cos": mp.cos, "tan": mp.tan, "cot": mp.cot, "sec": mp.sec, "csc": mp.csc, "arcsin": mp.asin,
    "arccos": mp.acos, "arctan": mp.atan, "arccot": mp.acot, "arcsec": mp.asec, "arccsc": mp.acsc, "sinh": mp.sinh,
    "cosh": mp.cosh, "tanh": mp.tanh, "coth": mp.coth, "asinh": mp.asinh, "acosh": mp.acosh, "atanh": mp.atanh,
    "arcsinh": mp.asinh, "arccosh": mp.acosh, "arctanh": mp.atanh, "ln": mp.log, "exp": mp.exp, "abs": abs,
    "floor": mp.floor, "ceil": mp.ceil, "Re": mp.re, "Im": mp.im, "sign": mp.sign,
}  # fmt: skip
