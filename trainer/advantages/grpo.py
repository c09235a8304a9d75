"""GRPO: a trajectory's advantage is its reward relative to the other samples of the same prompt.

    A_i = (R_i - mean_g) / (std_g + eps)

Paper: DeepSeekMath, arXiv:2402.03300, section 4.1. Reference: volcengine/verl b178a3cd, `core_algos.py`,
`compute_grpo_outcome_advantage` (std unbiased, eps 1e-6); TRL uses eps 1e-4. `normalize_std=false` is Dr.GRPO's
advantage (arXiv:2503.20783). A group of one: mean 0 and std 1 as in verl, so A = R (the loop never trains on such a
group unless the recipe turns the zero-variance filter off).

Shapes: N trajectories, R response tokens.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from trainer.advantages.base import ADVANTAGES, AdvantageEstimator, AdvantageInputs, group_mean
from verifiers.options import Options


class GrpoOptions(Options):
    """eps: added to the standard deviation. ddof: 1 divides the variance by n - 1, 0 by n."""

    normalize_std: bool = True
    eps: float = Field(default=1e-6, gt=0)
    ddof: int = Field(default=1, ge=0, le=1)


def grpo_advantage(reward_N: Tensor, group_N: Tensor, options: GrpoOptions) -> Tensor:
    """One advantage a trajectory [N]."""
    mean_N, size_N = group_mean(reward_N, group_N)
    single_N = size_N == 1
    centred_N = reward_N - torch.where(single_N, torch.zeros_like(mean_N), mean_N)
    if not options.normalize_std:
        return centred_N
    mean_square_N, _ = group_mean(centred_N**2, group_N)
    variance_N = mean_square_N * size_N / (size_N - options.ddof).clamp(min=1)
    std_N = torch.where(single_N, torch.ones_like(variance_N), variance_N.sqrt())
    return centred_N / (std_N + options.eps)


def _compute(inputs: AdvantageInputs, options: GrpoOptions) -> Tensor:
    return grpo_advantage(inputs.reward_N, inputs.group_N, options).repeat_interleave(inputs.length_N)


ADVANTAGES.register("grpo")(AdvantageEstimator(GrpoOptions, _compute))  # type: ignore[arg-type]
