"""Learning curves of metrics.jsonl as one SVG, without a plotting library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_WIDTH, _HEIGHT, _LEFT, _TOP, _GAP = 360, 150, 56, 34, 46
_COLUMNS = 2
_COLOUR, _BAND = "#4477aa", "#c6d6e8"
_TRAINING = (
    ("reward/mean", "mean reward"),
    ("policy/entropy", "entropy of the policy, nats a token"),
    ("response/length_mean", "response length, tokens"),
)


def metric_names(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(key, title) of what is drawn: every evaluation's mean accuracy, then how training went."""
    keys = {key for row in rows for key in row}
    evaluations = sorted(k for k in keys if k.split("/")[-1].startswith("avg@"))
    return [(k, f"held out: {k}") for k in evaluations] + [pair for pair in _TRAINING if pair[0] in keys]


def svg(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """A panel a metric, evaluations with their 95% intervals; None where there is nothing to draw."""
    names = metric_names(rows)
    if not names:
        return None
    panels = [_panel(rows, key, title, number) for number, (key, title) in enumerate(names)]
    width = _COLUMNS * (_WIDTH + _LEFT) + _GAP
    height = -(-len(names) // _COLUMNS) * (_HEIGHT + _TOP + _GAP)
    content = "\n".join(line for panel in panels for line in panel)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
        f'font-size="11">\n<rect width="100%" height="100%" fill="white"/>\n{content}\n</svg>\n'
    )


def _panel(rows: Sequence[Mapping[str, Any]], key: str, title: str, number: int) -> list[str]:
    points = [(row["step"], row[key], row.get(f"{key}/low"), row.get(f"{key}/high")) for row in rows
              if isinstance(row.get(key), int | float)]  # fmt: skip
    left = _LEFT + number % _COLUMNS * (_WIDTH + _LEFT)
    top = _TOP + number // _COLUMNS * (_HEIGHT + _TOP + _GAP)
    values = [v for point in points for v in point[1:] if v is not None]
    low, high = min(values), max(values)
    spread = high - low or abs(high) or 1.0
    low, high = low - 0.05 * spread, high + 0.05 * spread
    last = max(row["step"] for row in rows) or 1

    def x(step: float) -> float:
        return round(left + step / last * (_WIDTH - 20), 1)

    def y(value: float) -> float:
        return round(top + (high - value) / (high - low) * _HEIGHT, 1)

    lines = [f'<text x="{left}" y="{top - 10}" font-size="13">{escape(title)}</text>']
    for share in (0, 0.5, 1):
        value, step = low + share * (high - low), share * last
        lines += [
            f'<line x1="{left}" y1="{y(value)}" x2="{x(last)}" y2="{y(value)}" stroke="#dddddd"/>',
            f'<text x="{left - 4}" y="{y(value) + 4}" text-anchor="end">{value:.3g}</text>',
            f'<text x="{x(step)}" y="{top + _HEIGHT + 16}" text-anchor="middle">{step:g}</text>',
        ]
    bounds = [(s, l, h) for s, _, l, h in points if l is not None and h is not None]
    if bounds:
        border = [(x(s), y(h)) for s, _, h in bounds] + [(x(s), y(l)) for s, l, _ in reversed(bounds)]
        lines.append(f'<polygon points="{_points(border)}" fill="{_BAND}"/>')
    drawn = [(x(s), y(v)) for s, v, _, _ in points]
    lines.append(f'<polyline points="{_points(drawn)}" fill="none" stroke="{_COLOUR}" stroke-width="1.5"/>')
    if len(drawn) < 30:
        lines += [f'<circle cx="{a}" cy="{b}" r="2.5" fill="{_COLOUR}"/>' for a, b in drawn]
    return lines


def _points(pairs: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{a},{b}" for a, b in pairs)
