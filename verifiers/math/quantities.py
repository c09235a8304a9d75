"""What the words beside a value make of it: a quantity, a percentage, a time of day, or something else altogether."""

from __future__ import annotations

import re
from fractions import Fraction

from verifiers.math.syntax import (
    Clock,
    Node,
    Num,
    Op,
    Ratio,
    Rel,
    Seq,
    Unit,
    Unreadable,
    is_scalar,
)
from verifiers.math.vocabulary import LOADED_WORDS, SCALE_WORDS

_PERCENT_WORDS = frozenset(["percent", "pct", "percentage", "per cent", "percents"])
_DEGREE_WORDS = frozenset(["degrees", "degree", "deg"])
QUANTIFIERS = re.compile(r"(?:for|∀|where)?\s*(?:all|any|every|each|some)\b.*|(?:integers?|reals?)\b.*", re.IGNORECASE)
_WORD = re.compile(r"[A-Za-z]+(?:'[a-z]+)?")


def is_loaded(words: str) -> bool:
    return any(word.lower() in LOADED_WORDS for word in _WORD.findall(words))


def with_unit(node: Node, words: str) -> Node:
    lowered = words.lower().strip(" .:")
    if lowered in ("a.m", "am", "p.m", "pm") and isinstance(node, Ratio | Num):
        return _clock(node, afternoon=lowered.startswith("p"))
    if (
        not lowered
        or QUANTIFIERS.fullmatch(lowered)
        or lowered.startswith(("for all", "for any", "for every", "for each"))
    ):
        return node
    if lowered in ("radians", "radian", "rad"):
        return Unit(node, "rad")
    if is_loaded(lowered) or len(lowered) > 80:
        raise Unreadable(f"'{words}' changes what the value says")
    first = lowered.split()[0]
    if first in SCALE_WORDS and is_scalar(node):
        node = Op("mul", (node, Num(Fraction(SCALE_WORDS[first]))))
        lowered = lowered[len(first) :].strip()
        if not lowered:
            return node
    if lowered in _PERCENT_WORDS or lowered == "%":
        return Op("percent", (node,))
    if lowered in _DEGREE_WORDS:
        return Unit(node, "deg")
    if isinstance(node, Rel):  # x = 5 cm
        return Rel((*node.items[:-1], with_unit(node.items[-1], words)), node.ops)
    if not (is_scalar(node) or isinstance(node, Unit | Ratio | Seq)):
        raise Unreadable(f"words after what is no value: '{words}'")
    if isinstance(node, Unit):
        raise Unreadable(f"two units: {node.unit}, {words}")
    return Unit(node, lowered)


def _clock(node: Ratio | Num, *, afternoon: bool) -> Node:
    parts = node.parts if isinstance(node, Ratio) else (node,)
    values = [part.value for part in parts if isinstance(part, Num) and part.value.denominator == 1]
    if len(values) != len(parts) or len(values) > 3 or not 1 <= values[0] <= 12 or max(values[1:], default=0) >= 60:
        raise Unreadable("not a time of day")
    hours, minutes, seconds = (*map(int, values), 0, 0)[:3]
    return Clock(((hours % 12 + 12 * afternoon) * 60 + minutes) * 60 + seconds)
