"""When are two equations or inequalities the same? Turned round, times a constant, or solved for a variable."""

from __future__ import annotations

from fractions import Fraction

from verifiers.math import scalars
from verifiers.math.syntax import (
    CONSTANTS,
    Node,
    Num,
    Op,
    Rel,
    Sym,
    is_scalar,
    substitute,
    variables,
)

FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!=", "~": "~"}


def reversed_relation(relation: Rel) -> Rel:
    ops = tuple(FLIPPED.get(op, op) for op in reversed(relation.ops))
    return relation if "in" in relation.ops else Rel(relation.items[::-1], ops)


def difference_of(relation: Rel) -> Node | None:
    left, right = relation.items
    if not (is_scalar(left) and is_scalar(right)):
        return None
    return Op("add", (left, Op("neg", (right,))))


def solves(explicit: Rel, other: Rel) -> bool:
    """Whether `explicit` is y = e(x) and `other` an equation that is linear in y and holds exactly then."""
    for label, value in (explicit.items, explicit.items[::-1]):
        if isinstance(label, Sym) and label.name not in CONSTANTS and label.name not in variables(value):
            difference = difference_of(other)
            if difference is None or label.name not in variables(difference):
                continue
            at = [substitute(difference, label.name, Num(Fraction(k))) for k in (0, 1, 2)]
            slope = Op("add", (at[1], Op("neg", (at[0],))))
            bend = Op("add", (at[2], at[0], Op("mul", (Num(Fraction(-2)), at[1]))))
            if scalars.is_zero(bend) and not scalars.is_zero(slope):
                return scalars.is_zero(substitute(difference, label.name, value))
    return False
