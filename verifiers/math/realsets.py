"""Sets of real numbers in one canonical form: a sorted list of pieces with open and closed ends.

Intervals, unions, set builders, inequalities in one variable, chains, absolute values, points and 'or' all come down to
it, so that (2, oo), x > 2 and {x | 2 < x} are one thing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from verifiers.math.evaluate import Precise, Undefined, mp
from verifiers.math.scalars import constant
from verifiers.math.syntax import Builder, Node, Op, Rel, Seq, Sym, Unit, is_scalar, variables

_TOLERANCE = mp.mpf(10) ** -40
_MAX_PIECES = 50
_FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}


class Piece(NamedTuple):
    low: Any
    low_closed: bool
    high: Any
    high_closed: bool


Pieces = list[Piece]
_ALL = Piece(-mp.inf, False, mp.inf, False)


def pieces_of(node: Node) -> Pieces | None:
    """The pieces of a set of reals; None if `node` is none, or has parameters, or is beyond linear inequalities."""
    try:
        found = _pieces(node)
        return None if found is None else _normal(found)
    except Undefined:
        return None


def variable_of(node: Node) -> str | None:
    """The variable of an inequality, a membership or a set builder; None where the set stands alone."""
    if isinstance(node, Builder | Seq | Op | Rel):
        names = variables(node)
        return next(iter(names)) if len(names) == 1 else None
    return None


def is_set_like(node: Node) -> bool:
    """Whether the node can only be meant as a set of reals (a pair in round brackets may be a point)."""
    match node:
        case Seq("interval", _):
            return True
        case Seq("tuple", _, "[", "]"):
            return True
        case Op(("union" | "inter" | "minus"), _):
            return True
        case Builder():
            return True
        case Rel(_, ops):
            return any(op in ("<", ">", "<=", ">=", "in", "!=") for op in ops)
        case Seq("list", items):
            return all(is_set_like(item) or isinstance(item, Rel) for item in items) and any(map(is_set_like, items))
        case _:
            return False


def interval_of(node: Node) -> Seq | None:
    """'a <= x < b' or 'x < b' as an interval, whose ends may have parameters; an interval as itself."""
    match node:
        case Seq("interval", _) | Seq("tuple", (_, _), "(" | "[", ")" | "]"):
            return node
        case Rel((low, Sym(_), high), (("<" | "<=") as left, ("<" | "<=") as right)):
            return Seq("interval", (low, high), "[" if left == "<=" else "(", "]" if right == "<=" else ")")
        case Rel((Sym(_), bound), (("<" | "<=") as op,)):
            return Seq("interval", (Op("neg", (Sym("oo"),)), bound), "(", "]" if op == "<=" else ")")
        case Rel((Sym(_), bound), ((">" | ">=") as op,)):
            return Seq("interval", (bound, Sym("oo")), "[" if op == ">=" else "(", ")")
        case Rel((bound, Sym(_) as name), (op,)) if op in ("<", "<=", ">", ">="):
            return interval_of(Rel((name, bound), (_FLIPPED[op],)))
        case Builder(Sym(_), condition):
            return interval_of(condition)
    return None


def same_pieces(a: Pieces, b: Pieces) -> bool:
    return len(a) == len(b) and all(
        p.low_closed == q.low_closed
        and p.high_closed == q.high_closed
        and _close(p.low, q.low)
        and _close(p.high, q.high)
        for p, q in zip(a, b, strict=True)
    )


def _pieces(node: Node) -> Pieces | None:
    match node:
        case Seq("interval" | "tuple", (low, high), opening, closing):
            ends = _real(constant(low)), _real(constant(high))
            if ends[0] > ends[1] or (ends[0] == ends[1] and (opening, closing) != ("[", "]")):
                raise Undefined("no interval: nothing lies between its ends")
            return [Piece(ends[0], opening == "[", ends[1], closing == "]")]
        case Seq("set", items):
            return [_point(constant(item)) for item in items if is_scalar(item)] if all(map(is_scalar, items)) else None
        case Seq("list", items, _, _, joiner):
            return _joined(items, joiner)
        case Op("union", (a, b)):
            return _both(a, b, lambda p, q: p + q)
        case Op("inter", (a, b)):
            return _both(a, b, _intersection)
        case Op("minus", (a, b)):
            return _both(a, b, lambda p, q: _intersection(p, _complement(q)))
        case Builder(Sym(name), condition):
            if variables(condition) != {name}:
                return None
            return _pieces(condition)
        case Rel(items, ops):
            return _relation(items, ops)
        case Unit(value, _):
            return _pieces(value)
    return None


def _both(a: Node, b: Node, combine: Callable[[Pieces, Pieces], Pieces]) -> Pieces | None:
    left, right = _pieces(a), _pieces(b)
    return None if left is None or right is None else combine(left, right)


def _joined(items: Sequence[Node], joiner: str) -> Pieces | None:
    """'x < 0 or x > 1' is a union, 'x > 0 and x < 5' an intersection, 'k != 0, k != 1' too."""
    if len(items) > _MAX_PIECES:
        return None
    names = {variable_of(item) for item in items}
    if len(names - {None}) > 1:
        return None
    found = []
    for item in items:
        part = _pieces(item)
        if part is None:
            return None
        found.append(part)
    unequal = all(isinstance(item, Rel) and item.ops == ("!=",) for item in items)
    if joiner in ("and", "system") and all(isinstance(item, Rel) for item in items):
        unequal = unequal or not all(isinstance(item, Rel) and item.ops == ("=",) for item in items)
    first, *rest = items
    if joiner == "," and is_set_like(first) and all(isinstance(i, Rel) and i.ops in (("!=",), ("in",)) for i in rest):
        unequal = True  # 'x > 0, x != 1'
    result = found[0]
    for part in found[1:]:
        result = _intersection(result, part) if unequal else result + part
    return result


def _relation(items: Sequence[Node], ops: Sequence[str]) -> Pieces | None:
    result: Pieces = [_ALL]
    for left, op, right in zip(items, ops, items[1:], strict=False):
        part = _pieces(right) if op == "in" and isinstance(left, Sym) else _simple(left, op, right)
        if part is None:
            return None
        result = _intersection(_normal(result), _normal(part))
    return result


def _simple(left: Node, op: str, right: Node) -> Pieces | None:
    """left op right, linear in its one variable, or an absolute value of something linear against a constant."""
    if op not in _FLIPPED or not is_scalar(left) or not is_scalar(right):
        return None
    if isinstance(right, Op) and right.name == "abs" and not variables(left):
        left, op, right = right, _FLIPPED[op], left
    if isinstance(left, Op) and left.name == "abs" and not variables(right):
        return _absolute(left.args[0], op, constant(right))
    names = variables(left) | variables(right)
    if len(names) != 1:
        return None
    if isinstance(left, Sym) and not variables(right):
        return _ray(op, constant(right))
    if isinstance(right, Sym) and not variables(left):
        return _ray(_FLIPPED[op], constant(left))
    line = _line(Op("add", (left, Op("neg", (right,)))), next(iter(names)))
    if line is None:
        return None
    slope, offset = line
    return _ray(op if slope > 0 else _FLIPPED[op], -offset / slope)


def _line(node: Node, name: str) -> tuple[Any, Any] | None:
    """(slope, offset) of a function that is linear in `name`; None if it is not."""
    values = [Precise({name: mp.mpf(x)}).value(node) for x in (0, 1, 3, mp.mpf(17) / 7)]
    slope = values[1] - values[0]
    scale = max(map(abs, values)) + abs(slope)
    for x, value in ((3, values[2]), (mp.mpf(17) / 7, values[3])):
        if abs(values[0] + slope * x - value) > _TOLERANCE * scale:
            return None
    if mp.im(slope) != 0 or mp.im(values[0]) != 0 or abs(slope) <= _TOLERANCE * scale:
        return None
    return mp.re(slope), mp.re(values[0])


def _absolute(inside: Node, op: str, bound: Any) -> Pieces | None:
    names = variables(inside)
    if len(names) != 1 or mp.im(bound) != 0:
        return None
    line = _line(inside, next(iter(names)))
    if line is None or bound < 0:
        return None
    slope, offset = line
    ends = sorted([(bound - offset) / slope, (-bound - offset) / slope])
    if op in ("<", "<="):
        return [Piece(ends[0], op == "<=", ends[1], op == "<=")]
    if op == "=":
        return [_point(end) for end in ends]
    closed = op == ">="
    if op == "!=":
        return _complement([_point(end) for end in ends])
    return [Piece(-mp.inf, False, ends[0], closed), Piece(ends[1], closed, mp.inf, False)]


def _ray(op: str, bound: Any) -> Pieces:
    bound = _real(bound)
    if op == "=":
        return [_point(bound)]
    if op == "!=":
        return _complement([_point(bound)])
    if op in ("<", "<="):
        return [Piece(-mp.inf, False, bound, op == "<=")]
    return [Piece(bound, op == ">=", mp.inf, False)]


# ---- algebra of pieces -------------------------------------------


def _point(value: Any) -> Piece:
    return Piece(_real(value), True, _real(value), True)


def _real(value: Any) -> Any:
    if mp.im(value) != 0:
        raise Undefined("a complex number")
    return mp.re(value)


def _close(a: Any, b: Any) -> bool:
    if mp.isinf(a) or mp.isinf(b):
        return bool(a == b)
    return bool(abs(a - b) <= _TOLERANCE * max(1, abs(a), abs(b)))


def _normal(pieces: Pieces) -> Pieces:
    """Sorted, without empty pieces, overlapping and touching ones merged."""
    kept = []
    for low, low_closed, high, high_closed in pieces:
        if mp.im(low) != 0 or mp.im(high) != 0:
            raise Undefined("a complex end")
        low_closed, high_closed = low_closed and not mp.isinf(low), high_closed and not mp.isinf(high)
        if _close(low, high) and not mp.isinf(low):
            if low_closed and high_closed:
                kept.append(Piece(low, True, low, True))
        elif low < high:
            kept.append(Piece(low, low_closed, high, high_closed))
    kept.sort(key=lambda p: (p.low, not p.low_closed))
    merged: Pieces = []
    for piece in kept:
        last = merged[-1] if merged else None
        if last is not None and (
            piece.low < last.high or (_close(piece.low, last.high) and (piece.low_closed or last.high_closed))
        ):
            if _close(piece.high, last.high):
                merged[-1] = last._replace(high_closed=last.high_closed or piece.high_closed)
            elif piece.high > last.high:
                merged[-1] = last._replace(high=piece.high, high_closed=piece.high_closed)
            if _close(piece.low, last.low) and piece.low_closed:
                merged[-1] = merged[-1]._replace(low_closed=True)
        else:
            merged.append(piece)
    return merged


def _intersection(a: Pieces, b: Pieces) -> Pieces:
    if len(a) * len(b) > _MAX_PIECES**2:
        raise Undefined("too many pieces")
    return _normal([_common(p, q) for p in a for q in b])


def _common(p: Piece, q: Piece) -> Piece:
    if _close(p.low, q.low):
        low, low_closed = p.low, p.low_closed and q.low_closed
    else:
        low, low_closed = max((p.low, p.low_closed), (q.low, q.low_closed))
    if _close(p.high, q.high):
        high, high_closed = p.high, p.high_closed and q.high_closed
    else:
        high, high_closed = min((p.high, p.high_closed), (q.high, q.high_closed))
    return Piece(low, low_closed, high, high_closed)


def _complement(pieces: Pieces) -> Pieces:
    gaps: Pieces = []
    low, low_closed = -mp.inf, False
    for piece in _normal(pieces):
        gaps.append(Piece(low, low_closed, piece.low, not piece.low_closed))
        low, low_closed = piece.high, not piece.high_closed
    gaps.append(Piece(low, low_closed, mp.inf, False))
    return _normal(gaps)
