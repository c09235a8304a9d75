"""RLOO: the baseline of a sample is the mean reward of the *other* samples of its prompt.

    A_i = R_i - mean_{j != i} R_j = n / (n - 1) * (R_i - mean_g)

Paper: Ahmadian et al., arXiv:2402.14740. Reference: volcengine/verl b178a3cd, `core_algos.py`,
`compute_rloo_outcome_advantage` and `compute_rloo_vectorized_outcome_advantage`. The two disagree on a group of one: A
= R in the first, 0 in the second; here `singleton` chooses. The paper also puts the KL into the reward; that is the
objective's KL setting, not this file.

Shapes: N trajectories.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from trainer.advantages.base import ADVANTAGES, AdvantageEstimator, AdvantageInputs, always, group_mean, spread
from verifiers.options import Options


class RlooOptions(Options):
    """singleton: what a sample without others gets, its `reward` (unbiased, without a baseline) or `zero`."""

    singleton: Literal["reward", "zero"] = "reward"


def rloo_advantage(reward_N: Tensor, group_N: Tensor, options: RlooOptions) -> Tensor:
    """One advantage a trajectory [N]."""
    mean_N, size_N = group_mean(reward_N, group_N)
    left_out_N = (reward_N - mean_N) * size_N / (size_N - 1).clamp(min=1)
    alone_N = reward_N if options.singleton == "reward" else torch.zeros_like(reward_N)
    return torch.where(size_N > 1, left_out_N, alone_N)


def _compute(inputs: AdvantageInputs, options: RlooOptions) -> Tensor:
    return spread(rloo_advantage(inputs.reward_N, inputs.group_N, options), inputs)


ADVANTAGES.register("rloo")(AdvantageEstimator(RlooOptions, _compute, compares_samples=always))
