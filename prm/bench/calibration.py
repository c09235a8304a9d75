"""Whether a score of 0.8 is right four times in five. Scores are probabilities in 0..1.

Shapes: N scored steps.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence


def brier(scores: Sequence[float], labels: Sequence[bool]) -> float | None:
    """Mean squared difference of score and label over [N]; None for N = 0. Source: Brier 1950, for two classes."""
    _check(scores, labels)
    return (
        math.fsum((s - label) ** 2 for s, label in zip(scores, labels, strict=True)) / len(scores) if scores else None
    )


def brier_of_base_rate(labels: Sequence[bool]) -> float | None:
    """What the best constant score earns: p (1 - p) with p the share of right ones."""
    return brier([sum(labels) / len(labels)] * len(labels), labels) if labels else None


def expected_calibration_error(scores: Sequence[float], labels: Sequence[bool], *, bins: int = 10) -> float | None:
    """Mean over the steps of |share of right ones - mean score| of their bin; None for N = 0.

    bins: equal parts of 0..1; a score on a border falls into the upper bin, and 1 into the last. Source: Naeini et al.
    2015, Guo et al. 2017 (arXiv 1706.04599). The score of the best constant is 0: read it beside a ranking.
    """
    _check(scores, labels)
    found: dict[int, list[tuple[float, bool]]] = defaultdict(list)
    for score, label in zip(scores, labels, strict=True):
        found[min(int(score * bins), bins - 1)].append((score, label))
    gaps = (abs(math.fsum(label - score for score, label in members)) for members in found.values())
    return math.fsum(gaps) / len(scores) if scores else None


def _check(scores: Sequence[float], labels: Sequence[bool]) -> None:
    if len(scores) != len(labels):
        raise ValueError(f"{len(scores)} scores for {len(labels)} labels")
    if not all(0 <= score <= 1 for score in scores):
        raise ValueError("calibration needs probabilities in 0..1")
