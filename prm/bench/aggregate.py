"""Step scores -> one score of a response, in every way that is in use.

Source: RewardMATH (arXiv 2410.01729), `_calculate_final_reward`. All but min, max, mean and last read the scores as
probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# Where a float32 sigmoid saturates: nearest to 0 and 1 that logit and odds are taken.
EDGE = 1e-7


def _logit(p: float) -> float:
    p = min(max(p, EDGE), 1 - EDGE)
    return math.log(p / (1 - p))


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return math.fsum(values) / len(values)


def geometric_mean(scores: Sequence[float]) -> float:
    """The n-th root of the product, taken in logarithms: the product itself underflows for long responses."""
    return 0.0 if min(scores) == 0 else math.exp(_mean(math.log(p) for p in scores))


def mean_logit(scores: Sequence[float]) -> float:
    """sigmoid(mean of logits); scores of 0 and 1 count as `EDGE` and 1 - `EDGE`, where the reference gives NaN."""
    return _sigmoid(_mean(_logit(p) for p in scores))


def mean_odds(scores: Sequence[float]) -> float:
    """Mean of p / (1 - p), not a probability; a score of 1 counts as 1 - `EDGE`, where the reference gives infinity."""
    return _mean(p / (1 - min(p, 1 - EDGE)) for p in scores)


AGGREGATIONS: dict[str, Callable[[Sequence[float]], float]] = {
    "prod": math.prod,
    "geometric_mean": geometric_mean,
    "min": min,
    "max": max,
    "mean": _mean,
    "mean_logit": mean_logit,
    "mean_odds": mean_odds,
    "last": lambda scores: scores[-1],
}
OF_ANY_SCALE = ("min", "max", "mean", "last")


def aggregate(scores: Sequence[float] | Tensor, how: str) -> float:
    """One score from the step scores (a list or a tensor [S]), `how` one of `AGGREGATIONS`.

    Raises ValueError for no steps, for a score that is not finite, and for one outside 0..1 where it must be a
    probability; KeyError for an unknown `how`.
    """
    values = [float(score) for score in scores]
    function = AGGREGATIONS[how]
    if not values:
        raise ValueError("no step has a score: there is nothing to aggregate")
    if not all(map(math.isfinite, values)):
        raise ValueError(f"step scores must be finite, got {values}")
    if how not in OF_ANY_SCALE and not all(0 <= value <= 1 for value in values):
        raise ValueError(f"'{how}' needs probabilities, got {values}")
    return function(values)
