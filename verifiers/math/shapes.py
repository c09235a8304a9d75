"""Questions about the shape of a form: its items, its unit, its text, what to call it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from verifiers.math import units
from verifiers.math.evaluate import exact
from verifiers.math.syntax import (
    CONSTANTS,
    EMPTY_SET,
    Builder,
    Clock,
    Matrix,
    Node,
    Num,
    Op,
    Ratio,
    Rel,
    Seq,
    Sym,
    Text,
    Unit,
    is_scalar,
    substitute,
    variables,
    walk,
)

_NOT_ALPHANUMERIC = re.compile(r"[\W_]+")
_ARTICLE = re.compile(r"^(?:an?|the)\s+(?=\w)")
_SAME_TEXT = {
    "nosolutions": "nosolution", "norealsolution": "nosolution", "norealsolutions": "nosolution",
    "therearenosolutions": "nosolution", "thereisnosolution": "nosolution", "nosuchnumber": "nosolution",
    "dne": "doesnotexist", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6",
    "seven": "7", "eight": "8", "nine": "9", "ten": "10", "eleven": "11", "twelve": "12",
}  # fmt: skip


def exact_or_none(node: Node) -> Fraction | None:
    return exact(node) if is_scalar(node) else None


def is_label(node: Node) -> bool:
    """Whether the node names a value: x, a_n, f(x), AB, |AB|, (x, y), a : b, sin A, x + y."""
    match node:
        case Sym(name):
            return name not in CONSTANTS and not name.startswith("vec_")
        case Op("add", args):
            return all(isinstance(a, Sym) and a.name not in CONSTANTS for a in args)
        case Op("mul", args):
            return (
                0 < len(args) <= 4
                and isinstance(args[0], Sym)
                and all(isinstance(a, Sym | Num) or is_label(a) for a in args)
            )
        case Op("div", args):
            return all(isinstance(a, Sym) and a.name not in CONSTANTS for a in args)
        case Op("abs", (Op("mul", args),)):
            return all(isinstance(a, Sym) and a.name.isupper() for a in args)
        case Op(("sin" | "cos" | "tan" | "max" | "min"), args):
            return all(is_label(a) for a in args)
        case Op(name, args) if name.startswith("call:"):
            return all(isinstance(a, Sym | Num | Op) for a in args)
        case Seq("tuple", items, "(", ")"):
            return all(is_label(i) for i in items)
        case Ratio(parts):
            return all(is_label(p) for p in parts)
        case Unit(value, _):
            return is_label(value)
        case _:
            return False


def items_of(node: Node) -> tuple[Node, ...]:
    if isinstance(node, Seq):
        if node.kind == "list" and node.items and _shares_name(node.items):
            name = node.items[0].items[0]  # type: ignore[union-attr]
            return tuple(item if isinstance(item, Rel) else Rel((name, item), ("=",)) for item in node.items)
        return node.items
    if isinstance(node, Matrix) and (len(node.rows) == 1 or len(node.rows[0]) == 1):
        return entries_of(node)
    if isinstance(node, Rel) and node.ops == ("=",) and isinstance(node.items[1], Seq) and is_label(node.items[0]):
        return node.items[1].items
    return (node,)


def _shares_name(items: Sequence[Node]) -> bool:
    """n = 1, 2, 3: the name stands once, before the first value."""
    first = items[0]
    return (
        isinstance(first, Rel) and first.ops == ("=",) and isinstance(first.items[0], Sym)
        and len(items) > 1 and not any(isinstance(item, Rel) for item in items[1:])
    )  # fmt: skip


def entries_of(matrix: Matrix) -> tuple[Node, ...]:
    return tuple(entry for row in matrix.rows for entry in row)


def as_tuple(node: Node, other: Node) -> tuple[Node, ...] | None:
    match node:
        case Seq("tuple" | "interval", items, "(", ")") | Seq("tuple", items):
            return items
        case Matrix(rows) if len(rows) == 1 or len(rows[0]) == 1:
            return entries_of(node)
        case Matrix(rows) if isinstance(other, Matrix):
            return None
        case Op() if any(name.startswith("vec_") for name in variables(node)):
            names = variables(node) | variables(other)
            axes = ("vec_i", "vec_j", "vec_k") if "vec_k" in names or _length(other) == 3 else ("vec_i", "vec_j")
            return tuple(_component(node, axis, axes) for axis in axes)
        case _:
            return None


def _length(node: Node) -> int:
    return len(items_of(node)) if isinstance(node, Seq | Matrix) else 0


def _component(node: Node, axis: str, axes: Sequence[str]) -> Node:
    for other in axes:
        node = substitute(node, other, Num(Fraction(int(other == axis))))
    return node


def split_unit(node: Node) -> tuple[Node, str | None]:
    if isinstance(node, Unit):
        return node.value, node.unit
    if isinstance(node, Rel) and isinstance(node.items[-1], Unit) and all(op in ("=", "~") for op in node.ops):
        return Rel((*node.items[:-1], node.items[-1].value), node.ops), node.items[-1].unit
    if isinstance(node, Seq) and node.kind == "list" and any(isinstance(item, Unit) for item in node.items):
        return Seq("list", tuple(split_unit(i)[0] for i in node.items), joiner=node.joiner), None
    return node, None


def without_unit_letters(node: Node, unit: str) -> Node | None:
    """5 of '5 m', which reads as a product of letters, when the gold's unit is m."""
    if not (isinstance(node, Op) and node.name == "mul"):
        return None
    letters = "".join(a.name for a in node.args if isinstance(a, Sym))
    rest = tuple(a for a in node.args if not isinstance(a, Sym) or a.name in ("pi",))
    letters = letters.replace("pi", "")
    if not rest or units.normal(letters) != units.normal(unit):
        return None
    return rest[0] if len(rest) == 1 else Op("mul", rest)


