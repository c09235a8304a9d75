"""One text for all spellings of an answer, so that a majority vote can count them."""

from __future__ import annotations

from typing import Any

from verifiers.math.evaluate import Precise, Undefined, exact, mp
from verifiers.math.names import reading
from verifiers.math.realsets import interval_of, is_set_like, pieces_of
from verifiers.math.scalars import generic_point
from verifiers.math.syntax import Matrix, Node, Ratio, Rel, Seq, Text, Unit, is_scalar, show, variables, written

_MAX_CHARS = 400
_DIGITS = 12


def canonical(form: Node | None, text: str) -> str:
    """Equal answers have equal texts in all but contrived cases: exact values as fractions, other constants to 12
    digits, expressions by their value at a fixed point. `text` where there is no form."""
    written = " ".join(text.split()) if form is None else _write(form)
    return written if len(written) <= _MAX_CHARS else written[:_MAX_CHARS]


def _write(node: Node) -> str:
    if (ends := interval_of(node)) is not None:
        return ends.opening + ", ".join(map(_write, ends.items)) + ends.closing
    if is_set_like(node) and (pieces := pieces_of(node)) is not None:
        return " U ".join(
            f"{'[' if low_closed else '('}{_number(low)}, {_number(high)}{']' if high_closed else ')'}"
            for low, low_closed, high, high_closed in pieces
        )
    if is_scalar(node):
        return _scalar(node)
    match node:
        case Text(words):
            return words.casefold()
        case Unit(value, unit):
            return f"{_write(value)} deg" if unit == "deg" else _write(value)
        case Rel():
            names, value = reading(node) or ((), None)
            return _write(value) if names and value is not None and value not in names else show(node)
        case Seq("list" | "set", items):
            return "{" + ", ".join(sorted(map(_write, items))) + "}"
        case Seq(_, items, opening, closing):
            return opening + ", ".join(map(_write, items)) + closing
        case Matrix(rows) if len(rows) == 1 or len(rows[0]) == 1:
            return "(" + ", ".join(_write(entry) for row in rows for entry in row) + ")"
        case Matrix(rows):
            return "[" + "; ".join(", ".join(map(_write, row)) for row in rows) + "]"
        case Ratio(parts):
            return ":".join(map(_write, parts))
    return show(node)


def _scalar(node: Node) -> str:
    value = exact(node)
    if value is not None:
        return written(value)
    try:
        names = sorted(variables(node))
        number = _number(Precise(generic_point(names)).value(node))
    except Undefined:
        return show(node)
    return f"[{' '.join(names)}] {number}" if names else number


def _number(value: Any) -> str:
    if mp.isinf(value):
        return "oo" if value > 0 else "-oo"
    return str(mp.nstr(value, _DIGITS))
