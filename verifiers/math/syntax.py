"""The typed forms an answer can have. Plain immutable trees, built by `parser`, read by `evaluate` and `compare`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction


class Unreadable(Exception):
    """The text is not mathematics that this grammar covers, or it passes a limit. The message says why."""


class NotCovered(Unreadable):
    """A construct that this grammar leaves to the slow path, such as an integral."""


@dataclass(frozen=True, slots=True)
class Num:
    """An exact number. places: decimals it was written with, None if it was not written as a decimal."""

    value: Fraction
    places: int | None = None


@dataclass(frozen=True, slots=True)
class Sym:
    """A variable, or one of the constants pi, e, i, oo; with its subscript. `vec_i` is a unit vector."""

    name: str


@dataclass(frozen=True, slots=True)
class Op:
    """An operation: add mul div neg pow root fact binom abs floor ceil percent pm mp, log (base, argument), a function
    such as sin, or call:f for an unknown function f; on sets: union inter minus."""

    name: str
    args: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Unit:
    """A value with what stands beside it: a unit, a currency, a noun; `deg` for degrees."""

    value: Node
    unit: str


@dataclass(frozen=True, slots=True)
class Text:
    words: str


@dataclass(frozen=True, slots=True)
class Seq:
    """Several values. kind: list (no brackets, any order), tuple, set, interval. `opening` and `closing` are the
    brackets of tuples and intervals: '(0,1)' may be a pair or an open interval. joiner: how a list was joined (',',
    'and', 'or', 'system')."""

    kind: str
    items: tuple[Node, ...]
    opening: str = ""
    closing: str = ""
    joiner: str = ","


@dataclass(frozen=True, slots=True)
class Rel:
    """items[0] ops[0] items[1] ops[1] ...; ops are = < > <= >= != ~ in."""

    items: tuple[Node, ...]
    ops: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Builder:
    """A set {member | condition}."""

    member: Node
    condition: Node


@dataclass(frozen=True, slots=True)
class Matrix:
    rows: tuple[tuple[Node, ...], ...]


@dataclass(frozen=True, slots=True)
class Ratio:
    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Clock:
    """A time of day."""

    seconds: int


Node = Num | Sym | Op | Unit | Text | Seq | Rel | Builder | Matrix | Ratio | Clock

CONSTANTS = frozenset({"pi", "e", "i", "oo"})
EMPTY_SET = Seq("set", ())
REALS = Seq("interval", (Op("neg", (Sym("oo"),)), Sym("oo")), "(", ")")
ELLIPSIS = Sym("...")


def children(node: Node) -> tuple[Node, ...]:
    match node:
        case Op(_, args):
            return args
        case Unit(value, _):
            return (value,)
        case Seq(_, items) | Rel(items, _):
            return items
        case Builder(member, condition):
            return (member, condition)
        case Matrix(rows):
            return tuple(entry for row in rows for entry in row)
        case Ratio(parts):
            return parts
        case _:
            return ()


def map_children(node: Node, change: Callable[[Node], Node]) -> Node:
    """The node with `change` applied to each of its children."""
    match node:
        case Op(name, args):
            return Op(name, tuple(change(a) for a in args))
        case Unit(value, unit):
            return Unit(change(value), unit)
        case Seq(kind, items, opening, closing, joiner):
            return Seq(kind, tuple(change(i) for i in items), opening, closing, joiner)
        case Rel(items, ops):
            return Rel(tuple(change(i) for i in items), ops)
        case Ratio(parts):
            return Ratio(tuple(change(p) for p in parts))
        case Matrix(rows):
            return Matrix(tuple(tuple(change(e) for e in row) for row in rows))
        case Builder(member, condition):
            return Builder(change(member), change(condition))
        case _:
            return node


def substitute(node: Node, name: str, value: Node) -> Node:
    """The node with `value` for the symbol `name`."""
    if node == Sym(name):
        return value
    return map_children(node, lambda child: substitute(child, name, value))


def walk(node: Node) -> Iterator[Node]:
    stack = [node]
    while stack:
        current = stack.pop()
        yield current
        stack.extend(children(current))


def depth(node: Node) -> int:
    """Levels of the tree; 1 for a leaf."""
    level, count = [node], 0
    while level:
        count += 1
        level = [child for parent in level for child in children(parent)]
    return count


def variables(node: Node) -> frozenset[str]:
    """Names of the free symbols."""
    return frozenset(n.name for n in walk(node) if isinstance(n, Sym) and n.name not in CONSTANTS)


def is_scalar(node: Node) -> bool:
    """Whether the node stands for one number or expression."""
    return isinstance(node, Num | Sym | Op) and not (isinstance(node, Op) and node.name in ("union", "inter", "minus"))


def written(value: Fraction) -> str:
    """In hexadecimal if it has more decimal digits than Python prints."""
    try:
        return str(value)
    except ValueError:
        return f"{value.numerator:#x}/{value.denominator:#x}"


def show(node: Node) -> str:
    """The parsed form for a person to read."""
    match node:
        case Num(value):
            return written(value)
        case Sym(name):
            return name
        case Op("neg", (x,)):
            return f"-{show(x)}"
        case Op("percent", (x,)):
            return f"{show(x)}%"
        case Op(("add" | "mul" | "div" | "pow" | "pm" | "mp" | "union" | "inter" | "minus") as name, args):
            sign = {"add": " + ", "mul": "*", "div": "/", "pow": "^", "pm": " ± ", "mp": " ∓ ", "union": " ∪ ",
                    "inter": " ∩ ", "minus": " \\ "}[name]  # fmt: skip
            text = sign.join(map(show, args))
            return f"({text if len(args) > 1 else sign.strip() + text})"
        case Op(name, args):
            return f"{name.removeprefix('call:')}({', '.join(map(show, args))})"
        case Unit(value, unit):
            return f"{show(value)} [{unit}]"
        case Text(words):
            return f"'{words}'"
        case Seq("set", items):
            return f"{{{', '.join(map(show, items))}}}"
        case Seq("list", items, _, _, joiner):
            return f"list({joiner}: {'; '.join(map(show, items))})"
        case Seq(_, items, opening, closing):
            return f"{opening}{', '.join(map(show, items))}{closing}"
        case Rel(items, ops):
            text = show(items[0])
            for op, item in zip(ops, items[1:], strict=True):
                text += f" {op} {show(item)}"
            return text
        case Builder(member, condition):
            return f"{{{show(member)} | {show(condition)}}}"
        case Matrix(rows):
            return f"[{'; '.join(', '.join(map(show, row)) for row in rows)}]"
        case Ratio(parts):
            return " : ".join(map(show, parts))
        case Clock(seconds):
            return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
