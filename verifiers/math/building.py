"""Small constructors of the parser: what a sign, a power, a function or a base makes of a node."""

from __future__ import annotations

import re
from fractions import Fraction

from verifiers.math.syntax import (
    REALS,
    Builder,
    Node,
    Num,
    Op,
    Rel,
    Seq,
    Sym,
    Text,
    Unit,
    Unreadable,
    walk,
)

_MAX_BASE = 36
HEXADECIMAL = re.compile(r"[0-9A-F]+")
KNOWN_WORDS: dict[str, Node] = {
    "pi": Sym("pi"), "infty": Sym("oo"), "infinity": Sym("oo"), "inf": Sym("oo"), "oo": Sym("oo"),
    "theta": Sym("theta"), "alpha": Sym("alpha"), "beta": Sym("beta"), "lambda": Sym("lambda"), "phi": Sym("phi"),
}  # fmt: skip


def member_of(node: Node) -> Node:
    r"""x of '\{x \in \mathbb{R} | ...\}': reals are what a set holds if nothing else is said."""
    if isinstance(node, Rel) and node.ops == ("in",) and node.items[1] == REALS:
        return node.items[0]
    return node


def has_letters(node: Node) -> bool:
    return any(isinstance(n, Sym) for n in walk(node))


def negative(node: Node) -> Node:
    if isinstance(node, Num):
        return Num(-node.value, node.places)
    if isinstance(node, Unit):
        return Unit(negative(node.value), node.unit)
    if isinstance(node, Op) and node.name == "percent":
        return Op("percent", (negative(node.args[0]),))
    return Op("neg", (node,))


def times(left: Node, right: Node) -> Node:
    if isinstance(left, Unit) and isinstance(right, Num | Sym | Op):
        raise Unreadable("a factor after a unit")
    if isinstance(left, Op) and left.name == "mul":
        return Op("mul", (*left.args, right))
    return Op("mul", (left, right))


def raised(base: Node, exponent: Node) -> Node:
    if exponent == Text("deg"):
        return Unit(base, "deg")
    if isinstance(base, Seq | Builder):
        raise Unreadable("a power of a set or tuple")
    return Op("pow", (base, exponent))


def applied(name: str, arguments: tuple[Node, ...], base: Node | None) -> Node:
    name = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "arcsinh": "asinh", "arccosh": "acosh",
            "arctanh": "atanh", "sgn": "sign"}.get(name, name)  # fmt: skip
    if name == "log" and base is not None:
        return Op("log", (base, *arguments))
    if base is not None and name not in ("max", "min"):
        raise Unreadable(f"{name} with a subscript")
    if name in ("ln", "log"):
        return Op("ln", arguments)
    if name == "lg":
        return Op("log", (Num(Fraction(10)), *arguments))
    if name in ("gcd", "lcm", "max", "min", "det"):
        return Op(f"call:{name}" if name == "det" else name, arguments)
    if len(arguments) != 1:
        raise Unreadable(f"{name} takes one argument")
    return Op(name, arguments)


def in_base(digits: str, subscript: str) -> Node:
    whole, _, after = digits.replace(" ", "").partition(".")
    written = whole + after
    if subscript.isdigit() and 2 <= int(subscript[:4]) <= _MAX_BASE and HEXADECIMAL.fullmatch(written.upper()):
        base = int(subscript)
        if all(int(digit, 36) < base for digit in written):
            return Num(Fraction(int(written, base), base ** len(after)))
    raise Unreadable(f"'{digits}' is no number in base {subscript}")
