"""GRPO: a trajectory's advantage is its reward relative to the other samples of the same prompt.

    A_i = (R_i - mean_g) / (std_g + eps)

Paper: DeepSeekMath, arXiv:2402.03300, section 4.1. Reference: volcengine/verl b178a3cd, `core_algos.py`,
`compute_grpo_outcome_advantage` (std unbiased, eps 1e-6); TRL uses eps 1e-4. `normalize_std=false` is Dr.GRPO's
advantage (arXiv:2503.20783). A group of one: mean 0 and std 1 as in verl, so A = R (the loop never trains on such a
group unless the recipe turns the zero-variance filter off).

Shapes: N trajectories, R response tokens.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from trainer.advantages.base import (
    ADVANTAGES,
    AdvantageEstimator,
    AdvantageInputs,
    always,
    group_baseline,
    group_std,
    spread,
)
from verifiers.options import Options


class GrpoOptions(Options):
    """eps: added to the standard deviation. min_std: a smaller standard deviation counts as this, so that a group whose
    learned rewards hardly differ is not blown up. ddof: 1 divides the variance by n - 1, 0 by n."""

    normalize_std: bool = True
    eps: float = Field(default=1e-6, gt=0)
    min_std: float = Field(default=0.0, ge=0)
    ddof: int = Field(default=1, ge=0, le=1)


def grpo_advantage(reward_N: Tensor, group_N: Tensor, options: GrpoOptions) -> Tensor:
    """One advantage a trajectory [N]."""
    centred_N = reward_N - group_baseline(reward_N, group_N)
    if not options.normalize_std:
        return centred_N
    std_N = group_std(reward_N, group_N, options.ddof).clamp(min=options.min_std)
    return centred_N / (std_N + options.eps)


def _compute(inputs: AdvantageInputs, options: GrpoOptions) -> Tensor:
    return spread(grpo_advantage(inputs.reward_N, inputs.group_N, options), inputs)


ADVANTAGES.register("grpo")(AdvantageEstimator(GrpoOptions, _compute, compares_samples=always))
