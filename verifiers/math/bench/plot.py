"""report.svg: false positives and false negatives of each verifier as horizontal bars with 95% intervals."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

_WIDTH, _LEFT, _RIGHT, _TOP = 760, 130, 150, 64
_BAR, _GAP = 14, 20
_KINDS = (
    ("false_negative_rate", "FNR: right answers refused", "#4477aa"),
    ("false_positive_rate", "FPR: wrong answers accepted", "#cc6677"),
)


def svg(report: Mapping[str, Any]) -> str:
    """The plot of a report that `report.build` made."""
    results = {name: result["overall"] for name, result in report["verifiers"].items() if "overall" in result}
    largest = max((overall[kind]["high"] or 0.0 for overall in results.values() for kind, _, _ in _KINDS), default=0.0)
    limit = _nice_limit(largest)
    bottom = _TOP + len(results) * (2 * _BAR + _GAP)
    cases = report["header"]["cases"]["labelled"]
    parts = [_text(_LEFT, 22, f"Errors on {cases} labelled cases, with 95% intervals", size=15)]
    parts += _legend()
    parts += _axis(limit, bottom)
    for number, (name, overall) in enumerate(results.items()):
        y = _TOP + number * (2 * _BAR + _GAP)
        parts.append(_text(_LEFT - 10, y + _BAR + 5, name, anchor="end"))
        for row, (kind, _, colour) in enumerate(_KINDS):
            parts += _bar(overall[kind], y + row * _BAR, limit, colour)
    content = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{bottom + 36}" font-family="sans-serif" '
        f'font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n{content}\n</svg>\n'
    )


def _nice_limit(largest: float) -> float:
    """The smallest of some round shares that holds `largest`."""
    return next((limit for limit in (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8) if limit >= largest), 1.0)


def _x(share: float, limit: float) -> float:
    return round(_LEFT + share / limit * (_WIDTH - _LEFT - _RIGHT), 1)


def _text(x: float, y: float, text: str, *, size: int = 12, anchor: str = "start") -> str:
    return f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{colour}"/>'


def _legend() -> list[str]:
    parts = []
    for number, (_, label, colour) in enumerate(_KINDS):
        x = _LEFT + 230 * number
        parts += [f'<rect x="{x}" y="34" width="12" height="12" fill="{colour}"/>', _text(x + 18, 45, label)]
    return parts


def _axis(limit: float, bottom: int) -> list[str]:
    parts = []
    for step in range(6):
        share = limit * step / 5
        x = _x(share, limit)
        parts += [_line(x, _TOP - 6, x, bottom, "#dddddd"), _text(x, bottom + 16, f"{100 * share:g}%", anchor="middle")]
    return parts


def _bar(rate: Mapping[str, Any], y: float, limit: float, colour: str) -> list[str]:
    if rate["value"] is None:
        return [_text(_LEFT + 4, y + 11, "no such case", size=10)]
    end, low, high = (_x(rate[key], limit) for key in ("value", "low", "high"))
    middle = y + _BAR / 2
    return [
        f'<rect x="{_LEFT}" y="{y + 1}" width="{round(end - _LEFT, 1)}" height="{_BAR - 2}" fill="{colour}"/>',
        _line(low, middle, high, middle, "#222222"),
        _line(low, middle - 3, low, middle + 3, "#222222"),
        _line(high, middle - 3, high, middle + 3, "#222222"),
        _text(high + 6, y + 11, f"{100 * rate['value']:.1f}% ({rate['hits']} of {rate['total']})", size=10),
    ]
