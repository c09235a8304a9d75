"""Agreement of verdicts with labels: rates with their intervals. Nothing here calls a verifier.

A verdict without a score (a fault, a time-out, an abstention) is *unjudged*: neither a yes nor a no, so it is in no
rate. It is counted on its own, and `agreement` counts it as a failure to agree, so that no verifier looks better by not
answering.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median

CONFIDENCE = 0.95
_Z = 1.959963984540054  # two-sided 95% quantile of the normal distribution


@dataclass(frozen=True, slots=True)
class Rate:
    """`hits` out of `total`, with a Wilson score interval. value, low and high are None if total is 0."""

    hits: int
    total: int

    @property
    def value(self) -> float | None:
        return self.hits / self.total if self.total else None

    @property
    def interval(self) -> tuple[float, float] | None:
        return wilson(self.hits, self.total) if self.total else None

    def as_dict(self) -> dict[str, float | int | None]:
        low, high = self.interval or (None, None)
        return {"hits": self.hits, "total": self.total, "value": self.value, "low": low, "high": high}


def wilson(hits: int, total: int) -> tuple[float, float]:
    """95% score interval of a binomial proportion (Wilson, JASA 22, 1927). Raises ValueError unless
    0 <= hits <= total and total > 0."""
    if not 0 <= hits <= total or total == 0:
        raise ValueError(f"{hits} of {total} is not a proportion")
    share = hits / total
    centre = share + _Z**2 / (2 * total)
    half = _Z * math.sqrt(share * (1 - share) / total + _Z**2 / (4 * total**2))
    scale = 1 + _Z**2 / total
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One labelled case and what a verifier said. right: None if it did not judge; status says why."""

    label: bool
    right: bool | None
    status: str


@dataclass(frozen=True, slots=True)
class Agreement:
    """Rates over the judged cases, and what was not judged.

    false_positives: accepted among those labelled wrong. false_negatives: refused among those labelled right. accuracy:
    agreeing among the judged. agreement: agreeing among all. unjudged: status -> number.
    """

    false_positives: Rate
    false_negatives: Rate
    accuracy: Rate
    agreement: Rate
    unjudged: dict[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, object]:
        return {
            "false_positive_rate": self.false_positives.as_dict(),
            "false_negative_rate": self.false_negatives.as_dict(),
            "accuracy": self.accuracy.as_dict(),
            "agreement": self.agreement.as_dict(),
            "unjudged": self.unjudged,
        }


def agreement(outcomes: Iterable[Outcome]) -> Agreement:
    outcomes = list(outcomes)
    judged = [outcome for outcome in outcomes if outcome.right is not None]
    negatives = [outcome for outcome in judged if not outcome.label]
    positives = [outcome for outcome in judged if outcome.label]
    agreeing = sum(outcome.right == outcome.label for outcome in judged)
    return Agreement(
        false_positives=Rate(sum(bool(outcome.right) for outcome in negatives), len(negatives)),
        false_negatives=Rate(sum(not outcome.right for outcome in positives), len(positives)),
        accuracy=Rate(agreeing, len(judged)),
        agreement=Rate(agreeing, len(outcomes)),
        unjudged=dict(Counter(outcome.status for outcome in outcomes if outcome.right is None)),
    )


def spread(values: list[float]) -> dict[str, float]:
    """Raises `statistics.StatisticsError` for no values."""
    return {"median": median(values), "min": min(values), "max": max(values)}
