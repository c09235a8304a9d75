"""GAE: generalised advantage estimation with a critic.

    delta_t = r_t + gamma V_{t+1} - V_t        A_t = delta_t + gamma lam A_{t+1}        return_t = A_t + V_t

V of what follows the last token is 0. Advantages are whitened over the batch's tokens; returns come from the
advantages before whitening.

Paper: arXiv:1506.02438, eq. 16. Reference: volcengine/verl b178a3cd, `core_algos.py`, `compute_gae_advantage_return`:
tool tokens are skipped, V and A reach across them. The older copy in PRIME-RL/PRIME 18ad596f does not skip, so values
at padding leak into real tokens; not reproduced.

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
    needed,
    own_tokens,
    token_rewards,
    trajectory_index,
    whiten,
)
from verifiers.options import Options


class GaeOptions(Options):
    """gamma: discount a token. lam: 1 trusts the rewards only, 0 the critic only. whiten: over the batch's tokens."""

    gamma: float = Field(default=1.0, ge=0, le=1)
    lam: float = Field(default=1.0, ge=0, le=1)
    whiten: bool = True


def gae(inputs: AdvantageInputs, options: GaeOptions) -> tuple[Tensor, Tensor]:
    """(advantage before whitening, return), both [R] and 0 outside the own tokens."""
    own_R = own_tokens(inputs)
    value = needed(inputs, "value_R")[own_R]
    index = trajectory_index(inputs.length_N)[own_R]
    next_value = torch.zeros_like(value)
    follows = index[1:] == index[:-1]
    next_value[:-1][follows] = value[1:][follows]
    delta_R = token_rewards(inputs).to(value.dtype)
    delta_R[own_R] += options.gamma * next_value - value
    advantage_R = discounted_to_go(delta_R, inputs, options.gamma * options.lam)
    return_R = advantage_R.clone()
    return_R[own_R] += value
    return advantage_R, return_R


def _compute(inputs: AdvantageInputs, options: GaeOptions) -> Tensor:
    advantage_R, _ = gae(inputs, options)
    return whiten(advantage_R, inputs) if options.whiten else advantage_R


def _returns(inputs: AdvantageInputs, options: GaeOptions) -> Tensor:
    return gae(inputs, options)[1]


ADVANTAGES.register("gae")(
    AdvantageEstimator(
        GaeOptions,
        _compute,
        _returns,
        needs=("value_R",),
        uses_token_reward=True,
        uses_rewards_to_go=True,
        teaches_from_flat_groups=always,
    )
)
