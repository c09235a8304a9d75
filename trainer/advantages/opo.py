"""OPO: the baseline is the mean reward of the group weighted by response length.

    A_i = R_i - sum_g(L R) / sum_g(L)

The variance-optimal baseline weighs each sample by the squared norm of its score function; the method takes the length
as a stand-in for it. It is meant for exactly on-policy training.

Paper: arXiv:2505.23585. Reference: volcengine/verl b178a3cd, `core_algos.py`, `compute_opo_outcome_advantage`. A group
of one has baseline 0, as there. L counts the tokens the policy wrote.

Shapes: N trajectories.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.advantages.base import (
    ADVANTAGES,
    AdvantageEstimator,
    AdvantageInputs,
    always,
    group_mean,
    group_sum,
    own_lengths,
    spread,
)
from verifiers.options import Options


class OpoOptions(Options):
    """None: the method has no parameter."""


def _compute(inputs: AdvantageInputs, options: OpoOptions) -> Tensor:
    reward_N, length_N = inputs.reward_N, own_lengths(inputs).double()
    total_N = group_sum(length_N, inputs.group_N).clamp(min=1)
    baseline_N = (group_sum(length_N * reward_N, inputs.group_N) / total_N).to(reward_N.dtype)
    _, size_N = group_mean(reward_N, inputs.group_N)
    return spread(reward_N - torch.where(size_N > 1, baseline_N, torch.zeros_like(baseline_N)), inputs)


ADVANTAGES.register("opo")(AdvantageEstimator(OpoOptions, _compute, compares_samples=always))
