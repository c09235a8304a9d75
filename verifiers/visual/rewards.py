"""Visual-RFT's rewards as functions of numbers, and how parts become a score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import Field, model_validator

from verifiers.options import Options as BaseOptions


class Weights(BaseOptions):
    """Base of the weights of a kind: not negative, not all zero."""

    @model_validator(mode="after")
    def _some_weight(self) -> Weights:
        if not sum(self.model_dump().values()) > 0:
            raise ValueError("at least one weight must be above 0")
        return self


def weight(default: float = 1.0) -> float:
    return Field(default=default, ge=0, allow_inf_nan=False)


def weighted(parts: Mapping[str, float], weights: Weights) -> float:
    """Weighted mean of the parts, in [0, 1] as they are. A weight whose part does not exist takes no share; 0.0 if no
    part has a weight."""
    shares = {name: getattr(weights, name) for name in parts}
    total = sum(shares.values())
    return min(1.0, sum(shares[name] * value for name, value in parts.items()) / total) if total else 0.0


def iou_reward(matched_ious: Sequence[float], num_predictions: int, num_golds: int) -> float:
    """``sum of matched IoU / max(predictions, golds)``; 1 if there is nothing to find and nothing was found."""
    if not num_predictions and not num_golds:
        return 1.0
    return min(1.0, sum(matched_ious) / max(num_predictions, num_golds))


def confidence_reward(hits: Sequence[float], misses: Sequence[float], num_golds: int) -> float:
    """Mean over predictions of c for a matched one and 1 - c for another, c being its stated confidence in [0, 1].

    Without predictions: 1 if there is nothing to find, else 0."""
    if not hits and not misses:
        return float(not num_golds)
    return min(1.0, (sum(hits) + sum(1 - c for c in misses)) / (len(hits) + len(misses)))


def guarded_confidence_reward(hits: Sequence[float], misses: Sequence[float], num_golds: int) -> float:
    """The smallest `confidence_reward` that is left when any of the misses are taken away from the answer.

    So a spurious box never raises it, while in `confidence_reward` every box that is wrong and says so adds 1 - c."""
    mean = confidence_reward(hits, (), num_golds)
    if not mean:
        return 0.0
    total, count = sum(hits), len(hits)
    for value in sorted(1 - c for c in misses):
        if value >= mean:
            break
        total, count = total + value, count + 1
        mean = total / count
    return mean
