"""Whether scores put the right above the wrong: AUC, pairs within a group, correlation. Ties are never broken by order.

Shapes: N scored things (steps or responses).
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Hashable, Sequence
from itertools import pairwise


def auc(scores: Sequence[float], labels: Sequence[bool]) -> float | None:
    """Probability that a right one outscores a wrong one, a tie counting half (Mann-Whitney U / pairs), over [N] scores
    and labels. None unless there are both. Raises ValueError for a NaN or unequal lengths."""
    wins, ties, pairs = _compare(scores, labels)
    return (wins + ties / 2) / pairs if pairs else None


def pairwise_accuracy(
    scores: Sequence[float], labels: Sequence[bool], groups: Sequence[Hashable]
) -> tuple[float | None, int]:
    """(share of pairs of a right and a wrong one of the same group that are in order, number of pairs); a tie counts
    half; None if there is no pair. Unlike `auc`, nothing is gained by knowing which groups are hard."""
    members: dict[Hashable, list[int]] = defaultdict(list)
    for i, group in enumerate(groups):
        members[group].append(i)
    found = [_compare([scores[i] for i in index], [labels[i] for i in index]) for index in members.values()]
    wins, ties, pairs = (sum(column) for column in zip(*found, strict=True)) if found else (0, 0, 0)
    return ((wins + ties / 2) / pairs if pairs else None), pairs


def _compare(scores: Sequence[float], labels: Sequence[bool]) -> tuple[int, int, int]:
    """(pairs won by the right one, ties, all pairs), in O(N log N)."""
    if any(math.isnan(score) for score in scores):
        raise ValueError("a NaN has no rank")
    wrong = sorted(score for score, label in zip(scores, labels, strict=True) if not label)
    right = [score for score, label in zip(scores, labels, strict=True) if label]
    wins = sum(bisect_left(wrong, score) for score in right)
    ties = sum(bisect_right(wrong, score) - bisect_left(wrong, score) for score in right)
    return wins, ties, len(right) * len(wrong)


def ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1 [N], the smallest first; tied values share the mean of their ranks."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    starts = [k for k, i in enumerate(order) if k == 0 or values[i] != values[order[k - 1]]]
    out = [0.0] * len(values)
    for start, end in pairwise([*starts, len(order)]):
        for i in order[start:end]:
            out[i] = (start + 1 + end) / 2
    return out


def correlation(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Pearson's r. None where it is undefined: fewer than two values, or no spread on one side."""
    n = len(x)
    if n < 2 or len(set(x)) == 1 or len(set(y)) == 1:
        return None
    mean_x, mean_y = math.fsum(x) / n, math.fsum(y) / n
    covariance = math.fsum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    spread = math.sqrt(math.fsum((a - mean_x) ** 2 for a in x)) * math.sqrt(math.fsum((b - mean_y) ** 2 for b in y))
    return covariance / spread if spread else None


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Spearman's rho: Pearson's r of the ranks. None where that is undefined."""
    return correlation(ranks(x), ranks(y))
