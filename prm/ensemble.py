"""Several reward models as one: the mean, or something more careful where they disagree.

    mean = mean_k S        wco = min_k S        uwo = mean_k S - coef * var_k S

Members must be on one scale before a minimum or a variance of them means anything: standardise each on a fixed set.
wco scales with the scores, uwo's penalty with their square.

Papers: WCO and UWO, Coste et al., arXiv:2310.02743; BRME, arXiv:2409.15360. Reference: tlc4418/llm_optimization
416b03cc: its PPO path divides the variance by k - 1 and its best-of-n path by k, so the same coefficient means two
things; here `ddof` says which.

Shapes: K members or heads, B samples.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from verifiers.options import Options


class EnsembleOptions(Options):
    """coef: uwo's weight of the variance. ddof: 1 divides the variance by k - 1 (as in PPO there), 0 by k."""

    objective: Literal["mean", "wco", "uwo"] = "mean"
    coef: float = Field(default=0.1, ge=0)
    ddof: int = Field(default=1, ge=0, le=1)


def combine(score_KB: Tensor, options: EnsembleOptions) -> Tensor:
    """One score a sample [B]. A single member has variance 0 (the unbiased one would be NaN)."""
    mean_B = score_KB.mean(0)
    if options.objective == "mean" or len(score_KB) == 1:
        return mean_B
    if options.objective == "wco":
        return score_KB.min(0).values
    return mean_B - options.coef * score_KB.var(0, correction=options.ddof)


def brme(mean_KB: Tensor, sigma_KB: Tensor, alpha: float) -> Tensor:
    """Batch-wise reward-robust objective of heads that give a mean and a standard deviation each [B].

    alpha * (the mean of the sample's most certain head) + (1 - alpha) * (the mean of the one head whose average over
    the batch is lowest). One head for the whole batch: the minimum is of expectations, not of samples (that would be
    `wco` of the heads, which is never higher on average). So all samples of a step must come in one call. alpha=1 is
    the nominal reward.
    Which alpha is best is not settled: sources contradict each other about its direction.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha} is not in [0, 1]")
    nominal_B = mean_KB.gather(0, sigma_KB.argmin(0, keepdim=True))[0]
    worst_B = mean_KB[int(mean_KB.mean(1).argmin())]
    return alpha * nominal_B + (1 - alpha) * worst_B