def is_kind(node: Node, kind: str) -> bool:
    return isinstance(node, Seq) and node.kind == kind


def is_ordered(node: Node) -> bool:
    """Whether the place of an item matters: a tuple or a vector."""
    return is_kind(node, "tuple") or isinstance(node, Matrix)


def has_ellipsis(items: Sequence[Node]) -> bool:
    return any(item == Sym("...") for item in items)


def has_pi(node: Node) -> bool:
    return any(n == Sym("pi") or (isinstance(n, Unit) and n.unit == "deg") for n in walk(node))


def is_undefined(node: Node) -> bool:
    """Whether a form says nothing: nan, infinity minus infinity, an ellipsis."""
    if node == Sym("...") or node == Seq("list", ()):
        return True
    return (
        isinstance(node, Op)
        and any(n == Sym("oo") for n in walk(node))
        and is_scalar(node)
        and not _signed_infinity(node)
    )


def _signed_infinity(node: Node) -> bool:
    return node == Sym("oo") or (isinstance(node, Op) and node.name == "neg" and node.args[0] == Sym("oo"))


def plain_text(node: Node) -> str:
    """Letters and digits of a text, or of a product of letters."""
    match node:
        case Text(words):
            plain = _NOT_ALPHANUMERIC.sub("", _ARTICLE.sub("", words.lower()))
            return _SAME_TEXT.get(plain, plain)
        case Sym(name):
            return name.lower()
        case Op("mul", args) if all(isinstance(a, Sym | Num) for a in args):
            return _SAME_TEXT.get("".join(plain_text(a) for a in args), "".join(plain_text(a) for a in args))
        case Seq("list", items):
            return ",".join(plain_text(item) for item in items)
        case Num(value):
            return str(value)
        case Unit(value, unit):
            return plain_text(value) + _NOT_ALPHANUMERIC.sub("", unit)
        case _:
            return "emptyset" if node == EMPTY_SET else ""


def numbers_in(words: str) -> list[Fraction]:
    return [
        Fraction(n.replace(",", "")) for n in re.findall(r"(?<![\w.])\d[\d,]{0,20}(?:\.\d{1,20})?(?![\w.]*\d)", words)
    ]


def spoken_values(node: Node) -> list[Fraction]:
    """The numbers of a list of quantities; [] if there is anything else in it."""
    values = []
    for item in items_of(node) if isinstance(node, Seq) and node.kind == "list" else ():
        value = exact_or_none(split_unit(item)[0])
        if value is None:
            return []
        values.append(value)
    return values


def kind_of(node: Node) -> str:
    match node:
        case Seq(kind):
            return f"a {kind}" if kind != "interval" else "an interval"
        case Rel(_, ops):
            return "an equation" if set(ops) <= {"=", "~"} else "an inequality"
        case Text():
            return "a text"
        case Matrix():
            return "a matrix"
        case Ratio():
            return "a ratio"
        case Clock():
            return "a time of day"
        case Builder():
            return "a set"
        case Unit():
            return "a quantity"
        case _:
            return "a value"
