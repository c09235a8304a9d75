"""StableReinforce: rewards to go, standardised over the batch's tokens; what is then far out is dropped.

    G_t = r_t + gamma G_{t+1}        a_t = (G_t - mean) / std        A_t = a_t where |a_t| <= sigmas, else 0

A few extreme advantages would otherwise set the step. The rest is not standardised again.

Paper: R1-Reward, arXiv:2505.02835. Reference: yfzhang114/r1_reward 3693413a, `NaiveReplayBuffer.normalize` (population
variance, which we keep). It compares the standardised values with *raw mean* +- 3: with a raw mean of 6 everything is
dropped, with 0.5 an outlier of 3.3 stays. We follow the paper. Its further cuts, |A| > 10 and non-finite values, are
not needed: the first is inside the filter, the second is an error here and not a zero.

Shapes: R response tokens.
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
    own_tokens,
    token_rewards,
)
from verifiers.options import Options


class StableReinforceOptions(Options):
    """gamma: discount a token. sigmas: how many standard deviations are kept."""

    gamma: float = Field(default=1.0, ge=0, le=1)
    sigmas: float = Field(default=3.0, gt=0)


def filter_advantages(advantage_R: Tensor, own_R: Tensor, sigmas: float) -> Tensor:
    """Standardise over the own tokens (population variance, at least 1e-8) and set what lies further out than `sigmas`
    to 0 [R]."""
    out_R = torch.zeros_like(advantage_R)
    if bool(own_R.any()):
        own = advantage_R[own_R].double()
        standard = (own - own.mean()) / own.var(correction=0).clamp(min=1e-8).sqrt()
        out_R[own_R] = torch.where(standard.abs() <= sigmas, standard, 0.0).to(advantage_R.dtype)
    return out_R


def _compute(inputs: AdvantageInputs, options: StableReinforceOptions) -> Tensor:
    return_R = discounted_to_go(token_rewards(inputs), inputs, options.gamma)
    return filter_advantages(return_R, own_tokens(inputs), options.sigmas)


ADVANTAGES.register("stable_reinforce")(
    AdvantageEstimator(
        StableReinforceOptions,
        _compute,
        uses_token_reward=True,
        uses_rewards_to_go=True,
        teaches_from_flat_groups=always,
    )
)
