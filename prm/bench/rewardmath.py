"""RewardMATH: one right solution among wrong ones. Source: arXiv 2410.01729, kimsh0507/RewardMATH_official.

With one right and nine wrong solutions a random score is accurate in 10% and has a reciprocal rank of 0.2929.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


def is_accurate(chosen: Sequence[float], rejected: Sequence[float], *, with_ties: bool = False) -> bool:
    """Whether every right solution scores above every wrong one; with_ties: or as high."""
    lowest, highest = min(chosen), max(rejected)
    return lowest >= highest if with_ties else lowest > highest


def rank_of_chosen(chosen: Sequence[float], rejected: Sequence[float]) -> int:
    """The rank, from 1, of the best right solution; wrong ones with its score stand before it."""
    best = max(chosen)
    return 1 + sum(score >= best for score in rejected)


def reciprocal_rank(chosen: Sequence[float], rejected: Sequence[float]) -> float:
    return 1 / rank_of_chosen(chosen, rejected)


def share_outranked(chosen: Sequence[float], rejected: Sequence[float]) -> float:
    """The reference's "rank": the share of all other solutions that stand behind the best right one, ties against
    it."""
    total = len(chosen) + len(rejected)
    return (total - rank_of_chosen(chosen, rejected)) / (total - 1)


def random_reciprocal_rank(solutions: int) -> float:
    """Expected for a random order: the mean of 1/1 .. 1/solutions."""
    return math.fsum(1 / rank for rank in range(1, solutions + 1)) / solutions


@dataclass(frozen=True, slots=True)
class RewardMathResult:
    """Over problems with one right solution each. random_*: what a random order is expected to earn on these."""

    problems: int
    accuracy: float
    accuracy_with_ties: float
    mrr: float
    random_accuracy: float
    random_mrr: float

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


def evaluate(problems: Sequence[tuple[float, Sequence[float]]]) -> RewardMathResult | None:
    """problems: (score of the right solution, scores of the wrong ones, at least one) each. None for no problem."""
    n = len(problems)
    if not n:
        return None
    return RewardMathResult(
        problems=n,
        accuracy=sum(is_accurate([right], wrong) for right, wrong in problems) / n,
        accuracy_with_ties=sum(is_accurate([right], wrong, with_ties=True) for right, wrong in problems) / n,
        mrr=math.fsum(reciprocal_rank([right], wrong) for right, wrong in problems) / n,
        random_accuracy=math.fsum(1 / (1 + len(wrong)) for _, wrong in problems) / n,
        random_mrr=math.fsum(random_reciprocal_rank(1 + len(wrong)) for _, wrong in problems) / n,
    )
