"""Rewards to go against the mean of the group's: process rewards without a critic.

    G_t = r_t + gamma G_{t+1}        A_t = (G_t - mean_g G) [/ (std_g G + eps)]        mean, std over the group's tokens

r_t is the dense reward plus the outcome at the last token. Each token answers for what came after it; that is the
gradient of the expected sum only if r_t depends on nothing after t (Delta's does: docs/methods/clip_delta.md).

Definition: ours; the returns are REINFORCE's, the normalisation GRPO's with outcomes replaced by returns. With outcomes
only the mean is that of responses weighted by length (OPO's). A group of one has mean 0 and std 1, as in GRPO.

Shapes: N trajectories; R response tokens.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from trainer.advantages.base import (
    ADVANTAGES,
    AdvantageEstimator,
    AdvantageInputs,
    always,
    discounted_to_go,
    group_mean,
    group_std,
    own_tokens,
    spread,
    token_rewards,
    trajectory_index,
)
from verifiers.options import Options


class ReturnsToGoOptions(Options):
    """gamma: discount a token. eps: added to the (population) standard deviation."""

    gamma: float = Field(default=1.0, ge=0, le=1)
    normalize_std: bool = True
    eps: float = Field(default=1e-6, gt=0)


def _compute(inputs: AdvantageInputs, options: ReturnsToGoOptions) -> Tensor:
    own_R = own_tokens(inputs)
    return_R = discounted_to_go(token_rewards(inputs), inputs, options.gamma)
    group_R = inputs.group_N[trajectory_index(inputs.length_N)]
    mean, scale = torch.zeros_like(return_R), torch.ones_like(return_R)
    if bool(own_R.any()):
        mean[own_R], _ = group_mean(return_R[own_R], group_R[own_R])
        if options.normalize_std:
            scale[own_R] = group_std(return_R[own_R], group_R[own_R], 0) + options.eps
    _, size_N = group_mean(torch.ones_like(inputs.reward_N), inputs.group_N)
    compared_R = spread(size_N, inputs) > 1
    return torch.where(compared_R, (return_R - mean) / scale, return_R)


ADVANTAGES.register("returns_to_go")(
    AdvantageEstimator(
        ReturnsToGoOptions, _compute, uses_token_reward=True, uses_rewards_to_go=True, compares_samples=always
    )
)
