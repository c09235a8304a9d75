"""Units beside a value: which are the same, which convert into each other, which contradict."""

from __future__ import annotations

import re
from fractions import Fraction

_TABLE = {
    "length": {"mm": "1/1000", "cm": "1/100", "dm": "1/10", "m": "1", "km": "1000", "in": "127/5000",
               "ft": "381/1250", "yd": "1143/1250", "mi": "201168/125"},
    "mass": {"mg": "1/1000", "g": "1", "kg": "1000", "ton": "1000000"},
    "time": {"ms": "1/1000", "s": "1", "min": "60", "h": "3600", "day": "86400", "week": "604800"},
    "volume": {"ml": "1", "l": "1000"},
    "money": {"cent": "1/100", "dollar": "1"},
}  # fmt: skip
_UNITS = {unit: (kind, Fraction(scale)) for kind, row in _TABLE.items() for unit, scale in row.items()}
_ALIASES = {
    "meter": "m", "metre": "m", "centimeter": "cm", "centimetre": "cm", "millimeter": "mm", "millimetre": "mm",
    "kilometer": "km", "kilometre": "km", "inch": "in", "inche": "in", "foot": "ft", "feet": "ft", "yard": "yd",
    "mile": "mi", "gram": "g", "kilogram": "kg", "milligram": "mg", "tonne": "ton", "second": "s", "sec": "s",
    "minute": "min", "mins": "min", "hour": "h", "hr": "h", "litre": "l", "liter": "l", "millilitre": "ml",
    "milliliter": "ml", "usd": "dollar", "buck": "dollar", "¢": "cent",
}  # fmt: skip
_NOT_A_UNIT = re.compile(r"[^a-z0-9/^*]+")
_POWER = re.compile(
    r"(?P<word>square|sq|cubic|cu)?(?P<base>[a-z]+?)(?:\^\{?(?P<digit>[23])\}?|(?P<after>squared|cubed))?"
)
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3, "squared": 2, "cubed": 3, "2": 2, "3": 3}


def normal(unit: str) -> str:
    """Lower case, singular, abbreviated where an abbreviation is known; 'square inches' as 'in^2'."""
    unit = _NOT_A_UNIT.sub("", unit.lower())
    match = _POWER.fullmatch(unit)
    if match is None:
        return unit
    power = _POWERS.get(match["word"] or match["digit"] or match["after"] or "", 1)
    return _singular(match["base"]) + (f"^{power}" if power > 1 else "")


def factor(gold_unit: str, answer_unit: str) -> Fraction | None:
    """By how much an answer in `answer_unit` is to be multiplied to be in `gold_unit`; 1 if either is not known (it is
    then a noun, not a scale); None if they measure different things."""
    gold, gold_power = _split(normal(gold_unit))
    answer, answer_power = _split(normal(answer_unit))
    known = gold in _UNITS and answer in _UNITS
    if (known or gold == answer) and gold_power != answer_power:
        return None
    if gold == answer or not known:
        return Fraction(1)
    (gold_kind, gold_scale), (answer_kind, answer_scale) = _UNITS[gold], _UNITS[answer]
    return (answer_scale / gold_scale) ** gold_power if gold_kind == answer_kind else None


def _split(unit: str) -> tuple[str, int]:
    base, _, power = unit.partition("^")
    return base, int(power) if power in ("2", "3") else 1


def _singular(unit: str) -> str:
    unit = _ALIASES.get(unit, unit)
    if unit not in _UNITS and unit.endswith("s"):
        unit = _ALIASES.get(unit[:-1], unit[:-1])
    return unit
